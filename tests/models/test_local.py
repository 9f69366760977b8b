"""Local mixing: who stands beside whom, and gradients that are those of what it computes."""

from __future__ import annotations

import pytest
import torch

from avgen.models.local import NEIGHBOURS, UNIT, Local, Neighbourhood, neighbourhood
from avgen.models.sharing import Alone
from avgen.types import Stream, stack_batches

from .factory import batch


def beside(stream: Stream) -> Neighbourhood:
    return neighbourhood(stream, Alone())


def found(stream: Stream, sample: int, token: int) -> list[int]:
    near = beside(stream)
    return [int(i) for i, there in zip(near.index[sample, token], near.there[sample, token], strict=True) if there]


def test_a_pictures_neighbours_are_those_of_its_grid() -> None:
    frames, rows, columns = 3, 2, 4
    video = batch(frames=2 * frames - 1, rows=rows, columns=columns).video
    assert video is not None
    frames = video.x.shape[1] // (rows * columns)
    grid = torch.arange(frames * rows * columns).view(frames, rows, columns)
    for t in range(frames):
        for r in range(rows):
            for c in range(columns):
                around = [(t - 1, r, c), (t + 1, r, c), (t, r - 1, c), (t, r + 1, c), (t, r, c - 1), (t, r, c + 1)]
                real = [p for p in around if all(0 <= i < n for i, n in zip(p, grid.shape, strict=True))]
                assert found(video, 0, int(grid[t, r, c])) == [int(grid[p]) for p in real]


def test_a_sounds_neighbours_are_three_before_and_three_after() -> None:
    audio = batch(audio_steps=7).audio
    assert audio is not None
    assert sorted(found(audio, 0, 3)) == [0, 1, 2, 4, 5, 6]
    assert found(audio, 0, 0) == [1, 2, 3]


def test_padding_is_nobodys_neighbour() -> None:
    """Clips of other sizes in one batch have each their own grid."""
    crowd = stack_batches([batch(("small",)), batch(("large",), frames=5, rows=3, columns=4, audio_steps=9)])
    for one, stream in ((batch(("small",)).video, crowd.video), (batch(("small",)).audio, crowd.audio)):
        assert one is not None
        assert stream is not None
        count = one.x.shape[1]
        for token in range(count):
            assert found(stream, 0, token) == found(one, 0, token)
        assert beside(stream).there[0, count:].sum() == 0


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_gradients_are_those_of_what_it_computes(modality: str) -> None:
    stream = batch().streams[modality]
    near, local = beside(stream), Local(8)
    torch.nn.init.normal_(local.taps, std=0.1)
    x, out_grad = torch.randn(2, 2, stream.x.shape[1], 8).unbind(0)
    x.requires_grad_()

    def plainly(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(x))[:, None]
        taken = [x[rows, near.index[..., k]] * near.there[..., k, None] * UNIT * taps[1 + k] for k in range(NEIGHBOURS)]
        return x + x * UNIT * taps[0] + sum(taken)

    wanted = torch.autograd.grad(plainly(x, local.taps), (x, local.taps), out_grad)
    made = torch.autograd.grad(local(x, near), (x, local.taps), out_grad)
    torch.testing.assert_close(local(x, near), plainly(x, local.taps))
    for one, other in zip(made, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_fresh_one_changes_nothing() -> None:
    stream = batch().streams["video"]
    x = torch.randn(2, stream.x.shape[1], 8)
    assert torch.equal(Local(8)(x, beside(stream)), x)
