"""Rotary positions: one clock, whatever the rates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avgen.models.rope import (
    Clock,
    Space,
    anchors,
    rotate,
    space_time_rotation,
    span_of,
    time_rotation,
    turned,
)
from avgen.types import Stream, TimeGrid

from .factory import VIDEO

rates = st.floats(1.0, 120.0)
offsets = st.floats(-50.0, 50.0)


def score(q_time: torch.Tensor, k_time: torch.Tensor, clock: Clock) -> torch.Tensor:
    """Attention logits between one query and one key vector placed at the given intervals."""
    q = torch.linspace(-1, 1, 16, dtype=torch.float64).expand(1, len(q_time), 1, 16).float()
    k = torch.linspace(1, 0.2, 16, dtype=torch.float64).expand(1, len(k_time), 1, 16).float()
    turned_q = rotate(q, time_rotation(q_time[None], clock, 16))[0, :, 0]
    turned_k = rotate(k, time_rotation(k_time[None], clock, 16))[0, :, 0]
    return turned_q @ turned_k.T


@given(first=rates, second=rates, shift=offsets)
def test_attention_between_streams_depends_on_the_time_difference_alone(first, second, shift):
    """Two pairs of tokens from codecs of any rates, with midpoints equally far apart, score the same."""
    clock = Clock()
    audio, video = torch.tensor([[0.0, 1 / first]]), torch.tensor([[0.0, 1 / second]])
    apart = 0.37
    audio = (audio - audio.mean()).double()
    video = (video - video.mean()).double()
    here = score(audio, video + apart, clock)
    there = score(audio + shift, video + apart + shift, clock)
    other_rate = score(audio * 3, video * 0.5 + apart, clock)
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)
    torch.testing.assert_close(here, other_rate, atol=1e-4, rtol=0)
    assert (score(audio, video + apart + 0.02, clock) - here).abs() > 1e-3


@pytest.mark.parametrize("fps", [8.0, 16.0, 24.0])
def test_a_causal_codec_counts_latent_frames_from_the_end_anchor(fps):
    grid = TimeGrid(stride=4, first=1)
    clock = Clock(units_per_s=fps / 4, anchor="end", origin_s=1 / fps)
    torch.testing.assert_close(clock.units(grid.intervals(6, fps)), torch.arange(6.0, dtype=torch.float64))


def test_space_is_normalised_by_the_longer_side():
    """The same picture on a finer grid spans the same positions; the shorter side spans less."""
    space = Space(units=16)
    coarse = space.units_of(torch.tensor([[[0.0, 0.0], [3.0, 7.0]]]), torch.tensor([[4.0, 8.0]]))[0]
    fine = space.units_of(torch.tensor([[[0.5, 0.5], [6.5, 14.5]]]), torch.tensor([[8.0, 16.0]]))[0]
    torch.testing.assert_close(coarse, fine)
    torch.testing.assert_close(coarse[0], -coarse[1])
    assert coarse[1].tolist() == pytest.approx([16 * 1.5 / 8, 16 * 3.5 / 8])


def test_rotation_keeps_lengths_and_is_identity_at_the_origin():
    stream = VIDEO.stream(torch.randn(1, 6, 3, 2, 3), 8.0)
    turn = space_time_rotation(stream, Clock(), Space(), (8, 4, 4))
    x = torch.randn(1, 18, 2, 16)
    torch.testing.assert_close(rotate(x, turn).norm(dim=-1), x.norm(dim=-1))
    still = replace(stream, time=torch.zeros_like(stream.time), place=torch.zeros_like(stream.place))
    index = space_time_rotation(still, Clock(), Space(kind="index"), (8, 4, 4))
    torch.testing.assert_close(rotate(x, index), x, atol=0, rtol=0)


def test_positions_an_hour_in_keep_their_precision():
    """float32 seconds would blur neighbouring audio tokens at one hour by more than 1e-4."""
    clock = Clock(units_per_s=50)
    steps = TimeGrid(640, 640).intervals(8, 16000)
    late = time_rotation((steps + 3600)[None], clock, 16)
    turn = late.cos[0, 1:, 0] * late.cos[0, :-1, 0] + late.sin[0, 1:, 0] * late.sin[0, :-1, 0]
    early = time_rotation(steps[None], clock, 16)
    expected = early.cos[0, 1:, 0] * early.cos[0, :-1, 0] + early.sin[0, 1:, 0] * early.sin[0, :-1, 0]
    torch.testing.assert_close(turn, expected, atol=1e-6, rtol=0)


def test_impossible_clocks_are_refused():
    with pytest.raises(ValueError, match="units_per_s"):
        Clock(units_per_s=0)
    with pytest.raises(ValueError, match="anchor"):
        Clock(anchor="centre")
    with pytest.raises(ValueError, match="space kind"):
        Space(kind="pixels")


@pytest.mark.parametrize("offset_s", [-0.06, 0.0, 0.06])
def test_turned_constants_attend_most_at_their_offset(offset_s: float) -> None:
    clock, channels = Clock(), 64
    instants = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    keys = turned(0.0, clock, channels).expand(1, 101, 1, channels)
    query = turned(offset_s, clock, channels).expand(1, 1, 1, channels)
    far = time_rotation(torch.stack([instants, instants], -1)[None] + 100, clock, channels)
    here = time_rotation(torch.full((1, 1, 2), 100.0, dtype=torch.float64), clock, channels)
    scores = (rotate(query, here) * rotate(keys, far)).sum(-1)[0, :, 0]
    assert abs(instants[scores.argmax()] - offset_s) < 0.006


def test_anchors_count_from_the_ends_of_what_is_real() -> None:
    """The first second of a longer clip begins as a clip of one second does, and ends otherwise."""
    short, long = (Stream.of(torch.zeros(1, n, 1), spans(n)) for n in (4, 8))
    near, far = (anchors(s, span_of([s]))[0] for s in (short, long))
    since = torch.arange(near.shape[-1]) % 16 < 8  # of 16 sines, and of as many cosines, those of the time since
    torch.testing.assert_close(near[:, since], far[:4, since])
    torch.testing.assert_close(near[:, ~since], far[4:, ~since])
    padded = replace(long, valid=torch.arange(8)[None] < 4)
    torch.testing.assert_close(anchors(padded, span_of([padded]))[0, :4], near)
    late = replace(short, time=short.time + 3600)
    torch.testing.assert_close(anchors(late, span_of([late]))[0], near)
    gone = replace(short, valid=torch.zeros(1, 4, dtype=torch.bool))
    assert torch.equal(span_of([gone]), torch.zeros(1, 2, dtype=torch.float64))
    assert anchors(gone, span_of([gone])).isfinite().all()


def test_anchors_tell_rows_and_columns_as_shares_of_the_sides() -> None:
    small, large = (VIDEO.stream(torch.zeros(1, 6, 1, 2 * k, 3 * k), 8.0) for k in (1, 3))
    one, many = (anchors(s, span_of([s]))[0] for s in (small, large))
    assert len({tuple(token) for token in one.tolist()}) == 6
    # the middle cell of each three by three stands where the one cell does
    torch.testing.assert_close(many.view(6, 9, -1)[1::3, 1::3].flatten(0, 1), one)


def spans(steps: int) -> Tensor:
    start = torch.arange(steps, dtype=torch.float64)[None] / 4
    return torch.stack([start, start + 0.25], dim=-1)
