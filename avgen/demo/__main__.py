"""`python -m avgen.demo`, `avgen demo`."""

from __future__ import annotations

from avgen import command
from avgen.demo.config import DemoConfig


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        DemoConfig,
        "demo",
        argv,
        "render toybox clips, fit codecs, train a model, let it make clips, and say how well each part does",
        ["avgen demo", "avgen demo quick=true", "avgen demo recipe=toybox_long heldout_clips=100 out=runs/demo_long"],
    )
    # here, not above: a mistyped key must not wait for the models to be imported
    from rich.console import Console

    from avgen.demo.learned import Unfinished
    from avgen.demo.stages import run

    try:
        run(config.settled, Console())
    except Unfinished as stopped:
        return stopped.code
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
