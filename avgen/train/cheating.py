"""The watch for cheating: what a reward can be won by without the clips getting better, measured while training.

Louder sound, more onsets, a picture that stands still and clips that all look alike have each won some metric. None of
these four needs to be in the reward to be found: clips of held-out prompts are compared with the reference's, made of
the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from avgen.data.stream import Source
from avgen.models.compilation import uncompiled
from avgen.models.dit import AVTransformer
from avgen.rng import gaussian
from avgen.train.config import CheatingConfig
from avgen.train.metrics import rounded
from avgen.train.preference import Preference
from avgen.train.run import Run
from avgen.train.samples import Codecs, clip_of, generated
from avgen.types import Clip

WINDOW_S = 0.02  # of the sound's envelope
RISE_DB = 6.0  # from one window to the next: an onset
SILENCE_DB = -60.0  # what is softer counts as this
TWINS = 2  # clips of one prompt, of different noise


@dataclass(frozen=True)
class Traits:
    """Of a set of clips; None where nothing has such a thing."""

    loudness_db: float | None  # RMS of the sound, in dB below full scale
    onsets_per_s: float | None
    motion_per_s: float | None  # mean change of a pixel, of 255
    variety: float | None  # mean difference of two clips of one prompt, of 1: picture and envelope of the sound

    @classmethod
    def of(cls, twins: Sequence[Sequence[Clip]]) -> Traits:
        """Of clips by prompt."""
        clips = [clip for made in twins for clip in made]
        apart = [difference(one, other) for made in twins for one, other in pairwise(made)]
        return cls(
            mean([loudness_db(clip.audio) for clip in clips if clip.audio is not None]),
            mean([onsets_per_s(clip) for clip in clips if clip.audio is not None]),
            mean([motion_per_s(clip) for clip in clips if clip.video is not None and len(clip.video) > 1]),
            mean(apart),
        )


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def loudness_db(wave: np.ndarray) -> float:
    return max(SILENCE_DB, float(10 * np.log10(np.square(wave.astype(np.float64)).mean() + 1e-12)))


def envelope_db(clip: Clip) -> np.ndarray:
    """(windows,) loudness of the sound."""
    assert clip.audio is not None
    assert clip.sample_rate_hz is not None
    size = max(1, round(WINDOW_S * clip.sample_rate_hz))
    mono = clip.audio.astype(np.float64).mean(0)
    windows = mono[: len(mono) // size * size].reshape(-1, size)
    return np.maximum(SILENCE_DB, 10 * np.log10(np.square(windows).mean(1) + 1e-12))


def onsets_per_s(clip: Clip) -> float:
    rises = np.diff(envelope_db(clip), prepend=SILENCE_DB) > RISE_DB
    begun = rises & ~np.concatenate([[False], rises[:-1]])
    return float(begun.sum() / max(clip.audio_duration_s, WINDOW_S))


def motion_per_s(clip: Clip) -> float:
    assert clip.video is not None
    assert clip.fps is not None
    return float(np.abs(np.diff(clip.video.astype(np.int16), axis=0)).mean() * clip.fps)


def difference(one: Clip, other: Clip) -> float:
    parts = []
    if one.video is not None and other.video is not None:
        parts.append(np.abs(one.video.astype(np.int16) - other.video).mean() / 255)
    if one.audio is not None and other.audio is not None:
        parts.append(np.abs(envelope_db(one) - envelope_db(other)).mean() / -SILENCE_DB)
    return float(np.mean(parts))


def alarms(now: Traits, reference: Traits, limits: CheatingConfig) -> list[str]:
    """What has become of the clips that a reward may have been won by, each in words."""
    found = []
    if now.loudness_db is not None and reference.loudness_db is not None:
        louder = now.loudness_db - reference.loudness_db
        if louder > limits.louder_db:
            found.append(f"{louder:.1f} dB louder (cheating.louder_db={limits.louder_db:g})")
    ratios = (
        ("onsets_per_s", "of the onsets", limits.more_onsets, 1),
        ("motion_per_s", "of the motion", limits.less_motion, -1),
        ("variety", "of the variety", limits.less_variety, -1),
    )
    for name, words, limit, sign in ratios:
        before, after = getattr(reference, name), getattr(now, name)
        if before and after is not None and sign * after / before > sign * limit:
            key = {1: "more", -1: "less"}[sign] + "_" + name.removesuffix("_per_s")
            found.append(f"{after / before:.2f} times {words} (cheating.{key}={limit:g})")
    return found


class Watch:
    """Looks at the averaged weights' clips every so often; every process makes the same ones."""

    def __init__(self, run: Run, held_out: Source, codecs: Codecs | None) -> None:
        self.limits = run.config.preference.cheating if run.config.preference is not None else CheatingConfig(every=0)
        if self.limits.every and codecs is None:
            raise ValueError("preference.cheating needs the codecs of the latents: set preference.cheating.every=0")
        self.run, self.held_out, self.codecs = run, held_out, codecs
        self.reference: Traits | None = None  # found at the first look: it follows from the seed alone

    def due(self, step: int, last: bool) -> bool:
        return self.limits.every > 0 and (last or step % self.limits.every == 0)

    def look(self) -> tuple[dict[str, float], list[str]]:
        """What to log, and the alarms."""
        run, objective = self.run, self.run.objective
        assert isinstance(objective, Preference)
        with uncompiled():
            if self.reference is None:
                with objective.reference() as reference:
                    self.reference = self.traits(reference)
            back = run.average.swapped(run.model)
            try:
                now = self.traits(run.model)
            finally:
                back()
        found = alarms(now, self.reference, self.limits)
        line = {f"cheating/{name}": rounded(value) for name, value in vars(now).items() if value is not None}
        line |= {
            f"cheating/{name}/reference": rounded(value)
            for name, value in vars(self.reference).items()
            if value is not None
        }
        return {**line, "cheating/alarms": float(len(found))}, found

    def traits(self, model: AVTransformer) -> Traits:
        config, device = self.run.config, self.run.model.device
        prompts = range(min(self.limits.prompts, config.validation_clips))
        batch = self.held_out.batch([i for i in prompts for _ in range(TWINS)]).to(device)
        noise = {
            m: torch.stack(
                [gaussian(s.x.shape[1:], config.seed, f"{m} watch", i, t) for i in prompts for t in range(TWINS)]
            ).to(device)
            for m, s in batch.streams.items()
        }
        made = generated(model, batch, noise, config)
        assert self.codecs is not None
        clips = [clip_of(batch, made, row, self.codecs) for row in range(batch.size)]
        return Traits.of([clips[TWINS * i : TWINS * (i + 1)] for i in prompts])
