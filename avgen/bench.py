"""How fast a training step runs, beside the fastest this machine multiplies matrices: `avgen bench`.

The matmul rate is measured in the same run and precision. A step's share of it counts the model's own FLOPs only:
activations computed again for the backward pass are not work done.
"""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from avgen import __version__, command
from avgen.config import at_least_one
from avgen.flow import losses, noised
from avgen.models.attention import choose
from avgen.models.checkpointing import Checkpointing
from avgen.models.cost import BatchShape, step_cost
from avgen.models.dit import AVTransformer
from avgen.models.memory import memory
from avgen.models.text import bytes_of
from avgen.plan import PlanConfig, batch_of, counted, picture_of, sound_of
from avgen.rate import DTYPES, MATMUL_FLOPS, matmul, synchronize, timed
from avgen.tasks import I2AV, T2AV, V2A, assign
from avgen.train.step import in_two_levels
from avgen.types import Batch, Text, Velocity

# keys of a plan that no timed step has
PLANNED_ONLY = (
    *("ragged", "ema", "optimizer_kind", "shard", "context", "device", "device_tflops", "efficiency", "sizes"),
    "checkpointing",  # checkpointings=[...] says it
)


@dataclass(frozen=True)
class BenchConfig(PlanConfig):
    """Which steps to time: a plan's batch, run in every combination of attention, compilation and checkpointing."""

    attentions: tuple[str, ...] = ("sdpa",)  # backends to compare
    compiled: tuple[bool, ...] = (False,)  # with torch.compile on every block, without, or both
    checkpointings: tuple[Checkpointing, ...] = ("none",)  # what blocks keep for the backward pass
    optimizer: bool = False  # a fused AdamW update as part of the step
    warmup: int = 2  # steps before timing; compilation happens in the first
    repeats: int = 16  # steps timed
    profile: bool = False  # also print the operations that take most of a step
    out: Path | None = None  # a JSON lines file to add the figures to

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "warmup", "repeats")
        if self.levels not in (1, 2):
            raise ValueError(f"levels={self.levels} must be 1, or 2 as in training")
        for name in PLANNED_ONLY:
            if getattr(self, name) != getattr(PlanConfig, name):
                raise ValueError(
                    f"{name} means nothing to avgen bench, which times steps on this machine: leave it out"
                )

    @property
    def half(self) -> bool:
        return self.dtype != "fp32"


@dataclass(frozen=True)
class Variant:
    """One way to run the same step."""

    attention: str
    compiled: bool
    checkpointing: Checkpointing


@dataclass(frozen=True)
class Measurement:
    """One variant's step."""

    variant: Variant
    step_s: float  # median
    fastest_s: float
    first_s: float  # the first step, compilation included
    flops: int  # of the model, forward and backward
    matmul_flops_per_s: float  # of this machine in this dtype, the median of products run between the steps
    peak_bytes: int | None  # device memory, weights and gradients included; None on the CPU
    predicted_bytes: int

    @property
    def utilisation(self) -> float:
        """The step's model FLOPs per second as a share of the matmul rate."""
        return self.flops / self.step_s / self.matmul_flops_per_s


def random_batch(config: BenchConfig) -> Batch:
    """Equal clips of random latents in the codecs' real geometry."""
    model, samples = config.model, config.batch
    if model.text.kind == "bytes":
        text = bytes_of(["x" * (config.caption_tokens - 1)] * samples, config.caption_tokens)
    else:
        text = Text.of(torch.randn(samples, config.caption_tokens, model.text.width))
    picture, sound = picture_of(config), sound_of(config)
    video = audio = None
    if picture is not None:
        steps = picture.time.steps(round(config.duration_s * config.fps))
        rows, columns = config.height // picture.space_stride, config.width // picture.space_stride
        video = picture.stream(torch.randn(samples, picture.channels, steps, rows, columns), config.fps)
    if sound is not None:
        steps = sound.time.steps(round(config.duration_s * sound.sample_rate_hz))
        audio = sound.stream(torch.randn(samples, sound.channels, steps))
    batch = Batch(video, audio, text, text)
    if config.levels == 1:
        return batch
    if video is not None and audio is not None:
        batch = assign(batch, [(I2AV, T2AV, V2A)[i % 3] for i in range(samples)])
    return in_two_levels(batch, model)


def measure(config: BenchConfig, variant: Variant, device: torch.device, console: Console) -> Measurement:
    """Build the model, run the steps, and leave the device empty again."""
    torch.manual_seed(0)
    torch.compiler.reset()
    with torch.device(device):
        model = AVTransformer.of(config.model)
    model.set_attention(variant.attention, config.half)
    model.set_checkpointing(variant.checkpointing)
    if variant.compiled:
        model.compile_blocks(max_shapes=1)
    batch = random_batch(config).to(device)
    step = train_step(model, batch, config)
    first_s = timed(step, device)
    for _ in range(config.warmup - 1):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    product = matmul(device, DTYPES[config.dtype])
    times, products = [], []
    for _ in range(config.repeats):  # in turn, so that both meet the same neighbours on a shared machine
        times.append(timed(step, device))
        products.append(timed(product, device))
    rate = MATMUL_FLOPS[device.type] / median(products)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    if config.profile:
        console.print(profile(step, device))
    shape = BatchShape.of(batch)
    spec, fused = replace(config.model, attention=variant.attention), device.type == "cuda"
    flops = step_cost(spec, shape, variant.checkpointing).model
    plan = memory(spec, shape, config.dtype, variant.checkpointing, ema=False, fused_norm=fused)
    predicted = plan.total if config.optimizer else plan.total - plan.optimiser
    return Measurement(variant, median(times), min(times), first_s, flops, rate, peak, predicted)


