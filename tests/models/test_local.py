"""Local mixing: who stands beside whom, and gradients that are those of what it computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from avgen.models.local import NEIGHBOURS, UNIT, Local, neighbourhood
from avgen.types import Stream, stack_batches

from .factory import batch


def found(stream: Stream, sample: int, token: int) -> list[int]:
    near = neighbourhood(stream)
    return [int(i) for i, there in zip(near.index[sample, token], near.there[sample, token], strict=True) if there]


@pytest.mark.parametrize("grid", [(3, 2, 4), (1, 3, 3), (4, 1, 3), (3, 3, 1), (1, 1, 1)])
def test_a_pictures_neighbours_are_those_of_its_grid(grid: tuple[int, int, int]) -> None:
    frames, rows, columns = grid
    video = batch(frames=frames, rows=rows, columns=columns).streams["video"]
    numbered = torch.arange(video.x.shape[1]).view(grid)
    for t in range(frames):
        for r in range(rows):
            for c in range(columns):
                around = [(t - 1, r, c), (t + 1, r, c), (t, r - 1, c), (t, r + 1, c), (t, r, c - 1), (t, r, c + 1)]
                real = [p for p in around if all(0 <= i < n for i, n in zip(p, grid, strict=True))]
                assert found(video, 0, int(numbered[t, r, c])) == [int(numbered[p]) for p in real]


def test_a_sounds_neighbours_are_three_before_and_three_after() -> None:
    audio = batch(audio_steps=7).streams["audio"]
    assert sorted(found(audio, 0, 3)) == [0, 1, 2, 4, 5, 6]
    assert found(audio, 0, 0) == [1, 2, 3]


def crowded(modality: str) -> Stream:
    """A small clip beside a large one, which has another grid."""
    large = batch(("large",), frames=5, rows=3, columns=4, audio_steps=9)
    return stack_batches([batch(("small",)), large]).streams[modality]


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_padding_is_nobodys_neighbour(modality: str) -> None:
    alone, stream = batch(("small",)).streams[modality], crowded(modality)
    count = alone.x.shape[1]
    assert all(found(stream, 0, token) == found(alone, 0, token) for token in range(count))
    assert neighbourhood(stream).there[0, count:].sum() == 0


@pytest.mark.parametrize("made", [lambda m: batch().streams[m], crowded], ids=["even", "ragged"])
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_gradients_are_those_of_what_it_computes(modality: str, made: Callable[[str], Stream]) -> None:
    """The backward pass is written by hand, and right because neighbours are mutual."""
    stream, generator = made(modality), torch.Generator().manual_seed(0)
    near, local = neighbourhood(stream), Local(8)
    with torch.no_grad():
        local.taps.normal_(std=0.1, generator=generator)
    x, out_grad = torch.randn(2, 2, stream.x.shape[1], 8, generator=generator).unbind(0)
    x.requires_grad_()

    def plainly(x: Tensor, taps: Tensor) -> Tensor:
        rows = torch.arange(len(x))[:, None]
        taken = [x[rows, near.index[..., k]] * near.there[..., k, None] * taps[1 + k] for k in range(NEIGHBOURS)]
        return x + UNIT * (x * taps[0] + sum(taken))

    wanted = torch.autograd.grad(plainly(x, local.taps), (x, local.taps), out_grad)
    got = torch.autograd.grad(local(x, near), (x, local.taps), out_grad)
    torch.testing.assert_close(local(x, near), plainly(x, local.taps))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-3)


def test_frozen_weights_have_no_gradient_and_tokens_still_do() -> None:
    stream = batch().streams["video"]
    local = Local(8).requires_grad_(False)
    x = torch.randn(2, stream.x.shape[1], 8, requires_grad=True)
    local(x, neighbourhood(stream)).sum().backward()
    assert local.taps.grad is None
    assert x.grad is not None


def test_a_fresh_one_changes_nothing() -> None:
    stream = batch().streams["video"]
    x = torch.randn(2, stream.x.shape[1], 8)
    assert torch.equal(Local(8)(x, neighbourhood(stream)), x)


@pytest.mark.slow
def test_compiled_it_has_its_gradient() -> None:
    """A cast that changed nothing, at the end of the function's forward, was compiled to a backward pass of zeros."""
    stream = batch().streams["video"]
    near, local = neighbourhood(stream), Local(8)
    torch.nn.init.normal_(local.taps, std=0.1, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, stream.x.shape[1], 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    torch.compiler.reset()
    found = [
        torch.autograd.grad(run(x, near).square().sum(), (x, local.taps))
        for run in (local, torch.compile(local, fullgraph=True))
    ]
    for eager, fast in zip(*found, strict=True):
        assert (eager - fast).abs().max() <= 2e-5 * eager.abs().max()
