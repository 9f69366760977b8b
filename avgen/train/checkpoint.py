"""Checkpoints: whole or not there at all, and always one to go on from.

A checkpoint is a folder `step_00000100` of torch's distributed format (each process writes the shards it holds)
with `about.json` beside them. It is written as `.step_00000100.part`, flushed to the disk and renamed last, so a
kill at any instant leaves the one before whole. Any number of processes can read what any other number wrote.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import threading
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

PREFIX = "step_"
ABOUT = "about.json"
DAMAGED = (CheckpointException, OSError, RuntimeError, ValueError, EOFError, KeyError)

# one process needs no process group; said by a thread, so that no context manager can keep it quiet
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

State = dict[str, Any]  # nested dicts of tensors, whole or in shards


@dataclass(frozen=True)
class About:
    """What stands beside the tensors."""

    step: int  # optimiser steps done
    fingerprint: str  # of what decides the tensors' names and shapes
    processes: int  # that wrote it; any number can read it
    loss_scale: float | None = None  # of fp16 gradients; None: they were not scaled
    clean_steps: int = 0  # since that scale last changed


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / ABOUT).is_file())


def about(path: Path) -> About:
    try:
        return About(**json.loads((path / ABOUT).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(path, error) from error


def load(path: Path, state: State, group: dist.ProcessGroup | None = None) -> None:
    """Fill the tensors of `state`; anything that is missing or cannot be read is an error, never a fresh start."""
    try:
        state_dict_loader.load(state, storage_reader=FileSystemReader(path), process_group=group, no_dist=group is None)
    except DAMAGED as error:
        raise unreadable(path, error) from error


def on_host(state: State) -> State:
    """A copy in the memory of the host, cut as the state is; every process must call it."""
    return {name: on_host(value) if isinstance(value, dict) else _copy(value) for name, value in state.items()}


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor.to("cpu", copy=True)
    part = tensor.to_local().to("cpu", copy=True)
    mesh, cut = host_mesh(tensor.device_mesh), tensor.placements
    return DTensor.from_local(part, mesh, cut, run_check=False, shape=tensor.shape, stride=tensor.stride())


@functools.cache
def host_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The same processes, as a mesh whose tensors may lie on the host."""
    return mesh if mesh.device_type == "cpu" else DeviceMesh("cpu", mesh.mesh)


def unreadable(path: Path, error: BaseException) -> ValueError:
    causes = [str(cause[0]) for cause in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    return ValueError(f"checkpoint {path} cannot be read ({causes[0]}): delete it to go on from the one before")


@dataclass
class Writer:
    """Writes checkpoints beside the training, one at a time, and keeps the `keep` newest."""

    folder: Path
    keep: int
    group: dist.ProcessGroup | None = None  # gloo, used by the writing thread alone; None: there is one process
    _thread: threading.Thread | None = None
    _failed: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def save(self, about: About, state: State) -> None:
        """Copy the state to the host, and return: the disk can wait, the next step cannot."""
        self.wait()
        copy = on_host(state)
        self._thread = threading.Thread(target=self._try, args=(about, copy), name=f"checkpoint {about.step}")
        self._thread.start()

    def wait(self) -> None:
        """Until the last checkpoint is whole; what went wrong with it is raised here, an OSError whatever it was."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failed:
            error = self._failed.pop()
            said = " ".join(str(error).split())
            raise OSError(f"a checkpoint could not be written to {self.folder}: {said}") from error

    def _try(self, about: About, state: State) -> None:
        try:
            self._write(about, state)
        except (Exception, CheckpointException) as error:
            self._failed.append(error)

    def _write(self, about: About, state: State) -> None:
        final = self.folder / f"{PREFIX}{about.step:08d}"
        if (final / ABOUT).is_file():
            return
        draft = self.folder / f".{final.name}.part"
        first = self.group is None or dist.get_rank(self.group) == 0
        if first:
            for left in self.folder.glob(f".{PREFIX}*"):
                shutil.rmtree(left)
            draft.mkdir(parents=True)
        if self.group is not None:  # nobody writes where the first still clears up
            dist.barrier(self.group)
        storage = FileSystemWriter(draft, sync_files=True)
        state_dict_saver.save(state, storage_writer=storage, process_group=self.group, no_dist=self.group is None)
        if first:  # the others have reported their shards on the disk
            _write_through(draft / ABOUT, json.dumps(asdict(about), indent=2) + "\n")
            _flush(draft)
            draft.rename(final)
            _flush(self.folder)
            for old in checkpoints(self.folder)[: -self.keep]:
                old.rename(self.folder / f".{old.name}.old")  # at once, so that no half of it is ever seen
                shutil.rmtree(self.folder / f".{old.name}.old")


def _write_through(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Make names within it last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
