"""Prepared clips as training data: rows of one or several stores, sampled anew from their posteriors at every step."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avgen.data.buckets import Bucket, Schedule, Shape, shared, uniform_of
from avgen.data.store import NUMBERS, Store, StoreError
from avgen.data.stream import At
from avgen.models.text import bytes_of
from avgen.rng import gaussian, word_of
from avgen.types import Batch, Stream, Text, stack_batches

# Lengths of captions are rounded up to these, so that compiled code meets few shapes.
BYTES_MULTIPLE = 96
TOKENS_MULTIPLE = 32


@dataclass(frozen=True)
class Drawn:
    """What is random about a clip at a step. `None` in its place draws nothing."""

    seed: int
    step: int
    place: int


@dataclass(frozen=True)
class StoreSource:
    """Rows of stores, counted through: first all of the first store, then all of the second.

    Everything drawn (the sample of each posterior, which caption) follows from (seed, step, place).
    """

    stores: tuple[Store, ...]
    seed: int = 0
    max_caption_bytes: int = 256  # of a model that reads bytes

    def batch(self, indices: Sequence[int], at: At | None = None) -> Batch:
        """Rows of different buckets are padded; their order is that of the indices."""
        drawn = [None] * len(indices) if at is None else [Drawn(self.seed, at.step, place) for place in at.places]
        parts, order = [], []
        for store, places, rows in self._by_store(indices):
            table = store.take(rows)
            buckets = table["bucket"].to_numpy()
            for bucket in dict.fromkeys(buckets.tolist()):
                here = np.flatnonzero(buckets == bucket)
                order += [places[i] for i in here]
                some = table if len(here) == len(rows) else table.take(here)
                parts.append(self._alike(store, store.header.shapes[bucket], some, [drawn[places[i]] for i in here]))
        batch = parts[0] if len(parts) == 1 else stack_batches(parts)
        return batch if order == sorted(order) else batch.rows(torch.tensor(order).argsort())

    def _by_store(self, indices: Sequence[int]) -> Iterator[tuple[Store, list[int], list[int]]]:
        starts = offsets(self.stores)
        found: dict[int, tuple[list[int], list[int]]] = {}
        for place, index in enumerate(indices):
            which = bisect_right(starts, index) - 1
            places, rows = found.setdefault(which, ([], []))
            places.append(place)
            rows.append(index - starts[which])
        return ((self.stores[which], *lists) for which, lists in found.items())

    def _alike(self, store: Store, shape: Shape, table: Any, drawn: Sequence[Drawn | None]) -> Batch:
        """Rows of one bucket."""
        header = store.header
        real = [None if text is None else json.loads(text) for text in table["real"].to_pylist()]
        video = audio = None
        if header.video is not None and shape.height is not None:
            assert shape.fps is not None
            latents = _latents(table, "video", header.video_shape(shape), drawn)
            video = _kept(header.video.stream(latents, shape.fps), "video", real)
        if header.audio is not None and shape.audio:
            audio = _kept(
                header.audio.stream(_latents(table, "audio", header.audio_shape(shape), drawn)), "audio", real
            )
        text = self._text(header.text_width, table, drawn)
        return Batch(video, audio, text, text)

    def _text(self, width: int | None, table: Any, drawn: Sequence[Drawn | None]) -> Text:
        captions = [json.loads(text) for text in table["captions"].to_pylist()]
        chosen = [_choice(len(some), d) for some, d in zip(captions, drawn, strict=True)]
        told = [some[i] if some else "" for some, i in zip(captions, chosen, strict=True)]
        if width is None:
            return bytes_of(told, self.max_caption_bytes, BYTES_MULTIPLE).said(told)
        rows = []
        for raw, counts, i in zip(table["text"], table["text_tokens"].to_pylist(), chosen, strict=True):
            ends = [0, *accumulate(json.loads(counts))]
            rows.append(_numbers(raw).reshape(-1, width)[ends[i] : ends[i + 1]])
        longest = -(-max(map(len, rows)) // TOKENS_MULTIPLE) * TOKENS_MULTIPLE
        x = torch.zeros(len(rows), longest, width)
        valid = torch.zeros(len(rows), longest, dtype=torch.bool)
        for k, row in enumerate(rows):
            x[k, : len(row)] = torch.from_numpy(row.astype(np.float32))
            valid[k, : len(row)] = True
        return Text.of(x, valid).said(told)


def offsets(stores: Sequence[Store]) -> list[int]:
    """The index of each store's first row."""
    return [0, *accumulate(store.totals.rows for store in stores)][:-1]


def _choice(count: int, drawn: Drawn | None) -> int:
    """One of `count` captions; the first where nothing is drawn."""
    if drawn is None or count < 2:
        return 0
    return word_of(drawn.seed, "which caption", drawn.step, drawn.place) % count


def _numbers(value: Any) -> np.ndarray:
    return np.frombuffer(value.as_buffer(), NUMBERS)


def _latents(table: Any, stream: str, shape: tuple[int, ...], drawn: Sequence[Drawn | None]) -> Tensor:
    """(B, *shape) float32: each row's mean, or a sample of its posterior."""
    means = _stacked(table[f"{stream}_mean"], shape)
    if all(d is None for d in drawn) or table[f"{stream}_std"].null_count:
        return means
    stds = _stacked(table[f"{stream}_std"], shape)
    size = torch.Size(shape)
    noise = [gaussian(size, d.seed, f"{stream} posterior", d.step, d.place) for d in drawn if d is not None]
    return means.addcmul_(stds, torch.stack(noise))


