"""Real processes for the tests of training over several: forked from a server that has imported everything.

Starting an interpreter and importing torch takes seconds, a fork milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

PATIENCE_S = 300  # less than a test is given: then what it has started is ended

_ours = forkserver.ForkServer()
_ours.set_forkserver_preload(["tests.distributed.preload"])


@contextmanager
def _our_server() -> Iterator[Any]:
    """A process has one fork server, with the imports that whoever first started a process wanted: other tests may
    have."""
    names = ("_forkserver", "ensure_running", "connect_to_new_process")
    theirs = {name: getattr(forkserver, name) for name in names}
    ours = {"_forkserver": _ours, **{name: getattr(_ours, name) for name in names[1:]}}
    try:
        for name, value in ours.items():
            setattr(forkserver, name, value)
        yield multiprocessing.get_context("forkserver")
    finally:
        for name, value in theirs.items():
            setattr(forkserver, name, value)


def start(ranks: int, function: Callable[..., Any], *args: Any) -> list[BaseProcess]:
    """`function(*args)` in every one of `ranks` processes, as torchrun would start them."""
    # where they find each other is held open here, as by torchrun: a port that was free a moment ago may not be now
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launched = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    launched |= {"TORCHELASTIC_USE_AGENT_STORE": True}
    processes = []
    with _our_server() as server:
        for rank in range(ranks):
            environment = {**launched, "RANK": rank, "LOCAL_RANK": rank} if ranks > 1 else {}
            process = server.Process(target=_enter, args=(environment, function, args), daemon=True)
            process.start()
            process.store = store  # type: ignore[attr-defined]  # lives as long as they do
            processes.append(process)
    return processes


def _enter(environment: dict[str, Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    function(*args)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def join(processes: list[BaseProcess]) -> list[int | None]:
    """Their exit codes; when one fails, the others, which would wait for it, are killed."""
    try:
        for process in processes:
            process.join(PATIENCE_S)
            if process.exitcode != 0:
                break
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def run(folder: Path, ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(*args)` returns in each process."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = join(start(ranks, _keep, folder, function, args))
    for rank in range(ranks):
        failure = folder / f"{rank}.txt"
        assert not failure.exists(), failure.read_text()
    assert codes == [0] * ranks
    return results(folder)


def results(folder: Path) -> list[Any]:
    return [torch.load(path, weights_only=False) for path in sorted(folder.glob("*.pt"))]


def _keep(folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    rank = os.environ.get("RANK", "0")
    try:
        torch.save(function(*args), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise
