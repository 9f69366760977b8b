"""`python -m avgen.train.compare`: whether two ways of training learn alike, by several runs of each.

Every run's averaged weights are judged by the same held-out clips, noise and levels, and the difference between the two
ways is set against how much runs of one way differ among themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import copysign, inf, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from avgen import command
from avgen.config import ConfigError
from avgen.data.stream import Source
from avgen.models.dit import AVTransformer
from avgen.sample.folder import config_of, parts_for
from avgen.train.config import ParallelConfig, TrainConfig
from avgen.train.data import reading, unseen
from avgen.train.data_config import ToyboxData
from avgen.train.optim import Average
from avgen.train.record import RECORD
from avgen.train.validate import validate

Losses = dict[str, float]  # by `<task>/<modality>`


@dataclass(frozen=True)
class CompareConfig:
    """Which runs, and by which clips."""

    ours: tuple[Path, ...]  # folders of finished runs of one way, of several seeds
    theirs: tuple[Path, ...]  # of the other way
    by: Path  # folder of the run whose held-out clips judge all of them
    clips: int = 256  # held-out clips per task

    def __post_init__(self) -> None:
        if min(len(self.ours), len(self.theirs)) < 2:
            raise ConfigError("ours", "the spread of a way takes two runs at least, better three: give more folders")
        named = {"ours": self.ours, "theirs": self.theirs, "by": (self.by,)}
        for key, folder in ((key, folder) for key, folders in named.items() for folder in folders):
            if not (folder / RECORD).is_file() or not (folder / "model").is_dir():
                raise ConfigError(key, f"{folder} holds no {RECORD} or no model: give folders of finished runs")


class Difference(NamedTuple):
    """Between the means of two ways, of one task and modality."""

    ours: float
    theirs: float
    spread_ours: float  # standard deviation over runs
    spread_theirs: float
    errors: float  # the difference, in standard errors

    @classmethod
    def between(cls, ours: Sequence[float], theirs: Sequence[float]) -> Difference:
        error = sqrt(stdev(ours) ** 2 / len(ours) + stdev(theirs) ** 2 / len(theirs))
        apart = mean(ours) - mean(theirs)
        errors = apart / error if error else copysign(inf, apart) if apart else 0.0
        return cls(mean(ours), mean(theirs), stdev(ours), stdev(theirs), errors)


def losses(folder: Path, held_out: Source, clips: int, tasks: Sequence[str]) -> Losses:
    """Of a run's exported model: its averaged weights."""
    config = replace(config_of(folder), validation_clips=clips, parallel=ParallelConfig())
    if list(tasks) != config.task_names:
        raise ConfigError("ours", f"{folder} was trained at {config.task_names}, the run that judges at {list(tasks)}")
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = AVTransformer.from_pretrained(folder / "model").to(accelerator.device)
    found = validate(model, Average(model, 0.0), held_out, config, accelerator)
    return {name.removeprefix("held_out/"): value for name, value in found.items() if "level" not in name}


def held_out_of(run: Path, config: TrainConfig) -> Source:
    """The clips that a finished run is judged by, as latents of its own codecs wherever its folder lies now."""
    if not isinstance(config.data, ToyboxData):
        return reading(config).held_out
    video, audio, _ = parts_for(config, run)
    return unseen(config, config.data, video, audio)


def compared(config: CompareConfig) -> dict[str, Difference]:
    judge = config_of(config.by)
    held_out = held_out_of(config.by, replace(judge, validation_clips=config.clips))
    ours, theirs = (
        [losses(folder, held_out, config.clips, judge.task_names) for folder in folders]
        for folders in (config.ours, config.theirs)
    )
    return {name: Difference.between([run[name] for run in ours], [run[name] for run in theirs]) for name in ours[0]}


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        CompareConfig,
        None,
        argv,
        "compare the held-out losses of two ways of training",
        [
            "python -m avgen.train.compare 'ours=[runs/store_0,runs/store_1,runs/store_2]' "
            "'theirs=[runs/memory_0,runs/memory_1,runs/memory_2]' by=runs/memory_0"
        ],
        "python -m avgen.train.compare",
    )
    found = compared(config)
    table = Table("held-out loss", "ours", "theirs", "difference", "in standard errors")
    for name, d in found.items():
        table.add_row(
            name,
            f"{d.ours:.4f} ± {d.spread_ours:.4f}",
            f"{d.theirs:.4f} ± {d.spread_theirs:.4f}",
            f"{d.ours - d.theirs:+.4f}",
            f"{d.errors:+.1f}",
        )
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
