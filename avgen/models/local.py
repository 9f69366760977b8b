"""Local mixing: a token takes in what stands beside it, channel by channel.

Attention can look at neighbours too, but has to learn where they are. In noise that is the first thing worth knowing:
what a picture or a sound is at one place it mostly is at the next, and their mean is less noisy than either.
Neighbours are the next tokens of the grid, not those at some distance in seconds: attention is what keeps time.

Shape letters: B samples, N tokens, K neighbours, D a tower's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avgen.types import Stream

NEIGHBOURS = 6  # in a picture two along time, rows and columns each; in a sound three before and three after
# A tap counts so many times what is stored of it: AdamW moves every stored weight by its rate, and taps are to reach
# tenths within some hundred steps. Saved models are read by this number, and gradients logged and clipped with it.
UNIT = 20.0


@dataclass(frozen=True)
class Neighbourhood:
    """Who stands beside whom, in pairs: k and k ^ 1 are opposite, so whoever is my k has me as its k ^ 1."""

    index: Tensor  # (B, N, K) int64, of all the stream's tokens
    there: Tensor  # (B, N, K) float32: 0 where an edge or padding is


def neighbourhood(stream: Stream) -> Neighbourhood:
    """Of a stream whose tokens lie in order of time, row and column."""
    tokens, device = stream.x.shape[1], stream.x.device
    at = torch.arange(tokens, device=device)[None]
    index, there = [], []
    for step, moved in _steps(stream):
        other = at + step
        inside = (other >= 0) & (other < tokens)
        other = other.clamp(0, tokens - 1).expand(len(stream.x), -1)
        if stream.place is not None and moved is not None:
            place = torch.stack([side.gather(1, other) for side in stream.place.unbind(-1)], dim=-1)
            inside = inside & (place - stream.place == moved).all(-1)
        if stream.valid is not None:
            inside = inside & stream.valid & stream.valid.gather(1, other)
        index.append(other)
        there.append(inside.expand_as(other).float())
    return Neighbourhood(torch.stack(index, -1), torch.stack(there, -1))


def _steps(stream: Stream) -> list[tuple[int | Tensor, Tensor | None]]:
    """How far each neighbour is in the order of tokens, and in which place of the picture it has to be from here."""
    if stream.extent is None:
        return [(sign * distance, None) for distance in range(1, NEIGHBOURS // 2 + 1) for sign in (-1, 1)]
    rows, columns = stream.extent.long()[:, :, None].unbind(1)
    row, column = torch.eye(2, device=rows.device)
    steps = ((rows * columns, 0 * row), (columns, row), (torch.ones_like(columns), column))
    return [(sign * step, sign * place) for step, place in steps for sign in (-1, 1)]


class Local(nn.Module):
    """x + a weighted sum of itself and its neighbours, with weights per channel, at first zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.zeros(1 + NEIGHBOURS, width))

    def forward(self, x: Tensor, beside: Neighbourhood) -> Tensor:
        """(B, N, D) of all the stream's tokens"""
        mixed: Tensor = _Mix.apply(x.float(), self.taps.float(), beside.index, beside.there)
        return mixed.type_as(x)


def _taken(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class _Mix(torch.autograd.Function):
    """Neighbours are mutual, so the backward pass reads them as the forward one does: a gather's adds by atomics.

    All in float32, cast outside: where `forward` itself ended in a cast that changed nothing, torch 2.11 compiled a
    backward pass of zeros.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, index: Tensor, there: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps, index, there)
        weights = UNIT * taps
        out = x * (1 + weights[0])
        for k in range(NEIGHBOURS):
            out = out + _taken(x, index[..., k]) * there[..., k, None] * weights[1 + k]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, taps, index, there = ctx.saved_tensors
        weights = UNIT * taps
        back = grad * (1 + weights[0])
        for k in range(NEIGHBOURS):
            opposite = k ^ 1
            back = back + _taken(grad, index[..., opposite]) * there[..., opposite, None] * weights[1 + k]
        if not ctx.needs_input_grad[1]:
            return back, None, None, None
        by_tap = [(grad * x).sum((0, 1))]
        for k in range(NEIGHBOURS):
            by_tap.append((grad * _taken(x, index[..., k]) * there[..., k, None]).sum((0, 1)))
        return back, UNIT * torch.stack(by_tap), None, None
