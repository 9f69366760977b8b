"""The contract of every metric: what it is called, what it needs, and a typed result in place of a bare number.

A metric is an object with a `definition` that turns a Take into a Result. It works on one clip (`measure`), over a set
(`eval.run`) and as a reward (`reward`). It never invents a number: what cannot be measured has no value and a reason.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from avgen.types import Clip
from eval.record import Prompt
from eval.take import MediaMissing, NotApplicable, Skipped, Take

Status = Literal["ok", "not_applicable", "failed", "skipped"]
Direction = Literal["higher", "lower", "zero", "none"]  # which values are better; none: it describes
Null = Literal["shifted", "swapped", "silent"]  # what is done to the sound of a clip whose score chance would give

__all__ = [
    "ClipMetric",
    "Definition",
    "Direction",
    "Embedder",
    "Measure",
    "MediaMissing",
    "Metric",
    "Needs",
    "NotApplicable",
    "Null",
    "Result",
    "SetMetric",
    "Setup",
    "Skipped",
    "Status",
    "Take",
    "measure",
    "reward",
]


@dataclass(frozen=True)
class Needs:
    """What a metric cannot do without."""

    picture: bool = False
    sound: bool = False
    text: bool = False  # a prompt that says something
    reference: bool = False  # a real clip of the same prompt
    packages: tuple[str, ...] = ()  # importable modules that are not avgen's own dependencies
    licence: str = ""  # of the weights or code it runs, where it is not avgen's own
    commercial: bool = True  # whether that licence allows commercial use
    install: str = ""  # what to run when a package or the weights are missing


@dataclass(frozen=True)
class Definition:
    """Everything that decides a metric's numbers. Two columns may be compared only where the hashes agree."""

    name: str  # "group.measure", the key in every file
    says: str  # one or two sentences that a reader could program it from
    unit: str = ""
    direction: Direction = "none"
    version: int = 1  # raise it whenever a value changes
    needs: Needs = Needs()
    parameters: Mapping[str, Any] = field(default_factory=dict)  # plain data: windows, thresholds, weights' names
    nulls: tuple[Null, ...] = ()  # variants measured beside it
    ceiling: bool = False  # whether it also makes sense on the reference clip

    @property
    def hash(self) -> str:
        said = [self.name, self.version, self.says, self.unit, self.direction, dict(self.parameters)]
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Result:
    """One measurement. A value exists exactly where the status is ok, and it is finite."""

    value: float | None
    status: Status = "ok"
    reason: str = ""  # why there is no value
    confidence: float | None = None  # 0..1, of metrics that know how sure they are
    weight: float = 1.0  # in means over clips: of F1 the number of events, so that the mean is a ratio of sums
    interval: tuple[float, float] | None = None  # 95 %, of set-level results
    extras: Mapping[str, Any] = field(default_factory=dict)  # plain data: timelines, counts, matched pairs

    def __post_init__(self) -> None:
        if (self.value is not None) != (self.status == "ok"):
            raise ValueError(f"a result of status {self.status!r} cannot have value={self.value}")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"value={self.value} is not a number: report it as failed or not applicable")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"a result of status {self.status!r} must say why")

    @classmethod
    def none(cls, status: Status, reason: str, **extras: Any) -> Result:
        return cls(None, status, reason, extras=extras)


class ClipMetric(Protocol):
    """One number about one clip. Raises NotApplicable or Skipped where there is none; all else it raises failed."""

    @property
    def definition(self) -> Definition: ...

    def __call__(self, take: Take) -> Result: ...


@dataclass(frozen=True)
class Measure:
    """A ClipMetric made of a definition and a function; a plain number is taken as a result that is ok."""

    definition: Definition
    of: Callable[[Take], float | Result]

    def __call__(self, take: Take) -> Result:
        found = self.of(take)
        return found if isinstance(found, Result) else Result(float(found))


@runtime_checkable
class Embedder(Protocol):
    """Turns a clip into a vector. Its definition hashes into the set metrics that use it."""

    @property
    def definition(self) -> Definition: ...

    def embed(self, take: Take) -> np.ndarray: ...  # (D,) float


@runtime_checkable
class SetMetric(Protocol):
    """One number about many clips, from their embeddings and (where needs.reference) those of real ones."""

    @property
    def definition(self) -> Definition: ...

    @property
    def embedder(self) -> Embedder: ...

    def over(self, made: np.ndarray, reference: np.ndarray | None, seed: int) -> Result: ...  # (N, D), (M, D)


Metric = ClipMetric | SetMetric


@dataclass(frozen=True)
class Setup:
    """What a metric group is built with: see eval.registry."""

    device: str = "cpu"
    weights: Mapping[str, str] = field(default_factory=dict)  # group -> model id or folder, where not the default


def measure(metric: ClipMetric, take: Take, strict_licence: bool = False) -> Result:
    """The metric's result on a take, whatever happens inside it."""
    return guarded(metric.definition, take, lambda: metric(take), strict_licence)


def guarded(definition: Definition, take: Take, work: Callable[[], Result], strict_licence: bool = False) -> Result:
    """work(), with every way of not giving a number as a typed result."""
    needs = definition.needs
    if strict_licence and not needs.commercial:
        return Result.none("skipped", f"licence {needs.licence} forbids commercial use and strict_licence is on")
    missing = [name for name in needs.packages if importlib.util.find_spec(name) is None]
    if missing:
        return Result.none("skipped", f"needs {', '.join(missing)}" + (f": {needs.install}" if needs.install else ""))
    try:
        if needs.text and not take.prompt.text:
            raise NotApplicable("the prompt has no text")
        if needs.picture:
            _ = take.picture
        if needs.sound:
            _ = take.sound
        if needs.reference:
            _ = take.reference
        return work()
    except NotApplicable as said:
        return Result.none("not_applicable", str(said))
    except Skipped as said:
        return Result.none("skipped", str(said))
    except MediaMissing as said:
        return Result.none("failed", str(said))
    except MemoryError as error:
        return Result.none("failed", f"out of memory: {error}" if str(error) else "out of memory")
    except Exception as error:  # a metric's own fault must cost its value, never the run
        kind = "out of memory" if type(error).__name__ == "OutOfMemoryError" else type(error).__name__
        return Result.none("failed", " ".join(f"{kind}: {error}".split())[:500])


def reward(metric: ClipMetric, prompt: Prompt | None = None) -> Callable[[Clip], float | None]:
    """The metric as a reward: larger is better whatever its direction; None where it cannot be measured."""
    sign = {"higher": 1.0, "lower": -1.0}.get(metric.definition.direction)
    if sign is None and metric.definition.direction != "zero":
        raise ValueError(f"metric {metric.definition.name} has no better direction and cannot be a reward")

    def of(clip: Clip) -> float | None:
        value = measure(metric, Take.of(clip, prompt)).value
        if value is None:
            return None
        return -abs(value) if sign is None else sign * value

    return of


def versions(*packages: str) -> dict[str, str | None]:
    """For a definition: of packages that bring a network or a method along. None where one is not installed."""

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return {package: version(package) for package in packages}
