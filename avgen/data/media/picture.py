"""Decoded frames as RGB arrays: colours, rotation, scaling and cropping."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np

from avgen.data.media.source import display_size, orientation

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Fit = Literal["cover", "contain", "stretch"]

# H.273 matrix coefficients -> swscale's names for them
BT709, BT601, BT2020 = 1, 5, 9
MATRICES = {1: BT709, 4: 4, 5: BT601, 6: BT601, 7: 7, 9: BT2020, 10: BT2020}


class Renderer:
    """Turns decoded frames into (H, W, 3) uint8 RGB of one size; keeps swscale's tables between frames."""

    def __init__(self, size: tuple[int, int] | None, fit: Fit) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        if size is not None and (min(size) < 1 or max(size) > 16_384):
            raise ValueError(f"size={size} must be (height, width) between 1 and 16384")
        if fit not in ("cover", "contain", "stretch"):
            raise ValueError(f"fit={fit!r} must be cover, contain or stretch")
        self.size = size
        self.fit = fit
        self._reformatter = VideoReformatter()
        careful = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
        self._shrink = int(Interpolation.AREA | careful)
        self._grow = int(Interpolation.BICUBIC | careful)

    def __call__(self, frame: VideoFrame, pixel_aspect: Fraction | None) -> np.ndarray:
        transposed, rows_flipped, columns_flipped = orientation(frame)
        height, width = display_size(frame, pixel_aspect)
        if transposed:
            height, width = width, height
        target = self.size or (height, width)
        scaled = self._scaled(height, width, target)
        coded = scaled[::-1] if transposed else scaled
        image = self._rgb(frame, *coded)
        if transposed:
            image = image.transpose(1, 0, 2)
        if rows_flipped:
            image = image[::-1]
        if columns_flipped:
            image = image[:, ::-1]
        if self.fit == "contain":
            out = np.zeros((*target, 3), np.uint8)
            top, left = (target[0] - scaled[0]) // 2, (target[1] - scaled[1]) // 2
            out[top : top + scaled[0], left : left + scaled[1]] = image
            return out
        top, left = (scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2
        return image[top : top + target[0], left : left + target[1]]

    def _scaled(self, height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
        """The upright picture's size before it is cropped or padded to the target."""
        if self.fit == "stretch":
            return target
        if self.fit == "cover":
            scale = max(Fraction(target[0], height), Fraction(target[1], width))
            return max(target[0], round(height * scale)), max(target[1], round(width * scale))
        scale = min(Fraction(target[0], height), Fraction(target[1], width))
        return (
            min(target[0], max(1, round(height * scale))),
            min(target[1], max(1, round(width * scale))),
        )

    def _rgb(self, frame: VideoFrame, height: int, width: int) -> np.ndarray:
        matrix = MATRICES.get(frame.colorspace)
        if matrix is None:  # untagged: as players guess, by size
            matrix = BT709 if frame.width >= 1280 or frame.height > 576 else BT601
        shrinks = height * width < frame.height * frame.width
        rgb = self._reformatter.reformat(
            frame,
            width,
            height,
            format="rgb24",
            src_colorspace=matrix,
            interpolation=self._shrink if shrinks else self._grow,
            threads=1,
        )
        return rgb.to_ndarray()
