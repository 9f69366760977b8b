"""Metrics that go wrong on purpose, by the prompt's text: what workers are tested with."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from eval.metric import Definition, Measure, Metric, NotApplicable, Setup, Take


def metrics(setup: Setup) -> Sequence[Metric]:
    return (Measure(Definition("faulty.one", "1 where nothing goes wrong", direction="higher"), go),)


def go(take: Take) -> float:
    _ = take.clip
    if take.prompt.text == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if take.prompt.text == "raises":
        raise ArithmeticError("inside the metric")
    if take.prompt.text == "no gpu":
        raise RuntimeError("No CUDA GPUs are available")
    if take.prompt.text == "memory":
        raise MemoryError
    if take.prompt.text == "not for it":
        raise NotApplicable("nothing to judge")
    return 1.0
