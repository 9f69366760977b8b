"""Work on files in processes of their own: one that crashes or hangs the reader costs that file and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any


@dataclass(frozen=True)
class Lost:
    """A task that its process did not survive, and why."""

    reason: str


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: Any = None  # its key, while it works
    since: float = 0.0


def cores() -> int:
    """Those this process may use: fewer than the machine has, in containers and under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crew:
    """Processes that call `function` on arguments handed to them. Leaving the `with` ends them all."""

    def __init__(self, function: Callable[..., Any], size: int, timeout_s: float) -> None:
        # A server that has imported the module forks the workers: fork alone is unsafe beside threads, spawn is slow.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([function.__module__])
        self._function, self._size, self._timeout_s = function, size, timeout_s
        self._workers: list[_Worker] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            self._end(worker)

    def run(self, tasks: Iterable[tuple[Any, tuple[Any, ...]]]) -> Iterator[tuple[Any, Any]]:
        """(key, result or Lost) for each (key, arguments), in the order they finish."""
        rest = iter(tasks)
        more = True
        while True:
            while more and (worker := self._free()) is not None:
                task = next(rest, None)
                if task is None:
                    more = False
                    break
                worker.task, worker.since = task[0], time.monotonic()
                worker.pipe.send(task[1])
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            ready = wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in busy:
                if worker.pipe in ready:
                    yield self._taken(worker)
                elif time.monotonic() - worker.since > self._timeout_s:
                    key = worker.task
                    self._end(worker)
                    yield key, Lost(f"took longer than timeout_s={self._timeout_s:g}")

    def _free(self) -> _Worker | None:
        idle = next((worker for worker in self._workers if worker.task is None), None)
        if idle is None and len(self._workers) < self._size:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(self._function, theirs), daemon=True)
            process.start()
            theirs.close()
            idle = _Worker(process, ours)
            self._workers.append(idle)
        return idle

    def _taken(self, worker: _Worker) -> tuple[Any, Any]:
        key, worker.task = worker.task, None
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            code = worker.process.exitcode
            self._end(worker)
            how = (
                f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"left with {code}"
            )
            return key, Lost(f"the process that read it {how}")
        if kind == "raised":  # a defect of ours, not of the file
            raise value
        return key, value

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker) if worker in self._workers else None
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


def _serve(function: Callable[..., Any], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("done", function(*arguments))
        except Exception as error:
            answer = ("raised", error)
        pipe.send(answer)
