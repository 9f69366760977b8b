"""Clips as one picture: frames in a row, the waveform under them on the same time axis, and marks in time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avgen.types import Clip

RGB = tuple[int, int, int]

PAGE: RGB = (24, 25, 28)
PANEL: RGB = (34, 36, 40)
LINE: RGB = (62, 65, 72)
TEXT: RGB = (222, 224, 228)
FAINT: RGB = (140, 144, 152)
WAVE: RGB = (122, 170, 214)

MARGIN = 20
GAP = 2  # between frames
TICKS = 18  # height of the time axis
PIXELS_PER_SUBPIXEL = 2  # the waveform is drawn finer and scaled down, for smooth edges


@dataclass(frozen=True)
class Mark:
    """A vertical line through frames and waveform, where something is known or was found."""

    time_s: float
    colour: RGB = (240, 190, 90)
    label: str = ""


def contact_sheet(
    clips: Sequence[Clip],
    captions: Sequence[str] | None = None,
    marks: Sequence[Sequence[Mark]] | None = None,
    width: int = 1400,
    most_frames: int = 16,
    wave_height: int = 64,
) -> Image.Image:
    """One strip per clip. At most `most_frames` evenly spaced frames are shown, each at its own time.

    A clip without sound or without picture gets the other half alone. Loudness is drawn to full scale, so that
    clips compare.
    """
    for name, given in (("captions", captions), ("marks", marks)):
        if given is not None and len(given) != len(clips):
            raise ValueError(f"contact_sheet got {len(given)} {name} for {len(clips)} clips: give one per clip")
    if not clips:
        raise ValueError("contact_sheet needs at least one clip")
    return stacked(
        [
            strip(
                clip,
                captions[i] if captions else "",
                marks[i] if marks else (),
                width - 2 * MARGIN,
                most_frames,
                wave_height,
            )
            for i, clip in enumerate(clips)
        ]
    )


def stacked(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips of one width as a page."""
    height = MARGIN + sum(strip.height + MARGIN for strip in strips)
    sheet = Image.new("RGB", (strips[0].width + 2 * MARGIN, height), PAGE)
    top = MARGIN
    for strip in strips:
        sheet.paste(strip, (MARGIN, top))
        top += strip.height + MARGIN
    return sheet


def strip(
    clip: Clip,
    caption: str = "",
    marks: Sequence[Mark] = (),
    width: int = 1360,
    most_frames: int = 16,
    wave_height: int = 64,
) -> Image.Image:
    """One clip; whoever draws clips elsewhere than together stacks the strips."""
    duration_s = max(clip.video_duration_s, clip.audio_duration_s)
    if duration_s <= 0:
        raise ValueError("contact_sheet got a clip with neither frames nor samples")
    font, small = _font(16), _font(12)
    lines = textwrap.wrap(caption, max(20, int(width / font.getlength("n"))))
    caption_height = 22 * len(lines) + (4 if lines else 0)
    frames = _frame_row(clip, width, most_frames, duration_s)
    frame_height = frames.height + GAP if frames else 0
    channels = 0 if clip.audio is None else len(clip.audio)
    audio_height = wave_height * min(channels, 2)
    drawn = Image.new("RGB", (width, caption_height + frame_height + audio_height + TICKS), PAGE)
    draw = ImageDraw.Draw(drawn)
    for i, line in enumerate(lines):
        draw.text((0, 22 * i), line, TEXT, font)
    top = caption_height
    if frames:
        drawn.paste(frames, (0, top))
        top += frame_height
    if clip.audio is not None and clip.sample_rate_hz is not None:
        for channel in clip.audio[:2]:
            used = max(1, round(width * clip.audio_duration_s / duration_s))
            drawn.paste(PANEL, (0, top, width, top + wave_height))
            drawn.paste(_waveform(channel, used, wave_height), (0, top))
            top += wave_height
    _axis(draw, duration_s, clip.start_s, width, top, small)
    for mark in marks:
        x = min(width - 1, round((mark.time_s - clip.start_s) / duration_s * width))
        draw.line([(x, caption_height), (x, top)], mark.colour, 1)
        draw.polygon([(x - 4, caption_height), (x + 4, caption_height), (x, caption_height + 6)], mark.colour)
        if mark.label:
            after = x + 4 + small.getlength(mark.label) <= width
            place = x + 4 if after else x - 4 - small.getlength(mark.label)
            draw.text((place, top - 16), mark.label, mark.colour, small)
    return drawn


def _frame_row(clip: Clip, width: int, most_frames: int, duration_s: float) -> Image.Image | None:
    """Frames as wide as the time each stands for."""
    if clip.video is None or not len(clip.video):
        return None
    total, rows, columns = clip.video.shape[:3]
    shown = min(total, most_frames)
    used = round(width * clip.video_duration_s / duration_s)
    edges = np.round(np.linspace(0, used, shown + 1)).astype(int)
    cell = max(1, int(edges[1]) - GAP)
    scale = cell / columns
    cell_height = max(1, round(rows * scale))
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    row = Image.new("RGB", (width, cell_height), PAGE)
    for k in range(shown):
        index = min(total - 1, int((k + 0.5) * total / shown))
        cell_width = max(1, int(edges[k + 1] - edges[k]) - GAP)
        picture = Image.fromarray(clip.video[index]).resize((cell_width, cell_height), resample)
        row.paste(picture, (int(edges[k]), 0))
    return row


def _waveform(samples: np.ndarray, width: int, height: int) -> Image.Image:
    """Lowest to highest sample per column, with the louder middle (RMS) brighter."""
    fine_width, fine_height = width * PIXELS_PER_SUBPIXEL, height * PIXELS_PER_SUBPIXEL
    image = Image.new("RGB", (fine_width, fine_height), PANEL)
    draw = ImageDraw.Draw(image)
    middle = fine_height / 2
    draw.line([(0, middle), (fine_width, middle)], LINE, 1)
    edges = np.linspace(0, len(samples), fine_width + 1).astype(int)
    half = middle - 2
    dim: RGB = (70, 98, 126)
    for x in range(fine_width):
        part = samples[edges[x] : max(edges[x] + 1, edges[x + 1])]
        if not len(part):
            continue
        part = np.clip(np.nan_to_num(part), -1, 1)
        draw.line([(x, middle - half * float(part.max())), (x, middle - half * float(part.min()))], dim, 1)
        level = half * float(np.sqrt(np.mean(np.square(part))))
        draw.line([(x, middle - level), (x, middle + level)], WAVE, 1)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _axis(
    draw: ImageDraw.ImageDraw, duration_s: float, start_s: float, width: int, top: int, font: ImageFont.FreeTypeFont
) -> None:
    steps = chain.from_iterable((0.1 * k, 0.2 * k, 0.5 * k) for k in (1, 10, 100, 1000, 10000))
    step = next(s for s in steps if width * s / duration_s >= 80)
    draw.line([(0, top), (width, top)], LINE, 1)
    time_s = np.ceil(start_s / step) * step
    while time_s <= start_s + duration_s + 1e-9:
        x = min(width - 1, round((time_s - start_s) / duration_s * width))
        draw.line([(x, top), (x, top + 4)], FAINT, 1)
        label = f"{time_s:.{1 if step < 1 else 0}f} s"
        length = font.getlength(label)
        draw.text((min(max(0, x - length / 2), width - length), top + 4), label, FAINT, font)
        time_s += step


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)  # Pillow's own, so the sheet looks the same everywhere
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow is built with FreeType"
    return font
