"""Whether it shows where windows meet: jumps of picture and sound there, among jumps at other instants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from avgen.sample.inputs import Form
from avgen.sample.pipeline import AVPipeline
from avgen.sample.windows import spans
from avgen.tasks import SLACK
from avgen.types import Clip

CLICK_S = 0.001  # a jump of the sound is looked for this near to the instant ...
LEVEL_S = 0.025  # ... and held against what is usual this near to it


def meetings_s(pipeline: AVPipeline, form: Form) -> dict[str, list[float]]:
    """Per stream, when what one window makes ends and what the next one makes begins: with a token."""
    picture, sound = pipeline.video_codec.geometry, pipeline.audio_codec.geometry
    rate = sound.sample_rate_hz
    grids = {"sound": (sound.time, form.samples(rate), rate), "picture": (picture.time, form.frames, form.fps)}
    kept = [span.kept for span in spans(form.duration_s, pipeline.window_s)[:-1]]
    found = {}
    for stream, (grid, units, per_s) in grids.items():
        begins = grid.intervals(grid.steps(units), per_s)[:, 0]
        found[stream] = [float(begins[begins >= until - SLACK].min()) for until in kept]
    return found


def seam_ranks(clip: Clip, cuts_s: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """Per stream, for each cut the share of other instants with a smaller jump: even in [0, 1] if nothing shows.

    Sound: the largest second difference within 1 ms, over its mean within 25 ms. Picture: the change between frames.
    """
    found = {}
    if clip.audio is not None and clip.sample_rate_hz is not None:
        bend = np.abs(np.diff(clip.audio.mean(0), 2, prepend=0, append=0))
        near, wide = (max(1, round(s * clip.sample_rate_hz)) for s in (CLICK_S, LEVEL_S))
        peak = np.lib.stride_tricks.sliding_window_view(np.pad(bend, near), 2 * near + 1).max(1)
        level = np.convolve(bend, np.ones(2 * wide + 1) / (2 * wide + 1), mode="same")
        jump = peak / (level + 1e-6)
        at = [round(s * clip.sample_rate_hz) for s in cuts_s["sound"]]
        found["sound"] = _ranks(jump[:: near // 2 or 1], jump[at])
    if clip.video is not None and clip.fps is not None:
        change = np.abs(np.diff(clip.video.astype(np.float32), axis=0)).mean((1, 2, 3))
        found["picture"] = _ranks(change, change[[round(s * clip.fps) - 1 for s in cuts_s["picture"]]])
    return found


def _ranks(everywhere: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Instants that jump just as much count half: in a still picture nothing can be told."""
    below, within = (everywhere < here[:, None]).mean(1), (everywhere <= here[:, None]).mean(1)
    ranks: np.ndarray = (below + within) / 2
    return ranks


def spliced(clips: Sequence[Clip], cuts_s: Sequence[float]) -> Clip:
    """A clip that at each cut goes over, hard, into the next of `clips`: what the detector has to find."""
    edges_s = [0.0, *cuts_s, np.inf]
    pieces = [_between(clips[i % len(clips)], edges_s[i], edges_s[i + 1]) for i in range(len(edges_s) - 1)]
    first = clips[0]
    video = None if first.video is None else np.concatenate([piece.video for piece in pieces])
    audio = None if first.audio is None else np.concatenate([piece.audio for piece in pieces], axis=1)
    return Clip(video, audio, first.fps, first.sample_rate_hz)


def _between(clip: Clip, start_s: float, end_s: float) -> Clip:
    def places(rate: float, count: int) -> slice:
        first, last = (round(min(s * rate, count)) for s in (start_s, end_s))
        return slice(first, last)

    video, audio = clip.video, clip.audio
    return Clip(
        None if video is None else video[places(clip.fps or 0, len(video))],
        None if audio is None else audio[:, places(clip.sample_rate_hz or 0, audio.shape[1])],
        clip.fps,
        clip.sample_rate_hz,
    )
