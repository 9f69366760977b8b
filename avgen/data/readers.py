"""Processes that read ahead for training, forked by a server that has imported what reading takes.

They share the pages of those imports, of which torch's alone are 270 MiB, and start in the time of a fork. To fork the
training process itself would copy its threads' locks, held for ever, and its hold of the GPU; the server has neither.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

OPEN_FILES = 65_536  # that readers and the training process may each have, where the system lets them
# of torch and of the libraries under numpy: idle threads that spin in a worker take the training step's cores
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def context() -> ForkServerContext:
    """Where readers are started from; the server begins to import at once, and whoever starts a reader waits for it.

    A process has one such server. Where something else has started it, readers import what it lacks.
    """
    _as_many_files_as_allowed()
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["avgen.data.reading_server"])
    with _one_thread_each():
        forkserver.ensure_running()
    return found


def _as_many_files_as_allowed() -> None:
    """Every tensor that a reader has handed over and nobody has fetched is an open file, of which a shell usually
    allows 1,024: one too many is lost without a word, and its step is waited for for ever."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def begin(worker: int = 0) -> None:
    """The first thing that a reader does."""
    os.environ.update(dict.fromkeys(THREADS, "1"))  # for what is still to be imported
    _outlive_signals()
    threading.Thread(target=_leave_with_parent, daemon=True).start()


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


def _outlive_signals() -> None:
    """Ctrl-C and a scheduler's SIGTERM go to every process of a run, but the one that trains still wants its batch.

    It closes its workers when it has saved. A second SIGTERM ends a worker, as at a crash's exit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def _leave_with_parent() -> None:
    """When the training process is killed. Torch's own watch looks at the server, which lives as long as readers do."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
