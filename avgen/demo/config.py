"""What the demo makes, and how much of it: light to import, so that `--help` answers soon."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from avgen.data.toybox import ToyboxConfig


@dataclass(frozen=True)
class DemoConfig:
    """What the demo makes, and how much of it."""

    fit_clips: int  # training clips that the codecs are fitted to
    test_clips: int  # unseen clips that every figure is taken over
    shown_clips: int  # unseen clips written as mp4 and drawn in the contact sheet
    world: ToyboxConfig = field(default_factory=ToyboxConfig)
    out: Path = Path("runs/demo")  # folder for clips, contact sheet and figures.json
    seed: int = 0  # of the world's clips and of the codecs' fit
    refit: bool = False  # fit the codecs again although a fit lies in the folder
    quick: bool = False  # a tenth of the clips: to see that all runs, not for its figures

    def __post_init__(self) -> None:
        for name in ("fit_clips", "test_clips", "shown_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.shown_clips > self.test_clips:
            raise ValueError(f"shown_clips={self.shown_clips} must not exceed test_clips={self.test_clips}")
