"""Work on files in processes of their own: one that crashes or hangs the reader costs that file and nothing else."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
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
    ready: bool = False  # started, and what it needs imported
    task: Any = None  # its key, while it works
    since: float = 0.0


class Crew:
    """Processes that call functions on arguments handed to them, started when there is work for them.

    Leaving the `with` ends them all. `modules` are imported before a process takes work, so that `timeout_s` counts
    the work alone.
    """

    def __init__(self, size: int, timeout_s: float, modules: Sequence[str] = ()) -> None:
        # A server that has imported the modules forks the workers: fork alone is unsafe beside threads, spawn is slow.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(modules))
        self._size, self._timeout_s, self._modules = size, timeout_s, tuple(modules)
        self._workers: list[_Worker] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in [*self._workers]:
            self._end(worker)

    def run(
        self, function: Callable[..., Any], tasks: Iterable[tuple[Any, tuple[Any, ...]]]
    ) -> Iterator[tuple[Any, Any]]:
        """(key, result or Lost) for each (key, arguments), in the order they finish."""
        rest = iter(tasks)
        more = True
        while True:
            while more and self._room():
                task = next(rest, None)  # before a process is started that might have nothing to do
                if task is None:
                    more = False
                else:
                    self._hand(function, *task)
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            ready = wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in busy:
                if worker.pipe in ready:
                    yield from self._taken(worker)
                elif worker.ready and time.monotonic() - worker.since > self._timeout_s and not worker.pipe.poll():
                    key = worker.task
                    self._end(worker)
                    yield key, Lost(f"took longer than timeout_s={self._timeout_s:g}")

    def _room(self) -> bool:
        return len(self._workers) < self._size or any(worker.task is None for worker in self._workers)

    def _hand(self, function: Callable[..., Any], key: Any, arguments: tuple[Any, ...]) -> None:
        worker = next((worker for worker in self._workers if worker.task is None), None) or self._started()
        try:
            worker.pipe.send((function, arguments))
        except ConnectionError:  # it has died since its last task
            self._end(worker)
            worker = self._started()
            worker.pipe.send((function, arguments))
        worker.task, worker.since = key, time.monotonic()

    def _started(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(self._modules, theirs), daemon=True)
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]

    def _taken(self, worker: _Worker) -> Iterator[tuple[Any, Any]]:
        """What a worker says: first that it is ready, then a result for each task."""
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            code = worker.process.exitcode
            self._end(worker)
            how = (
                f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"left with {code}"
            )
            yield worker.task, Lost(f"the process that read it {how}")
            return
        if kind == "ready":
            worker.ready, worker.since = True, time.monotonic()
            return
        key, worker.task = worker.task, None
        if kind == "raised":  # a defect of ours, not of the file
            raise value
        yield key, value

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


def _serve(modules: Sequence[str], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for module in modules:  # the server has them already, unless it was started by something else
        import_module(module)
    pipe.send(("ready", None))
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("done", function(*arguments))
        except Exception as error:
            answer = ("raised", error)
        pipe.send(answer)
