"""This process among those that were launched together, by `accelerate launch` or `torchrun`, on any device."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


PATIENCE = timedelta(days=7)  # processes that share a job wait for the slowest, which may have much more to do


def cores() -> int:
    """That this process may use: fewer than the machine has, in containers and under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_process() -> PartialState:
    """Without an accelerator accelerate must be told: started by torchrun, every process would take itself for the
    only one."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
