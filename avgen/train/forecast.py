"""What a training recipe will cost before it runs: `avgen plan recipe=...`.

The recipe says what a step holds; the rest is the plan of one forward pass, times how often it is run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from avgen import command
from avgen.compose import load
from avgen.config import ConfigError
from avgen.plan import (
    WIDEST,
    Plan,
    PlanConfig,
    Rate,
    batch_of,
    counted,
    flops_table,
    gib,
    memory_table,
    parameter_table,
    plan,
    rate_of,
)
from avgen.rate import faster_precision
from avgen.tasks import in_training
from avgen.train.config import TrainConfig

EXAMPLES = (
    "avgen plan recipe=toybox",
    "avgen plan recipe=toybox device=h200 processes=8 parallel.strategy=fsdp batch=512",
)

ABOUT = "what a training recipe will cost"
SMALLEST = 16  # pixels: clips without a picture have one token in its place


@dataclass(frozen=True)
class ForecastConfig:
    """What a forecast assumes besides the recipe."""

    device: Literal["h200", "h100", "a100", "here"] = "here"  # here = time a matrix product on this machine
    device_tflops: float | None = None  # matrix products per second, in place of the device's
    efficiency: float | None = None  # share of that rate a step reaches; null: 0.4 of a GPU, 0.18 of a CPU
    processes: int = 1  # devices that share every step
    caption_tokens: int | None = None  # per caption: bytes, or features; null: as data pads them

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes={self.processes} must be at least 1")

    def settled(self, config: TrainConfig) -> TrainConfig:
        """As the run would settle its precision on that device."""
        if config.settled:
            return config
        measured = self.device == "here" and self.device_tflops is None and not torch.cuda.is_available()
        return config.settle(faster_precision(torch.device("cpu")) if measured else "bf16")


@dataclass(frozen=True)
class Forecast:
    """A step on clips of one shape."""

    config: PlanConfig  # of one forward pass on one device
    one: Plan
    clips: int  # of the step, over all devices
    passes: int  # forward passes per device and step
    often: float  # how often a step is on clips of this shape, set against other shapes

    @property
    def step_s(self) -> float:
        return self.one.step_s * self.passes


def forecasts(config: TrainConfig, given: ForecastConfig, rate: Rate) -> list[Forecast]:
    """One per shape of the recipe's clips."""
    config = given.settled(config)
    tasks = [in_training(name, head_s=1.0) for name in config.task_names]
    data = config.data
    if config.parallel.strategy == "hsdp" and config.parallel.shard is None and "LOCAL_WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "parallel.shard", "hsdp cuts within a node, and nothing says how many devices one has: give it"
        )
    _, shard = config.parallel.mesh(given.processes)
    found = []
    video_codec, audio_codec = data.geometries
    side = SMALLEST if video_codec is None else video_codec.pixels_per_token
    for form, often in data.often.items():
        passing = PlanConfig(
            model=config.model,
            height=form.height or side,
            width=form.width or side,
            duration_s=form.duration_s,
            fps=form.fps or 1 / form.duration_s,
            video_codec=video_codec,
            audio_codec=audio_codec,
            caption_tokens=data.caption_tokens if given.caption_tokens is None else given.caption_tokens,
            levels=2,  # in training every stream has one for given tokens, whether or not there are any
            ragged=data.ragged or any(None in (task.video, task.audio) for task in tasks),
            dtype=config.products,
            checkpointing=config.checkpointing,
            optimizer_kind=config.optimizer.kind,
            shard=shard,
            context=config.parallel.context,
            device=given.device,
            device_tflops=given.device_tflops,
            efficiency=given.efficiency,
        )
        tokens = sum(stream.tokens for stream in batch_of(passing).streams.values())
        clips = config.batch
        if data.step_tokens is not None:
            clips = max(1, data.step_tokens // (tokens * clips)) * clips
        parts = given.processes // config.parallel.context * config.accumulate
        if clips % parts:
            said = f"{clips} clips a step must be a multiple of processes / context x accumulate = {parts}"
            raise ConfigError("batch", said)
        passing = replace(passing, batch=clips // parts)
        found.append(Forecast(passing, plan(passing, rate), clips, config.accumulate, often / clips))
    return found


def show(config: TrainConfig, given: ForecastConfig, console: Console) -> None:
    """Print the forecast."""
    config = given.settled(config)
    first = PlanConfig(config.model, 1, 1, 1.0, 1.0, dtype=config.products, device=given.device)
    rate = rate_of(replace(first, device_tflops=given.device_tflops))
    found = forecasts(config, given, rate)
    largest = max(found, key=lambda f: f.one.memory.total)
    for table in (parameter_table, flops_table, memory_table):
        console.print(table(largest.config, largest.one))
    console.print(steps_table(found))
    step_s = sum(f.step_s * f.often for f in found) / sum(f.often for f in found)
    hours = config.steps * step_s / 3600
    console.print(
        f"{config.steps:,} steps: {hours:.3g} h predicted, without waiting for data, validation or checkpoints"
    )
    told = largest.config.efficiency_told
    console.print(f"rate: {rate.tflops:.3g} TFLOP/s ({rate.source}) x efficiency {told}")


def steps_table(found: list[Forecast]) -> Table:
    table = Table(title="A step, by the shape of its clips")
    for head in ("size", "clip", "clips", "passes", "FLOPs per device", "GiB", "s"):
        table.add_column(head, justify="left" if head == "size" else "right")
    for f in found:
        size = f"{f.config.height} x {f.config.width} at {f.config.fps:g} fps"
        flops = counted(f.one.cost.executed * f.passes)
        clip, clips = f"{f.config.duration_s:g} s", f"{f.clips:,}"
        table.add_row(size, clip, clips, str(f.passes), flops, gib(f.one.memory.total), f"{f.step_s:.3g}")
    return table


def main(argv: list[str]) -> int:
    """Words that are keys of the forecast alone go there, everything else is the recipe's."""
    own = {field.name for field in fields(ForecastConfig)}
    mine = [word for word in argv if word.split("=")[0] in own]
    given = load(ForecastConfig, None, mine)
    recipe = [word for word in argv if word not in mine]
    config = command.configure(TrainConfig, "train", recipe, ABOUT, EXAMPLES, "plan", ForecastConfig)
    console = Console()
    show(config, given, Console(width=min(console.width, WIDEST)))
    return 0
