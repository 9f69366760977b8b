"""Everything a training run can be told."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from avgen.config import ConfigError, at_least_one
from avgen.flow import FlowConfig, LevelLaw
from avgen.models.architecture import ModelConfig
from avgen.models.checkpointing import Checkpointing
from avgen.sample.solvers import SolverConfig
from avgen.tasks import TRAINABLE, in_training
from avgen.train.data_config import PairsData, StoreData, ToyboxData, check_shares


@dataclass(frozen=True)
class CheatingConfig:
    """When clips have changed, against the reference's, in a way that wins rewards without being better."""

    every: int = 50  # steps, and at the end of the run; 0 never looks
    prompts: int = 4  # held-out ones, of each of which two clips are made
    louder_db: float = 3.0  # more is an alarm
    more_onsets: float = 1.5  # times as many: more is an alarm
    less_motion: float = 0.67  # times as much: less is an alarm
    less_variety: float = 0.67  # times as much difference of two clips of a prompt: less is an alarm

    def __post_init__(self) -> None:
        if self.every < 0 or self.prompts < 1:
            raise ValueError(f"every={self.every} cannot be negative and prompts={self.prompts} must be at least 1")


@dataclass(frozen=True)
class PreferenceConfig:
    """The loss on pairs: avgen/train/preference.py has its equation."""

    # of picture and sound: one for both, or each its own; of nft there is none
    margin: Literal["joint", "per_modality"] = "joint"
    # sigmoid wants ever larger margins, ipo one of 1/2; nft goes as far as winners and losers differ, over 2 beta
    kind: Literal["sigmoid", "ipo", "nft"] = "sigmoid"
    # how hard margins of the picture pull away from the reference; of nft the model's share, say 0.5: less goes further
    beta_video: float = 3000.0
    beta_audio: float = 1000.0  # of the sound
    anchor: float = 0.1  # weight of the winner's own flow-matching loss; 0: none
    label_smoothing: float = 0.0  # of kind=sigmoid: the share of pairs that may be the wrong way round
    cheating: CheatingConfig = field(default_factory=CheatingConfig)

    def __post_init__(self) -> None:
        if min(self.beta_video, self.beta_audio, self.anchor) < 0 or not max(self.beta_video, self.beta_audio) > 0:
            raise ValueError(
                f"beta_video={self.beta_video}, beta_audio={self.beta_audio} and anchor={self.anchor} cannot be "
                "negative, and one beta must be positive"
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing={self.label_smoothing} must lie in [0, 0.5): at 0.5 nobody is preferred")
        if self.kind != "sigmoid" and self.label_smoothing:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} is of kind=sigmoid: {self.kind} has no use for it"
            )
        if self.kind == "nft" and self.margin != "joint":
            raise ValueError(f"margin={self.margin} is of kind=sigmoid and ipo: nft has no margin, leave it out")
        if self.kind == "nft" and max(self.beta_video, self.beta_audio) > 1:
            raise ValueError(
                f"beta_video={self.beta_video} and beta_audio={self.beta_audio}: betas of kind=nft are shares of a "
                "mixture, at most 1; with 1 the model goes as far as the winners, with less further"
            )

    def beta(self, modality: str) -> float:
        return {"video": self.beta_video, "audio": self.beta_audio}[modality]


