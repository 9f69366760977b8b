"""What the demo makes, and how much of it: light to import, so that `--help` answers soon."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avgen.config import at_least_one
from avgen.data.toybox import ToyboxConfig

TOYBENCH_PROMPTS = 400  # that the suite has
QUICK_OUT = Path("runs/demo_quick")
# of a quick demo at most
QUICK = {"fit_clips": 96, "test_clips": 20, "sampled_clips": 4, "samples_shown": 1, "toybench_prompts": 4}


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
    out: Path = Path("runs/demo")  # folder for clips, page and figures.json; of quick=true runs/demo_quick
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

    @property
    def settled(self) -> DemoConfig:
        """As it is run: quick ones with less of everything, and in a folder of their own unless one is named."""
        if not self.quick:
            return self
        less: dict[str, Any] = {name: min(getattr(self, name), count) for name, count in QUICK.items()}
        less["shown_clips"] = min(self.shown_clips, less["test_clips"])
        return replace(self, **less, out=QUICK_OUT if self.out == DemoConfig.out else self.out)
