"""What a training run reads: the batch of every step, decided by the step alone.

There is no position to save: a resumed run asks for the next step. Ranks take their shares of the same
global batch, so the data of a run are the same at any number of ranks.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from torch.utils.data import DataLoader, Dataset

from avgen.types import Batch


@dataclass(frozen=True)
class At:
    """Where clips are read: what a source draws for one follows from its seed and from this, never from who reads."""

    step: int
    places: Sequence[int]  # of the clips in the step's global batch


class Source(Protocol):
    """Clips by index, ready for the model.

    Without `at` nothing is drawn, as for held-out clips: an encoder's mean in place of a sample, the first caption.
    """

    def batch(self, indices: Sequence[int], at: At | None = None) -> Batch: ...


@dataclass(frozen=True)
class Share:
    """Which samples of each step's global batch a rank sees, one range per micro-batch."""

    batch: int  # over all ranks
    accumulate: int
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch % (self.ranks * self.accumulate):
            raise ValueError(
                f"batch={self.batch} must be a multiple of ranks x accumulate = {self.ranks} x {self.accumulate}"
            )

    def places(self, batch: int | None = None) -> list[range]:
        """Places in a global batch of `batch` clips, which may be any multiple of the usual number."""
        size, rest = divmod(batch or self.batch, self.ranks * self.accumulate)
        assert not rest, "batches are multiples of the smallest"
        first = self.rank * self.accumulate * size
        return [range(first + i * size, first + (i + 1) * size) for i in range(self.accumulate)]


class Order(Protocol):
    """Which clips the global batch of a step holds, in which places: the same answer on every rank."""

    def clips(self, step: int) -> Sequence[int]: ...


@dataclass(frozen=True)
class InTurn:
    """Clip after clip, for sources without end whose clips are all of one shape."""

    batch: int

    def clips(self, step: int) -> range:
        return range(step * self.batch, (step + 1) * self.batch)


@dataclass(frozen=True)
class Steps(Dataset):
    """Item s is what this rank reads at step s: its micro-batches."""

    source: Source
    order: Order
    share: Share

    def __getitem__(self, step: int) -> list[Batch]:
        clips = self.order.clips(step)
        shares = self.share.places(len(clips))
        return [self.source.batch([clips[i] for i in places], At(step, places)) for places in shares]


def read_steps(
    source: Source, order: Order, share: Share, first: int, steps: int, workers: int
) -> Iterator[list[Batch]]:
    """The micro-batches of steps `first` to `steps` - 1, made ahead of time by worker processes.

    What goes wrong in a worker is raised here, with its traceback; so is a worker's death.
    """
    read = Steps(source, order, share)
    ahead = min(first + STARTING_STEPS, steps) if workers else first
    workers = workers if ahead < steps else 0
    loader = DataLoader(
        read,
        batch_size=None,
        sampler=range(ahead, steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_outlive_signals,
    )
    with _one_thread_each():
        started = iter(loader)
    return chain((read[step] for step in range(first, ahead)), started)


# Read by the training process itself: workers need as long as several steps to import what reading takes, and a step
# is read in a fraction of its own time.
STARTING_STEPS = 12
# of torch and of the libraries under numpy: idle threads that spin in a worker take the training step's cores
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started here get one thread per library; they read the environment when they import it."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM go to every process of a run, but the one that trains still wants its batch.

    It closes its workers when it has saved. A second SIGTERM ends a worker, as at a crash's exit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
