"""What a run will cost before it runs: `python -m avgen.plan`, `avgen plan`.

Parameters, tokens, FLOPs, memory and step time follow from the configuration alone (avgen.models.cost,
avgen.models.memory); nothing is built and nothing is loaded. Only `device=here` runs anything: a matrix product.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from avgen import command
from avgen.models.architecture import ModelConfig
from avgen.models.checkpointing import Checkpointing
from avgen.models.cost import (
    PARTS,
    WHATS,
    BatchShape,
    StepCost,
    StreamShape,
    audio_tokens,
    linears,
    parameters,
    step_cost,
    video_tokens,
)
from avgen.models.memory import Dtype, Memory, memory
from avgen.rate import DTYPES, MATMUL_SIZE, matmul_rate
from avgen.types import AudioGeometry, TimeGrid, VideoGeometry

WIDEST = 100  # columns
# The share of its rate of matrix products that a training step reaches. Of a GPU assumed: well-tuned transformers have
# 0.3 to 0.5. Of a CPU measured: `utilisation` of recipe=toybox, compiled, in bf16 on two x86 cores, median of a run.
EFFICIENCY = {"cuda": 0.4, "cpu": 0.18}
KNOWN_BY = {"cuda": "assumed", "cpu": "measured with recipe=toybox"}
SIZES = ((256, 448), (480, 832), (720, 1280))
DURATIONS_S = (5.0, 10.0)

# Where no codec is given, the first whose tokens hold as many numbers as the tower takes. The embedded ones are
# written out because their classes take seconds to import; a test compares them.
VIDEO_CODECS = {
    "Wan 2.1": VideoGeometry(16, TimeGrid(4, 1), space_stride=8, patch=2),
    "embedded": VideoGeometry(24, TimeGrid(2, 2), space_stride=8),
}
AUDIO_CODECS = {
    "LTX-2": AudioGeometry(128, TimeGrid(640, 160), sample_rate_hz=16000, audio_channels=2),
    "Stable Audio's Oobleck": AudioGeometry(64, TimeGrid(2048, 2048), sample_rate_hz=44100, audio_channels=2),
    "MMAudio 44.1 kHz": AudioGeometry(40, TimeGrid(1024, 1024), sample_rate_hz=44100),
    "embedded": AudioGeometry(32, TimeGrid(800, 800), sample_rate_hz=16000),
}


@dataclass(frozen=True)
class Device:
    """Dense matrix products per second by the vendor's data sheet, and memory as the driver shows it."""

    bf16_tflops: float
    fp32_tflops: float  # without TF32
    memory_gib: float

    def tflops(self, dtype: Dtype) -> float:
        return self.fp32_tflops if dtype == "fp32" else self.bf16_tflops


DEVICES = {
    "h200": Device(989, 67, 140),
    "h100": Device(989, 67, 79),
    "a100": Device(312, 19.5, 79),
}


@dataclass(frozen=True)
class PlanConfig:
    """What to plan for."""

    model: ModelConfig
    height: int  # pixels
    width: int  # pixels
    duration_s: float  # of a clip
    fps: float  # of its picture
    batch: int = 1  # clips per device and forward pass
    caption_tokens: int = 256  # per caption: bytes, or features of the frozen encoder
    levels: int = 1  # noise levels per sample and stream: 2 in every training step, 1 where nothing can be given
    ragged: bool = False  # the batch is padded, so attention is masked (tokens are those of the longest sample)
    video_codec: VideoGeometry | None = None  # null = a known one that fits model.video.channels
    audio_codec: AudioGeometry | None = None  # null = a known one that fits model.audio.channels
    dtype: Dtype = "bf16"  # bf16, fp16 = autocast over float32 weights
    checkpointing: Checkpointing = "none"  # what the blocks keep for the backward pass
    ema: bool = True  # a float32 average of the weights on the device
    optimizer_kind: Literal["adamw", "muon"] = "adamw"  # muon remembers one number per weight of the blocks, adamw two
    shard: int = 1  # devices that cut weights, gradients, optimiser and average between them
    context: int = 1  # devices that read the same clips, each with a slice of their tokens
    device: Literal["h200", "h100", "a100", "here"] = "h200"  # here = time a matrix product on this machine
    device_tflops: float | None = None  # matrix products per second, in place of the device's
    efficiency: float | None = None  # share of that rate a step reaches; null: 0.4 of a GPU, 0.18 of a CPU
    sizes: bool = False  # one line per size (256p, 480p, 720p in whole tokens; 5 and 10 s) instead of one plan

    def __post_init__(self) -> None:
        for name in ("duration_s", "fps", "batch", "caption_tokens", "levels", "shard", "context"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"{name}={value} must be positive")
        if self.efficiency is not None and not 0 < self.efficiency <= 1:
            raise ValueError(f"efficiency={self.efficiency} is a share: choose one in (0, 1]")
        if self.device_tflops is not None and self.device_tflops <= 0:
            raise ValueError(f"device_tflops={self.device_tflops} must be positive")

    @property
    def device_kind(self) -> str:
        return "cpu" if self.device == "here" and not torch.cuda.is_available() else "cuda"

    @property
    def share_reached(self) -> float:
        return self.efficiency or EFFICIENCY[self.device_kind]

    @property
    def efficiency_told(self) -> str:
        """The efficiency, and how it is known."""
        return f"{self.share_reached:g} ({'given' if self.efficiency else KNOWN_BY[self.device_kind]})"


