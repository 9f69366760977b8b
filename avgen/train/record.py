"""run.json: what made a run, written when it starts; what was predicted of it and what was measured, when it ends."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from avgen import __version__
from avgen.config import to_plain
from avgen.models.cost import parameters
from avgen.plan import predict
from avgen.train.config import TrainConfig
from avgen.train.data import READ, read_by
from avgen.train.data_config import StoreData
from avgen.train.metrics import Meter
from avgen.train.trackers import METRICS, read_metrics

RECORD = "run.json"
LIBRARIES = ("torch", "accelerate", "diffusers", "transformers", "peft")


def begin(config: TrainConfig, accelerator: Accelerator) -> None:
    """What made this run, beside what it makes."""
    if not accelerator.is_main_process:
        return
    config.out.mkdir(parents=True, exist_ok=True)
    made_by = {
        "avgen": __version__,
        "commit": commit(),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "machine": machine(accelerator),
        "parameters": asdict(parameters(config.model)),
        "config": to_plain(config),
    }
    if isinstance(config.data, StoreData) and (config.out / READ).exists():
        made_by["stores"], _ = read_by(config.out)
    _write(config.out, made_by)


def commit() -> str | None:
    """Of the checkout this package lies in, `-dirty` with changes in it; None outside one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git here, or a checkout of somebody else's
        return None


def machine(accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device.type,
        "name": name,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


@dataclass(frozen=True)
class Outcome:
    """One figure as it was predicted and as it was measured."""

    step_s: float
    memory_gib: float


def held_bytes() -> int:
    """What the process holds now: before training, the libraries' code."""
    return psutil.Process().memory_info().rss


def finish(config: TrainConfig, accelerator: Accelerator, meter: Meter, held_before: int, first: int) -> str:
    """Predicted against measured, for people; the same goes into run.json. Empty where nothing was measured.

    Only of the steps after `first`: earlier ones may have been taken by another number of processes or machine.
    """
    if not accelerator.is_main_process or not (config.out / METRICS).exists():
        return ""
    if config.preference is not None:  # a second forward pass, of the reference, that predictions do not know of
        return ""
    if not config.trains_all:  # nor of weights without gradients
        return ""
    lines = [line for line in read_metrics(config.out / METRICS) if "seconds" in line and line["step"] > first]
    if not lines or not meter.shapes:
        return ""
    # the first line also holds what happens once: compilation, the first batch
    timed = lines[1:] or lines
    steps = sum(line["seconds"] * line["steps_per_s"] for line in timed)
    held = 0.0 if meter.device.type == "cuda" else held_before / 2**30  # a GPU's memory is counted from nothing
    measured = Outcome(sum(line["seconds"] for line in timed) / steps, max(line["memory_gib"] for line in lines) - held)
    _, shard = config.parallel.mesh(accelerator.num_processes)
    about = (meter.rate, config.products, config.checkpointing, meter.device, config.optimizer.kind)
    spread = (shard, config.parallel.context)
    made = {shape: predict(config.model, shape, *about, *spread) for shape in meter.shapes}
    micro_batches = sum(meter.shapes.values())
    micro_s = sum(made[shape].step_s * count for shape, count in meter.shapes.items()) / micro_batches
    memory = max(plan.memory.total for plan in made.values()) / 2**30
    predicted = Outcome(micro_s * config.accumulate, memory)
    record = json.loads((config.out / RECORD).read_text())
    _write(config.out, record | {"predicted": asdict(predicted), "measured": asdict(measured)})
    return (
        f"predicted against measured: {predicted.step_s:.3g} s and {measured.step_s:.3g} s a step, "
        f"{predicted.memory_gib:.2f} GiB and {measured.memory_gib:.2f} GiB at the peak"
    )


def _write(folder: Path, record: dict[str, Any]) -> None:
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
