"""This process among those that were launched together, by `accelerate launch` or `torchrun`, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


def this_process() -> PartialState:
    """Without an accelerator accelerate must be told: started by torchrun, every process would take itself for the
    only one."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())
