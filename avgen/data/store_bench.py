"""`python -m avgen.data.store_bench`: what a store of very many clips costs to open, to hold and to read at random.

Fake clips of toybox size are written once and kept. Lance alone (`take` of the same rows and columns, undecoded) is
timed in turn with the source that training reads, in the same process, so that both meet the same neighbours.
Processes are started as training starts its readers.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console

from avgen import command
from avgen.data import readers
from avgen.data.buckets import Schedule, Shape
from avgen.data.store import NUMBERS, READ, Header, Store, schema
from avgen.data.store_source import Part, StoreSource, mixed
from avgen.data.store_write import Notes, StoreWriter
from avgen.data.stream import STARTING_STEPS, At, Share, read_steps
from avgen.types import AudioGeometry, Batch, TimeGrid, VideoGeometry

VIDEO = VideoGeometry(24, TimeGrid(2, 2), space_stride=8)  # the embedded codecs'
AUDIO = AudioGeometry(32, TimeGrid(800, 800), sample_rate_hz=16000)
SHAPES = (Shape(32, 32, 8.0, 2.0), Shape(32, 48, 8.0, 2.0))
SHARD_ROWS = 4096
WRITE_ROWS = 512  # at once
MIB = 2**20


@dataclass(frozen=True)
class BenchConfig:
    """How large a store, and how long to look at it."""

    out: Path = Path("runs/store_bench")  # folder of the fake store: 9 KB a sample
    samples: int = 1_000_000  # rows
    std: bool = False  # posteriors with a spread, sampled anew at every read; twice the bytes
    batch: int = 16  # clips a step
    seconds: float = 10.0  # of each measurement
    workers: int = 2  # processes that read at once in the last measurement
    seed: int = 0  # of the order, and of the place at which reading is taken up again

    def __post_init__(self) -> None:
        if self.samples < SHARD_ROWS:
            raise ValueError(f"samples={self.samples} is too few to measure: at least {SHARD_ROWS}")


def header(config: BenchConfig) -> Header:
    fake = {"video": "fake", "audio": "fake", "windows": f"{config.samples} std={config.std}"}
    return Header(fake, SHAPES, VIDEO, AUDIO)


def made(config: BenchConfig, console: Console) -> Store:
    """The fake store, written where it is not there yet."""
    head = header(config)
    writer = StoreWriter.begin(config.out, head, -(-config.samples // SHARD_ROWS))
    missing = writer.missing()
    for done, shard in enumerate(missing):
        if done % 16 == 0:
            console.print(f"writing shard {shard} of {writer.shards}")
        writer.write(shard, batches(head, config, shard), Notes())
    if missing or not (config.out / "_versions").exists():
        writer.commit()
    return Store.open(config.out)


def batches(head: Header, config: BenchConfig, shard: int) -> Iterator[Any]:
    """Rows of noise: a slice of one long list each, from a place of its own."""
    import pyarrow as pa

    kind, rng = schema(head), np.random.default_rng(shard)
    first, last = shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, config.samples)
    noise = np.random.default_rng(0).standard_normal(1 << 20).astype(NUMBERS)
    for start in range(first, last, WRITE_ROWS):
        rows = np.arange(start, min(start + WRITE_ROWS, last))
        buckets = (rows % 8 == 0).astype(np.int16)
        columns: dict[str, Any] = {
            "clip": rows,
            "path": [f"clips/{row:08d}.mp4" for row in rows],
            "start_s": np.zeros(len(rows)),
            "bucket": buckets,
            "captions": ['["A small red ball bounces twice on the floor."]'] * len(rows),
        }
        shapes = {"video": [head.video_shape(s) for s in SHAPES], "audio": [head.audio_shape(s) for s in SHAPES]}
        for stream, sizes in shapes.items():
            counts = [int(np.prod(sizes[bucket])) for bucket in buckets]
            values = [
                noise[at : at + count].tobytes()
                for at, count in zip(rng.integers(0, 1 << 19, len(rows)), counts, strict=True)
            ]
            columns[f"{stream}_mean"] = values
            if config.std:
                columns[f"{stream}_std"] = [
                    np.abs(np.frombuffer(v, NUMBERS) * NUMBERS.type(0.1)).tobytes() for v in values
                ]
        arrays = [pa.array(columns.get(f.name, [None] * len(rows)), f.type) for f in kind]
        yield pa.record_batch(arrays, schema=kind)


@dataclass(frozen=True)
class Found:
    """One process's figures."""

    open_s: float
    raw_per_s: float
    read_per_s: float
    ratio: float  # median over pairs that were timed side by side


def opened(config: BenchConfig) -> tuple[StoreSource, Schedule]:
    source, order, _ = mixed([Part(Store.open(config.out), 1.0)], config.batch, seed=config.seed)
    return source, order


def own_mib(process: psutil.Process) -> float:
    """Memory that no other process shares."""
    return process.memory_full_info().uss / MIB