@dataclass(frozen=True)
class PartRates:
    """What the learning rates of each part of the model are multiplied by; 0 freezes it."""

    video: float = 1.0  # the video tower
    audio: float = 1.0  # the audio tower
    bridge: float = 1.0  # attention between the towers
    captions: float = 1.0  # the encoder of captions that is trained with the model

    def __post_init__(self) -> None:
        for field_name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{field_name}={value} cannot be negative; 0 freezes that part")

    def of(self, part: str) -> float:
        return {"video": self.video, "audio": self.audio, "bridge": self.bridge, "captions": self.captions}[part]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters that are trained in place of the model's own weights, which `start` must give."""

    parts: tuple[Literal["video", "audio", "bridge"], ...] = ("video", "audio", "bridge")  # whose layers are adapted
    rank: int = 32  # of an adapter
    alpha: int | None = None  # the update is alpha / rank * B A; null: the rank

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.parts:
            raise ValueError(f"rank={self.rank} must be at least 1, and parts={list(self.parts)} must name one")


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move. A step is an optimiser step, here and everywhere."""

    kind: Literal["adamw", "muon"] = "muon"  # muon: for the matrices of the blocks, AdamW for everything else
    lr: float = 1e-3  # of AdamW
    muon_lr: float = 2e-2  # of Muon's orthogonalised updates
    # of its iterations; auto: the faster one here, fp32: where runs of 1 and 2 processes must agree
    muon_precision: Literal["auto", "bf16", "fp32"] = "bf16"
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW: memory of the mean and of the square
    eps: float = 1e-8  # of AdamW: gradients much smaller than this move nothing
    weight_decay: float = 0.0  # of every weight, norms and tables too, per unit of learning rate
    warmup_steps: int = 50  # steps in which the rate rises from 0
    schedule: Literal["constant", "cosine", "wsd"] = "cosine"  # wsd: constant, then linear to 0 over the last fifth
    clip_norm: float = 1.0  # of the gradient over all weights
    scale: PartRates = field(default_factory=PartRates)

    def __post_init__(self) -> None:
        for name in ("lr", "muon_lr", "eps", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} cannot be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)}: each must lie in [0, 1)")

    def factor(self, step: int, steps: int) -> float:
        """What the learning rates are multiplied by at a step (the first is 0) of a run of so many steps."""

        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "wsd":
            return min(1.0, (1 - progress) / 0.2)
        return 1.0


@dataclass(frozen=True)
class TrackingConfig:
    """Where numbers go besides metrics.jsonl."""

    to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)  # [] writes metrics.jsonl alone
    project: str = "avgen"  # that wandb and trackio file the run under
    name: str | None = None  # of the run there; null = the name of its folder


@dataclass(frozen=True)
class SamplesConfig:
    """Clips that are made while training: of every task, by the averaged weights, always the same ones."""

    every: int = 0  # steps, and at the end of the run; 0 makes none
    clips: int = 4  # held-out clips per task, whose captions, pictures and sounds are given as the task says
    solver: SolverConfig = field(default_factory=SolverConfig)
    text: float = 2.0  # guidance by the caption, of picture and sound; 1 = off

    def __post_init__(self) -> None:
        if self.every < 0 or self.clips < 1:
            raise ValueError(f"every={self.every} cannot be negative and clips={self.clips} must be at least 1")

    def due(self, step: int, last: bool) -> bool:
        return self.every > 0 and (last or step % self.every == 0)


@dataclass(frozen=True)
class TaskStage:
    """A mix of tasks for the beginning of a run."""

    until_step: int  # optimiser steps done when the next mix takes over
    tasks: Mapping[str, float]  # weight of each task

    def __post_init__(self) -> None:
        check_tasks(self.tasks)


@dataclass(frozen=True)
class LevelStage:
    """Other noise levels for the beginning of a run."""

    until: float  # share of the run's steps after which the next laws take over
    video: LevelLaw | None = None  # null: as the run's own
    audio: LevelLaw | None = None


def check_tasks(tasks: Mapping[str, float]) -> None:
    unknown = [name for name in tasks if name not in TRAINABLE]
    if unknown:
        raise ValueError(f"tasks={unknown} are unknown: choose from {', '.join(TRAINABLE)}")
    if not tasks or min(tasks.values()) < 0 or sum(tasks.values()) <= 0:
        raise ValueError(f"tasks={dict(tasks)} needs at least one positive weight and no negative one")


@dataclass(frozen=True)
class GuardConfig:
    """What stops a run by itself, besides a loss or gradient that is not finite."""

    factor: float | None = 5.0  # a loss of more than this many times the recent median diverges; null: never stop
    steps: int = 50  # in a row that diverge before the run stops
    window: int = 500  # steps that the median is taken over

    def __post_init__(self) -> None:
        if self.factor is not None and not self.factor > 1:
            raise ValueError(f"factor={self.factor} must be more than 1: half of all steps lie above their median")
        if not 1 <= self.steps <= self.window:
            raise ValueError(f"steps={self.steps} must lie between 1 and window={self.window}")


@dataclass(frozen=True)
class ParallelConfig:
    """How the processes of a run share its work. Each reads its own part of every batch."""

    # ddp: a whole copy each; fsdp: weights, gradients and optimiser cut into one shard each; hsdp: copies, each cut
    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    shard: int | None = None  # processes that hold one copy together; null: fsdp all, hsdp those of one node
    replicate: int | None = None  # copies; null: as many as there are processes for
    context: int = 1  # neighbouring processes that read the same clips, each with a slice of their tokens

    def __post_init__(self) -> None:
        for name in ("shard", "replicate", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.strategy == "ddp" and self.shard not in (None, 1):
            raise ValueError(f"shard={self.shard} must be 1 where strategy=ddp, which cuts nothing: try strategy=hsdp")
        if self.strategy == "fsdp" and self.replicate not in (None, 1):
            raise ValueError(f"replicate={self.replicate} must be 1 where strategy=fsdp: try strategy=hsdp")

    def mesh(self, processes: int) -> tuple[int, int]:
        """(copies, shards of each) of the weights for a number of processes, whichever of them share clips."""
        if processes % self.context:
            raise ConfigError(
                "parallel",
                f"context={self.context} must divide the number of processes, {processes}: change parallel.context, "
                f"or start {self.context * max(1, processes // self.context)} processes",
            )
        if self.strategy == "ddp":
            shard = 1
        elif self.strategy == "fsdp":
            shard = self.shard or processes
        else:  # launchers say how many processes a node runs
            shard = self.shard or int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        replicate = self.replicate or max(1, processes // shard if self.strategy != "fsdp" else 1)
        if replicate * shard != processes:
            raise ConfigError(
                "parallel",
                f"replicate={replicate} x shard={shard} = {replicate * shard} must be the number of processes, "
                f"{processes}: change parallel.shard or parallel.replicate, or start {replicate * shard} processes",
            )
        return replicate, shard


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    model: ModelConfig
    steps: int  # optimiser steps
    batch: int  # clips per optimiser step, over all ranks
    out: Path  # folder of the run: config, metrics, checkpoints
    start: Path | None = None  # folder of a model whose weights are trained on; null: fresh ones
    lora: LoraConfig | None = None  # adapters in place of the weights; null: the weights
    data: ToyboxData | StoreData | PairsData = field(
        default_factory=ToyboxData
    )  # kind=toybox, kind=store or kind=pairs
    preference: PreferenceConfig | None = None  # learn from kind=pairs which clip is better; null: from clips
    flow: FlowConfig = field(default_factory=FlowConfig)
    tasks: Mapping[str, float] = field(default_factory=lambda: {"t2av": 1.0})  # weight of each task in the mix
    task_stages: tuple[TaskStage, ...] = ()  # other mixes before that one: [{until_step: 500, tasks: {t2a: 1}}, ...]
    # other levels before those of flow=: [{until: 0.8, video: {shift: 6}, audio: {shift: 6}}, ...]
    level_stages: tuple[LevelStage, ...] = ()
    balance: float | None = None  # memory (0.99: 100 steps) of the means that bring both losses to one scale; null: off
    caption_dropout: float = 0.1  # share of captions replaced by the learned null, per sample
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    accumulate: int = 1  # micro-batches per optimiser step
    # of matrix products, by autocast; weights and optimiser stay float32, and fp16 scales its loss; auto: bf16, or fp32
    # on a CPU that multiplies that faster
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "bf16"
    compile: bool = False  # torch.compile every block; wants a C++ compiler on the CPU
    compile_shapes: int = 8  # most shapes of batches, each of which costs a compilation; one more ends the run
    checkpointing: Checkpointing = "none"  # activations: kept, computed again, or computed again but for attention
    ema_decay: float = 0.999  # of the averaged weights that are evaluated and exported
    seed: int = 0  # of data, noise, levels, tasks and initial weights
    guard: GuardConfig = field(default_factory=GuardConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    log_every: int = 10  # steps
    validate_every: int = 100  # steps
    validation_clips: int = 64  # held-out clips per task
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    save_every: int = 100  # steps
    keep: int = 2  # newest checkpoints that stay

    def __post_init__(self) -> None:
        at_least_one(
            self, "steps", "batch", "accumulate", "log_every", "validate_every", "validation_clips", "save_every"
        )
        if self.keep < 1:
            raise ValueError(f"keep={self.keep} must be at least 1: the newest checkpoint is never deleted")
        if self.batch % self.accumulate:
            raise ValueError(f"batch={self.batch} must be a multiple of accumulate={self.accumulate}")
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"caption_dropout={self.caption_dropout} must lie in [0, 1]")
        if self.balance is not None and not 0 <= self.balance < 1:
            raise ValueError(f"balance={self.balance} must lie in [0, 1), or be null")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie in [0, 1); 0 keeps no average")
        if self.lora is not None and self.start is None:
            raise ValueError("lora adapts a trained model: give start=, the folder of one")
        self.check_preference()
        check_tasks(self.tasks)
        # a pair's task is its own, which a model of one tower has learned if it made the clips
        for name in () if self.preference is not None else self.task_names:
            task = in_training(name, head_s=1.0)
            for m in ("video", "audio"):
                if getattr(task, m) is not None and m not in self.model.towers:
                    raise ValueError(f"task {name} of tasks= has {m}, but model.{m} is null: choose t2v or t2a")
        ends = [stage.until_step for stage in self.task_stages]
        if any(after <= before for before, after in pairwise([0, *ends])):
            raise ValueError(f"task_stages end at {ends}: until_step must be positive and rise from stage to stage")
        if ends and ends[-1] >= self.steps:
            raise ValueError(f"until_step={ends[-1]} of the last of task_stages must lie below steps={self.steps}")
        check_shares("level_stages", [stage.until for stage in self.level_stages])

    def check_preference(self) -> None:
        pairs = isinstance(self.data, PairsData)
        if pairs != (self.preference is not None):
            raise ValueError("data.kind=pairs and preference belong together: give both or neither")
        if not pairs:
            return
        if self.start is None:
            raise ValueError("preference improves a trained model: give start=, the folder of one")
        if self.batch % (2 * self.accumulate):
            raise ValueError(
                f"batch={self.batch} counts the two clips of each pair: it must be a multiple of 2 x accumulate = "
                f"{2 * self.accumulate}"
            )
        if dict(self.tasks) != {"t2av": 1.0} or self.task_stages:
            raise ValueError("every pair is trained at the task that it was made for: leave tasks and task_stages out")
        assert self.preference is not None
        if not any(self.preference.beta(m) for m in self.model.towers):  # of two towers one has a beta
            [alone] = self.model.towers
            raise ValueError(f"preference.beta_{alone}=0 trains nothing of a model of {alone} alone: make it positive")
        if self.balance is not None:
            raise ValueError("balance scales losses of clips: with preference set beta_video and beta_audio instead")

    @property
    def drawn_alike(self) -> int:
        """Neighbours in a batch that share noise, levels and dropped captions: the two clips of a pair."""
        return 1 if self.preference is None else 2

    def tasks_at(self, step: int) -> Mapping[str, float]:
        """The mix of tasks after so many optimiser steps."""
        return next((stage.tasks for stage in self.task_stages if step < stage.until_step), self.tasks)

    def flow_at(self, step: int) -> FlowConfig:
        """The objective with the noise levels that are drawn after so many optimiser steps."""
        stage = next((stage for stage in self.level_stages if step < stage.until * self.steps), None)
        if stage is None:
            return self.flow
        return replace(self.flow, video=stage.video or self.flow.video, audio=stage.audio or self.flow.audio)

    @property
    def task_names(self) -> list[str]:
        """Every task of any stage."""
        return sorted({name for mix in (self.tasks, *(stage.tasks for stage in self.task_stages)) for name in mix})

    @property
    def trains_all(self) -> bool:
        """Whether every weight has a gradient, as costs count them."""
        return self.lora is None and all(scale > 0 for scale in vars(self.optimizer.scale).values())

    @property
    def settled(self) -> bool:
        """Whether every precision is said."""
        return "auto" not in (self.precision, self.optimizer.muon_precision)

    def settle(self, faster: Literal["bf16", "fp32"]) -> TrainConfig:
        """With what is faster in place of `auto`."""
        optimizer = self.optimizer
        if optimizer.muon_precision == "auto":
            optimizer = replace(optimizer, muon_precision=faster)
        return replace(self, precision=faster if self.precision == "auto" else self.precision, optimizer=optimizer)

    @property
    def products(self) -> Literal["fp32", "bf16", "fp16"]:
        """What matrices are multiplied in."""
        if self.precision == "auto":
            raise ValueError("precision=auto is settled where a run begins, on the device that it runs on")
        return self.precision

    @property
    def half(self) -> torch.dtype | None:
        """The type of matrix products, None for float32."""
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.products]

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.half, enabled=self.half is not None)
