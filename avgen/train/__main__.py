"""`python -m avgen.train`, `avgen train`, `accelerate launch -m avgen.train`."""

from __future__ import annotations

import os
import sys

from avgen import command
from avgen.train.config import TrainConfig

EXAMPLES = (
    "avgen train recipe=toybox",
    "avgen train recipe=toybox steps=200 out=runs/short",
    "accelerate launch -m avgen.train recipe=toybox",
    "accelerate launch -m avgen.train recipe=small data.path=latents",
)


def main(argv: list[str] | None = None) -> int:
    config = command.configure(TrainConfig, "train", argv, "train a model by flow matching", EXAMPLES)
    # here, not above: a mistyped key must not wait for the models to be imported
    from accelerate import PartialState
    from rich.console import Console

    from avgen.train.curves import CurvesConfig, draw
    from avgen.train.data import reading
    from avgen.train.loop import train
    from avgen.train.run import export
    from avgen.train.trackers import METRICS, check_installed
    from avgen.train.watch import Stopped

    check_installed(config.tracking)
    console = Console()
    read = reading(config)
    if int(os.environ.get("RANK", 0)) == 0:  # not by PartialState: the loop says how processes are brought together
        for line in read.said:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    try:
        run = train(config, read.source, read.held_out, console, read.order, read.codecs, read.judges)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return command.FAILED
    finally:
        if PartialState().is_main_process and (config.out / METRICS).exists():
            draw(CurvesConfig(config.out))
    if run.step < config.steps:
        console.print(f"stopped after step {run.step} and saved: the same command goes on from there")
        return command.INTERRUPTED
    console.print(f"trained; the averaged weights are in {export(run)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
