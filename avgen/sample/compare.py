"""`python -m avgen.sample.compare guidance.audio.cross=4`: what one way of guiding a model brings over another.

Both make the same held-out items from the same noise, so figures are compared clip by clip and the interval is that
of the difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from avgen import command
from avgen.config import to_plain
from avgen.data.toybox import ToyboxConfig
from avgen.lines import finite
from avgen.sample.exam import TASKS, Exam, Reader, crew
from avgen.sample.guidance import Guidance
from avgen.sample.judge import Estimate, difference, estimate
from avgen.sample.method import Method, Precision
from avgen.sample.scores import answers, judge_of
from avgen.sample.solvers import SolverConfig


@dataclass(frozen=True)
class CompareConfig:
    """Which model, which items, and the two ways."""

    model: Path = Path("runs/toybox")  # as in avgen sample
    out: Path = Path("runs/compare.json")  # every figure
    clips: int = 200  # per task
    tasks: tuple[str, ...] = ("v2a",)  # of t2av, i2av, v2a and a2v
    world: ToyboxConfig = field(default_factory=lambda: ToyboxConfig(scenes=("single",)))  # its form is the model's
    seed: int = 0  # of the world, the noise and the bootstrap
    batch: int = 20  # clips made at once
    processes: int | None = None  # that make clips, of one thread each; null: one per core, or one for an accelerator
    solver: SolverConfig = field(default_factory=SolverConfig)
    guidance: Guidance = field(default_factory=Guidance)
    against: Guidance = field(default_factory=Guidance)  # the other way
    precision: Precision = "auto"  # of matrix products, by autocast
    attention: str | None = None  # kernel, as model.attention of avgen train; null: the one it was trained with

    def __post_init__(self) -> None:
        if self.clips < 2 or self.batch < 1:
            raise ValueError(f"clips={self.clips} must be at least 2 and batch={self.batch} at least 1")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes={self.processes} must be at least 1")
        if self.guidance == self.against:
            raise ValueError("guidance and against are the same: change one, as in guidance.audio.cross=4")
        wrong = [task for task in self.tasks if task not in TASKS]
        if wrong:
            raise ValueError(f"tasks={wrong} cannot be scored: choose from {', '.join(TASKS)}")


@dataclass(frozen=True)
class Compared:
    """A figure under both ways, and what the one has over the other."""

    one: Estimate
    other: Estimate
    gain: Estimate


def compare(
    exam: Exam,
    against: Guidance,
    reader: Reader,
    tasks: tuple[str, ...],
    batch: int,
    advance: Callable[[int], None] = lambda clips: None,
) -> dict[str, dict[str, Compared]]:
    """By task and figure."""
    other_exam = replace(exam, method=replace(exam.method, guidance=against))
    judge = judge_of(exam, reader, batch, advance)
    found: dict[str, dict[str, Compared]] = {}
    for task in tasks:
        ours, theirs = (judge.figures(task, answers(e, task, reader, batch, advance)) for e in (exam, other_exam))
        found[task] = {
            name: Compared(
                estimate(ours[name].made, exam.seed),
                estimate(theirs[name].made, exam.seed),
                difference(ours[name].made, theirs[name].made, exam.seed),
            )
            for name in ours
        }
    return found


def table(found: dict[str, dict[str, Compared]]) -> Any:
    from rich.table import Table

    shown = Table(title="guidance against another, paired by clip", title_justify="left")
    for column in ("task", "figure", "guidance", "against", "gain", "95 %"):
        shown.add_column(column, justify="left" if column in ("task", "figure") else "right")
    for task, figures in found.items():
        for name, c in figures.items():
            interval = f"{c.gain.low:+.3f} to {c.gain.high:+.3f}"
            shown.add_row(task, name, f"{c.one.value:.3f}", f"{c.other.value:.3f}", f"{c.gain.value:+.3f}", interval)
    return shown


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        CompareConfig,
        None,
        argv,
        "what one way of guiding a model brings over another, paired by clip",
        ["python -m avgen.sample.compare model=runs/weak tasks=[v2a] guidance.audio.cross=4"],
        "python -m avgen.sample.compare",
    )
    from rich.console import Console
    from rich.progress import Progress

    from avgen.ranks import this_process
    from avgen.sample.folder import open_for

    console = Console()
    pipeline = open_for(this_process().device, config.model, config.attention)
    method = Method(config.solver, config.guidance, precision=config.precision)
    pipeline.check(replace(method, guidance=config.against))
    exam = Exam.of(pipeline, config.world, "test", config.seed, config.clips, method)
    with Progress(console=console) as bar, crew(config.model, pipeline, config.processes) as reader:
        doing = bar.add_task("clips", total=config.clips * (2 * len(config.tasks) + 2))
        found = compare(
            exam, config.against, reader, config.tasks, config.batch, lambda clips: bar.advance(doing, clips)
        )
    console.print(table(found))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    said = {
        "config": to_plain(config),
        "model": pipeline.fingerprint,
        "tasks": finite({task: {n: asdict(c) for n, c in figures.items()} for task, figures in found.items()}),
    }
    config.out.write_text(json.dumps(said, indent=2, allow_nan=False) + "\n")
    console.print(f"figures are in [bold]{config.out}[/bold]")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
