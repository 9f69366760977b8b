"""`python -m avgen.sample.scores model=DIR`: what a model makes of held-out toybox items, read by the event reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from avgen import command
from avgen.data.toybox.world import Split
from avgen.lines import finite
from avgen.sample.cache import CacheConfig
from avgen.sample.exam import TASKS, Exam, ExamConfig, Reader, crew
from avgen.sample.figures import refuse_unwritable, write_figures
from avgen.sample.judge import Judge, Read, Scored
from avgen.sample.method import Method

SCENE_FIGURES = ("sync", "onset", "onset told", "right")  # what is said of each type of scene where there are several


@dataclass(frozen=True)
class ScoresConfig(ExamConfig):
    """Which items are scored, and how the clips are made."""

    out: Path = Path("runs/scores.json")  # every figure
    split: Split = "test"  # heldout: combinations of kind, colour and size that training never shows
    cache: CacheConfig = field(default_factory=CacheConfig)


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

    refuse_unwritable(config.out)
    console = Console()
    pipeline = open_for(this_process().device, config.model, config.attention)
    method = Method(config.solver, config.guidance, precision=config.precision, cache=config.cache)
    exam = Exam.of(pipeline, config.world, config.split, config.seed, config.clips, method)
    with Progress(console=console) as bar, crew(config.model, pipeline, config.processes) as reader:
        doing = bar.add_task("clips", total=config.clips * (len(config.tasks) + 2))
        found = scores(exam, reader, config.tasks, config.batch, lambda clips: bar.advance(doing, clips))
    console.print(table(found))
    write_figures(config.out, config, pipeline.fingerprint, {"tasks": plain(found)}, console)
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
