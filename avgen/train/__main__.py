"""`python -m avgen.train`, `avgen train`, `accelerate launch -m avgen.train`."""

from __future__ import annotations

import sys

from avgen import command
from avgen.train.config import TrainConfig

EXAMPLES = (
    "avgen train recipe=toybox",
    "avgen train recipe=toybox steps=200 out=runs/short",
    "accelerate launch -m avgen.train recipe=toybox",
)


def main(argv: list[str] | None = None) -> int:
    config = command.configure(TrainConfig, "train", argv, "train a model by flow matching", EXAMPLES)
    # here, not above: a mistyped key must not wait for the models to be imported
    from accelerate import PartialState
    from rich.console import Console

    from avgen.data.toybox import Toybox
    from avgen.data.toybox_source import Gaps, ToyboxSource, mixture
    from avgen.models.fit_codecs import load_or_fit
    from avgen.train.curves import CurvesConfig, draw
    from avgen.train.loop import train
    from avgen.train.run import export
    from avgen.train.trackers import METRICS, check_installed
    from avgen.train.watch import Stopped

    check_installed(config.tracking)
    console = Console()
    video, audio = load_or_fit(config.data.codecs, config.data.world, config.data.fit_clips)
    data, seed = config.data, config.seed
    gaps = Gaps(data.mute_share, data.blind_share, data.short_audio_share, seed)
    worlds = [ToyboxSource(Toybox(world, "train", seed), video, audio, gaps) for world in data.worlds]
    source, order = mixture(worlds, config.batch, data.step_tokens, data.mixed_fps, seed)
    held_out = ToyboxSource(Toybox(data.worlds[0], "test", seed), video, audio)
    try:
        run = train(config, source, held_out, console, order, (video, audio))
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
