"""What can become of a task, in a module that workers import at once."""

from __future__ import annotations

import os
import signal
import time


def fate(task: str) -> str:
    if task == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "hang":
        time.sleep(1000)
    return task.upper()
