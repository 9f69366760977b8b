"""Worker processes that may die: the clip a worker was busy with is known, and the others go on.

The standard pools cannot say which task a killed worker had; an out-of-memory kill there ends everything.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

Work = Callable[..., Any]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Died:
    """In place of a result: the worker's process ended in the middle."""

    reason: str


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: int | None = None


def spread(work: Work, tasks: Sequence[tuple[Any, ...]], workers: int) -> Iterator[tuple[int, Any]]:
    """(place, work(*task)) of every task, in the order in which they end. `work` and tasks must be picklable.

    One worker is a process of its own too: its one task may be the one that kills it.
    """
    if not tasks:
        return
    # a fork of this process would inherit its threads' locks, and may wait for them for ever
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["eval.score"])
    another = partial(_started, context, work)
    waiting = iter(range(len(tasks)))
    crew = [another() for _ in range(min(workers, len(tasks)))]
    try:
        for seat, worker in enumerate(crew):
            crew[seat] = _handed(worker, next(waiting, None), tasks, another)
        while any(worker.task is not None for worker in crew):
            for ready in wait([w.pipe for w in crew if w.task is not None]):
                seat, worker = next((seat, w) for seat, w in enumerate(crew) if w.pipe is ready)
                assert worker.task is not None
                place = worker.task
                try:
                    result = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    result = Died(_how(worker.process))
                    worker.pipe.close()
                    worker = another()
                if isinstance(result, BaseException):
                    raise result
                crew[seat] = _handed(worker, next(waiting, None), tasks, another)
                yield place, result
    finally:
        for worker in crew:
            worker.process.kill()  # a milder signal can be lost on a process that has only just been started
            worker.process.join()
            worker.pipe.close()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """For what is started inside: workers share the cores, and threads of theirs would only wait for each other."""
    missing = [name for name in THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(missing, "1"))
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _started(context: Any, work: Work) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    with _one_thread_each():
        process.start()
    theirs.close()  # so that its end is noticed here
    return _Worker(process, ours)


def _handed(
    worker: _Worker, task: int | None, tasks: Sequence[tuple[Any, ...]], another: Callable[[], _Worker]
) -> _Worker:
    """The worker with its next task; one that has died since its last makes room for another."""
    if task is not None:
        try:
            worker.pipe.send(tasks[task])
        except ConnectionError:
            worker.process.join()
            worker.pipe.close()
            worker = another()
            worker.pipe.send(tasks[task])
    worker.task = task
    return worker


def _serve(work: Work, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends us
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            result = work(*task)
        except Exception as error:  # a defect of ours, not of a clip: the parent raises it
            result = error
        pipe.send(result)


def _how(process: Any) -> str:
    process.join()
    code = process.exitcode
    if code == -signal.SIGKILL:
        return "the process was killed, as the system does when memory runs out"
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    return f"the process ended with code {code}"
