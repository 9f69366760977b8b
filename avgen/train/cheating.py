"""The watch for cheating: what a reward can be won by without the clips getting better, measured while training.

Louder sound, more onsets, a picture that stands still and clips that all look alike have each won some metric. None of
these four needs to be in the reward to be found: clips of held-out prompts are compared with the reference's, made of
the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
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
from avgen.train.samples import Codecs, clip_of, generated, on_device, rows_of
from avgen.train.validate import at_once, shared
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
        apart = [clip_difference(one, other) for made in twins for one, other in pairwise(made)]
        return cls(
            mean([loudness_db(clip.audio) for clip in clips if clip.audio is not None]),
            mean([onsets_per_s(clip) for clip in clips if clip.audio is not None]),
            mean([motion_per_s(clip) for clip in clips if clip.video is not None and len(clip.video) > 1]),
            mean(apart),
        )

    @classmethod
    def over(cls, parts: Sequence[Traits]) -> Traits:
        """Of several sets of as many clips together."""
        values = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(**{name: mean([value for value in some if value is not None]) for name, some in values.items()})


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


def clip_difference(one: Clip, other: Clip) -> float:
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
        if before is not None and after is not None and sign * after > sign * limit * before:
            key = {1: "more", -1: "less"}[sign] + "_" + name.removesuffix("_per_s")
            # there is more than nothing of onsets alone: of the others less is looked for
            much = f"{after / before:.2f} times {words}" if before else f"busier: {after:.2g} onsets per s, none before"
            found.append(f"{much} (cheating.{key}={limit:g})")
    return found


class Watch:
    """Looks at the averaged weights' clips every so often; processes share them."""

    def __init__(self, run: Run, held_out: Source, codecs: Codecs | None) -> None:
        self.limits = run.config.preference.cheating if run.config.preference is not None else CheatingConfig(every=0)
        if self.limits.every and codecs is None:
            raise ValueError("preference.cheating needs the codecs of the latents: set preference.cheating.every=0")
        self.run, self.held_out, self.codecs = run, held_out, codecs
        self.looked = False
        self.reference: Traits | None = None  # on the first process, from the first look: it follows from the seed

    def due(self, step: int, last: bool) -> bool:
        return self.limits.every > 0 and (last or step % self.limits.every == 0)

    def look(self) -> tuple[dict[str, float], list[str]]:
        """What to log, and the alarms: on the first process; every process must call it."""
        run, objective = self.run, self.run.objective
        assert isinstance(objective, Preference)
        with uncompiled():
            if not self.looked:
                with objective.reference() as reference:
                    self.reference = self.traits(reference)
                self.looked = True
            back = run.average.swapped(run.model)
            try:
                now = self.traits(run.model)
            finally:
                back()
        if now is None or self.reference is None:
            return {}, []
        found = alarms(now, self.reference, self.limits)
        line = {f"cheating/{name}": rounded(value) for name, value in vars(now).items() if value is not None}
        line |= {
            f"cheating/{name}/reference": rounded(value)
            for name, value in vars(self.reference).items()
            if value is not None
        }
        return {**line, "cheating/alarms": float(len(found))}, found

    def traits(self, model: AVTransformer) -> Traits | None:
        """On the first process, of all clips."""
        config, processes = self.run.config, self.run.processes
        count = self.limits.prompts
        together = at_once(config, processes.readers, rows_of(config))
        seen: dict[int, Traits] = {}
        for prompts, counts in shared(count, processes.reader, processes.readers, max(1, together // TWINS)):
            asked = [(prompt, twin) for prompt in prompts for twin in range(TWINS)]
            made = [clip for i in range(0, len(asked), together) for clip in self.made(model, asked[i : i + together])]
            if counts and processes.leads:
                seen |= {p: Traits.of([made[TWINS * i : TWINS * (i + 1)]]) for i, p in enumerate(prompts)}
        found = {p: traits for part in processes.collected(seen) for p, traits in part.items()}
        return None if processes.rank else Traits.over([found[prompt] for prompt in range(count)])

    def made(self, model: AVTransformer, asked: Sequence[tuple[int, int]]) -> list[Clip]:
        """The twins that are asked for, each by its prompt and its number."""
        config, device = self.run.config, self.run.model.device
        batch = self.held_out.batch([prompt for prompt, _ in asked]).to(device)
        noise = {
            m: torch.stack([gaussian(s.x.shape[1:], config.seed, f"{m} watch", *one) for one in asked]).to(device)
            for m, s in batch.streams.items()
        }
        made = generated(model, batch, noise, config)
        assert self.codecs is not None
        with on_device(self.codecs, device):
            return [clip_of(batch, made, row, self.codecs) for row in range(batch.size)]
