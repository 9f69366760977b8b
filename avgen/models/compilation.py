"""Per-block compilation with a bounded number of shapes."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from avgen.types import Batch

if TYPE_CHECKING:
    from avgen.models.dit import AVTransformer


# What inductor tells the C++ compiler of contraction, and beside it a flag that inductor has no key for. GCC 12 tuned
# for Sapphire Rapids joins the stores of inductor's transposed bfloat16 tiles wrongly: every fourth row is never
# written and holds whatever was on the stack. Inductor writes vectors itself, so nothing is lost.
CONTRACTION = "off -fno-tree-slp-vectorize"


def compile_blocks(model: AVTransformer, max_shapes: int) -> None:
    """Compile each kind of layer once per shape, blocks and those of the captions; equal ones share the code.

    Past its limit torch would run new shapes uncompiled without a word, so the limit is kept here, where
    the error can say what to change.
    """
    if missing := missing_for(model.device.type):
        raise ValueError(
            f"compile=true needs a C++ compiler and Python's headers, and there is no {missing}: install them "
            "(Debian: apt install g++ python3-dev), or do without: compile=false (of avgen bench compiled=[false])"
        )
    tune_inductor()
    # a block with and one without a bridge, each with and without gradients
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * max_shapes)
    for layer in (*model.blocks, *model.captions.layers):
        layer.compile(fullgraph=True, dynamic=False)
    for tower in model.towers.values():
        tower.text_embed.compile(fullgraph=True, dynamic=False)
        tower.out = torch.compile(tower.out, fullgraph=True, dynamic=False)  # type: ignore[method-assign]
    model.register_forward_pre_hook(ShapeBudget(max_shapes))


def missing_for(device: str) -> str:
    """What torch's code generators need and would not find; empty when all is there.

    On a CPU all is compiled as C++; on a GPU Triton compiles what launches its kernels, as C.
    """
    if device == "cpu":
        tried = [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]
    else:
        tried = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if not any(map(shutil.which, tried)):
        return " or ".join(tried)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if header.is_file() else str(header)


def words_without_compiler() -> list[str]:
    """What `avgen train` has to be told on a machine that cannot compile."""
    return ["compile=false"] if missing_for("cuda" if torch.cuda.is_available() else "cpu") else []


def tune_inductor() -> None:
    """What torch's code generator for CPUs has to be told; on GPUs it changes nothing."""
    from torch._inductor import config as inductor  # takes seconds, and only compiling needs it

    # of the CPU's two tanh the one by way of exp takes half the time; GELU adds 1 to it, so its rounding near 0 is lost
    inductor.cpp.use_decompose_tanh = True
    inductor.cpp.enable_floating_point_contract_flag = CONTRACTION
    # the number of threads is written into the code: named here it is part of what kept code is found by, or a process
    # that was given one thread would run code for two, six times as slowly where two processes share the cores
    inductor.cpp.threads = torch.get_num_threads()


_eager = False


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled models run as they are written: shapes that seldom come, without gradients, are not worth a
    compilation, and do not count as shapes met."""
    global _eager
    before, _eager = _eager, True
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _eager = before


class ShapeBudget:
    """Counts the distinct batch shapes a compiled model has met."""

    def __init__(self, max_shapes: int) -> None:
        self.max_shapes = max_shapes
        self.seen: set[tuple] = set()

    def __call__(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        if _eager:
            return
        shape = signature(args[0])
        if shape not in self.seen and len(self.seen) == self.max_shapes:
            raise ValueError(
                f"a batch of a new shape would be number {self.max_shapes + 1}, but max_shapes={self.max_shapes}: "
                "each costs a compilation; read clips of fewer shapes, raise compile_shapes (of avgen train), or set "
                f"compile=false; the shape: {shape}"
            )
        self.seen.add(shape)


def signature(batch: Batch) -> tuple:
    """Everything about a batch that makes compiled code specialise."""
    parts = (batch.video, batch.audio, batch.video_text, batch.audio_text)
    return tuple(
        tuple(tuple(v.shape) for f in fields(p) if isinstance(v := getattr(p, f.name), Tensor)) if p else None
        for p in parts
    )
