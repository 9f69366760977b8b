"""`python -m avgen.sample.scores model=DIR`: what a model makes of held-out toybox items, read by the event reader.

Each figure stands beside its ceiling (the real clips through the codecs, read the same way) and its null (the
generated sound, or picture, exchanged for that of another clip of equal caption). Intervals are 95 % bootstraps over
clips.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from avgen import command
from avgen.config import to_plain
from avgen.data.toybox import Toybox, ToyboxConfig, ToyClip
from avgen.data.toybox.reader import Reading, Tally, read_events, score, score_caption
from avgen.data.toybox.world import Split, render_facts
from avgen.sample.cache import CacheConfig
from avgen.sample.guidance import Guidance
from avgen.sample.inputs import GivenMedia, Request
from avgen.sample.method import Method, Precision
from avgen.sample.pipeline import AVPipeline
from avgen.sample.solvers import SolverConfig
from avgen.tasks import NAMED, T2AV
from avgen.types import Clip

TASKS = ("t2av", "i2av", "v2a", "a2v")
ON_REQUEST = ("long",)  # text to clips of LONG times the trained duration
LONG = 10
RESAMPLES = 1000
Counts = list[tuple[float, float]]  # per clip: what is divided by what, once summed


@dataclass(frozen=True)
class ScoresConfig:
    """Which items are scored, and how the clips are made."""

    model: Path = Path("runs/toybox")  # as in avgen sample
    out: Path = Path("runs/scores.json")  # every figure
    clips: int = 200  # per task
    tasks: tuple[str, ...] = TASKS  # of t2av, i2av, v2a, a2v and long (text to clips ten times as long)
    split: Split = "test"  # heldout: combinations of kind, colour and size that training never shows
    world: ToyboxConfig = field(default_factory=lambda: ToyboxConfig(scenes=("single",)))  # its form is the model's
    seed: int = 0  # of the world, the noise and the bootstrap
    batch: int = 20  # clips made at once
    solver: SolverConfig = field(default_factory=SolverConfig)
    guidance: Guidance = field(default_factory=Guidance)
    precision: Precision = "fp32"  # of matrix products, by autocast
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        if self.clips < 2 or self.batch < 1:
            raise ValueError(f"clips={self.clips} must be at least 2 and batch={self.batch} at least 1")
        wrong = [task for task in self.tasks if task not in TASKS + ON_REQUEST]
        if wrong:
            raise ValueError(f"tasks={wrong} cannot be scored: choose from {', '.join(TASKS + ON_REQUEST)}")


@dataclass(frozen=True)
class Estimate:
    """A ratio of sums over clips, with its 95 % interval; nan where there was nothing to count."""

    value: float
    low: float
    high: float
    clips: int


@dataclass(frozen=True)
class Scored:
    """A figure between its null and its ceiling."""

    figure: Estimate
    ceiling: Estimate
    null: Estimate | None  # None where exchanging sounds or pictures would not change it

    @property
    def of_ceiling(self) -> float:
        return self.figure.value / self.ceiling.value if self.ceiling.value else math.nan


def estimate(counts: Counts, seed: int = 0) -> Estimate:
    """sum(tops) / sum(bottoms), bootstrapped over clips."""
    if not counts or sum(bottom for _, bottom in counts) == 0:
        return Estimate(math.nan, math.nan, math.nan, len(counts))
    table = np.array(counts, float)
    drawn = np.random.default_rng(seed).integers(len(table), size=(RESAMPLES, len(table)))
    tops, bottoms = table[drawn].sum(1).T
    low, high = np.percentile((tops / np.maximum(bottoms, 1e-12))[bottoms > 0], (2.5, 97.5))
    top, bottom = table.sum(0)
    return Estimate(float(top / bottom), float(low), float(high), len(table))


def f1(tally: Tally) -> tuple[float, float]:
    return 2 * tally.matched, tally.found + tally.true


def scores(
    pipeline: AVPipeline,
    world: ToyboxConfig,
    clips: int = 200,
    tasks: Sequence[str] = TASKS,
    method: Method = Method(),  # noqa: B008  # frozen
    split: Split = "test",
    seed: int = 0,
    batch: int = 20,
    advance: Callable[[int], None] = lambda clips: None,
) -> dict[str, dict[str, Scored]]:
    """Figures by task and name."""
    form = pipeline.trained_form
    rate = pipeline.audio_codec.geometry.sample_rate_hz
    world = replace(
        world,
        height=form.height,
        width=form.width,
        fps=form.fps,
        duration_s=form.duration_s,
        sample_rate_hz=rate,
    )
    toybox = Toybox(world, split, seed)
    items = [toybox[i] for i in range(clips)]
    real = [pipeline.through_codecs(item.clip) for item in items]
    twins = [render_facts(item.facts, world, seed, i) for i, item in enumerate(items)]
    twin_clips = [pipeline.through_codecs(twin.clip) for twin in twins]
    bench = Bench(items, real, twin_clips, seed)
    found = {}
    for task in tasks:
        # two clips of each caption, so that their sounds can be exchanged
        chosen = [items[i // 2] for i in range(clips)] if task == "t2av" else items
        made: list[Clip] = []
        for first in range(0, clips, batch):
            part = range(first, min(first + batch, clips))
            requests = [Request(chosen[i].caption, id=str(i), seed=seed * clips + i) for i in part]
            given = [given_of(task, chosen[i]) for i in part]
            shape = replace(form, duration_s=form.duration_s * LONG) if task == "long" else form
            made += [m.clip for m in pipeline.make_from(requests, given, shape, method)]
            advance(len(part))
        found[task] = getattr(bench, task)(made)
    return found


def given_of(task: str, item: ToyClip) -> GivenMedia:
    """What the task is given of an item: of the picture no more than an image file would hold."""
    assert item.clip.video is not None
    if task == "long":
        return GivenMedia(T2AV)
    if task == "i2av":
        return GivenMedia(NAMED[task], np.repeat(item.clip.video[:1], len(item.clip.video), axis=0))
    return GivenMedia(
        NAMED[task], item.clip.video if task == "v2a" else None, item.clip.audio if task == "a2v" else None
    )


@dataclass(frozen=True)
class Bench:
    """Made clips read and compared, one method a task."""

    items: Sequence[ToyClip]
    real: Sequence[Clip]  # the items through the codecs
    twins: Sequence[Clip]  # other clips of equal caption, likewise
    seed: int

    def t2av(self, made: Sequence[Clip]) -> dict[str, Scored]:
        """When things happen is free: picture and sound are held against each other, and against the caption."""
        chosen = [self.items[i // 2] for i in range(len(made))]
        other = [made[i ^ 1] if (i ^ 1) < len(made) else made[i - 1] for i in range(len(made))]
        return {"sync": self.agreement(made, other), **self.caption(made, chosen)}

    def i2av(self, made: Sequence[Clip]) -> dict[str, Scored]:
        ours, best = (self.first_frames(clips) for clips in (made, self.real))
        kept = {name: self.scored(ours[name], best[name], None) for name in ours}
        return {**kept, "sync": self.agreement(made, self.twins), **self.caption(made, self.items)}

    def v2a(self, made: Sequence[Clip]) -> dict[str, Scored]:
        swapped = [replace(c, audio=t.audio) for c, t in zip(made, self.twins, strict=True)]
        return self.against_truth(made, swapped, "heard")

    def a2v(self, made: Sequence[Clip]) -> dict[str, Scored]:
        swapped = [replace(c, video=t.video) for c, t in zip(made, self.twins, strict=True)]
        return {**self.against_truth(made, swapped, "seen"), **self.caption(made, self.items)}

    def long(self, made: Sequence[Clip]) -> dict[str, Scored]:
        """Whether picture and sound drift apart: the first window against the last."""
        found = {}
        for name, place in (("first", 0), ("last", LONG - 1)):
            cut = [self.part(clip, place) for clip in made]
            found[f"sync, {name} window"] = self.agreement(cut, [cut[i - 1] for i in range(len(cut))])
        return found

    def part(self, clip: Clip, place: int) -> Clip:
        """As many frames and samples as an item has, from `place` times as many on."""
        like = self.items[0].clip
        assert clip.video is not None
        assert clip.audio is not None
        assert like.video is not None
        assert like.audio is not None
        frames, samples = len(like.video), like.audio.shape[1]
        video = clip.video[place * frames : (place + 1) * frames]
        return replace(clip, video=video, audio=clip.audio[:, place * samples : (place + 1) * samples])

    def first_frames(self, clips: Sequence[Clip]) -> dict[str, Counts]:
        psnr: list[float] = []
        for clip, item in zip(clips, self.items, strict=True):
            assert clip.video is not None
            assert item.clip.video is not None
            psnr.append(psnr_db(clip.video[0], item.clip.video[0]))
        return {
            "first frame, dB": [(value, 1.0) for value in psnr],
            "first frame >= 30 dB": [(float(value >= 30), 1.0) for value in psnr],
        }

    def agreement(self, made: Sequence[Clip], others: Sequence[Clip]) -> Scored:
        """Event-sync F1: events seen and heard within a frame of each other, of one kind and colour."""

        def counts(clips: Sequence[Clip]) -> Counts:
            return [f1(read_events(clip).agreement()) for clip in clips]

        swapped = [replace(clip, audio=other.audio) for clip, other in zip(made, others, strict=True)]
        return self.scored(counts(made), counts(self.real), counts(swapped))

    def against_truth(self, made: Sequence[Clip], swapped: Sequence[Clip], sense: str) -> dict[str, Scored]:
        """F1 against the events that truly happen in what was given."""

        def counts(clips: Sequence[Clip], what: str) -> Counts:
            pairs = zip(clips, self.items, strict=True)
            return [f1(getattr(score(read_events(clip), item.events), what)) for clip, item in pairs]

        wanted = {"onset": sense, "sync": "sync"}
        return {
            name: self.scored(counts(made, what), counts(self.real, what), counts(swapped, what))
            for name, what in wanted.items()
        }

    def caption(self, made: Sequence[Clip], chosen: Sequence[ToyClip]) -> dict[str, Scored]:
        """Shares of the captions' actors shown with the right ..."""

        def counts(clips: Sequence[Clip], items: Sequence[ToyClip]) -> dict[str, Counts]:
            readings: list[Reading] = [read_events(clip) for clip in clips]
            told = [score_caption(r, item.facts) for r, item in zip(readings, items, strict=True)]
            return {n: [(getattr(t, n), t.actors) for t in told] for n in ("kind", "colour", "count")}

        ours, best = counts(made, chosen), counts(self.real, self.items)
        return {f"caption {n}": self.scored(ours[n], best[n], None) for n in ours}

    def scored(self, made: Counts, real: Counts, null: Counts | None) -> Scored:
        return Scored(
            estimate(made, self.seed), estimate(real, self.seed), None if null is None else estimate(null, self.seed)
        )


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    """At most 60, so that an exact copy can be averaged."""
    error = np.square(one.astype(np.float64) - other).mean()
    return float(min(60.0, 10 * np.log10(255**2 / max(error, 1e-9))))


