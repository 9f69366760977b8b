"""One clip through all metrics: what a worker does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from avgen import __version__
from avgen.types import Clip
from eval.metric import Definition, Null, Result, SetMetric, Setup, guarded, measure
from eval.record import Prompt
from eval.registry import chosen
from eval.take import Clock, NotApplicable, Sound, Take

CEILING = "ceiling"


@dataclass(frozen=True)
class Job:
    """One clip to be scored."""

    prompt: Prompt
    seed: int
    path: Path | None
    sha256: str  # of the file; "" where there is none
    partner: Path | None  # the clip whose sound the swapped null borrows
    partner_sha256: str


@dataclass(frozen=True)
class Cell:
    """One measurement of a clip: which metric, on which variant of the clip."""

    metric: int  # place among the metrics
    variant: str  # "", a Null, or CEILING
    key: str  # decides the value, together with the clip and the prompt


@dataclass(frozen=True)
class Scored:
    """What a worker found out about one clip. Plain data, by cell key."""

    results: dict[str, dict[str, Any]]
    media: dict[str, Any]
    cost_s: dict[str, float]


@dataclass(frozen=True)
class Scorer:
    """Everything but the clip that decides its results. Travels to the workers, which build the metrics themselves."""

    names: tuple[str, ...]
    setup: Setup
    nulls: bool
    ceiling: bool
    strict_licence: bool
    seed: int
    ideal: Callable[[Prompt, Clip], Clip] | None
    ideal_mark: str = ""

    @cached_property
    def metrics(self) -> tuple[Any, ...]:
        return chosen(self.names, self.setup)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "metrics"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def cells(self, job: Job) -> Iterator[Cell]:
        for i, metric in enumerate(self.metrics):
            said = metric.definition
            # a refusal is not the value that was measured where it was allowed
            refused = ":refused" if self.strict_licence and not said.needs.commercial else ""
            if isinstance(metric, SetMetric):
                embedded = f"embed:{metric.embedder.definition.hash}{refused}"
                yield Cell(i, "", embedded)
                if said.needs.reference:
                    yield Cell(i, "reference", f"{embedded}:reference")
                continue
            known = f"{said.hash}{refused}"
            yield Cell(i, "", known)
            for null in said.nulls if self.nulls else ():
                decides = {"shifted": f":{self.seed}", "swapped": f":{job.partner_sha256[:16]}", "silent": ""}[null]
                yield Cell(i, null, f"{known}:{null}{decides}")
            if said.ceiling and self.ceiling and (self.ideal is not None or job.prompt.reference is not None):
                against = "" if job.prompt.reference is not None else f":{self.ideal_mark}"
                yield Cell(i, CEILING, f"{known}:{CEILING}{against}")

    def __call__(self, job: Job, wanted: Sequence[Cell]) -> Scored:
        clock = Clock()
        take = Take(job.prompt, job.path, job.seed, clock=clock)
        takes: dict[str, Take | Exception] = {"": take}
        results: dict[str, dict[str, Any]] = {}
        for cell in wanted:
            metric = self.metrics[cell.metric]
            name = metric.definition.name
            with clock.timing(name):
                if cell.variant not in takes:
                    takes[cell.variant] = self.variant(cell.variant, take, job)
                variant = takes[cell.variant]
                if isinstance(variant, NotApplicable):
                    results[cell.key] = plain(Result.none("not_applicable", str(variant)))
                elif isinstance(variant, Exception):
                    results[cell.key] = plain(Result.none("failed", f"{cell.variant}: {variant}"))
                elif isinstance(metric, SetMetric):
                    results[cell.key] = self.embedding(metric, variant)
                else:
                    results[cell.key] = plain(measure(metric, variant, self.strict_licence))
        return Scored(results, described(take), {k: round(v, 6) for k, v in clock.spent_s.items()})

    def embedding(self, metric: SetMetric, take: Take) -> dict[str, Any]:
        """A vector as a result's extras, so that it is cached and can fail like any other."""
        embedder = metric.embedder

        def work() -> Result:
            vector = np.asarray(embedder.embed(take), float).ravel()
            if not np.isfinite(vector).all():
                raise ValueError(f"embedding of {embedder.definition.name} is not finite")
            return Result(0.0, extras={"vector": vector.tolist()})

        needs = replace(metric.definition.needs, reference=False)
        definition = Definition(embedder.definition.name, embedder.definition.says, needs=needs)
        return plain(guarded(definition, take, work, self.strict_licence))

    def variant(self, name: str, take: Take, job: Job) -> Take | Exception:
        try:
            if name == CEILING:
                if self.ideal is not None and job.prompt.reference is None:
                    clip = self.ideal(job.prompt, take.clip)
                    return Take(job.prompt, clip=clip, seed=job.seed, clock=take.clock)
                return take.reference
            if name == "reference":
                return take.reference
            return take.with_sound(self.other_sound(name, take, job))  # type: ignore[arg-type]
        except Exception as error:
            return error

    def other_sound(self, null: Null, take: Take, job: Job) -> Sound:
        sound = take.sound
        if null == "silent":
            return Sound(np.zeros_like(sound.wave), sound.rate_hz, take.clock)
        if null == "shifted":
            said = f"{self.seed} {job.prompt.id} {job.seed}".encode()
            share = int.from_bytes(hashlib.sha256(said).digest()[:8], "big") / 2**64
            shift = round(sound.wave.shape[1] * (0.25 + 0.5 * share))
            return Sound(np.roll(sound.wave, shift, axis=1), sound.rate_hz, take.clock)
        if job.partner is None:
            raise NotApplicable("no other clip to take the sound of")
        partner = Take(job.prompt, job.partner, clock=take.clock).sound
        return Sound(
            fitted(partner.wave, sound.wave.shape[1] * partner.rate_hz / sound.rate_hz), partner.rate_hz, take.clock
        )


def fitted(wave: np.ndarray, length: float) -> np.ndarray:
    """The wave cut, or repeated, to a number of samples."""
    count = max(1, round(length))
    return np.tile(wave, (1, -(-count // max(1, wave.shape[1]))))[:, :count]


def described(take: Take) -> dict[str, Any]:
    """What the clip measures; empty where it could not be read."""
    try:
        clip = take.clip
    except Exception:
        return {}
    frames = None if clip.video is None else list(clip.video.shape[:3])
    samples = None if clip.audio is None else list(clip.audio.shape)
    return {
        "fps": clip.fps,
        "frames_height_width": frames,
        "sample_rate_hz": clip.sample_rate_hz,
        "channels_samples": samples,
    }


def plain(result: Result) -> dict[str, Any]:
    """Without what is at its default; numbers of extras rounded, for they are drawn and not compared."""
    said = {"value": result.value, "status": result.status}
    for name in ("reason", "confidence", "interval"):
        if getattr(result, name) not in (None, ""):
            said[name] = getattr(result, name)
    if result.weight != 1.0:
        said["weight"] = result.weight
    if result.extras:
        said["extras"] = jsonable(result.extras)
    return said


def jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return value


def decoder() -> str:
    """What turned files into frames and samples; part of every cache key."""
    import av

    libraries = ", ".join(f"{name} {'.'.join(map(str, v))}" for name, v in sorted(av.library_versions.items()))
    return f"avgen {__version__}, PyAV {av.__version__} ({libraries})"


def digest(prompt: Prompt) -> str:
    """Changes with anything in the prompt, and with the files it names."""
    said = asdict(prompt)
    for name in ("first_frame", "reference"):
        path: Path | None = said[name]
        if path is not None:
            said[name] = [str(path), path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else str(path)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
