"""The learned half of the demo: train a model, let it make clips of held-out items, have them judged.

Each task's clips and figures lie in a folder named by all that decides them, so an interrupted demo goes on and a
finished one only prints.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from avgen import __version__
from avgen.compose import load
from avgen.config import fingerprint
from avgen.data.toybox import ToyboxConfig, ToyClip
from avgen.data.toybox.reader import READER_VERSION
from avgen.data.toybox.world import WORLD_VERSION, Split
from avgen.demo.config import DemoConfig
from avgen.demo.figures import Figure
from avgen.demo.showing import Shown, show_made, varied
from avgen.lines import finite, read_whole, write_whole
from avgen.models.compilation import words_without_compiler
from avgen.ranks import this_process
from avgen.sample.exam import TASKS, Exam, crew
from avgen.sample.folder import open_for
from avgen.sample.guidance import Guidance, ModalityGuidance
from avgen.sample.judge import JUDGE_VERSION, Estimate, Judge, Scored
from avgen.sample.method import Method
from avgen.sample.scores import Found, answers, judge_of, scored
from avgen.sample.solvers import SolverConfig
from avgen.train.config import TrainConfig
from avgen.train.data_config import ToyboxData

BATCH = 20  # clips made at once
QUICK_STEPS = 4  # of training, and of the solver
TEXT_GUIDANCE = 2.0  # in both modalities, as `avgen sample` does unless told otherwise


class Unfinished(RuntimeError):
    """A command that the demo gave stopped before its end and has said why; the same demo goes on."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped with exit code {code}")
        self.code = code


@dataclass(frozen=True)
class Answers:
    """What a model made of one split's items for one task."""

    split: Split
    found: Found
    shown: tuple[Shown, ...]
    seconds: float  # that making and reading them took


def settings(config: DemoConfig) -> tuple[list[str], TrainConfig]:
    """The training run as `avgen train` would be told, in a folder of its own for each choice of settings."""
    words = [f"recipe={config.recipe}", f"data.codecs={config.out / 'codecs'}"]
    if config.quick:
        words += [
            *(f"steps={QUICK_STEPS}", "task_stages=[]", "data.workers=0", "validation_clips=2", "log_every=1"),
            *("samples.every=0", "compile=false"),
            # the demo's own clips, so that the codecs are fitted once
            *(f"data.fit_clips={config.fit_clips}", f"data.world.scenes=[{','.join(config.world.scenes)}]"),
        ]
    else:
        words += words_without_compiler()  # slower, but the demo needs nothing that is not there
    plain = load(TrainConfig, "train", words)
    if not isinstance(plain.data, ToyboxData):
        raise ValueError(f"recipe={config.recipe} does not train on the toybox, whose events the demo judges by")
    # what is compiled learns the same: a run that began without a compiler goes on with one. Nor does it matter how the
    # demo's folder is called: the run's own record says which codecs it learned
    same = replace(plain, out=Path(), compile=False, data=replace(plain.data, codecs=Path()))
    out = config.out / "model" / fingerprint(same)[:8]
    return [*words, f"out={out}"], replace(plain, out=out)


def train(config: DemoConfig, console: Console) -> tuple[TrainConfig, float]:
    """The trained run and the seconds it took, now or before."""
    words, run = settings(config)
    record = run.out / "demo.json"
    before = {"seconds": None if record.is_file() else 0.0, "done": False} | (read_whole(record) or {})
    if before["done"]:
        console.print(f"trained before: {run.out}")
        return run, seconds_of(before)
    from avgen.train.__main__ import main

    console.print(f"training: avgen train {' '.join(words)}", highlight=False, markup=False)
    began, code, seconds = time.perf_counter(), None, seconds_of(before)
    note(record, math.nan, False, config)  # of a training that is killed nobody knows how long it took
    try:
        code = main(words)
    finally:
        seconds += time.perf_counter() - began
        note(record, seconds, code == 0, config)
    if code:
        raise Unfinished(code)
    return run, seconds


def seconds_of(record: Mapping[str, Any]) -> float:
    """nan where a training was killed in between."""
    return math.nan if record["seconds"] is None else float(record["seconds"])


def note(record: Path, seconds: float, done: bool, config: DemoConfig) -> None:
    """A quick demo's model has learned nothing: who looks for a model to go on with passes it by."""
    record.parent.mkdir(parents=True, exist_ok=True)
    write_whole(record, json.dumps({"seconds": finite(seconds), "done": done, "quick": config.quick}) + "\n")