@dataclass(frozen=True)
class Rate:
    """How fast the device multiplies matrices, and how we know."""

    tflops: float
    source: str


@dataclass(frozen=True)
class Plan:
    """The prediction for one batch."""

    batch: BatchShape
    cost: StepCost
    memory: Memory
    step_s: float


def codec_names(config: PlanConfig) -> dict[str, str]:
    """Per tower, the codec that its tokens are counted by."""
    video = {"given": config.video_codec} if config.video_codec else VIDEO_CODECS
    audio = {"given": config.audio_codec} if config.audio_codec else AUDIO_CODECS
    made = {
        "video": {name: codec.token_channels for name, codec in video.items()},
        "audio": {name: codec.channels for name, codec in audio.items()},
    }
    names = {}
    for m, tower in config.model.towers.items():
        fits = [name for name, channels in made[m].items() if channels == tower.channels]
        if not fits:
            offered = ", ".join(f"{name}: {channels}" for name, channels in made[m].items())
            raise ValueError(
                f"model.{m}.channels={tower.channels}, but no codec makes tokens of so many numbers ({offered}): "
                f"change it, or describe the codec in {m}_codec"
            )
        names[m] = fits[0]
    return names


def picture_of(config: PlanConfig) -> VideoGeometry | None:
    """The codec that the picture's tokens are counted by; None without a tower for them."""
    name = codec_names(config).get("video")
    return None if name is None else config.video_codec or VIDEO_CODECS[name]


def sound_of(config: PlanConfig) -> AudioGeometry | None:
    """Likewise of the sound's."""
    name = codec_names(config).get("audio")
    return None if name is None else config.audio_codec or AUDIO_CODECS[name]


def batch_of(config: PlanConfig) -> BatchShape:
    """The batch that the configuration describes."""
    picture, sound = picture_of(config), sound_of(config)
    video = audio = None
    if picture is not None:
        count = video_tokens(picture, config.height, config.width, config.duration_s, config.fps)
        video = StreamShape(count, config.levels, config.ragged)
    if sound is not None:
        count = audio_tokens(sound, config.duration_s)
        audio = StreamShape(count, config.levels, config.ragged)
    return BatchShape(config.batch, video, audio, config.caption_tokens)


def plan(config: PlanConfig, rate: Rate) -> Plan:
    batch = batch_of(config)
    cost = step_cost(config.model, batch, config.checkpointing)
    fused_norm = config.device_kind == "cuda"
    need = memory(config.model, batch, config.dtype, config.checkpointing, config.ema, fused_norm)
    need = held(need, config.model, config.optimizer_kind, config.shard, config.context)
    return Plan(batch, cost, need, cost.executed / config.context / (rate.tflops * 1e12 * config.share_reached))


