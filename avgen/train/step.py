"""One training step: corrupt, predict, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from avgen.flow import FlowConfig, Loss, losses, noised
from avgen.models.architecture import ModelConfig
from avgen.rng import noise_like, uniforms
from avgen.tasks import HEAD, SLACK, Task, assign, fitting, in_training, lengths
from avgen.train.config import TrainConfig
from avgen.types import Batch, Stream, Velocity


@dataclass(frozen=True)
class Draw:
    """A micro-batch ready to be learned from: tasks assigned, noise drawn, levels set."""

    clean: Batch
    noisy: Batch
    noise: Velocity
    tasks: tuple[str, ...]

    def to(self, device: torch.device) -> Draw:
        noise = Velocity(*(None if n is None else n.to(device, non_blocking=True) for n in self.noise))
        return Draw(self.clean.to(device, True), self.noisy.to(device, True), noise, self.tasks)


def draw(batch: Batch, config: TrainConfig, step: int, places: Sequence[int]) -> Draw:
    """Everything random about a micro-batch, from (seed, step, place in the global batch); the two clips of a pair
    count as one place."""
    seed = config.seed
    places = [place // config.drawn_alike for place in places]
    tasks = drawn_tasks(config, batch, step, places)
    # first, because a task may do without the only stream of these clips; and after it, which leaves streams out
    batch = with_every_stream(assign(with_every_stream(batch, config.model), tasks), config.model)
    batch = in_two_levels(batch, config.model)
    batch = drop_captions(batch, config.caption_dropout, uniforms(2, seed, "caption", step, places))
    return corrupt(batch, config.flow_at(step), uniforms(3, seed, "level", step, places), seed, step, places, tasks)


def with_every_stream(batch: Batch, model: ModelConfig) -> Batch:
    """A stream that no sample has, but the model has a tower for, as one token that is not real.

    Then every weight has a gradient, if only zero, whatever tasks a process drew: processes that add up gradients
    must agree on which there are.
    """
    missing = {m: tower.channels for m, tower in model.towers.items() if getattr(batch, m) is None}
    added: dict[str, Any] = {m: absent_stream(batch, m, channels) for m, channels in missing.items()}
    return replace(batch, **added)


def in_two_levels(batch: Batch, model: ModelConfig) -> Batch:
    """Each stream with a level for given tokens, whether or not there are any: compiled code then meets one shape, and
    every other costs half a minute of compilation."""
    plain = {m: s for m in model.towers if (s := getattr(batch, m)).levels.shape[1] == 1}
    given: dict[str, Any] = {m: s.give(torch.zeros_like(s.slot, dtype=torch.bool)) for m, s in plain.items()}
    return replace(batch, **given)


def absent_stream(batch: Batch, modality: str, channels: int) -> Stream:
    count = batch.size
    stream = Stream.of(torch.zeros(count, 1, channels), torch.zeros(count, 1, 2, dtype=torch.float64))
    if modality == "video":
        stream = replace(stream, place=torch.zeros(count, 1, 2), extent=torch.ones(count, 2))
    return stream.keep(torch.zeros(count, 1, dtype=torch.bool))


def drawn_tasks(config: TrainConfig, batch: Batch, step: int, places: Sequence[int]) -> list[Task]:
    """One task per clip, by weight, among those that it has the modalities for.

    A clip that none of them fits gets one nevertheless and trains what it can of it; the log counts those that
    train nothing as `idle_clips`.
    """
    mix = config.tasks_at(step)
    names = sorted(mix)
    fits = torch.stack([fitting(name, batch) for name in names], dim=1)  # (B, tasks)
    weights = torch.tensor([mix[name] for name in names], dtype=torch.float64).expand(fits.shape)
    left = weights * fits.cpu()
    weights = torch.where(left.sum(1, keepdim=True) > 0, left, weights)
    edges = (weights / weights.sum(1, keepdim=True)).cumsum(1)
    picked = torch.searchsorted(edges, uniforms(1, config.seed, "task", step, places)[0][:, None])[:, 0]
    return [
        in_training(names[min(int(i), len(names) - 1)], head_s)
        for i, head_s in zip(picked, heads_s(config, batch, step, places), strict=True)
    ]


def heads_s(config: TrainConfig, batch: Batch, step: int, places: Sequence[int]) -> list[float]:
    """How much of each clip `extend` is given: any share, because windows meet where the clip's length wants it."""
    low, high = HEAD
    share = low + (high - low) * uniforms(1, config.seed, "head", step, places)[0]
    return (share * lengths(batch).cpu()).nan_to_num(SLACK).tolist()