def examine(config: DemoConfig, run: TrainConfig, console: Console) -> tuple[list[Answers], float]:
    """Every task over unseen items, and over unseen combinations if asked for; seconds per clip made and read, now or
    before."""
    solver = SolverConfig(steps=QUICK_STEPS) if config.quick else SolverConfig()
    method = Method(solver, Guidance(*(ModalityGuidance(text=TEXT_GUIDANCE),) * 2), precision="auto")
    pipeline = open_for(this_process().device, run.out, None)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    splits: list[tuple[Split, int]] = [("test", config.sampled_clips)]
    if config.heldout_clips:
        splits.append(("heldout", config.heldout_clips))
    answered = []
    with Progress(*columns, console=console, transient=True) as bar, crew(run.out, pipeline, None) as reader:
        for split, clips in splits:
            exam = Exam.of(pipeline, world_of(run), split, config.seed, clips, method)
            key = key_of(pipeline.fingerprint, exam, config.samples_shown)
            judge: Judge | None = None
            for task in TASKS:
                folder = config.out / "samples" / key / task
                if not (folder / "answers.json").is_file():
                    if judge is None:
                        doing = bar.add_task(f"{split} items through the codecs", total=2 * clips)
                        judge = judge_of(exam, reader, BATCH, lambda n, doing=doing: bar.advance(doing, n))  # type: ignore[misc]
                    doing = bar.add_task(f"{task}, {split} items", total=clips)
                    began = time.perf_counter()
                    read = answers(exam, task, reader, BATCH, lambda n, doing=doing: bar.advance(doing, n))  # type: ignore[misc]
                    seconds = time.perf_counter() - began
                    folder.mkdir(parents=True, exist_ok=True)
                    asked = [exam.asked(task, i) for i in range(clips)]
                    shown = show_made(folder, config.out, exam, task, asked, read, chosen(asked, config.samples_shown))
                    write(folder / "answers.json", scored(judge, task, read, config.seed), shown, seconds)
                answered.append(read_answers(folder / "answers.json", split))
    made = len(TASKS) * sum(clips for _, clips in splits)
    return answered, sum(a.seconds for a in answered) / made


def key_of(model: str, exam: Exam, shown: int) -> str:
    """Names the folder of what a model (its fingerprint) answered: by the exam, and by what judges it now."""
    return fingerprint((model, exam, shown, __version__, WORLD_VERSION, READER_VERSION, JUDGE_VERSION))[:8]


def world_of(run: TrainConfig) -> ToyboxConfig:
    """What the run was trained on, but every type of scene as often as another, whichever was shown most."""
    assert isinstance(run.data, ToyboxData)
    return replace(run.data.worlds[0], scene_weights=())


def chosen(asked: Sequence[ToyClip], count: int) -> list[int]:
    """Clips of different actors, the first of each caption."""
    first = [i for i, item in enumerate(asked) if i == 0 or item.caption != asked[i - 1].caption]
    return [first[i] for i in varied([asked[i] for i in first], count)]


def write(path: Path, found: Found, shown: Sequence[Shown], seconds: float) -> None:
    figures = {name: {figure: asdict(s) for figure, s in rows.items()} for name, rows in found.items()}
    write_whole(path, json.dumps({"found": figures, "shown": [asdict(s) for s in shown], "seconds": seconds}))


def read_answers(path: Path, split: Split) -> Answers:
    said = json.loads(path.read_text())

    def estimated(plain: dict[str, Any] | None) -> Any:
        return None if plain is None else Estimate(**plain)

    found = {
        name: {figure: Scored(**{part: estimated(s[part]) for part in s}) for figure, s in rows.items()}
        for name, rows in said["found"].items()
    }
    return Answers(split, found, tuple(Shown(**shown) for shown in said["shown"]), said["seconds"])


def together(answered: Sequence[Answers]) -> Found:
    """All figures; those of unseen combinations under names of their own."""
    return {
        name if a.split == "test" else f"{name} ({a.split})": rows for a in answered for name, rows in a.found.items()
    }


@dataclass(frozen=True)
class Bar:
    """What a figure has to reach: a value of its own, a share of its ceiling, or a distance above its null."""

    task: str
    figure: str
    at_least: float
    of: str = "itself"  # or "ceiling", "null"

    def held_against(self, found: Found) -> Figure | None:
        s = found.get(self.task, {}).get(self.figure)
        if s is None:
            return None

        def held(name: str, e: Estimate, unit: str = "") -> Figure:
            return Figure(name, e.value, unit, self.at_least, low=e.low, high=e.high)

        name = f"{self.task}: {self.figure}"
        if self.of == "ceiling":
            return held(f"{name}, share of its ceiling", s.share)
        if self.of == "null":
            assert s.above is not None
            return held(f"{name}, above its null", s.above)
        return held(name.removesuffix(", dB"), s.figure, "dB" if "dB" in self.figure else "")


CAPTIONS = tuple(
    Bar("t2av", f"caption {what}", least) for what, least in (("kind", 0.9), ("colour", 0.9), ("count", 0.75))
)
FIRST_FRAME = (
    Bar("i2av", "first frame, dB", 30),
    *(Bar("i2av", f"caption {what}", 0.9) for what in ("kind", "colour")),
)
SCENES = ("silent", "offscreen", "turn", "pair")
BARS: dict[str, tuple[Bar, ...]] = {
    "toybox": (
        *(Bar("t2av", "sync", 0.8, "ceiling"), Bar("t2av", "sync", 0.2, "null")),
        *(Bar("v2a", "onset", 0.9, "ceiling"), Bar("a2v", "onset", 0.75, "ceiling")),
        *FIRST_FRAME,
        *CAPTIONS,
    ),
    "toybox_long": (
        *(Bar(task, "sync", 0.92, "ceiling") for task in ("t2av", "i2av")),
        *(Bar(task, "onset", 0.92, "ceiling") for task in ("v2a", "a2v")),
        *(Bar(f"{task}, {scene}", "right", 0.85) for task in TASKS for scene in SCENES),
        *FIRST_FRAME,
        *CAPTIONS,
    ),
}


def held_against_bars(recipe: str, found: Found) -> list[Figure]:
    """A recipe without bars of its own is shown those of toybox."""
    figures = [bar.held_against(found) for bar in BARS.get(recipe, BARS["toybox"])]
    return [figure for figure in figures if figure is not None]