def held(need: Memory, model: ModelConfig, optimizer: str, shard: int, context: int) -> Memory:
    """Memory on one device of `shard`, with another optimiser than AdamW's two moments.

    Of `context` devices each keeps its slice of the activations; the keys and values of all, which attention keeps
    besides, are not counted.
    """
    moments = need.optimiser
    if optimizer == "muon":
        moments -= 4 * sum(x.count * x.source * x.target for x in linears(model) if x.in_block and not x.again)
    cut = {"weights": need.weights, "gradients": need.gradients, "optimiser": moments, "ema": need.ema}
    sliced = {"kept": need.kept, "rebuilt": need.rebuilt, "working": need.working}
    parts = [(cut, shard), (sliced, context)]
    return replace(need, **{name: -(-size // by) for sizes, by in parts for name, size in sizes.items()})


def predict(
    model: ModelConfig,
    batch: BatchShape,
    flops_per_s: float,
    dtype: Dtype,
    checkpointing: Checkpointing,
    device: torch.device,
    optimizer: str,
    shard: int,
    context: int,
) -> Plan:
    """The prediction for a batch that is there, on a device whose rate was measured."""
    cost = step_cost(model, batch, checkpointing)
    need = memory(model, batch, dtype, checkpointing, fused_norm=device.type == "cuda")
    need = held(need, model, optimizer, shard, context)
    efficiency = EFFICIENCY["cpu" if device.type == "cpu" else "cuda"]
    return Plan(batch, cost, need, cost.executed / context / (flops_per_s * efficiency))


def rate_of(config: PlanConfig) -> Rate:
    if config.device_tflops is not None:
        return Rate(config.device_tflops, "device_tflops")
    if config.device == "here":
        return measure(config.dtype)
    return Rate(DEVICES[config.device].tflops(config.dtype), f"{config.device}'s data sheet")


def measure(dtype: Dtype) -> Rate:
    """The best of repeated square matrix products on this machine's GPU, or else its CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = MATMUL_SIZE[device.type]
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    rate = matmul_rate(device, DTYPES[dtype])
    return Rate(rate / 1e12, f"measured: the best of {dtype} products of {size} x {size}{threads}")


def counted(number: float) -> str:
    """1234567 -> 1.23 M"""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 999.5 * size else f"{number / size:.0f} {unit}"
    return f"{number:.0f}"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if part else ""


def parameter_table(config: PlanConfig, made: Plan) -> Table:
    table = Table("part", "parameters", "share", "tokens per clip", "codec", title="Model and batch")
    count, names = parameters(config.model), codec_names(config)
    for part in PARTS:
        if number := getattr(count, part):
            stream = made.batch.streams.get(part)
            tokens = {"captions": f"{config.caption_tokens}"}.get(part, f"{stream.tokens:,}" if stream else "")
            table.add_row(part, f"{number:,}", share(number, count.total), tokens, names.get(part, ""))
    table.add_section()
    table.add_row("all", f"{count.total:,}")
    return _right(table, 1, 2, 3)


def flops_table(config: PlanConfig, made: Plan) -> Table:
    cost = made.cost
    parts = [p for p in PARTS if cost.only(p).model]
    checkpointed = config.checkpointing != "none"
    table = Table("FLOPs of a step", *parts, "all", "share", title="Work: forward and backward")
    for what in WHATS:
        for scores, name in ((False, what), (True, "  its scores")):
            row = cost.only(what=what, scores=scores)
            if row.model:
                cells = [counted(row.only(p).model) if row.only(p).model else "" for p in parts]
                table.add_row(name, *cells, counted(row.model), share(row.model, cost.model))
    table.add_section()
    for name in ("model", "recompute", "executed") if checkpointed else ("model",):
        shown = {"model": "all", "recompute": f"again ({config.checkpointing})", "executed": "all executed"}[name]
        cells = [counted(getattr(cost.only(p), name)) for p in parts]
        total = getattr(cost, name)
        table.add_row(shown, *cells, counted(total), share(total, cost.model))
    table.add_row("share", *(share(cost.only(p).model, cost.model) for p in parts))
    return _right(table, *range(1, len(parts) + 3))


def memory_table(config: PlanConfig, made: Plan) -> Table:
    parts = [f"weights cut over {config.shard}"] * (config.shard > 1) + [f"tokens over {config.context}"] * (
        config.context > 1
    )
    where = f"one device, {', '.join(parts)}" if parts else "all on one device"
    table = Table(
        "at a step's peak",
        "GiB",
        "what it is",
        title=f"Memory: {where}, checkpointing={config.checkpointing}",
    )
    told = {
        "weights": "float32",
        "gradients": "float32",
        "optimiser": {
            "adamw": "AdamW: two moments in float32",
            "muon": "Muon: one moment in float32 of blocks' matrices; AdamW: two of the rest",
        }[config.optimizer_kind],
        "ema": "average of the weights in float32",
        "casts": "autocast's bf16 copies of weights",
        "kept": "activations that the forward pass keeps",
        "rebuilt": "activations of the block run again",
        "working": "gradients, float32 values in flight",
    }
    for name, meaning in told.items():
        if size := getattr(made.memory, name):
            table.add_row(name, gib(size), meaning)
    table.add_section()
    room = DEVICES[config.device].memory_gib if config.device in DEVICES else None
    fits = "" if room is None else f"of {room:.0f} on one {config.device}"
    if room is not None and made.memory.total > room * 2**30:
        fits += ": does not fit"
    table.add_row("all", gib(made.memory.total), fits)
    return _right(table, 1)


def gib(size: int) -> str:
    return f"{size / 2**30:.3g}" if size < 2**30 else f"{size / 2**30:.1f}"


def sizes_table(config: PlanConfig, rate: Rate) -> Table:
    """One line per size: what the bridge's share and the peak become as clips grow."""
    table = Table(title=f"batch {config.batch}, {config.fps:g} fps, checkpointing={config.checkpointing}")
    for head in ("size", "clip", "video tokens", "audio tokens", "FLOPs", "bridge", "scores", "GiB", "s"):
        table.add_column(head)
    for one in resized(config):
        made = plan(one, rate)
        tokens = [f"{s.tokens:,}" if s else "" for s in (made.batch.video, made.batch.audio)]
        table.add_row(
            f"{one.height} x {one.width}",
            f"{one.duration_s:g} s",
            *tokens,
            counted(made.cost.model),
            share(made.cost.only("bridge").model, made.cost.model),
            share(made.cost.only(scores=True).model, made.cost.model),
            gib(made.memory.total),
            f"{made.step_s:.2f}",
        )
    return _right(table, *range(2, 9))


def resized(config: PlanConfig) -> Iterator[PlanConfig]:
    """Every size that is tabled, of whole tokens: 720 is no multiple of 32."""
    picture = picture_of(config)
    side = 1 if picture is None else picture.pixels_per_token
    for height, width in SIZES:
        for duration_s in DURATIONS_S:
            yield replace(config, height=height // side * side, width=width // side * side, duration_s=duration_s)


def _right(table: Table, *columns: int) -> Table:
    for column in columns:
        table.columns[column].justify = "right"
    return table


def show(config: PlanConfig, console: Console) -> None:
    """Print the plan."""
    rate = rate_of(config)
    if config.sizes:
        console.print(sizes_table(config, rate))
        console.print("bridge, scores: share of the step's FLOPs; GiB: predicted peak of one device; s: per step")
    else:
        made = plan(config, rate)
        for table in (parameter_table(config, made), flops_table(config, made), memory_table(config, made)):
            console.print(table)
        seconds = config.batch * config.duration_s
        console.print(
            f"step: {made.step_s:.3g} s predicted for {counted(made.cost.executed)}FLOPs, "
            f"{seconds / made.step_s:.3g} s of clips per second"
        )
    console.print(f"rate: {rate.tflops:.3g} TFLOP/s ({rate.source}) x efficiency {config.efficiency_told}")


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if any(word.startswith("recipe=") for word in words):
        from avgen.train import forecast

        return forecast.main(list(words))
    config = command.configure(
        PlanConfig,
        "plan",
        argv,
        "parameters, FLOPs, memory and step time of a run, before it runs",
        [
            "avgen plan model=base height=480 width=832 duration_s=5 fps=16 checkpointing=full",
            "avgen plan model=base sizes=true checkpointing=full",
            "avgen plan recipe=toybox",
            "avgen plan model=toy height=64 width=96 duration_s=2 fps=8 batch=16 caption_tokens=64 device=here",
        ],
    )
    console = Console()
    show(config, Console(width=min(console.width, WIDEST)))
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
