"""`python -m avgen.sample.long_report model=DIR`: whether clips longer than the model knows hold together.

Two questions: do picture and sound drift apart (event-sync F1 of the last window against the first), and can it be
seen or heard where windows meet (jumps there against jumps at other instants, and against hard cuts).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from avgen import command
from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.data.toybox.reader import Reading, Tally, read_events
from avgen.lines import finite
from avgen.sample.figures import refuse_unwritable, write_figures
from avgen.sample.guidance import Guidance
from avgen.sample.inputs import Form, GivenMedia, Request
from avgen.sample.judge import Counts, Estimate, difference, estimate, f1
from avgen.sample.method import Method, Precision
from avgen.sample.pipeline import AVPipeline
from avgen.sample.seams import meetings_s, seam_ranks, spliced
from avgen.sample.solvers import SolverConfig
from avgen.tasks import T2AV
from avgen.types import Clip

MOST_DRIFT = 0.05  # that the last window's F1 may be from the first's
STREAMS = ("sound", "picture")


@dataclass(frozen=True)
class LongConfig:
    """Which long clips are made, and how."""

    model: Path = Path("runs/toybox")  # as in avgen sample
    out: Path = Path("runs/long.json")  # every figure
    clips: int = 40  # long ones
    times: int = 10  # how often the longest trained duration fits in them
    world: ToyboxConfig = field(default_factory=lambda: ToyboxConfig(scenes=("single",)))  # whose captions are read
    seed: int = 0  # of the captions, the noise, the hard cuts and the bootstrap
    batch: int = 8  # clips made at once
    solver: SolverConfig = field(default_factory=SolverConfig)
    guidance: Guidance = field(default_factory=Guidance)
    precision: Precision = "auto"  # of matrix products, by autocast
    attention: str | None = None  # kernel, as model.attention of avgen train; null: the one it was trained with

    def __post_init__(self) -> None:
        if self.clips < 2 or self.batch < 1 or self.times < 2:
            raise ValueError(
                f"clips={self.clips} and times={self.times} must be at least 2 and batch={self.batch} at least 1"
            )


@dataclass(frozen=True)
class LongReport:
    """What the long clips came to."""

    windows: tuple[Estimate, ...]  # event-sync F1 in each stretch of the trained duration
    drift: Estimate  # F1 of the last less that of the first, paired by clip
    ceiling: Estimate  # F1 over all of real clips of that length, through the codecs
    seams: dict[str, Estimate]  # by stream: share of other instants that jump less than a seam; 0.5 = nothing shows
    loud: dict[str, Estimate]  # by stream: share of seams that jump more than 99 % of other instants; 0.01 = nothing
    hard: dict[str, Estimate]  # as `seams`, of hard cuts between other clips: what the detector makes of a true seam

    @property
    def steady(self) -> bool:
        return abs(self.drift.value) <= MOST_DRIFT


def long_clips(
    pipeline: AVPipeline, form: Form, config: LongConfig, advance: Callable[[int], None] = lambda clips: None
) -> list[Clip]:
    items = Toybox(replace(config.world, duration_s=pipeline.window_s), "test", config.seed)
    method = Method(config.solver, config.guidance, precision=config.precision)
    made: list[Clip] = []
    for first in range(0, config.clips, config.batch):
        places = range(first, min(first + config.batch, config.clips))
        requests = [Request(items[i].caption, id=str(i), seed=config.seed * config.clips + i) for i in places]
        made += [m.clip for m in pipeline.make_from(requests, [GivenMedia(T2AV)] * len(places), form, method)]
        advance(len(places))
    return made


def agreement(reading: Reading, start_s: float, end_s: float) -> Tally:
    """Of the events in a stretch of a clip that was read whole, so that no event is cut; what is seen on one side of an
    edge and heard on the other counts where it is seen."""

    def inside(event: Any) -> bool:
        return bool(start_s <= event.instant_s < end_s)

    pairs = reading.pairs()
    across = sum(inside(seen) - inside(heard) for seen, heard in pairs)
    matched = sum(inside(seen) for seen, _ in pairs)
    return Tally(matched, found=sum(map(inside, reading.heard)) + across, true=sum(map(inside, reading.seen)))


def report(
    clips: Sequence[Clip], real: Sequence[Clip], window_s: float, cuts_s: Mapping[str, Sequence[float]], seed: int
) -> LongReport:
    """cuts_s: when windows meet, by stream"""
    readings = [read_events(clip) for clip in clips]
    length_s = clips[0].video_duration_s
    starts_s = [window_s * i for i in range(round(length_s / window_s))]
    counts: list[Counts] = [[f1(agreement(r, s, s + window_s)) for r in readings] for s in starts_s]
    rng = np.random.default_rng(seed)
    jumps = [seam_ranks(clip, cuts_s) for clip in clips]
    hard = []
    for i in range(len(clips)):
        fps = clips[i].fps or 1
        between = np.arange(math.ceil(0.1 * window_s * fps), math.floor((length_s - 0.1 * window_s) * fps) + 1)
        count = len(next(iter(cuts_s.values())))
        at_s = np.sort(rng.choice(between, count, replace=False) / fps).tolist()  # between frames, no two alike
        hard.append(seam_ranks(spliced([clips[i], clips[i - 1]], at_s), dict.fromkeys(STREAMS, at_s)))

    def summed(ranks: Sequence[dict[str, np.ndarray]], of: Callable[[np.ndarray], np.ndarray]) -> dict[str, Estimate]:
        return {m: estimate([(float(of(r[m]).sum()), len(r[m])) for r in ranks], seed) for m in STREAMS}

    return LongReport(
        tuple(estimate(c, seed) for c in counts),
        difference(counts[-1], counts[0], seed),
        estimate([f1(read_events(clip).agreement()) for clip in real], seed),
        summed(jumps, lambda r: r),
        summed(jumps, lambda r: r > 0.99),
        summed(hard, lambda r: r),
    )


def lines(found: LongReport) -> list[tuple[str, str]]:
    """For people."""

    def said(e: Estimate) -> str:
        return f"{e.value:.3f} ({e.low:.3f} - {e.high:.3f})"

    verdict = "within" if found.steady else "not within"
    rows = [
        ("event-sync F1, first window", said(found.windows[0])),
        ("event-sync F1, last window", said(found.windows[-1])),
        ("last less first, paired by clip", f"{said(found.drift)}, {verdict} {MOST_DRIFT}"),
        ("event-sync F1, window by window", " ".join(f"{e.value:.2f}" for e in found.windows)),
        ("event-sync F1, real clips of that length", said(found.ceiling)),
    ]
    for m in STREAMS:
        rows += [
            (f"{m}: share of other instants that jump less than seams", f"{said(found.seams[m])}, 0.5 = nothing shows"),
            (f"{m}: seams above 99 % of other instants", f"{said(found.loud[m])}, 0.01 = nothing shows"),
            (f"{m}: the same of hard cuts at random", f"{said(found.hard[m])}, 1 = each is found"),
        ]
    return rows


def plain(found: LongReport) -> dict[str, Any]:
    said: dict[str, Any] = finite(asdict(found))
    return said


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        LongConfig,
        None,
        argv,
        "whether clips longer than the model knows hold together",
        ["python -m avgen.sample.long_report model=runs/toybox clips=40"],
        "python -m avgen.sample.long_report",
    )
    from rich.console import Console
    from rich.progress import Progress

    from avgen.ranks import this_process
    from avgen.sample.folder import open_for

    refuse_unwritable(config.out)
    console = Console()
    pipeline = open_for(this_process().device, config.model, config.attention)
    form = replace(pipeline.trained_form, duration_s=config.times * pipeline.window_s)
    with Progress(console=console) as bar:
        doing = bar.add_task("long clips", total=config.clips)
        clips = long_clips(pipeline, form, config, lambda count: bar.advance(doing, count))
        longer = Toybox(replace(config.world, **form_of(pipeline, form)), "test", config.seed)
        real = [pipeline.through_codecs(longer[i].clip) for i in bar.track(range(min(config.clips, 20)))]
    found = report(clips, real, pipeline.window_s, meetings_s(pipeline, form), config.seed)
    for what, value in lines(found):
        console.print(f"{what:60} {value}", highlight=False)
    write_figures(config.out, config, pipeline.fingerprint, plain(found), console)
    return 0


def form_of(pipeline: AVPipeline, form: Form) -> dict[str, Any]:
    """Real clips measure what made ones do: the reader is as strict as their frames are long."""
    sound = pipeline.audio_codec.geometry
    return asdict(form) | {"sample_rate_hz": sound.sample_rate_hz, "audio_channels": sound.audio_channels}


if __name__ == "__main__":
    raise SystemExit(command.run(main))
