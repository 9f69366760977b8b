"""Reading ahead: what worker processes do when all is well, when they are signalled, and when they fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import torch

from avgen.data import readers
from avgen.data.buckets import Schedule, Shape, grouped
from avgen.data.readers import THREADS
from avgen.data.stream import STARTING_STEPS, InTurn, Share, read_steps

STEPS = STARTING_STEPS + 6


@dataclass(frozen=True)
class Told:
    """Not clips, but who was asked for which; at clip `fails_at` something goes wrong."""

    fails_at: int = -1
    how: str = ""

    def batch(self, indices, at=None):
        if self.fails_at in indices:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError(f"clip {self.fails_at} cannot be read")
        limits = [os.environ.get(name) for name in THREADS]
        return {"clips": list(indices), "pid": os.getpid(), "threads": torch.get_num_threads(), "limits": limits}


def reading(source, share=Share(4, 2), first=0, workers=1):  # noqa: B008  # frozen
    return read_steps(source, InTurn(4), share, first, STEPS, workers)


def test_steps_are_read_from_any_first_one_in_micro_batches():
    found = list(reading(Told(), first=5, workers=0))
    assert [[part["clips"] for part in step] for step in found] == [
        [[4 * s, 4 * s + 1], [4 * s + 2, 4 * s + 3]] for s in range(5, STEPS)
    ]


def test_a_worker_has_one_thread_and_finishes_what_is_asked_after_ctrl_c_and_sigterm():
    before = dict(os.environ)
    ahead = reading(Told())
    assert dict(os.environ) == before
    found = [next(ahead) for _ in range(STARTING_STEPS + 1)]
    assert {part["pid"] for step in found[:-1] for part in step} == {os.getpid()}
    worker = found[-1][0]["pid"]
    assert worker != os.getpid()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker, number)
    found += ahead
    assert [part["clips"][0] for step in found for part in step] == list(range(0, 4 * STEPS, 2))
    in_worker = [part for step in found[STARTING_STEPS:] for part in step]
    assert {(part["pid"], part["threads"], *part["limits"]) for part in in_worker} == {(worker, 1, "1", "1", "1")}
    del ahead
    assert gone(worker)


def test_a_reader_is_handed_any_number_of_buckets():
    """A process is handed 256 pieces of memory at most."""
    buckets, _ = grouped([Shape(8 * i, 8, 8.0, 1.0) for i in range(1, 401) for _ in range(4)], lambda shape: 1)
    order = Schedule(buckets, 4)
    there = list(read_steps(Told(), order, Share(4, 1), 0, STEPS, workers=1))
    assert len({part["pid"] for step in there for part in step}) == 2
    assert [part["clips"] for step in there for part in step] == [order.clips(step) for step in range(STEPS)]


def gone(pid: int) -> bool:
    """Ends, if it is given a minute."""
    deadline = time.monotonic() + 60
    while not (ended := _ended(pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return ended


def _ended(pid: int) -> bool:
    """Some containers' first process does not collect those whose parents were killed."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def trains(pipe) -> None:
    """A process that trains, with a server of readers that is its own."""
    ahead = reading(Told())
    found = [next(ahead) for _ in range(STARTING_STEPS + 1)]
    worker = found[-1][0]["pid"]
    server = psutil.Process(worker).ppid()
    for number in (signal.SIGINT, signal.SIGTERM):
        for pid in (worker, server):
            os.kill(pid, number)
    found += [next(ahead) for _ in range(STEPS - STARTING_STEPS - 2)]
    pipe.send((worker, server, found[-1][0]["pid"]))
    signal.pause()


def test_readers_are_forked_without_threads_share_what_they_imported_and_end_with_what_trains():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    training = context.Process(target=trains, args=(theirs,))
    training.start()
    theirs.close()
    try:
        worker, server, last = ours.recv()
        assert worker == last != training.pid != server
        assert psutil.Process(server).ppid() == training.pid
        assert psutil.Process(server).num_threads() == 1, "a fork lacks its parent's threads and has their locks"
        memory = psutil.Process(worker).memory_full_info()
        assert memory.uss < memory.rss / 2
    finally:
        training.kill()  # as for want of memory: nothing of it is closed
        training.join()
    assert gone(worker)
    assert gone(server)


def starts_and_ends(pipe) -> None:
    context = readers.context()
    waited_for: list[Any] = []
    for _ in range(5):
        process = context.Process(target=signal.pause, daemon=True)
        process.start()
        process.terminate()
        waited_for.append(process)
    for process in waited_for:
        process.join(30)
    pipe.send([process.exitcode for process in waited_for])
    for process in waited_for:
        process.kill()


def test_a_process_of_the_readers_server_ends_of_a_signal_in_its_first_instant():
    """The server outlives SIGTERM, and a process that it forks begins as its image."""
    ours, theirs = multiprocessing.Pipe()
    alone = multiprocessing.get_context("spawn").Process(target=starts_and_ends, args=(theirs,))
    alone.start()
    theirs.close()
    assert ours.recv() == [-signal.SIGTERM] * 5
    alone.join()


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("raises", ArithmeticError, r"(?s)Original Traceback.*clip .* cannot be read"),
        ("killed", RuntimeError, r"worker.*(exited unexpectedly|killed by signal)"),
    ],
)
def test_a_worker_that_fails_ends_the_run(how, error, words):
    ahead = reading(Told(4 * STARTING_STEPS + 9, how))
    with pytest.raises(error, match=words):
        list(ahead)
