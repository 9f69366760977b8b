"""One `attend()` for every attention of the model, behind a backend named in the config.

Backends are checked against a float64 reference in the tests. None of them falls back to another: a backend
that cannot run says why. Masks are key masks only, (B, M) bool, True = may be looked at; None is the fast path.

Shape letters: B samples, N queries, M keys, H heads, K channels of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

log = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, backend: str = "sdpa") -> Tensor:
    """(B, N, H, K), (B, M, H, K) x 2 -> (B, N, H, K).

    A sample none of whose keys may be looked at gets zeros, in value and gradient: its row is attended
    unmasked, which is finite, and then multiplied by zero.
    """
    if keys is None:
        return BACKENDS[backend](q, k, v, None)
    some = keys.any(dim=1)
    out = BACKENDS[backend](q, k, v, keys | ~some[:, None])
    return out * some[:, None, None, None]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
    mask = None if keys is None else keys[:, None, None]
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2)


def _sdpa_kernel(kernel: SDPBackend) -> Attend:
    def run(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
        with sdpa_kernel(kernel):
            return _sdpa(q, k, v, keys)

    return run


def _flash(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
    if keys is not None and q.is_cuda:
        raise ValueError("attention=flash takes no key mask (ragged batch, padded captions): choose sdpa or cudnn")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _sdpa(q, k, v, keys)


def _xformers(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
    from xformers.ops import memory_efficient_attention

    bias = None
    if keys is not None:
        # the kernels want a bias of the queries' dtype whose rows start at multiples of 8 elements
        batch, length = keys.shape
        row = torch.zeros((batch, 1, 1, -(-length // 8) * 8), dtype=q.dtype, device=q.device)
        row[..., :length].masked_fill_(~keys[:, None, None], -torch.inf)
        bias = row.expand(batch, q.shape[2], q.shape[1], -1)[..., :length]
    return memory_efficient_attention(q, k, v, attn_bias=bias)


def _flex(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = None
    if keys is not None:

        def looks(b: Tensor, h: Tensor, n: Tensor, m: Tensor) -> Tensor:
            return keys[b, m]

        mask = create_block_mask(looks, len(q), None, q.shape[1], k.shape[1], device=q.device)
    run = flex_attention if torch.compiler.is_compiling() else _compiled(flex_attention)
    out = run(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask)
    assert isinstance(out, Tensor)
    return out.transpose(1, 2)


@cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False)


BACKENDS: dict[str, Attend] = {
    "sdpa": _sdpa,  # torch chooses the kernel
    "math": _sdpa_kernel(SDPBackend.MATH),
    "flash": _flash,
    "cudnn": _sdpa_kernel(SDPBackend.CUDNN_ATTENTION),
    "efficient": _sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION),
    "xformers": _xformers,
    "flex": _flex,
}


def choose(backend: str, device: torch.device, half: bool = True) -> str:
    """The backend itself, after a check that it can run there, in half precision or not; the choice is logged once."""
    if backend not in BACKENDS:
        raise ValueError(f"attention={backend!r} is unknown: choose one of {', '.join(BACKENDS)}")
    if device.type != "cuda" and backend in ("cudnn", "efficient", "xformers"):
        raise ValueError(f"attention={backend} needs a CUDA device, not {device.type}: set attention=sdpa")
    if device.type == "cuda" and backend == "flash":
        raise ValueError(
            "attention=flash takes no key mask, and captions always have one: set attention=sdpa, which takes flash's "
            "kernel wherever nothing is masked"
        )
    if backend == "cudnn" and not half:
        raise ValueError("attention=cudnn works in half precision alone: set precision=bf16, or attention=sdpa")
    if device.type == "cpu" and backend == "flex" and torch.is_grad_enabled():
        raise ValueError("attention=flex has no backward pass on the CPU: set attention=sdpa")
    if backend == "xformers":
        _probe_xformers(device)
    _announce(backend, device.type)
    return backend


def _probe_xformers(device: torch.device) -> None:
    """Its compiled operators load only beside the torch they were built for, and say so only when called."""
    q = torch.zeros(1, 8, 1, 64, dtype=torch.bfloat16, device=device)
    try:
        _xformers(q, q, q, None)
    except ImportError as error:
        raise ValueError("attention=xformers needs the package: pip install -e '.[gpu]'") from error
    except NotImplementedError as error:
        versions = f"xformers {version('xformers')} and torch {torch.__version__}"
        raise ValueError(
            f"attention=xformers: {versions} have no operator in common (python -m xformers.info): "
            "install the torch it was built for, or set attention=sdpa"
        ) from error


@cache
def _announce(backend: str, device: str) -> None:
    log.info("attention: %s on %s", backend, device)
