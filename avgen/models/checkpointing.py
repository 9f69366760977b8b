"""Activation checkpointing of a block: what is kept for the backward pass and what is computed again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Checkpointing = Literal["none", "full", "keep_attention"]

# At long sequences attention is most of a block's time and little of its memory, so its output is the one
# thing worth keeping.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_attention_math.default,
    torch.ops.higher_order.flex_attention,
}


def _policy(_: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


def checkpointed(function: Callable[..., Any], mode: Checkpointing, *args: Any) -> Any:
    """`function(*args)`, its activations kept as `mode` says."""
    if mode == "none":
        return function(*args)
    if mode == "full":
        return checkpoint(function, *args, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)
