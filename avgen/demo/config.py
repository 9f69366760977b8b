"""What the demo makes, and how much of it: light to import, so that `--help` answers soon."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from avgen.config import at_least_one
from avgen.data.toybox import ToyboxConfig

TOYBENCH_PROMPTS = 400  # that the suite has


@dataclass(frozen=True)
class DemoConfig:
    """What the demo makes, and how much of it."""

    fit_clips: int  # training clips that the codecs are fitted to
    test_clips: int  # unseen clips that every figure is taken over
    shown_clips: int  # unseen clips written as mp4 and drawn in the contact sheet
    sampled_clips: int  # clips that the trained model makes per task, of unseen items
    samples_shown: int  # of those on the page, per task
    heldout_clips: int = 0  # clips per task of combinations of kind, colour and size that training never shows
    toybench_prompts: int = 100  # of eval's suite for the toybox, for the page of all metrics; at most 400
    recipe: str = "toybox"  # of the model that is trained: a file in configs/recipe
    world: ToyboxConfig = field(default_factory=ToyboxConfig)  # of the clips that reader and codecs are judged by
    out: Path = Path("runs/demo")  # folder for clips, contact sheet and figures.json
    seed: int = 0  # of the world's clips and of the codecs' fit
    refit: bool = False  # fit the codecs again although a fit lies in the folder
    quick: bool = False  # a tenth of the clips: to see that all runs, not for its figures

    def __post_init__(self) -> None:
        at_least_one(self, "fit_clips", "test_clips", "shown_clips", "toybench_prompts")
        if self.toybench_prompts > TOYBENCH_PROMPTS:
            raise ValueError(
                f"toybench_prompts={self.toybench_prompts} must be at most {TOYBENCH_PROMPTS}: it has no more"
            )
        for name, least in (("sampled_clips", 2), ("samples_shown", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.heldout_clips == 1 or self.heldout_clips < 0:
            raise ValueError(f"heldout_clips={self.heldout_clips} must be 0 or at least 2")
        if self.shown_clips > self.test_clips:
            raise ValueError(f"shown_clips={self.shown_clips} must not exceed test_clips={self.test_clips}")