def drop_captions(batch: Batch, share: float, u: Tensor) -> Batch:
    """Each modality's caption is dropped on its own; one that serves both is dropped for both; none is brought back."""
    video = batch.video_text.drop(u[0] < share)
    if batch.audio_text is batch.video_text:
        return replace(batch, video_text=video, audio_text=video)
    return replace(batch, video_text=video, audio_text=batch.audio_text.drop(u[1] < share))


def corrupt(
    batch: Batch, flow: FlowConfig, u: Tensor, seed: int, step: int, places: Sequence[int], tasks: Sequence[Task]
) -> Draw:
    """Noise at levels from (3, B) uniforms."""
    levels = dict(zip(("video", "audio"), flow.levels(u.to(batch.video_text.x.device), batch), strict=True))
    noise: dict[str, Tensor] = {}
    noisy: dict[str, Stream | None] = {"video": None, "audio": None}
    for m in noisy:
        stream: Stream | None = getattr(batch, m)
        if stream is not None:
            noise[m] = noise_like(stream.x, seed, f"{m} noise", step, places)
            noisy[m] = noised(stream, noise[m], levels[m])
    seen = replace(batch, video=noisy["video"], audio=noisy["audio"])
    return Draw(batch, seen, Velocity(**noise), tuple(task.name for task in tasks))


def step_losses(model: nn.Module, drawn: Draw, flow: FlowConfig) -> dict[str, Loss]:
    """Per modality, the weighted squared error of every token."""
    return losses(model(drawn.noisy), drawn.clean, drawn.noisy, drawn.noise, flow.predict)


def objective(
    found: dict[str, Loss], totals: dict[str, float], flow: FlowConfig, factors: Mapping[str, Tensor] | None = None
) -> Tensor:
    """The number to minimise: each modality's error over the supervised tokens of the whole step.

    `factors` scale the modalities besides their configured weights.
    """
    weights = {"video": flow.video_weight, "audio": flow.audio_weight}
    parts = [weights[m] * loss.tokens.sum() / max(totals[m], 1.0) for m, loss in found.items()]
    scales = [(factors or {}).get(m, 1.0) for m in found]
    return torch.stack([part * scale for part, scale in zip(parts, scales, strict=True)]).sum()


@dataclass(frozen=True)
class Whole:
    """What the loss of a micro-batch must know of the step that it is a part of."""

    totals: dict[str, float]  # supervised tokens per modality, over all micro-batches and processes
    clips: int  # likewise
    factors: Mapping[str, Tensor]  # that the modalities' losses are multiplied by


@dataclass(frozen=True)
class Learned:
    """A micro-batch's part of the loss, and what it is made of."""

    found: dict[str, Loss]
    loss: Tensor  # () to be minimised
    notes: Tensor  # (notes, 2) sums and counts of what the objective logs besides


class Objective(Protocol):
    """What a run minimises, chosen once when it is built."""

    @property
    def notes(self) -> tuple[str, ...]: ...

    def __call__(self, model: nn.Module, drawn: Draw, whole: Whole) -> Learned: ...


@dataclass(frozen=True)
class FlowMatching:
    """The objective of a run on clips."""

    flow: FlowConfig
    notes: ClassVar[tuple[str, ...]] = ()

    def __call__(self, model: nn.Module, drawn: Draw, whole: Whole) -> Learned:
        found = step_losses(model, drawn, self.flow)
        loss = objective(found, whole.totals, self.flow, whole.factors)
        return Learned(found, loss, loss.new_zeros(0, 2))
