"""`avgen eval selftest`: what each metric notices, on this machine, of faults made on the spot in known doses.

The clips are of the toybox, so picture and sound belong together exactly and nothing is downloaded. For every metric
and fault: the mean at each dose, and the smallest dose that it tells from none (its detection limit). Checks that a
sync metric has to pass are named, and any that fails makes the command fail.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from avgen import command
from avgen.config import to_plain
from avgen.data.toybox import Toybox, ToyboxConfig, events, render
from avgen.types import Clip
from eval import statistics
from eval.ladder import Rung, ladder, wave_of
from eval.metric import ClipMetric, NotApplicable, Result, SetMetric, Setup, measure
from eval.metrics import sync
from eval.metrics.curves import SILENT, matched
from eval.record import Prompt
from eval.registry import chosen
from eval.take import Sound, Take

DRAWS = 200  # random shifts from which chance is known
TURNS = 4  # of each sound, to be held against chance
TOLERATED_S = 0.02  # error of an offset, from 16 frames/s on; below, the same share of a frame
OFTEN = 0.9  # share of offsets that must be as near
APART_S = 1.2  # of an event from the end
BEGINNING_S = 0.02  # of a clip, in which nothing may sound
SILENCE, STILLNESS = ("mute", 1), ("freeze", 1)


@dataclass(frozen=True)
class SelftestConfig:
    """Which metrics are tried, on what."""

    metrics: tuple[str, ...] = ("tier0", "toybox")  # tiers, groups or single metrics
    faults: tuple[str, ...] = ()  # shift, speed, pitch, low_pass, noise, freeze, swap, mute; empty: all of them
    clips: int = 24  # of the toybox
    fps: float = 16.0  # of their pictures
    size: int = 48  # pixels
    duration_s: float = 4.0  # of each; shifts go up to a second
    out: Path = Path("runs/selftest")  # folder of selftest.json and selftest.png
    seed: int = 0  # of the clips and of chance
    device: str = "cpu"  # of metrics that run a network

    def __post_init__(self) -> None:
        if self.clips < 4:
            raise ValueError(f"clips={self.clips} must be at least 4: fewer cannot tell a dose from none")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"fps={self.fps} must lie in (0, 1000]")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} cannot be negative")
        if self.duration_s < 2.5:
            raise ValueError(f"duration_s={self.duration_s} must be at least 2.5: shifts go up to a second")
        wrong = [name for name in self.faults if name not in ladder(self.fps)]
        if wrong:
            raise ValueError(f"faults={wrong}: choose from {', '.join(ladder(self.fps))}")


@dataclass(frozen=True)
class Response:
    """One metric at one dose."""

    dose: float
    mean: float | None
    low: float | None
    high: float | None
    clips: int  # with a value; the others abstained or failed
    change: float | None  # against the same clips without the fault
    detected: bool  # whether the change's interval leaves out 0


@dataclass(frozen=True)
class DoseResponse:
    metric: str
    fault: str
    unit: str
    direction: str
    responses: tuple[Response, ...]  # the first is dose 0
    monotone: bool  # no dose looks significantly milder than a smaller one
    limit: float | None  # the smallest dose from which on every one is detected


@dataclass(frozen=True)
class Check:
    """Something that has to hold, and by how much it does."""

    name: str
    passed: bool
    said: str


@dataclass(frozen=True)
class Selftest:
    tables: tuple[DoseResponse, ...]
    checks: tuple[Check, ...]


Values = dict[tuple[str, float], dict[str, list[Result]]]  # (fault, dose) -> metric -> one result per clip


def selftest(config: SelftestConfig, advance: Callable[[], None] = lambda: None) -> Selftest:
    metrics = [m for m in chosen(config.metrics, Setup(config.device)) if not isinstance(m, SetMetric)]
    if not metrics:
        raise ValueError(
            f"metrics={list(config.metrics)}: none of them measures single clips, which is what faults change"
        )
    rungs = {k: v for k, v in ladder(config.fps).items() if k in (config.faults or ladder(config.fps))}
    takes = clean_takes(config)
    values: Values = {("", 0.0): {}}
    for fault, dose in (("", 0.0), *((name, dose) for name, rung in rungs.items() for dose in rung.doses)):
        found: dict[str, list[Result]] = {m.definition.name: [] for m in metrics}
        for i, take in enumerate(takes):
            damaged = take
            if fault:
                damaged = with_fault(take, rungs[fault], dose, takes[(i + 1) % len(takes)].clip)
            for metric in metrics:
                found[metric.definition.name].append(measure(metric, damaged))
            advance()
        values[fault, dose] = found
    tables = tuple(table_of(m, name, rung, values) for name, rung in rungs.items() for m in metrics)
    return Selftest(tables, tuple(checks(config, tables, values)))


def steps(config: SelftestConfig) -> int:
    rungs = ladder(config.fps)
    return config.clips * (1 + sum(len(rungs[name].doses) for name in config.faults or rungs))


def clean_takes(config: SelftestConfig) -> list[Take]:
    """Clips where one thing happens once, seen and heard, each with itself as its reference.

    Of repeated events the next sound would come to lie where the last one was, and no metric could fall. The event
    lies early enough that no shift takes its sound out of the clip, and nothing sounds as the clip begins: after the
    silence that a shift puts before it, that would be an onset of its own.
    """
    world = replace(world_of(config), scenes=("single",))
    toybox = Toybox(world, "test", config.seed)
    takes: list[Take] = []
    for i in count():
        drawn = toybox.scene(i)
        scene = replace(drawn, actors=tuple(replace(actor, count=1) for actor in drawn.actors))
        if not all(event.instant_s < config.duration_s - APART_S for event in events(scene, config.duration_s)):
            continue
        item = render(scene, world)
        wave, rate = wave_of(item.clip)
        if np.abs(wave[:, : round(BEGINNING_S * rate)]).max() > SILENT:
            continue
        takes.append(Take(Prompt(str(i), item.caption), clip=item.clip, reference=item.clip))
        if len(takes) == config.clips:
            break
    return takes


def world_of(config: SelftestConfig) -> ToyboxConfig:
    return ToyboxConfig(
        height=config.size,
        width=config.size,
        fps=config.fps,
        duration_s=config.duration_s,
        scenes=("single", "turn", "pair"),
    )


def with_fault(take: Take, rung: Rung, dose: float, other: Clip) -> Take:
    """What is known of picture or sound is kept where only the other changes."""
    clip = rung.damage(take.clip, dose, other)
    if clip.video is take.clip.video:
        assert clip.audio is not None
        assert clip.sample_rate_hz is not None
        return take.with_sound(Sound(clip.audio, clip.sample_rate_hz, take.clock))
    damaged = Take(take.prompt, clip=clip, reference=take.clip, clock=take.clock)
    return damaged.with_sound(take.sound) if clip.audio is take.clip.audio else damaged


def table_of(metric: ClipMetric, fault: str, rung: Rung, values: Values) -> DoseResponse:
    name, direction = metric.definition.name, metric.definition.direction
    clean = values["", 0.0][name]
    rows = [(0.0, clean), *((dose, values[fault, dose][name]) for dose in rung.doses)]
    responses = tuple(response(dose, found, clean, direction) for dose, found in rows)
    limit = None
    for one in reversed(responses[1:]):
        if not one.detected:
            break
        limit = one.dose
    return DoseResponse(name, fault, rung.unit, direction, responses, monotone(rows, direction), limit)


def response(dose: float, found: Sequence[Result], clean: Sequence[Result], direction: str) -> Response:
    rows = [(r.value, r.weight) for r in found if r.value is not None]
    gaps = paired(found, clean, direction)
    mean = statistics.ratio([v * w for v, w in rows], [w for _, w in rows]) if rows else None
    change = statistics.mean(gaps) if len(gaps) > 1 else None
    return Response(
        dose,
        None if mean is None else finite(mean.value),
        None if mean is None else finite(mean.low),
        None if mean is None else finite(mean.high),
        len(rows),
        None if change is None else finite(change.value),
        change is not None and (change.low > 0 or change.high < 0),
    )


def paired(found: Sequence[Result], before: Sequence[Result], direction: str) -> list[float]:
    """Changes of clips that have both values; of scores that should be near zero, of the distance from it."""
    turn = abs if direction == "zero" else float
    both = zip(found, before, strict=True)
    return [turn(a.value) - turn(b.value) for a, b in both if a.value is not None and b.value is not None]


def monotone(rows: Sequence[tuple[float, Sequence[Result]]], direction: str) -> bool:
    """Against every smaller dose, over the clips with both values: no significant step back."""
    worse = -1 if direction == "higher" else 1
    for i, (_, less) in enumerate(rows):
        for _, more in rows[i + 1 :]:
            gaps = [worse * gap for gap in paired(more, less, direction)]
            if len(gaps) > 2 and statistics.mean(gaps, level=0.99).high < 0:
                return False
    return True


def checks(config: SelftestConfig, tables: Sequence[DoseResponse], values: Values) -> Sequence[Check]:
    found = []
    frame = round(1000 / config.fps, 1)
    by_name = {(t.metric, t.fault): t for t in tables}
    for (name, fault), table in by_name.items():
        measured = any(r.mean is not None for r in table.responses)  # not where a package is missing
        if fault == "shift" and measured and (own_sync(name) or name == "toybox.sync"):
            path = " ".join("-" if r.mean is None else f"{r.mean:.3g}" for r in table.responses)
            falls = table.direction == "none" or table.limit is not None
            found.append(Check(f"{name} is monotone over shifts and notices them", table.monotone and falls, path))
    if ("toybox.sync", "shift") in by_name:
        table = by_name["toybox.sync", "shift"]
        limit = table.limit
        found.append(Check("event sync notices one frame", limit is not None and limit <= frame, f"limit {limit} ms"))
    if ("sync.offset_s", "shift") in by_name:
        found.append(offsets_right(values, config.fps))
    for (fault, dose), what in ((SILENCE, "silence"), (STILLNESS, "a still picture")):
        if (fault, float(dose)) in {(f, float(d)) for f, d in values}:
            found += abstentions(values[fault, dose], what)
    if any(name.startswith("sync.onset_f1") for name, _ in by_name):
        found += chances(config)
    return found


def own_sync(name: str) -> bool:
    """Not those that reproduce a published definition, failings included."""
    return name.startswith("sync.") and "compat" not in name


def offsets_right(values: Values, fps: float) -> Check:
    """Shifts up to what is looked for, less a margin: there the estimate may not run into the end."""
    tolerated_s = TOLERATED_S * max(1.0, 16 / fps)
    errors: list[float] = []
    asked = 0
    for (fault, dose), found in values.items():
        if fault == "shift" and dose / 1000 <= 0.7 * sync.REACH_S:
            errors += [abs(r.value - dose / 1000) for r in found["sync.offset_s"] if r.value is not None]
            asked += len(found["sync.offset_s"])
    within = float(np.mean(np.array(errors) <= tolerated_s)) if errors else 0.0
    said = f"{within:.0%} of {len(errors)} estimates, {asked - len(errors)} abstentions"
    if errors:
        said += f", median error {1000 * float(np.median(errors)):.1f} ms"
    return Check(f"nine offsets in ten are within {1000 * tolerated_s:.0f} ms", within >= OFTEN, said)


def abstentions(found: Mapping[str, Sequence[Result]], what: str) -> list[Check]:
    checks = []
    for name, results in found.items():
        if own_sync(name):
            silent = sum(r.status == "not_applicable" for r in results)
            checks.append(Check(f"{name} abstains on {what}", silent == len(results), f"{silent} of {len(results)}"))
    return checks


def chances(config: SelftestConfig) -> list[Check]:
    """Sounds turned round by any amount score what their instants, turned likewise, would by chance."""
    random = np.random.default_rng(config.seed)
    toybox = Toybox(world_of(config), "test", config.seed)
    metrics = {ms: sync.onset_f1(ms / 1000) for ms in sync.TOLERANCES_MS}
    gaps: dict[int, list[float]] = {ms: [] for ms in metrics}
    clips: list[int] = []
    for i in range(config.clips):
        take = Take.of(toybox[i].clip)
        try:
            seen, heard = take.once(sync.instants)
        except NotApplicable:
            continue
        length = take.sound.duration_s
        for turn in random.uniform(0, length, TURNS):
            wave, rate = take.sound.wave, take.sound.rate_hz
            turned = take.with_sound(Sound(np.roll(wave, round(turn * rate), axis=1), rate, take.clock))
            try:
                found = {ms: f1(turned).value for ms, f1 in metrics.items()}
            except NotApplicable:
                continue
            clips.append(i)
            places = random.uniform(0, length, DRAWS)
            for ms, value in found.items():
                hits = [matched(seen, (heard + place) % length, ms / 1000) for place in places]
                assert value is not None
                gaps[ms].append(value - 2 * float(np.mean(hits)) / (len(seen) + len(heard)))
    made: list[Check] = []
    for ms in metrics:
        e = statistics.mean(gaps[ms], clips, level=0.99)
        said = f"turned sounds minus chance: {e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]"
        made.append(Check(f"sync.onset_f1_{ms}ms of turned sounds is chance", e.low <= 0 <= e.high, said))
    return made


def finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def figure(found: Selftest, path: Path) -> None:
    """One panel a fault: each metric's change over its whole range, so that all fit on one axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    faults = list(dict.fromkeys(t.fault for t in found.tables))
    columns = min(4, len(faults))
    rows = -(-len(faults) // columns)
    drawing = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(drawing)
    names = list(dict.fromkeys(t.metric for t in found.tables if t.limit is not None and t.direction != "none"))
    grid = drawing.subplots(rows, columns, squeeze=False)
    for place, fault in enumerate(faults):
        axes = grid[place // columns][place % columns]
        for table in found.tables:
            if table.fault != fault or table.metric not in names or table.limit is None:
                continue
            kept = [r for r in table.responses if r.mean is not None]
            means = np.array([r.mean for r in kept], float)
            reach = max(float(np.ptp(means)), 1e-12)
            axes.plot([r.dose for r in kept], np.abs(means - means[0]) / reach, ".-", label=table.metric, lw=1)
        axes.set_title(f"{fault} ({next(t.unit for t in found.tables if t.fault == fault)})", fontsize=10)
        if axes.lines:
            axes.legend(fontsize=5, loc="lower right", framealpha=0.6)
    for place in range(len(faults), rows * columns):
        grid[place // columns][place % columns].set_visible(False)
    drawing.suptitle("share of each metric's whole response, of metrics that notice the fault", fontsize=11)
    drawing.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        SelftestConfig,
        None,
        argv,
        "what each metric notices of faults in known doses",
        ["avgen eval selftest", "avgen eval selftest 'metrics=[sync,toybox]' 'faults=[shift]' fps=24"],
        "eval selftest",
    )
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    console = Console()
    with Progress(console=console) as bar:
        doing = bar.add_task("clips", total=steps(config))
        found = selftest(config, lambda: bar.advance(doing))
    shown = Table(title="smallest dose that a metric notices", title_justify="left")
    faults = list(dict.fromkeys(t.fault for t in found.tables))
    units = {t.fault: t.unit for t in found.tables}
    shown.add_column("metric")
    for fault in faults:
        shown.add_column(f"{fault}\n{units[fault]}", justify="right")
    limits = {(t.metric, t.fault): "" if t.limit is None else f"{t.limit:g}" for t in found.tables}
    for name in dict.fromkeys(t.metric for t in found.tables):
        shown.add_row(name, *(limits[name, fault] for fault in faults))
    console.print(shown)
    for check in found.checks:
        console.print(f"{'[green]holds[/green]' if check.passed else '[red]fails[/red]'}  {check.name}: {check.said}")
    config.out.mkdir(parents=True, exist_ok=True)
    said: dict[str, Any] = {"config": to_plain(config), **plain(found)}
    (config.out / "selftest.json").write_text(json.dumps(said, indent=1, allow_nan=False) + "\n")
    figure(found, config.out / "selftest.png")
    console.print(f"figures are in [bold]{config.out}[/bold]")
    return 0 if all(check.passed for check in found.checks) else command.FAILED


def plain(found: Selftest) -> dict[str, Any]:
    return {"tables": [asdict(t) for t in found.tables], "checks": [asdict(c) for c in found.checks]}


if __name__ == "__main__":
    raise SystemExit(command.run(main))
