"""Runs of `prepare` that start at once and can be killed: forked by a process that has imported all and run nothing.

That process is the tests' own: the fork server of the whole test run may have been started without these imports.
"""

from __future__ import annotations

import multiprocessing
import resource
from importlib import import_module
from multiprocessing.connection import Connection

import torch
from rich.console import Console

from avgen.data.prepare import Place, PrepareConfig, prepare
from avgen.data.store import StoreError

LATE = (  # imported by `prepare` when it first needs them
    "lance",
    "lance.file",
    "lance.fragment",
    "rich.progress",
    "av.video.reformatter",
    "scipy.signal",
    "avgen.models.opening",
    "avgen.models.embedded_audio",
    "avgen.models.embedded_video",
)


class Nursery:
    """Leaving the `with` ends it."""

    def __enter__(self) -> Nursery:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_nurse, args=(theirs,))
        self._process.start()
        theirs.close()
        assert self._pipe.recv() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def run(self, config: PrepareConfig, most_bytes: int | None = None, seconds: float = 300) -> int:
        """The exit code; negative when its seconds were over and it was killed."""
        self._pipe.send((config, most_bytes, seconds))
        return self._pipe.recv()


def _nurse(pipe: Connection) -> None:
    for module in LATE:
        import_module(module)
    pipe.send("ready")
    while True:
        try:
            config, most_bytes, seconds = pipe.recv()
        except EOFError:
            return
        process = multiprocessing.get_context("fork").Process(target=_child, args=(config, most_bytes))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        pipe.send(process.exitcode)


def _child(config: PrepareConfig, most_bytes: int | None) -> None:
    torch.set_num_threads(1)
    if most_bytes is not None:  # what a file may grow to: the nearest thing to a full disk that needs no rights
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    console = Console(file=(config.out.parent / "said.txt").open("a"), width=1000)
    try:
        prepare(config, console, Place())
    except StoreError as error:
        console.print(str(error))
        raise SystemExit(2) from error
