"""Checkpoints: whole or not there at all, and always one to go on from."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

PREFIX = "step_"
STATE = "state.pt"


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state after `step` steps; then delete all but the `keep` newest checkpoints.

    It is written under another name, flushed to the disk and renamed, so a kill at any instant leaves the
    previous checkpoint whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{step:08d}"
    draft = folder / f".{final.name}.part"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    with (draft / STATE).open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():  # the same step again, after a resume from an older one
        shutil.rmtree(final)
    draft.rename(final)
    _flush(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def _flush(folder: Path) -> None:
    """Make the rename itself last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / STATE).is_file())


def load(path: Path) -> dict[str, Any]:
    """A state; a file that cannot be read is an error, never a fresh start."""
    try:
        return torch.load(path / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"checkpoint {path} cannot be read ({error}): delete it to go on from the one before"
        ) from error