@dataclass(frozen=True)
class Held:
    """Memory of the processes that a run of training starts, in MiB that none shares with another."""

    readers: tuple[float, ...]  # once they have read for a while
    server: float


def held(config: BenchConfig) -> Held:
    """As `read_steps` starts them, and after `seconds` of reading."""
    source, order = opened(config)
    steps = read_steps(source, order, Share(config.batch, 1), 0, 10**9, config.workers)
    for _ in range(STARTING_STEPS + config.workers):  # from here on readers have read
        next(steps)
    end = time.perf_counter() + config.seconds
    while time.perf_counter() < end:
        next(steps)
    server = next(child for child in psutil.Process().children() if child.children())
    return Held(tuple(own_mib(reader) for reader in server.children()), own_mib(server))


def measured(config: BenchConfig, number: int, queue: Any) -> None:
    """What one reading process sees on one core, step after step at places of its own.

    Lance spreads a `take` over the cores that are free; beside other readers none is.
    """
    readers.begin()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    began = time.perf_counter()
    source, order = opened(config)
    open_s = time.perf_counter() - began
    step = 1_000_000 * (number + 1)
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + config.seconds
    while time.perf_counter() < end or len(pairs) < 5:
        raw = read = 0.0
        for _ in range(8):
            # other rows for either, so that neither finds what the other has just fetched
            clips, others = order.clips(step), order.clips(step + 1)
            step += 2
            began = time.perf_counter()
            source.stores[0].take(clips, READ)
            middle = time.perf_counter()
            source.batch(others, At(step, range(len(others))))
            raw, read = raw + middle - began, read + time.perf_counter() - middle
        pairs.append((raw, read))
    count = 8 * config.batch
    raw_s, read_s = (sum(pair[i] for pair in pairs) / len(pairs) for i in (0, 1))
    ratio = median(raw / read for raw, read in pairs)
    queue.put(Found(open_s, count / raw_s, count / read_s, ratio))


def reading(config: BenchConfig, number: int, queue: Any) -> None:
    """Samples per second of one process among several."""
    readers.begin()
    torch.set_num_threads(1)
    source, order = opened(config)
    step, count = 1_000_000 * (number + 1), 0
    source.batch(order.clips(step))
    queue.put("ready")
    end = time.perf_counter() + config.seconds
    while time.perf_counter() < end:
        step += 1
        count += source.batch(order.clips(step), At(step, range(config.batch))).size
    queue.put(count / config.seconds)


def run(config: BenchConfig, console: Console) -> dict[str, Any]:
    store = made(config, console)
    kept = held(config)
    context = readers.context()
    queue = context.Queue()
    process = context.Process(target=measured, args=(config, 0, queue))
    process.start()
    one: Found = queue.get()
    process.join()
    told: dict[str, Any] = {
        "samples": store.totals.rows,
        "open, s": round(one.open_s, 3),
        "own memory of each reader, MiB": [round(mib) for mib in kept.readers],
        "own memory of their server, MiB": round(kept.server),
        "on one core: Lance alone, samples/s": round(one.raw_per_s),
        "on one core: one worker, shuffled, samples/s": round(one.read_per_s),
        "on one core: of Lance's rate (median of pairs)": round(one.ratio, 2),
    }
    for count in range(1, config.workers + 1):
        told[f"{count} workers together, samples/s"] = round(together(config, count, context))
    told["resume at a random step is exact"] = resumes(config)
    for name, value in told.items():
        console.print(f"{name:<48} {value}", highlight=False)
    return told


def together(config: BenchConfig, count: int, context: Any) -> float:
    queue = context.Queue()
    processes = [context.Process(target=reading, args=(config, i, queue)) for i in range(count)]
    for process in processes:
        process.start()
    rates = [said for said in (queue.get() for _ in range(2 * count)) if said != "ready"]
    for process in processes:
        process.join()
    return sum(rates)


def resumes(config: BenchConfig, steps: int = 6) -> bool:
    """Whether a run taken up at a random step reads, bit for bit, what one that came there by reading reads."""
    first = random.Random(config.seed).randrange(10**6)
    share = Share(config.batch, 1)
    source, order = opened(config)
    through = [digest(parts) for parts in read_steps(source, order, share, first - steps, first + steps, 0)]
    again, order = opened(config)
    return through[steps:] == [digest(parts) for parts in read_steps(again, order, share, first, first + steps, 0)]


def digest(parts: list[Batch]) -> str:
    found = hashlib.sha256()
    for part in parts:
        for stream in part.streams.values():
            found.update(stream.x.numpy().tobytes())
    return found.hexdigest()


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        BenchConfig,
        None,
        argv,
        "open and read a store of a million fake clips",
        ["python -m avgen.data.store_bench", "python -m avgen.data.store_bench samples=100000 std=true out=runs/small"],
        "python -m avgen.data.store_bench",
    )
    told = run(config, Console())
    (config.out / "bench.json").write_text(json.dumps(told, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