def train_step(model: AVTransformer, batch: Batch, config: BenchConfig) -> Callable[[], None]:
    """Forward and backward of the flow-matching loss; with an optimiser's update if asked for."""
    level = torch.full((batch.size,), 0.5, device=batch.video_text.x.device)
    noise = Velocity(*(None if s is None else torch.randn_like(s.x) for s in (batch.video, batch.audio)))
    noisy = [
        None if s is None or n is None else noised(s, n, level)
        for s, n in zip((batch.video, batch.audio), noise, strict=True)
    ]
    seen = Batch(noisy[0], noisy[1], batch.video_text, batch.audio_text)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True) if config.optimizer else None
    dtype, device = DTYPES[config.dtype], level.device

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = model(seen)
        parts = losses(output, batch, seen, noise, "velocity").values()
        torch.stack([part.tokens.sum() / part.weight for part in parts]).sum().backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step


def profile(step: Callable[[], None], device: torch.device, rows: int = 20) -> str:
    """The operations that take most of a step, by their own time."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as watched:
        step()
        synchronize(device)
    order = f"self_{device.type}_time_total"
    return watched.key_averages().table(sort_by=order, row_limit=rows, max_name_column_width=48)


def variants(config: BenchConfig) -> Iterator[Variant]:
    for choice in itertools.product(config.attentions, config.compiled, config.checkpointings):
        yield Variant(*choice)


def run(config: BenchConfig, console: Console) -> list[Measurement]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch_of(config)  # refuses a size that is not whole tokens
    for attention in config.attentions:  # before the first is timed
        choose(attention, device, config.half)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    about = f"{machine}, torch {torch.__version__}, {config.dtype}, {config.batch} x {config.height} x {config.width}, "
    table = Table(title=f"{about}{config.duration_s:g} s at {config.fps:g} fps", title_justify="left")
    for name in ("attention", "compiled", "kept"):
        table.add_column(name, no_wrap=True)
    for name in ("step ms", "first s", "FLOP", "FLOP/s", "of matmul", "GiB", "plan"):
        table.add_column(name, justify="right", no_wrap=True)
    done = []
    for variant in variants(config):
        name = f"{variant.attention}, compiled={variant.compiled}, {variant.checkpointing}"
        with console.status(name):
            found = attempt(config, variant, device, console)
        if found is None:
            table.add_row(
                variant.attention, "yes" if variant.compiled else "no", variant.checkpointing, "out of memory"
            )
            continue
        done.append(found)
        table.add_row(*cells(found))
        console.print(f"{name}: {found.step_s * 1e3:.0f} ms a step, {found.utilisation:.1%} of matmul")
        if config.out is not None:
            record(config, found, machine, config.out)
    console.print(table)
    if done:
        console.print(
            f"matmul: {max(m.matmul_flops_per_s for m in done) / 1e12:.3g} TFLOP/s, measured between the steps"
        )
    return done


def attempt(config: BenchConfig, variant: Variant, device: torch.device, console: Console) -> Measurement | None:
    try:
        return measure(config, variant, device, console)
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def names(variant: Variant) -> list[str]:
    return [variant.attention, "yes" if variant.compiled else "no", variant.checkpointing.replace("keep_", "")]


def cells(found: Measurement) -> list[str]:
    peak = "" if found.peak_bytes is None else f"{found.peak_bytes / 2**30:.1f}"
    return [
        *names(found.variant),
        f"{found.step_s * 1e3:.0f}",
        f"{found.first_s:.0f}",
        counted(found.flops),
        counted(found.flops / found.step_s),
        f"{found.utilisation:.1%}",
        peak,
        f"{found.predicted_bytes / 2**30:.1f}",
    ]


def record(config: BenchConfig, found: Measurement, machine: str, path: Path) -> None:
    made_by = {
        "avgen": __version__,
        "torch": torch.__version__,
        "machine": machine,
    }
    size = {
        name: getattr(config, name) for name in ("height", "width", "duration_s", "fps", "batch", "dtype", "levels")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**made_by, **size, **asdict(found), "utilisation": found.utilisation}) + "\n")


EXAMPLES = (
    "avgen bench model=toy height=32 width=32 duration_s=2 fps=8 batch=16 caption_tokens=48 compiled=[false,true]",
    "avgen bench model=base attentions=[sdpa,cudnn] checkpointings=[full,keep_attention]",
)


def main(argv: list[str] | None = None) -> int:
    config = command.configure(BenchConfig, "plan", argv, "time training steps", EXAMPLES, verb="bench")
    run(config, Console())
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
