"""What was given, put back into the made clip as it was given, not as the codec made it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from avgen.sample.inputs import GivenMedia, whole
from avgen.tasks import Given
from avgen.types import Clip, TimeGrid

FADE_S = 0.005  # within what was given, where made sound begins or ends: a jump between two waves is a click


def restored(clip: Clip, given: GivenMedia, taken: dict[str, Tensor], grids: dict[str, TimeGrid]) -> Clip:
    """The clip with every stretch of given picture and sound in it.

    taken: (steps,) bool per modality: latent steps of which every token was given
    A prefix counts to its last frame and sample, though the model makes the token that they lie in with what follows.
    Key frames are left as they were made: they are moments of a motion, an image is not.
    """
    picture_whole, sound_whole = whole(given.task)
    if given.frames is not None and clip.video is not None and given.task.video and given.task.video.spans_s:
        assert clip.fps is not None
        kept = np.ones(len(clip.video), bool)
        if not picture_whole:
            kept = stretch(given.task.video, taken["video"], grids["video"], len(clip.video), clip.fps)
        clip = replace(clip, video=np.where(kept[:, None, None, None], given.frames, clip.video))
    if given.wave is not None and clip.audio is not None and given.task.audio and given.task.audio.spans_s:
        if sound_whole:
            return replace(clip, audio=given.wave)
        assert clip.sample_rate_hz is not None
        rate = clip.sample_rate_hz
        inside = stretch(given.task.audio, taken["audio"], grids["audio"], clip.audio.shape[-1], rate)
        share = faded(inside, round(FADE_S * rate))
        mixed = share * given.wave + (1 - share) * clip.audio
        clip = replace(clip, audio=np.where(share == 1, given.wave, mixed).astype(np.float32))
    return clip


def stretch(given: Given, taken: Tensor, grid: TimeGrid, count: int, rate_hz: float) -> np.ndarray:
    """(count,) bool: the frames or samples that were given; of holes every token that they touch was made."""
    if given.holes:
        return units(taken, grid, count)
    middle_s = (np.arange(count) + 0.5) / rate_hz
    return np.any([(start <= middle_s) & (middle_s < end) for start, end in given.spans_s], axis=0)


def units(taken: Tensor, grid: TimeGrid, count: int) -> np.ndarray:
    """(count,) bool: the frames or samples under the latent steps of `taken`."""
    lengths = [grid.first, *[grid.stride] * (len(taken) - 1)]
    return np.repeat(taken.cpu().numpy(), lengths)[grid.delay :][:count]


def faded(inside: np.ndarray, length: int) -> np.ndarray:
    """1 within, 0 outside, rising over the first and last `length` samples of each stretch but at the clip's ends."""
    padded = np.pad(inside.astype(np.float64), length, mode="edge")
    box = np.ones(2 * length + 1) / (2 * length + 1)
    near = np.convolve(padded, box, mode="valid")  # 1 where no edge is near, one half at an edge
    return np.where(inside, np.clip(2 * near - 1, 0, 1), 0.0)
