"""Buckets: one per step on all ranks, every clip once per pass, and nothing that depends on the number of ranks."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avgen.data.buckets import Bucket, Schedule, Shape, grouped, permuted
from avgen.data.stream import Share


@st.composite
def schedules(draw: st.DrawFn, most_clips: int = 60) -> Schedule:
    sizes = draw(st.lists(st.integers(1, most_clips), min_size=1, max_size=6))
    tokens = [draw(st.integers(1, 50)) for _ in sizes]
    starts = np.cumsum([0, *sizes]).tolist()
    buckets = tuple(Bucket(range(a, b), t) for (a, b), t in zip(pairwise(starts), tokens, strict=True))
    batch = draw(st.integers(1, 6))
    least = batch * max(tokens)
    budget = draw(st.none() | st.integers(least, 8 * least))
    return Schedule(buckets, batch, budget, draw(st.integers(0, 2**40)))


def bucket_of(schedule: Schedule, clip: int) -> int:
    return next(i for i, bucket in enumerate(schedule.buckets) if clip in bucket.clips)


@given(schedules(), st.integers(0, 3000))
def test_a_step_reads_one_bucket_and_as_many_clips_as_the_budget_holds(schedule: Schedule, step: int) -> None:
    clips = schedule.clips(step)
    (which,) = {bucket_of(schedule, clip) for clip in clips}
    assert len(clips) % schedule.batch == 0
    if schedule.step_tokens is None:
        assert len(clips) == schedule.batch
    else:
        tokens = schedule.buckets[which].tokens
        assert len(clips) * tokens <= schedule.step_tokens < (len(clips) + schedule.batch) * tokens


@given(schedules(), st.integers(0, 400))
def test_no_clip_is_read_again_before_its_whole_bucket_was(schedule: Schedule, steps: int) -> None:
    read: Counter[int] = Counter()
    for step in range(steps):
        clips = schedule.clips(step)
        read.update(clips)
        counts = [read[clip] for clip in schedule.buckets[bucket_of(schedule, clips[0])].clips]
        assert max(counts) - min(counts) <= 1


@given(schedules())
def test_an_epoch_reads_every_clip(schedule: Schedule) -> None:
    """All buckets come through at the same time, up to one batch of their own and the order of the last few."""
    steps = int(schedule.steps_per_epoch) + 1
    read: Counter[int] = Counter()
    for step in range(steps + len(schedule.buckets)):
        read.update(schedule.clips(step))
    for i, bucket in enumerate(schedule.buckets):
        missing = sum(read[clip] == 0 for clip in bucket.clips)
        assert missing <= schedule.size(i)


@given(schedules(), st.integers(0, 2000))
def test_turns_come_in_order_and_no_bucket_starves(schedule: Schedule, first: int) -> None:
    taken: dict[int, list[tuple[int, int]]] = {}
    longest = int(2 * max(schedule.intervals)) + 2 * len(schedule.buckets) + 2
    for step in range(first, first + min(longest, 500)):
        which, turn = schedule.turn(step)
        taken.setdefault(which, []).append((step, turn))
    for turns in taken.values():
        assert all(b[1] == a[1] + 1 for a, b in pairwise(turns))
    for which, interval in enumerate(schedule.intervals):
        if 2 * interval + 2 * len(schedule.buckets) + 2 <= 500:
            assert which in taken


@given(schedules(), st.integers(0, 10**9))
def test_steps_are_looked_up_without_the_steps_before(schedule: Schedule, step: int) -> None:
    """A late step is one of the bucket's batches like any other, and asking twice changes nothing."""
    again = Schedule(schedule.buckets, schedule.batch, schedule.step_tokens, schedule.seed)
    again.clips(0)
    assert schedule.clips(step) == again.clips(step)
    turns = [schedule.turn(s) for s in range(step, step + 8)]
    assert len(set(turns)) == 8


@given(schedules(), st.integers(0, 500), st.sampled_from([(1, 1), (2, 1), (1, 3), (3, 2), (4, 4)]))
def test_ranks_share_the_batch_that_one_rank_reads_alone(
    schedule: Schedule, step: int, layout: tuple[int, int]
) -> None:
    ranks, accumulate = layout
    fitting = Schedule(schedule.buckets, ranks * accumulate, None, schedule.seed)
    clips = fitting.clips(step)
    shares = [Share(fitting.batch, accumulate, rank, ranks).places(len(clips)) for rank in range(ranks)]
    assert [clips[i] for places in shares for part in places for i in part] == clips
    assert len({len(part) for places in shares for part in places}) == 1


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_permutations_reach_every_place_once(n: int, key: int) -> None:
    assert sorted(permuted(np.arange(n), n, key).tolist()) == list(range(n))


def test_permutations_of_millions_are_spread_evenly_and_differ_by_key() -> None:
    n = 3 * 10**9 + 7
    places = np.arange(4096)
    one, other = permuted(places, n, 1), permuted(places, n, 2)
    assert len(set(one.tolist())) == len(places)
    assert 0 <= one.min() <= one.max() < n
    assert not set(one.tolist()) & set(other.tolist())
    # of uniform draws the share in each tenth has standard deviation 0.0047
    assert np.histogram(one, 10, (0, n))[0] / len(places) == pytest.approx(np.full(10, 0.1), abs=0.025)
    assert abs(np.corrcoef(places, one)[0, 1]) < 0.08


def test_passes_and_seeds_are_shuffled_anew() -> None:
    def passes(seed: int) -> list[tuple[int, ...]]:
        schedule = Schedule((Bucket(range(40), 1),), 8, None, seed)
        return [tuple(clip for step in range(5) for clip in schedule.clips(5 * p + step)) for p in range(3)]

    found = [*passes(0), *passes(1)]
    assert len(set(found)) == 6
    assert all(sorted(order) == list(range(40)) for order in found)


def test_buckets_take_turns_in_proportion_to_their_batches() -> None:
    """10,000 small clips, 1,000 large ones that fill a batch four times as fast: 10 to 4."""
    schedule = Schedule((Bucket(range(10_000), 10), Bucket(range(10_000, 11_000), 40)), 1, 400)
    turns = Counter(schedule.turn(step)[0] for step in range(3_500))
    assert turns[1] / 3_500 == pytest.approx(4 / 14, abs=0.002)


def test_a_catalogue_is_grouped_by_shape() -> None:
    slow, fast, tall = Shape(32, 32, 8.0, 2.0), Shape(32, 32, 12.0, 2.0), Shape(48, 32, 8.0, 2.0)
    tokens = {slow: 10, fast: 15, tall: 20}.__getitem__
    buckets, keys = grouped([slow, fast, tall, slow], tokens)
    assert keys == (slow, fast, tall)
    assert [(list(map(int, b.clips)), b.tokens) for b in buckets] == [([0, 3], 10), ([1], 15), ([2], 20)]
    mixed, keys = grouped([slow, fast, tall, slow], tokens, mixed_fps=True)
    assert [(list(map(int, b.clips)), b.tokens) for b in mixed] == [([0, 1, 3], 15), ([2], 20)]
    assert keys[0].fps is None
    assert all(bucket.clips.is_shared() for bucket in mixed)  # reading processes map them instead of copying
    schedule = Schedule(mixed, 4)
    assert {clip for step in range(12) for clip in schedule.clips(step)} == {0, 1, 2, 3}


def test_a_budget_that_holds_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step_tokens=99 cannot hold batch=2 clips of 50 tokens: raise .* to 100"):
        Schedule((Bucket(range(3), 50),), 2, 99)
