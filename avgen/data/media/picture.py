"""Decoded frames as RGB arrays: colours, rotation, scaling and cropping."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from avgen.data.media.source import display_size, orientation

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Fit = Literal["cover", "contain", "stretch"]
Chroma = Literal["full", "fast"]
Size = tuple[int, int]  # height, width

# H.273 matrix coefficients -> swscale's names for them
BT709, BT601, BT2020 = 1, 5, 9
MATRICES = {1: BT709, 4: 4, 5: BT601, 6: BT601, 7: 7, 9: BT2020, 10: BT2020}

GBR = (slice(1, 2), slice(2, 3), slice(0, 1))  # the order of FFmpeg's planes


class Renderer:
    """Turns decoded frames into (H, W, 3) uint8 RGB of one size; keeps swscale's tables between frames.

    `chroma="full"` interpolates colour between its samples (3 dB closer to the original through 4:2:0);
    `"fast"` repeats them, as most readers do, for a fraction of the time.
    """

    def __init__(self, size: tuple[int, int] | None, fit: Fit = "cover", chroma: Chroma = "full") -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        if size is not None and (min(size) < 1 or max(size) > 16_384):
            raise ValueError(f"size={size} must be (height, width) between 1 and 16384")
        if fit not in get_args(Fit):
            raise ValueError(f"fit={fit!r} must be one of {', '.join(get_args(Fit))}")
        if chroma not in get_args(Chroma):
            raise ValueError(f"chroma={chroma!r} must be one of {', '.join(get_args(Chroma))}")
        self.size = size
        self.fit = fit
        self.fast = chroma == "fast"
        self._scaler, self._painter = VideoReformatter(), VideoReformatter()
        careful = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
        extra = Interpolation(0) if self.fast else careful
        self._shrink = int(Interpolation.AREA | extra)
        self._grow = int(Interpolation.BICUBIC | extra)
        self._shapes: dict[tuple[object, ...], Size] = {}  # frames of a clip are alike

    def size_of(self, frame: VideoFrame, pixel_aspect: Fraction | None) -> tuple[int, int]:
        """(height, width) of what paint() makes of this frame."""
        if self.size is not None:
            return self.size
        height, width = display_size(frame, pixel_aspect)
        return (width, height) if orientation(frame)[0] else (height, width)

    def canvas(self, count: int, size: Size) -> np.ndarray:
        """(count, H, W, 3) uint8 to paint on, laid out as the pictures come: one plane per colour, or pixel by pixel.

        paint() fills any other layout too, but swscale packs planes at half the speed at which it makes them.
        """
        if self.fast:
            return np.empty((count, *size, 3), np.uint8)
        return np.moveaxis(np.empty((count, 3, *size), np.uint8), 1, -1)

    def paint(self, frame: VideoFrame, pixel_aspect: Fraction | None, into: np.ndarray) -> None:
        """Fill `into` (H, W, 3), of whatever size it is, with the frame as it is meant to be seen."""
        transposed, rows_flipped, columns_flipped = orientation(frame)
        target = (into.shape[0], into.shape[1])
        key = (frame.height, frame.width, pixel_aspect, transposed, target)
        if key not in self._shapes:
            height, width = display_size(frame, pixel_aspect)
            self._shapes[key] = self._scaled(*((width, height) if transposed else (height, width)), target)
        scaled = self._shapes[key]
        top, left = (scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2
        if self.fit == "contain":
            into[:] = 0
            into = into[-top : scaled[0] - top, -left : scaled[1] - left]
            top = left = 0
        rows, columns = into.shape[:2]
        for part, colours in self._rgb(frame, *(scaled[::-1] if transposed else scaled)):
            upright = np.swapaxes(part, 0, 1) if transposed else part
            upright = upright[:: -1 if rows_flipped else 1, :: -1 if columns_flipped else 1]
            into[..., colours] = upright[top : top + rows, left : left + columns]

    def _scaled(self, height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
        """The upright picture's size before it is cropped or padded to the target."""
        if self.fit == "stretch":
            return target
        if self.fit == "cover":
            scale = max(Fraction(target[0], height), Fraction(target[1], width))
            rows, columns = max(target[0], round(height * scale)), max(target[1], round(width * scale))
            # swscale's fast 4:2:0 conversion takes even sizes only; the crop drops what is added here.
            return (rows + rows % 2, columns + columns % 2) if self.fast else (rows, columns)
        scale = min(Fraction(target[0], height), Fraction(target[1], width))
        return (
            min(target[0], max(1, round(height * scale))),
            min(target[1], max(1, round(width * scale))),
        )

    def _rgb(self, frame: VideoFrame, height: int, width: int) -> Iterator[tuple[np.ndarray, slice]]:
        """Views (height, width, n) of the frame's memory and their colours: into the result is the one copy."""
        matrix = MATRICES.get(frame.colorspace)
        if matrix is None:  # untagged: as players guess, by size
            matrix = BT709 if frame.width >= 1280 or frame.height > 576 else BT601
        flags = self._shrink if height * width < frame.height * frame.width else self._grow
        if self.fast and frame.format.name == "yuv420p":
            frame = self._scaler.reformat(frame, width, height, interpolation=flags, threads=1)
        # interpolated colour is only fast in planes; repeated colour in planes lacks columns at some widths
        layout, colours = ("rgb24", (slice(0, 3),)) if self.fast else ("gbrp", GBR)
        out = self._painter.reformat(
            frame, width, height, format=layout, src_colorspace=matrix, interpolation=flags, threads=1
        )
        for plane, which in zip(out.planes, colours, strict=True):
            count = which.stop - which.start
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            yield rows[:height, : count * width].reshape(height, width, count), which
