"""The demo's last stage: the trained model on toybench, through the commands that anyone would type.

`eval` stands above this package, so it is reached as the shell reaches it: by its verb.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from avgen.config import fingerprint
from avgen.demo.config import DemoConfig
from avgen.demo.figures import Figure
from avgen.demo.learned import BATCH, QUICK_STEPS, Unfinished
from avgen.train.config import TrainConfig

METRICS = "metrics=[sync,picture,loudness]"  # beside toybench's own
WRITTEN = ("toybox.sync", "toybox.kind", "toybox.colour", "toybox.count")  # what the demo's table repeats


@dataclass(frozen=True)
class Benched:
    figures: tuple[Figure, ...]
    page: Path  # of every metric and every clip


def toybench(config: DemoConfig, run: TrainConfig, console: Console) -> Benched:
    """Prompts, clips, scores and page; each command goes on where it stopped, and a finished one does little."""
    sampling = [f"batch={BATCH}", "precision=auto", *([f"solver.steps={QUICK_STEPS}"] if config.quick else [])]
    folder = config.out / "toybench" / fingerprint((run.out.name, config.toybench_prompts, sampling))[:8]
    prompts, clips, scores = folder / "prompts.jsonl", folder / "clips", folder / "scores"
    count = f"limit={config.toybench_prompts}"
    workers = ["workers=1"] if config.quick else []  # each takes seconds to start
    for words in (
        ["eval", "prompts", "suite=toybench", count, f"out={prompts}"],
        ["sample", f"model={run.out}", f"prompts={prompts}", f"out={clips}", *sampling],
        ["eval", "suite=toybench", f"clips={clips}", count, f"out={scores}", METRICS, *workers],
    ):
        told(words, console)
    summary = json.loads((scores / "summary.json").read_text(encoding="utf-8"))
    return Benched(tuple(figures_of(summary, config.toybench_prompts)), scores / "report.html")


def told(words: Sequence[str], console: Console) -> None:
    from avgen.__main__ import dispatch

    console.print(f"avgen {' '.join(words)}", highlight=False, markup=False, soft_wrap=True)
    code = dispatch(list(words))
    if code:
        raise Unfinished(code)


def figures_of(summary: Mapping[str, Any], prompts: int) -> list[Figure]:
    made = []
    for name in WRITTEN:
        found = summary["metrics"][name]
        if found["mean"] is not None:
            what = f"toybench, {prompts} prompts: {name.removeprefix('toybox.')}"
            made.append(Figure(what, found["mean"], low=found["low"], high=found["high"]))
    return made
