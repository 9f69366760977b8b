"""The typed data: the time grid's promises, tokens and back, ragged batches, moving between devices."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avgen.types import (
    AudioGeometry,
    Batch,
    Clip,
    Stream,
    Text,
    TimeGrid,
    VideoGeometry,
    stack_batches,
    stack_streams,
    stack_texts,
)
from tests.worlds import RATES_FPS, RATES_HZ, exact_intervals, samples, time_grids

FIELDS = ("x", "time", "level", "weight", "place")


@given(time_grids(), st.integers(1, 500))
def test_steps_are_the_fewest_that_cover(grid: TimeGrid, units: int) -> None:
    steps = grid.steps(units)
    assert grid.units(steps) >= units
    assert steps == 1 or grid.units(steps - 1) < units


@given(time_grids(), st.integers(1, 100))
def test_whole_steps_round_trip(grid: TimeGrid, steps: int) -> None:
    assert grid.steps(grid.units(steps)) == steps


@given(time_grids(max_stride=2000, max_delay=5000), st.integers(1, 50), st.sampled_from(RATES_FPS + RATES_HZ))
def test_intervals_are_contiguous_and_exact(grid: TimeGrid, steps: int, rate_hz: Fraction | int) -> None:
    intervals = grid.intervals(steps, float(rate_hz), start_s=3600.0)
    assert intervals.shape == (steps, 2)
    assert intervals.dtype == torch.float64
    assert torch.equal(intervals[1:, 0], intervals[:-1, 1])
    # an hour in, still far below a microsecond
    for (start, end), (a, b) in zip(intervals.tolist(), exact_intervals(grid, steps, Fraction(rate_hz)), strict=True):
        assert start == pytest.approx(3600 + float(a), abs=1e-9)
        assert end == pytest.approx(3600 + float(b), abs=1e-9)


@given(st.integers(2, 8), st.integers(1, 20), st.sampled_from(RATES_FPS))
def test_a_causal_grid_gives_the_first_frame_its_own_step(stride: int, steps: int, fps: Fraction) -> None:
    intervals = TimeGrid(stride, first=1).intervals(steps, float(fps))
    assert intervals[0].tolist() == [0.0, 1 / float(fps)]
    later = (intervals[1:, 1] - intervals[1:, 0]).numpy()
    np.testing.assert_allclose(later, stride / float(fps), rtol=1e-12)


@pytest.mark.parametrize(("stride", "first", "delay"), [(4, 0, 0), (4, 5, 0), (0, 1, 0), (4, 4, -1)])
def test_impossible_grids_are_refused(stride: int, first: int, delay: int) -> None:
    with pytest.raises(ValueError, match=r"TimeGrid\."):
        TimeGrid(stride, first, delay)


def test_nothing_cannot_be_encoded_or_decoded() -> None:
    with pytest.raises(ValueError, match="0 units"):
        TimeGrid(4, 1).steps(0)
    with pytest.raises(ValueError, match="0 latent steps"):
        TimeGrid(4, 1).units(0)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_video_tokens_round_trip(batch: int, channels: int, steps: int, rows: int, columns: int, patch: int) -> None:
    geometry = VideoGeometry(channels, TimeGrid(4, 1), space_stride=8, patch=patch)
    latents = torch.randn(batch, channels, steps, rows * patch, columns * patch)
    stream = geometry.stream(latents, fps=8.0)
    assert stream.x.shape == (batch, steps * rows * columns, geometry.token_channels)
    assert torch.equal(geometry.latents(stream.x, rows, columns), latents)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.data())
def test_a_token_is_where_and_when_its_latents_are(
    steps: int, rows: int, columns: int, patch: int, data: st.DataObject
) -> None:
    """Marking one latent cell marks exactly the token whose time and place say so."""
    geometry = VideoGeometry(2, TimeGrid(4, 1), space_stride=8, patch=patch)
    latents = torch.zeros(1, 2, steps, rows * patch, columns * patch)
    t = data.draw(st.integers(0, steps - 1))
    y, x = data.draw(st.integers(0, rows * patch - 1)), data.draw(st.integers(0, columns * patch - 1))
    latents[0, :, t, y, x] = 1
    stream = geometry.stream(latents, fps=25.0, start_s=2.0)
    marked = stream.x[0].abs().sum(-1).nonzero().flatten()
    assert len(marked) == 1
    assert stream.place is not None
    assert stream.place[0, marked[0]].tolist() == [y // patch, x // patch]
    assert torch.equal(stream.time[0, marked[0]], geometry.time.intervals(steps, 25.0, 2.0)[t])


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 20))
def test_audio_tokens_round_trip(batch: int, channels: int, steps: int) -> None:
    geometry = AudioGeometry(channels, TimeGrid(320, 320), 16000)
    latents = torch.randn(batch, channels, steps)
    stream = geometry.stream(latents, start_s=1.0)
    assert torch.equal(geometry.latents(stream.x), latents)
    assert torch.equal(stream.time[0], geometry.time.intervals(steps, 16000, 1.0))


def test_every_sample_may_have_its_own_fps() -> None:
    geometry = VideoGeometry(2, TimeGrid(4, 1), space_stride=8)
    latents = torch.zeros(2, 2, 3, 2, 2)
    both = geometry.stream(latents, [8.0, 24.0])
    for i, fps in enumerate((8.0, 24.0)):
        assert torch.equal(both.time[i], geometry.stream(latents[:1], fps).time[0])


def test_wrong_latents_are_refused() -> None:
    geometry = VideoGeometry(4, TimeGrid(4, 1), space_stride=8, patch=2)
    with pytest.raises(ValueError, match="this codec makes 4"):
        geometry.stream(torch.zeros(1, 3, 1, 2, 2), 8.0)
    with pytest.raises(ValueError, match="2x2 patches"):
        geometry.stream(torch.zeros(1, 4, 1, 3, 2), 8.0)
    with pytest.raises(ValueError, match="this codec makes 4"):
        AudioGeometry(4, TimeGrid(320, 320), 16000).stream(torch.zeros(1, 3, 5))


def unpadded(stream: Stream | None, row: int) -> dict[str, torch.Tensor] | None:
    """The real tokens of one sample, None where it has none."""
    if stream is None or not stream.present[row]:
        return None
    keep = stream.mask()[row]
    found = {name: value[row, keep] for name in FIELDS if (value := getattr(stream, name)) is not None}
    return found if stream.extent is None else {**found, "extent": stream.extent[row]}


def same(a: dict[str, torch.Tensor] | None, b: dict[str, torch.Tensor] | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@given(st.lists(samples(), min_size=1, max_size=5))
def test_a_batch_of_many_holds_each_unchanged(clips: list) -> None:
    batches = [clip.batch for clip in clips]
    stacked = stack_batches(batches)
    assert stacked.size == len(batches)
    for name in ("video", "audio"):
        stream = getattr(stacked, name)
        assert (stream is None) == all(getattr(b, name) is None for b in batches)
        for i, batch in enumerate(batches):
            assert same(unpadded(stream, i), unpadded(getattr(batch, name), 0))
        if stream is not None:
            lengths = {None if (s := getattr(b, name)) is None else s.x.shape[1] for b in batches}
            assert (stream.valid is None) == (len(lengths) == 1)
            assert (stream.weight[~stream.mask()] == 0).all()
    for i, batch in enumerate(batches):
        for mine, theirs in ((stacked.video_text, batch.video_text), (stacked.audio_text, batch.audio_text)):
            assert torch.equal(mine.x[i, mine.valid[i]], theirs.x[0, theirs.valid[0]])
    assert (stacked.video_text is stacked.audio_text) == all(b.video_text is b.audio_text for b in batches)


@given(st.lists(samples(), min_size=2, max_size=5), st.data())
def test_stacking_in_two_steps_is_stacking_at_once(clips: list, data: st.DataObject) -> None:
    batches = [clip.batch for clip in clips]
    cut = data.draw(st.integers(1, len(batches) - 1))
    at_once = stack_batches(batches)
    in_two = stack_batches([stack_batches(batches[:cut]), stack_batches(batches[cut:])])
    for name in ("video", "audio"):
        for i in range(len(batches)):
            assert same(unpadded(getattr(at_once, name), i), unpadded(getattr(in_two, name), i))


def test_no_stream_at_all_stays_none() -> None:
    assert stack_streams([None, None]) is None


def test_levels_survive_stacking_streams_with_different_numbers_of_them() -> None:
    geometry = AudioGeometry(2, TimeGrid(320, 320), 16000)
    plain = geometry.stream(torch.randn(1, 2, 4))
    taken = torch.tensor([[True, False, True, False, False, True]])
    mixed = geometry.stream(torch.randn(1, 2, 6)).give(taken)
    stacked = stack_streams([plain, mixed])
    assert stacked is not None
    assert stacked.level[0, :4].tolist() == [1, 1, 1, 1]
    assert stacked.level[1].tolist() == [0, 1, 0, 1, 1, 0]


@given(samples(), st.data())
def test_giving_sets_level_and_weight_of_the_taken_tokens_alone(clip: object, data: st.DataObject) -> None:
    stream = clip.batch.video or clip.batch.audio  # type: ignore[attr-defined]
    noised = replace(stream, levels=torch.full_like(stream.levels, 0.3))
    taken = torch.tensor([data.draw(st.lists(st.booleans(), min_size=stream.x.shape[1], max_size=stream.x.shape[1]))])
    held = noised.give(taken)
    assert (held.level[taken] == 0).all()
    assert (held.weight[taken] == 0).all()
    assert torch.equal(held.level[~taken], noised.level[~taken])
    assert torch.equal(held.weight[~taken], noised.weight[~taken])
    assert torch.equal(held.x, noised.x)


@given(samples())
def test_moving_keeps_types_shapes_and_sharing(clip: object) -> None:
    batch: Batch = clip.batch  # type: ignore[attr-defined]
    moved = batch.to("meta")
    for name in ("video", "audio"):
        before, after = getattr(batch, name), getattr(moved, name)
        assert (before is None) == (after is None)
        for field in ("x", "time", "levels", "slot", "weight", "place", "extent", "valid"):
            a, b = getattr(before, field, None), getattr(after, field, None)
            assert (a is None) == (b is None)
            if a is not None:
                assert (b.device.type, b.dtype, b.shape) == ("meta", a.dtype, a.shape)
    assert (moved.video_text is moved.audio_text) == (batch.video_text is batch.audio_text)


def test_streams_of_the_wrong_shape_are_refused() -> None:
    good = AudioGeometry(2, TimeGrid(320, 320), 16000).stream(torch.zeros(2, 2, 5))
    for name in ("time", "slot", "weight"):
        with pytest.raises(ValueError, match=rf"Stream\.{name} has shape"):
            replace(good, **{name: getattr(good, name)[:, :-1]})
    with pytest.raises(ValueError, match="belong together"):
        replace(good, place=torch.zeros(2, 5, 2))


def test_a_batch_needs_a_stream() -> None:
    text = Text.of(torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="video stream, an audio stream or both"):
        Batch(None, None, text, text)


def test_texts_are_padded_and_masked() -> None:
    short, long = Text.of(torch.ones(1, 2, 3)), Text.of(torch.ones(2, 5, 3))
    both = stack_texts([short, long])
    assert both.valid.sum(1).tolist() == [2, 5, 5]
    assert (both.x[~both.valid] == 0).all()


def test_a_clip_knows_its_durations_and_refuses_half_a_description() -> None:
    clip = Clip(np.zeros((12, 4, 4, 3), np.uint8), np.zeros((1, 8000), np.float32), fps=8.0, sample_rate_hz=16000)
    assert (clip.video_duration_s, clip.audio_duration_s) == (1.5, 0.5)
    with pytest.raises(ValueError, match=r"Clip\.fps"):
        Clip(clip.video, None, fps=None, sample_rate_hz=None)
    with pytest.raises(ValueError, match=r"Clip\.sample_rate_hz"):
        Clip(None, clip.audio, fps=None, sample_rate_hz=None)
