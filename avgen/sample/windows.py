"""Clips longer than the model was trained on: overlapping windows, each going on from the tokens of the one before.

All windows write into one sequence of tokens that is decoded at once, so nothing is ever cut or faded together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avgen.models.dit import AVTransformer
from avgen.sample.cache import CacheConfig
from avgen.sample.guidance import Guidance
from avgen.sample.loop import generate
from avgen.sample.solvers import SolverConfig, State
from avgen.tasks import SLACK
from avgen.types import Batch, Stream

OVERLAP = 0.25  # of a window, given by the one before
# Of a window, made anew by the next one: how clips end in training is no guide to how one goes on.
REMADE = 0.125


class Span(NamedTuple):
    """A window of the clip, in seconds."""

    start: float
    end: float
    kept: float  # until here what the window makes stays; the next one makes the rest anew


def spans(duration_s: float, window_s: float) -> list[Span]:
    """Windows that cover [0, duration_s], each window_s long; the last one ends with the clip."""
    if duration_s <= window_s * (1 + OVERLAP / 2):
        return [Span(0.0, duration_s, duration_s)]
    found = [Span(0.0, window_s, window_s * (1 - REMADE))]
    while found[-1].end < duration_s - SLACK:
        end = min(found[-1].kept + window_s * (1 - OVERLAP), duration_s)
        last = end >= duration_s - SLACK
        found.append(Span(end - window_s, end, end if last else end - REMADE * window_s))
    return found


def windows(batch: Batch, window_s: float) -> list[Span]:
    """`spans` of the batch's clips: to the clip's end, not the last token's, which may reach beyond."""
    return spans(min(float(s.time[..., 1].max()) for s in batch.streams.values()), window_s)


def generate_long(
    model: AVTransformer,
    batch: Batch,
    noise: Mapping[str, Tensor],
    window_s: float,
    solver: SolverConfig,
    guidance: Guidance,
    predict: str = "velocity",
    cache: CacheConfig = CacheConfig(),  # noqa: B008  # frozen
    after_step: Callable[[int, int], None] = lambda done, of: None,
) -> State:
    """`generate` for any duration; a clip that fits one window is one call of it."""
    streams = batch.streams
    known = {m: s.level == 0 for m, s in streams.items()}
    x = {m: s.x for m, s in streams.items()}
    parts = windows(batch, window_s)
    for number, (start, end, kept) in enumerate(parts):
        last = number == len(parts) - 1
        inside = {m: window(s, start, torch.inf if last else end, len(parts) == 1) for m, s in streams.items()}
        cut: dict[str, Any] = {m: part(streams[m], x[m], known[m], inside[m], start) for m in streams}
        seen = replace(batch, **cut)
        done = number * solver.steps
        if all(bool(known[m][:, at].all()) for m, at in inside.items()):
            after_step(done + solver.steps, len(parts) * solver.steps)
            continue  # all of it is given
        made = generate(
            *(model, seen, {m: noise[m][:, inside[m]] for m in streams}, solver, guidance, predict, cache),
            after_step=lambda i, done=done: after_step(done + i + 1, len(parts) * solver.steps),  # type: ignore[misc]
        )
        for m, at in inside.items():
            x[m] = x[m].index_copy(1, at, made[m])
            stays = at if last else window(streams[m], start, kept, False)
            known[m] = known[m].index_fill(1, stays, True)
    return x


def window(stream: Stream, start: float, end: float, whole: bool) -> Tensor:
    """(N',) places of the tokens that start in the window; all samples of a batch have the same times."""
    if whole:
        return torch.arange(stream.x.shape[1], device=stream.x.device)
    begins = stream.time[0, :, 0]
    lowest = -torch.inf if start <= 0 else start
    return ((begins >= lowest - SLACK) & (begins < end - SLACK)).nonzero()[:, 0]


def part(stream: Stream, x: Tensor, known: Tensor, at: Tensor, start_s: float) -> Stream:
    """The window's tokens, on a clock that starts with it as in training."""
    cut = Stream.of(
        x[:, at],
        stream.time[:, at] - start_s,
        None if stream.place is None else stream.place[:, at],
        stream.extent,
    )
    cut = replace(cut, valid=None if stream.valid is None else stream.valid[:, at])
    return cut.give(known[:, at]) if bool(known[:, at].any()) else cut