def _stacked(column: Any, shape: tuple[int, ...]) -> Tensor:
    """The values of a binary column, all of the same size, as float32: from the column's one buffer."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    _, limits, data = array.buffers()
    ends = np.frombuffer(limits, np.int64)[array.offset : array.offset + len(array) + 1]
    size = int(np.prod(shape)) * NUMBERS.itemsize
    assert (np.diff(ends) == size).all(), "a bucket's latents are of one shape"
    raw = np.frombuffer(data, NUMBERS, count=(ends[-1] - ends[0]) // NUMBERS.itemsize, offset=ends[0])
    return torch.from_numpy(raw.reshape(len(array), *shape).astype(np.float32))


def _kept(stream: Stream, name: str, real: Sequence[Mapping[str, Any] | None]) -> Stream:
    """The stream without tokens whose middle lies outside what the file really holds."""
    if all(spans is None or name not in spans for spans in real):
        return stream
    middle = stream.time.mean(-1)
    keep = torch.ones(stream.x.shape[:2], dtype=torch.bool)
    for row, spans in enumerate(real):
        if spans is not None and name in spans:
            inside = torch.zeros(middle.shape[1], dtype=torch.bool)
            for first, last in spans[name]:
                inside |= (middle[row] >= first) & (middle[row] < last)
            keep[row] = inside
    return stream.keep(keep)


@dataclass(frozen=True)
class Rows:
    """Some clips of a source as clips 0, 1, 2, ...: what is held out."""

    source: StoreSource
    indices: tuple[int, ...]

    def batch(self, indices: Sequence[int], at: At | None = None) -> Batch:
        return self.source.batch([self.indices[i] for i in indices], at)


@dataclass(frozen=True)
class Part:
    """A store in a mix."""

    store: Store
    weight: float  # share of the clips that are read, against the other parts'
    held_out: float = 0.0  # share of its files that training never reads


def mixed(
    parts: Sequence[Part],
    batch: int,
    step_tokens: int | None = None,
    mixed_fps: bool = False,
    seed: int = 0,
    max_caption_bytes: int = 256,
    without: Collection[str] = (),
) -> tuple[StoreSource, Schedule, list[int]]:
    """Stores as one source, the order in which training reads it, and the rows that it never does.

    A step reads one bucket of one store, so stores may differ in everything but the kind of their tokens. Files in
    `without` are never read, whatever the shares.
    """
    check_alike([part.store for part in parts])
    stores = tuple(part.store for part in parts)
    total = sum(part.weight for part in parts)
    found: list[tuple[np.ndarray, int, float]] = []  # of each bucket: its clips, the longest one's tokens, their weight
    away: list[int] = []
    for part, start in zip(parts, offsets(stores), strict=True):
        header = part.store.header
        rows = part.store.column("bucket")
        kept = np.ones(len(rows), dtype=bool)
        if part.held_out or without:
            files, of_file = part.store.files()
            kept = ~(held_out(files, part.held_out) | np.array([file in without for file in files]))[of_file]
        away += (np.flatnonzero(~kept) + start).tolist()
        if not kept.any():
            raise StoreError(
                f"nothing of {part.store.path} is left to train on: lower data.held_out_share, or give a data.held_out "
                "of other files"
            )
        keys: dict[Shape, list[int]] = {}
        for bucket in np.unique(rows[kept]).tolist():
            shape = header.shapes[bucket]
            keys.setdefault(shape.at_any_rate() if mixed_fps else shape, []).append(bucket)
        for together in keys.values():
            members = np.flatnonzero(np.isin(rows, together) & kept) + start
            longest = max(header.tokens(header.shapes[bucket]) for bucket in together)
            found.append((members.astype(np.int64), longest, part.weight / total / int(kept.sum())))
    most = max(weight for _, _, weight in found)  # one store alone keeps the weight of 1
    buckets = tuple(
        Bucket(clips, longest, weight / most)
        for clips, (_, longest, weight) in zip(shared([members for members, _, _ in found]), found, strict=True)
    )
    return StoreSource(stores, seed, max_caption_bytes), Schedule(buckets, batch, step_tokens, seed), away


def held_out(files: Sequence[str], share: float) -> np.ndarray:
    """Which files are kept out of training: windows of one file are too alike to be a test of each other.

    It follows from a file's path alone, so every store and every mix keeps the same ones out.
    """
    return np.array([uniform_of("held out", file) < share for file in files], dtype=bool)


def cut_captions(stores: Sequence[Store], max_bytes: int) -> tuple[int, int]:
    """How many captions a model that reads so many bytes does not read to their end, and the bytes of the longest.

    None of a store with features: its encoder cut them, and said so.
    """
    lengths = [
        len(caption.encode())
        for store in stores
        if store.header.text_width is None
        for batch in store.dataset.to_batches(columns=["captions"])
        for told in batch["captions"].to_pylist()
        if len(told.encode()) > max_bytes  # a list as JSON is longer than what it holds, and most need not be parsed
        for caption in json.loads(told)
    ]
    cut = [length for length in lengths if length >= max_bytes]  # a mark of the beginning takes one
    return len(cut), max(cut, default=0)


def check_alike(stores: Sequence[Store]) -> None:
    """Stores of a mix must speak of the same latents and captions."""
    first = stores[0]
    for other in stores[1:]:
        for name in ("video", "audio", "text"):
            a, b = first.header.made_by.get(name), other.header.made_by.get(name)
            if a != b:
                raise StoreError(
                    f"{first.path} and {other.path} cannot be mixed: their {name} codes are {a} and {b}; prepare both "
                    "with the same codecs and text encoder"
                )
