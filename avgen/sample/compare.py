"""`python -m avgen.sample.compare guidance.audio.cross=4`: what one way of guiding a model brings over another.

Both make the same held-out items from the same noise, so figures are compared clip by clip and the interval is that
of the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from avgen import command
from avgen.lines import finite
from avgen.sample.exam import Exam, ExamConfig, Reader, crew
from avgen.sample.figures import refuse_unwritable, write_figures
from avgen.sample.guidance import Guidance
from avgen.sample.judge import Estimate, difference, estimate
from avgen.sample.method import Method
from avgen.sample.scores import answers, judge_of


@dataclass(frozen=True)
class CompareConfig(ExamConfig):
    """Which model, which items, and the two ways."""

    out: Path = Path("runs/compare.json")  # every figure
    tasks: tuple[str, ...] = ("v2a",)  # of t2av, i2av, v2a and a2v
    against: Guidance = field(default_factory=Guidance)  # the other way

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance == self.against:
            raise ValueError("guidance and against are the same: change one, as in guidance.audio.cross=4")


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

    refuse_unwritable(config.out)
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
    plain = finite({task: {n: asdict(c) for n, c in figures.items()} for task, figures in found.items()})
    write_figures(config.out, config, pipeline.fingerprint, {"tasks": plain}, console)
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
