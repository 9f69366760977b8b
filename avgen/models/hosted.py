"""What the codecs hosted by diffusers share: an identity, a scale, a folder and work in bounded pieces.

A hosted codec is a network of diffusers behind one of avgen's two protocols. Nothing about it is assumed:
strides, rates and the scale of the latents are read from the network's own configuration and weights.

Some networks see the whole clip at once (attention or normalisation over time). The others have a `Reach`,
and for those work in pieces gives the same numbers as work in one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, cast

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from avgen.models.codecs import Posterior
from avgen.models.identity import chosen, fingerprint_of
from avgen.types import TimeGrid

OPENED = "avgen.json"  # beside a saved codec's weights: how it was opened


@dataclass(frozen=True)
class Scale:
    """Each channel's mean and standard deviation: what makes latents of a codec's own numbers."""

    mean: Tensor  # (C,)
    std: Tensor  # (C,)

    def latents(self, mean: Tensor, std: Tensor | None) -> Posterior:
        """(B, C, ...) in the codec's numbers -> a normalised posterior, float32."""
        shift, scale = self._like(mean)
        deviation = None if std is None else std.float() / scale
        return Posterior((mean.float() - shift) / scale, deviation)

    def raw(self, latents: Tensor) -> Tensor:
        shift, scale = self._like(latents)
        return latents.float() * scale + shift

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, *[1] * (x.ndim - 2))
        return self.mean.to(x.device).view(shape), self.std.to(x.device).view(shape)


def scale_of(network: Any, channels: int) -> Scale:
    """From latents_mean and latents_std (settings or buffers), scaling_factor and shift_factor; whichever there are."""
    config = cast(dict[str, Any], network.config)
    buffers = dict(network.named_buffers())

    def stated(name: str, default: float) -> Tensor:
        value = buffers.get(name, config.get(name))
        if value is None:
            return torch.full((channels,), default, dtype=torch.float32)
        value = torch.as_tensor(value, dtype=torch.float32).detach().cpu().flatten()
        if len(value) != channels:
            raise ValueError(f"{name} has {len(value)} numbers, but the latents have {channels} channels")
        return value

    mean, std = stated("latents_mean", 0.0), stated("latents_std", 1.0)
    if not bool((std > 0).all()):
        raise ValueError(f"latents_std={std.tolist()} must be positive")
    factor, shift = config.get("scaling_factor"), config.get("shift_factor")
    return Scale(mean + (shift or 0.0), std / (1.0 if factor is None else float(factor)))


class HostedCodec(ModelMixin):
    """A network of diffusers, frozen, with what its latents mean. Opened by `avgen.models.opening`."""

    tile_px: int | None = None  # the side of the squares it works on, and the steps at once; None: all
    piece_steps: int | None = None

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network
        self.eval().requires_grad_(False)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the latents beside class and weights."""
        return chosen(self.network.config, type(self.network))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits: a hash of class, settings and weights, in the precision they were opened in."""
        settings = json.dumps(self.settings, sort_keys=True, default=list)
        return fingerprint_of(f"{type(self).__name__} {settings}", self.state_dict())

    @property
    def limits(self) -> dict[str, int]:
        """How much it works on at once, where that is not all: no part of the fingerprint, stores hold it beside."""
        limits = {"tile_px": self.tile_px, "piece_steps": self.piece_steps}
        return {name: value for name, value in limits.items() if value is not None}

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """A folder as diffusers would write it, and beside it how it was opened."""
        self.network.save_pretrained(folder, **options)
        opened = {"dtype": str(self.dtype).removeprefix("torch."), "patch": self.patch, **self.limits}
        (Path(folder) / OPENED).write_text(json.dumps(opened))

    @property
    def patch(self) -> int:
        """Latent cells per token side."""
        return 1

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> Self:
        """What save_pretrained wrote; pipelines load their parts by this."""
        from avgen.models.opening import open_folder

        codec = open_folder(Path(folder))
        if not isinstance(codec, cls):
            raise ValueError(f"{folder} holds a {type(codec).__name__}, not a {cls.__name__}")
        return codec


def span_of_layers(network: nn.Module, run: Callable[[], Any], units: int) -> int:
    """Units that a chain of convolutions over time, dimension 2, connects with one entry of its end beside its own.

    The layers are seen at work on a clip of so many units, long enough that an entry's share of it is plain.
    """
    spans = []

    def note(layer: Any, _: Any, out: Tensor) -> None:
        apart = round(units / (out.shape[2] * layer.stride[0]))  # units from one entry that goes in to the next
        spans.append((layer.kernel_size[0] - 1) * layer.dilation[0] * apart)

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [layer.register_forward_hook(note) for layer in network.modules() if isinstance(layer, kinds)]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return sum(spans)


@dataclass(frozen=True)
class Pieces:
    """Runs of latent steps done one at a time, each with neighbours that are thrown away again.

    Both ways a run starts at latent step j and at raw unit j * stride: a causal first step then takes or
    gives the last units of its step alone, so the grid of a run is that of the whole.
    """

    grid: TimeGrid
    steps: int  # done at once, without the neighbours
    context: int  # neighbours on either side

    def __post_init__(self) -> None:
        least = 0 if self.grid.first == self.grid.stride else 1  # a causal run's first step is a part of a step
        if self.steps < 1 or self.context < least:
            raise ValueError(
                f"pieces of {self.steps} steps and {self.context} around: at least 1 and {least} are needed"
            )

    def encode(self, run: Callable[[Tensor], Tensor], media: Tensor, dim: int = 2) -> Tensor:
        """`run` maps units along `dim` to latent steps along it."""
        total = self.grid.steps(media.shape[dim])
        if total <= self.steps:
            return run(media)
        parts = []
        for begin, end, first, last in self._runs(total):
            units = media.narrow(dim, first * self.grid.stride, self.grid.units(last - first))
            parts.append(run(units).narrow(dim, begin - first, end - begin))
        return torch.cat(parts, dim)

    def decode(self, run: Callable[[Tensor], Tensor], latents: Tensor, dim: int = 2) -> Tensor:
        """`run` maps latent steps along `dim` to units along it."""
        total = latents.shape[dim]
        if total <= self.steps:
            return run(latents)
        parts = []
        for begin, end, first, last in self._runs(total):
            units = run(latents.narrow(dim, first, last - first))
            start = self._start(begin)
            parts.append(units.narrow(dim, start - first * self.grid.stride, self._start(end) - start))
        return torch.cat(parts, dim)

    def _start(self, step: int) -> int:
        return self.grid.units(step) if step else 0

    def _runs(self, total: int) -> list[tuple[int, int, int, int]]:
        """(begin, end) of what is kept and (first, last) of what is run, in latent steps."""
        edges = [*range(0, total, self.steps), total]
        return [
            (begin, end, max(0, begin - self.context), min(total, end + self.context)) for begin, end in pairwise(edges)
        ]
