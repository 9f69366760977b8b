"""What can become of a task, in a module that workers import at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from avgen.data.doctor.measure import Measures


def fate(task: str) -> str:
    if task == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "hang":
        time.sleep(1000)
    return task.upper()


def out_of_memory(path: Path, *_: object) -> Measures:
    return Measures(error=f"{path}: takes more memory than there is")


def only_of_broken(path: Path, *_: object) -> Measures:
    if path.stem not in ("broken", "missing"):
        raise AssertionError(f"{path} is measured although it was before")
    return Measures(error=f"{path}: as before")


def undrawable(*_: object) -> bytes:
    raise RuntimeError("undrawable")
