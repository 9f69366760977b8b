"""`python -m avgen.sample.scores model=DIR`: what a model makes of held-out toybox items, read by the event reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from avgen import command
from avgen.config import to_plain
from avgen.data.toybox import ToyboxConfig
from avgen.data.toybox.world import Split
from avgen.lines import finite
from avgen.sample.cache import CacheConfig
from avgen.sample.exam import TASKS, Exam, Reader, crew
from avgen.sample.guidance import Guidance
from avgen.sample.judge import Judge, Read, Scored
from avgen.sample.method import Method, Precision
from avgen.sample.solvers import SolverConfig

SCENE_FIGURES = ("sync", "onset", "onset told", "right")  # what is said of each type of scene where there are several


@dataclass(frozen=True)
class ScoresConfig:
    """Which items are scored, and how the clips are made."""

    model: Path = Path("runs/toybox")  # as in avgen sample
    out: Path = Path("runs/scores.json")  # every figure
    clips: int = 200  # per task
    tasks: tuple[str, ...] = TASKS  # of t2av, i2av, v2a and a2v
    split: Split = "test"  # heldout: combinations of kind, colour and size that training never shows
    world: ToyboxConfig = field(default_factory=lambda: ToyboxConfig(scenes=("single",)))  # its form is the model's
    seed: int = 0  # of the world, the noise and the bootstrap
    batch: int = 20  # clips made at once
    processes: int | None = None  # that make clips, of one thread each; null: one per core, or one for an accelerator
    solver: SolverConfig = field(default_factory=SolverConfig)
    guidance: Guidance = field(default_factory=Guidance)
    precision: Precision = "auto"  # of matrix products, by autocast
    attention: str | None = None  # kernel, as model.attention of avgen train; null: the one it was trained with
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        if self.clips < 2 or self.batch < 1:
            raise ValueError(f"clips={self.clips} must be at least 2 and batch={self.batch} at least 1")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes={self.processes} must be at least 1")
        wrong = [task for task in self.tasks if task not in TASKS]
        if wrong:
            raise ValueError(f"tasks={wrong} cannot be scored: choose from {', '.join(TASKS)}")


Found = dict[str, dict[str, Scored]]  # by task, or task and type of scene, and by name of the figure
Advance = Callable[[int], None]


def judge_of(exam: Exam, reader: Reader, batch: int, advance: Advance = lambda clips: None) -> Judge:
    """The items themselves, and other clips of their captions, through the codecs."""
    items = [exam.item(i) for i in range(exam.clips)]
    real, twins = (answers(exam, what, reader, batch, advance) for what in ("real", "twins"))
    return Judge(items, real, twins)


def answers(exam: Exam, what: Any, reader: Reader, batch: int, advance: Advance = lambda clips: None) -> list[Read]:
    found: list[Read] = []
    for part in reader(exam.parts(what, batch)):
        found += part
        advance(len(part))
    return found


def scored(judge: Judge, task: str, made: Sequence[Read], seed: int) -> Found:
    """The task's figures; where the items are of several types of scene, some of them for each type as well."""
    found = {task: {name: counted.scored(seed) for name, counted in judge.figures(task, made).items()}}
    types = sorted({item.facts.type for item in judge.items})
    for scene in types if len(types) > 1 else ():
        part, clips = judge.of_scene(scene, task, made)
        figures = part.figures(task, clips) if clips else {}
        found[f"{task}, {scene}"] = {n: c.scored(seed) for n, c in figures.items() if n in SCENE_FIGURES}
    return found


def scores(
    exam: Exam, reader: Reader, tasks: Sequence[str] = TASKS, batch: int = 20, advance: Advance = lambda clips: None
) -> Found:
    """Figures by task and name."""
    judge = judge_of(exam, reader, batch, advance)
    found: Found = {}
    for task in tasks:
        found |= scored(judge, task, answers(exam, task, reader, batch, advance), exam.seed)
    return found


def plain(found: Found) -> dict[str, Any]:
    """For a JSON file; null where there was nothing to count."""
    return {
        task: {name: finite({**asdict(s), "of_ceiling": s.of_ceiling}) for name, s in figures.items()}
        for task, figures in found.items()
    }


def table(found: Found) -> Any:
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
        [
            "python -m avgen.sample.scores model=runs/toybox clips=200",
            "python -m avgen.sample.scores model=runs/toybox_long world.scenes=[single,turn,pair,offscreen,silent]",
        ],
        "python -m avgen.sample.scores",
    )
    from rich.console import Console
    from rich.progress import Progress

    from avgen.ranks import this_process
    from avgen.sample.folder import open_for

    console = Console()
    pipeline = open_for(this_process().device, config.model, config.attention)
    method = Method(config.solver, config.guidance, precision=config.precision, cache=config.cache)
    exam = Exam.of(pipeline, config.world, config.split, config.seed, config.clips, method)
    with Progress(console=console) as bar, crew(config.model, pipeline, config.processes) as reader:
        doing = bar.add_task("clips", total=config.clips * (len(config.tasks) + 2))
        found = scores(exam, reader, config.tasks, config.batch, lambda clips: bar.advance(doing, clips))
    console.print(table(found))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    said = {"config": to_plain(config), "model": pipeline.fingerprint, "tasks": plain(found)}
    config.out.write_text(json.dumps(said, indent=2, allow_nan=False) + "\n")
    console.print(f"figures are in [bold]{config.out}[/bold]")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
