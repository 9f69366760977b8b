"""`python -m avgen.demo`, `avgen demo`."""

from __future__ import annotations

from dataclasses import replace

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
    if config.quick:
        config = replace(config, fit_clips=min(config.fit_clips, 96), test_clips=min(config.test_clips, 20))
        config = replace(config, shown_clips=min(config.shown_clips, config.test_clips))
        config = replace(config, sampled_clips=min(config.sampled_clips, 4), samples_shown=min(config.samples_shown, 1))
        config = replace(config, toybench_prompts=min(config.toybench_prompts, 4))
    # here, not above: a mistyped key must not wait for the models to be imported
    from rich.console import Console

    from avgen.demo.learned import Unfinished
    from avgen.demo.stages import run

    try:
        run(config, Console())
    except Unfinished as stopped:
        return stopped.code
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
