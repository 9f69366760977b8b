"""Which clips a training step reads, when clips come in several shapes: one bucket per step, the same on all ranks.

Everything is a function of (seed, step): nothing is counted, saved or exchanged between ranks, and step s costs
the same to look up as step 0. Three rules make that so.

1. *Turns.* Time runs in steps, and batch k of a bucket falls on a random instant of the k-th of equal intervals, as
   many per epoch as the bucket has batches. The s-th instant of all buckets together is step s. So buckets are drawn in
   proportion to their clips (each clip is read equally often, or as their weights say), in an order that never
   repeats, and none waits longer than two of its intervals.
2. *Passes.* Batch k of a bucket of n clips reads places k * size, ..., (k + 1) * size - 1 of an endless list that
   holds all n clips in one order, then all n in another, and so on. So no clip is read again before the whole
   bucket was, and what is left of a pass is carried into the batch that begins the next: nothing is dropped.
3. *Orders* are keyed permutations of 0..n-1 computed place by place, so millions of clips need no shuffled list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from avgen.rng import word_of

ROUNDS = 6  # of the permutation: four give a pseudorandom one (Luby and Rackoff 1988), more suit a plain round function


@dataclass(frozen=True)
class Shape:
    """What clips must have in common to be stacked without padding."""

    height: int | None  # pixels; None without a picture
    width: int | None
    fps: float | None  # None without a picture, and where clips of any rate share a bucket
    duration_s: float
    audio: bool = True  # whether there is sound

    def at_any_rate(self) -> Shape:
        return replace(self, fps=None)


@dataclass(frozen=True)
class Bucket:
    """Clips that may share a batch."""

    clips: Sequence[int]  # their indices in the source: a range, or a tensor in memory that all processes share
    tokens: int  # of its longest clip, picture and sound together: what one more clip adds to a padded batch
    weight: float = 1.0  # how often each of its clips is read, against those of other buckets


def grouped(
    shapes: Iterable[Shape], tokens: Callable[[Shape], int], mixed_fps: bool = False
) -> tuple[tuple[Bucket, ...], tuple[Shape, ...]]:
    """The buckets of a catalogue, clip i having the i-th shape, in order of first appearance; and their keys.

    With `mixed_fps` clips that differ in nothing but their rate share a bucket, and its batches are ragged.
    """
    members: dict[Shape, list[int]] = {}
    longest: dict[Shape, int] = {}
    counted: dict[Shape, int] = {}
    for index, shape in enumerate(shapes):
        if shape not in counted:
            counted[shape] = tokens(shape)
        key = shape.at_any_rate() if mixed_fps else shape
        members.setdefault(key, []).append(index)
        longest[key] = max(longest.get(key, 0), counted[shape])
    clips = shared([np.array(indices, dtype=np.int64) for indices in members.values()])
    return tuple(Bucket(some, longest[key]) for some, key in zip(clips, members, strict=True)), tuple(members)


def shared(lists: Sequence[np.ndarray]) -> tuple[Sequence[int], ...]:
    """The lists as parts of one piece of memory, of which a reading process is handed the memory itself.

    One piece, because a process is handed a few hundred at most.
    """
    whole: Any = torch.from_numpy(np.concatenate(lists)).share_memory_()
    return whole.split([len(some) for some in lists])


@dataclass(frozen=True)
class Schedule:
    """The clips of every step's global batch.

    A bucket's batch is `batch` clips or, under a token budget, the largest multiple of `batch` that fits in it.
    """

    buckets: tuple[Bucket, ...]
    batch: int
    step_tokens: int | None = None  # the budget, over all ranks and micro-batches
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.buckets or any(not len(bucket.clips) for bucket in self.buckets):
            raise ValueError("a schedule needs at least one bucket, and no empty one")
        if min(bucket.weight for bucket in self.buckets) <= 0:
            raise ValueError("a bucket's weight must be positive: leave a bucket that is not to be read out")
        most = max(bucket.tokens for bucket in self.buckets)
        if self.step_tokens is not None and self.step_tokens < self.batch * most:
            raise ValueError(
                f"step_tokens={self.step_tokens} cannot hold batch={self.batch} clips of {most} tokens:"
                f" raise step_tokens to {self.batch * most}, or lower batch"
            )

    def size(self, bucket: int) -> int:
        """Clips in a batch of this bucket, over all ranks."""
        if self.step_tokens is None:
            return self.batch
        return self.step_tokens // (self.buckets[bucket].tokens * self.batch) * self.batch

    @cached_property
    def steps_per_epoch(self) -> float:
        """Steps in which every clip of weight 1 is read once; not whole, since passes run on."""
        return sum(b.weight * len(b.clips) / self.size(i) for i, b in enumerate(self.buckets))

    @cached_property
    def intervals(self) -> tuple[float, ...]:
        """Steps from one batch of each bucket to its next, on average."""
        batches = (b.weight * len(b.clips) / self.size(i) for i, b in enumerate(self.buckets))
        return tuple(self.steps_per_epoch / count for count in batches)

    def turn(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many batches of it came before."""
        # By any instant t a bucket has had t / interval batches, give or take one, so all of them together t, give or
        # take their number: the wanted instant lies within that of `step`. One more on either side is for rounding.
        reach = len(self.buckets) + 1
        earlier, near = 0, []
        for i, interval in enumerate(self.intervals):
            first = max(0, int((step - reach) / interval))
            earlier += first
            for k in range(first, int((step + reach + 1) / interval) + 2):
                near.append(((k + uniform_of(self.seed, "turn", i, k)) * interval, i, k))
        near.sort()
        return near[step - earlier][1:]

    def clips(self, step: int) -> list[int]:
        """Indices in the source; the same on every rank, at any number of ranks."""
        which, turn = self.turn(step)
        size, clips = self.size(which), self.buckets[which].clips
        places = np.arange(turn * size, (turn + 1) * size, dtype=np.int64)
        passes, within = np.divmod(places, len(clips))
        chosen = np.empty_like(within)
        for number in np.unique(passes):
            now = passes == number
            chosen[now] = permuted(within[now], len(clips), word_of(self.seed, "pass", which, int(number)))
        return [int(clips[i]) for i in chosen.tolist()]


def permuted(places: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where the key's permutation of 0..n-1 sends each place; no list of n is made.

    A Feistel network permutes the next even power of two, and a place sent outside is sent on until it lies inside.
    """
    half = np.uint64(max(1, (int(n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(word_of(key, number)) for number in range(ROUNDS)]
    out = places.astype(np.uint64)
    outside = np.ones(len(out), dtype=bool)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & low
        for word in keys:
            left, right = right, left ^ (scrambled(right ^ word) & low)
        out[outside] = (left << half) | right
        outside = out >= np.uint64(n)
    return out.astype(np.int64)


def scrambled(x: np.ndarray) -> np.ndarray:
    """uint64 -> uint64 in which every bit depends on all (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform_of(*parts: int | str) -> float:
    """A number in [0, 1) from a seed and what it is for."""
    return (word_of(*parts) >> 11) / 2**53
