"""How fast this machine multiplies matrices: what every share of its speed is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch

MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}
MATMUL_FLOPS = {kind: 2 * size**3 for kind, size in MATMUL_SIZE.items()}
GLANCE_SIZE = 512  # a CPU without instructions for a type shows that in a product as small as this
GLANCE_S = 0.1  # at 2.7 GFLOP/s, a fiftieth of what vector units do; waiting for other programs takes a tenth of it
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def matmul(device: torch.device, dtype: torch.dtype, size: int | None = None) -> Callable[[], object]:
    """One product of random matrices, large unless told, run a few times to warm up."""
    size = size or MATMUL_SIZE[device.type]
    mine = torch.Generator(device).manual_seed(0)  # the global stream stays where it is
    a, b = (torch.randn(size, size, device=device, generator=mine).to(dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    return lambda: a @ b


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype, trials: int = 7) -> float:
    """FLOP/s of the best of a few large products; measured once per process.

    Where the CPU has no instructions for a type (bf16 before 2020) small products tell as much, and large ones would
    take half a minute.
    """
    if device.type == "cpu":
        glance = matmul(device, dtype, GLANCE_SIZE)
        if (seconds := min(timed(glance, device) for _ in range(2))) > GLANCE_S:
            return 2 * GLANCE_SIZE**3 / seconds
    product = matmul(device, dtype)
    return MATMUL_FLOPS[device.type] / min(timed(product, device) for _ in range(trials))


@cache
def faster_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """bf16 on accelerators; on a CPU whichever it multiplies faster, since some take twice as long over bf16."""
    if device.type != "cpu":
        return "bf16"
    return "bf16" if matmul_rate(device, torch.bfloat16) >= matmul_rate(device, torch.float32) else "fp32"


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that the work takes the device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
