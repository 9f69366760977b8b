"""What a training run reads: the batch of every step, decided by the step alone.

There is no position to save: a resumed run asks for the next step. Ranks take their shares of the same
global batch, so the data of a run are the same at any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Protocol

from torch.utils.data import DataLoader, Dataset

from avgen.data import readers
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


# Read by the training process itself, while the server of the readers imports and while they open what they read.
STARTING_STEPS = 4


def read_steps(
    source: Source, order: Order, share: Share, first: int, steps: int, workers: int
) -> Iterator[list[Batch]]:
    """The micro-batches of steps `first` to `steps` - 1, made ahead of time by worker processes.

    What goes wrong in a worker is raised here, with its traceback; so is a worker's death.
    """
    read = Steps(source, order, share)
    ahead = first + STARTING_STEPS
    if not workers or ahead >= steps:
        return (read[step] for step in range(first, steps))
    return _read_ahead(read, first, ahead, steps, workers, readers.context())


def _read_ahead(
    read: Steps, first: int, ahead: int, steps: int, workers: int, context: BaseContext
) -> Iterator[list[Batch]]:
    loader = DataLoader(
        read,
        batch_size=None,
        sampler=range(ahead, steps),
        num_workers=workers,
        prefetch_factor=4,
        multiprocessing_context=context,
        worker_init_fn=readers.begin,
    )
    yield read[first]
    started = iter(loader)  # when the server has imported, not before
    for step in range(first + 1, ahead):
        yield read[step]
    yield from started
