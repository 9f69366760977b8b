"""Random clips as batches, with each token's interval kept as exact fractions: the truth tests compare against."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import torch
from hypothesis import strategies as st

from avgen.types import AudioGeometry, Batch, Text, TimeGrid, VideoGeometry

RATES_FPS = [Fraction(8), Fraction(12), Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001)]
RATES_HZ = [8000, 16000, 22050, 44100, 48000]
CHANNELS = 4  # of every stream, so that any two samples can share a batch


@dataclass(frozen=True)
class Token:
    start_s: Fraction  # from the clip's start, exact
    end_s: Fraction
    box: tuple[Fraction, Fraction, Fraction, Fraction] | None  # top, left, bottom, right; None for audio


@dataclass(frozen=True)
class Sample:
    """One clip as a batch of one, and its tokens as exact numbers."""

    batch: Batch
    video: tuple[Token, ...]
    audio: tuple[Token, ...]


@st.composite
def time_grids(draw: st.DrawFn, max_stride: int = 8, max_delay: int = 0) -> TimeGrid:
    stride = draw(st.integers(1, max_stride))
    first = draw(st.sampled_from([1, stride]))
    return TimeGrid(stride, first, draw(st.integers(0, max_delay)))


def exact_intervals(grid: TimeGrid, steps: int, rate_hz: Fraction) -> list[tuple[Fraction, Fraction]]:
    """What the grid's documentation promises, in fractions of a second."""
    edges = [0, *(grid.first + k * grid.stride for k in range(steps))]
    return [((a - grid.delay) / Fraction(rate_hz), (b - grid.delay) / Fraction(rate_hz)) for a, b in pairwise(edges)]


@st.composite
def samples(draw: st.DrawFn, start_s: float | None = None, both: bool = False) -> Sample:
    """A clip with its own fps, size, rate, duration and start; video, audio or both."""
    has_video, has_audio = (True, True) if both else draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    start = draw(st.sampled_from([0.0, 1.7, 3600.1])) if start_s is None else start_s
    seed = draw(st.integers(0, 2**31))
    random = torch.Generator().manual_seed(seed)
    video_tokens: list[Token] = []
    audio_tokens: list[Token] = []
    video = audio = None
    if has_video:
        geometry = VideoGeometry(CHANNELS, draw(time_grids()), space_stride=8)
        fps = draw(st.sampled_from(RATES_FPS))
        steps, rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
        latents = torch.randn(1, CHANNELS, steps, rows, columns, generator=random)
        video = geometry.stream(latents, float(fps), start)
        for a, b in exact_intervals(geometry.time, steps, fps):
            for r in range(rows):
                for c in range(columns):
                    box = (Fraction(r, rows), Fraction(c, columns), Fraction(r + 1, rows), Fraction(c + 1, columns))
                    video_tokens.append(Token(a, b, box))
    if has_audio:
        rate_hz = draw(st.sampled_from(RATES_HZ))
        # priming only beside a picture: without one nothing tells where the clip itself starts
        grid = draw(time_grids(max_stride=2000, max_delay=500 if has_video else 0))
        audio_geometry = AudioGeometry(CHANNELS, grid, rate_hz)
        steps = draw(st.integers(1, 12))
        audio = audio_geometry.stream(torch.randn(1, CHANNELS, steps, generator=random), start)
        audio_tokens = [Token(a, b, None) for a, b in exact_intervals(grid, steps, Fraction(rate_hz))]
    length = draw(st.integers(1, 6))
    text = Text.of(torch.randint(0, 256, (1, length), generator=random))
    separate = draw(st.booleans())
    audio_text = Text.of(torch.randint(0, 256, (1, length), generator=random)) if separate else text
    return Sample(Batch(video, audio, text, audio_text), tuple(video_tokens), tuple(audio_tokens))