def plain(found: dict[str, dict[str, Scored]]) -> dict[str, Any]:
    """For figures.json; null where there was nothing to count."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: finite(v) for k, v in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {
        task: {name: finite({**asdict(s), "of_ceiling": s.of_ceiling}) for name, s in figures.items()}
        for task, figures in found.items()
    }


def table(found: dict[str, dict[str, Scored]]) -> Any:
    from rich.table import Table

    shown = Table(title="held-out items, by the event reader", title_justify="left")
    for column in ("task", "figure", "value", "95 %", "ceiling", "of it", "null"):
        shown.add_column(column, justify="left" if column in ("task", "figure") else "right")
    for task, figures in found.items():
        for name, s in figures.items():
            null = "" if s.null is None else f"{s.null.value:.3f}"
            interval = f"{s.figure.low:.3f} - {s.figure.high:.3f}"
            shown.add_row(
                task, name, f"{s.figure.value:.3f}", interval, f"{s.ceiling.value:.3f}", f"{s.of_ceiling:.3f}", null
            )
    return shown


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        ScoresConfig,
        None,
        argv,
        "score what a model makes of held-out toybox items",
        ["python -m avgen.sample.scores model=runs/toybox clips=200"],
        "scores",
    )
    from accelerate import PartialState
    from rich.console import Console
    from rich.progress import Progress

    from avgen.sample.folder import open_pipeline

    console = Console()
    pipeline = open_pipeline(config.model).to(PartialState().device)
    method = Method(config.solver, config.guidance, precision=config.precision, cache=config.cache)
    with Progress(console=console) as bar:
        doing = bar.add_task("clips", total=config.clips * len(config.tasks))
        found = scores(
            *(pipeline, config.world, config.clips, config.tasks, method, config.split, config.seed, config.batch),
            advance=lambda clips: bar.advance(doing, clips),
        )
    console.print(table(found))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    said = {"config": to_plain(config), "model": pipeline.fingerprint, "tasks": plain(found)}
    config.out.write_text(json.dumps(said, indent=2, allow_nan=False) + "\n")
    console.print(f"figures are in [bold]{config.out}[/bold]")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
