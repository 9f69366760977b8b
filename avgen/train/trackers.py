"""Where a run's numbers go: metrics.jsonl always, trackers by config, the terminal while somebody watches.

The trackers are accelerate's: one interface to all of them, kept up to date by others as their services change.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from avgen.config import to_plain
from avgen.train.config import TrackingConfig, TrainConfig
from avgen.types import MODALITIES

METRICS = "metrics.jsonl"
WANDB_ID = "wandb_id.txt"


def check_installed(config: TrackingConfig) -> None:
    """Refuse a tracker that is not there, before anything is built."""
    for name in config.to:
        if find_spec(name) is None:
            others = [other for other in config.to if other != name]
            raise ValueError(
                f"tracking.to={list(config.to)} asks for {name}, which is not installed: pip install {name}, "
                f"or give tracking.to=[{','.join(others)}] (metrics.jsonl is written either way)"
            )


class Journal:
    """One line of metrics.jsonl per log point, and the same numbers to every tracker; the main process writes.

    A resumed run drops the lines of steps that it takes again.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator, first: int) -> None:
        check_installed(config.tracking)
        self.path, self.writes = config.out / METRICS, accelerator.is_main_process
        self.trackers: list[GeneralTracker] = []
        if self.writes:
            if self.path.exists():
                kept = [json.dumps(line) for line in read_metrics(self.path) if line["step"] <= first]
                self.path.write_text("".join(line + "\n" for line in kept))
            self.trackers = [started(name, config, first) for name in config.tracking.to]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self.writes:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self.trackers:
            tracker.log(dict(values), step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """To the trackers that show pictures."""
        for tracker in self.trackers:
            if isinstance(tracker, TensorBoardTracker | WandBTracker):
                layout = {"dataformats": "NHWC"} if isinstance(tracker, TensorBoardTracker) else {}
                tracker.log_images({name: np.asarray(image)[None]}, step=step, **layout)

    @contextmanager
    def open(self) -> Iterator[Journal]:
        """Trackers are closed however the run ends."""
        try:
            yield self
        finally:
            for tracker in self.trackers:
                tracker.finish()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def started(name: str, config: TrainConfig, first: int) -> GeneralTracker:
    """A tracker that goes on where an interrupted run of the same folder stopped."""
    tracking = config.tracking
    title = tracking.name or config.out.name
    about: dict[str, Any] = {"name": title, "config": to_plain(config), "resume": "allow"}
    tracker: GeneralTracker
    if name == "tensorboard":
        tracker = TensorBoardTracker(name, config.out, purge_step=first + 1)
    elif name == "wandb":
        tracker = WandBTracker(tracking.project, dir=str(config.out), id=wandb_id(config.out), **about)
    else:
        tracker = TrackioTracker(tracking.project, **about)
    tracker.start()
    return tracker


def wandb_id(folder: Path) -> str:
    """What wandb knows a run again by, kept in the run's folder.

    A folder is one run. Its settings are not: a leg with more steps goes on with it. Nor is its path: folders move, and
    a name that is used again is another run.
    """
    path = folder / WANDB_ID
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()


class Screen:
    """How the run stands, for whoever watches: a bar on a terminal, a line per log point elsewhere."""

    def __init__(self, console: Console, total: int, first: int, shown: bool) -> None:
        self.console, self.total, self.shown = console, total, shown
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[numbers]}"))
        live = shown and console.is_terminal
        self.bar = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=console, disable=not live)
        self.task = self.bar.add_task("", total=total, completed=first, numbers="")

    @contextmanager
    def open(self) -> Iterator[Screen]:
        with self.bar:
            yield self

    def step(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def show(self, step: int, line: Mapping[str, float]) -> None:
        """The numbers of a log point."""
        numbers = "  ".join(f"{m} {line[f'loss/{m}']:#.4g}" for m in MODALITIES if f"loss/{m}" in line)
        numbers += f"  {line['steps_per_s']:.3g} steps/s"
        self.bar.update(self.task, numbers=numbers)
        if self.shown and not self.console.is_terminal:
            left = timedelta(seconds=round((self.total - step) / line["steps_per_s"]))
            self.console.print(f"step {step}/{self.total}  {numbers}  {left} left", highlight=False, soft_wrap=True)

    def alarm(self, step: int, found: Sequence[str]) -> None:
        """What a preference may have been won by without the clips getting better."""
        if self.shown and found:
            said = f"alarm at step {step}: against the reference, held-out clips have become {'; '.join(found)}. "
            said += "Look at them before going on: the reward may be paid for this"
            self.console.print(said, highlight=False, soft_wrap=True, style="bold red")
