"""Everything that mining can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from avgen.types import MODALITIES, Modality


@dataclass(frozen=True)
class Group:
    """Metrics that judge one thing together."""

    metrics: Mapping[str, float]  # name in results.jsonl -> weight; of one without a better direction below 0: lower
    trains: tuple[Modality, ...] = MODALITIES  # what a pair of this group alone trains (mode=modality)
    weight: float = 1.0  # of the group's score in the sum of all
    margin: float = 0.0  # what a winner must be ahead by, in standard deviations; below 0: so much behind is allowed

    def __post_init__(self) -> None:
        if not self.metrics or not all(self.metrics.values()):
            raise ValueError(f"metrics={dict(self.metrics)} needs at least one metric, and weights that are not 0")
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} must be positive: leave the group out instead")
        if not self.trains:
            raise ValueError("trains=[] trains nothing: name video, audio or both")


@dataclass(frozen=True)
class PreferConfig:
    """Pairs to mine: from which clips and scores, and what better means."""

    clips: Path = Path("runs/sample")  # folder that avgen sample wrote: several seeds of every prompt
    results: Path = Path("runs/eval")  # folder that avgen eval wrote about them
    out: Path = Path("runs/pairs")  # folder of pairs.jsonl, mined.json and pairs.html
    # name -> metrics, what they train, weight and margin; in place of those of reward=
    groups: Mapping[str, Group] = field(default_factory=dict)
    # all: the winner is better in every group; modality: each group has a winner of its own; sum: in the weighted sum
    mode: Literal["all", "modality", "sum"] = "all"
    normalise: Literal["pool", "prompt"] = "pool"  # standard deviations of all clips, or of each prompt's own
    margin: float = 0.0  # what a winner must be ahead by in the weighted mean of the groups, in standard deviations
    per_prompt: int = 1  # most pairs of a prompt and group; no clip is in two of them
    # what the two clips of a pair must have in common, where avgen prefer pool exchanged sounds
    shared: Literal["nothing", "picture", "sound", "either"] = "nothing"
    # task that pairs are trained at; null: the one their clips were made for. Two sounds that v2a made for one picture
    # are also two clips that t2av might have made
    train_as: Literal["t2av"] | None = None
    shown: int = 24  # pairs on the page

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("groups is empty: choose reward=toybox, or give groups={NAME:{metrics:{METRIC:1}}}")
        if self.margin < 0:
            raise ValueError(f"margin={self.margin} cannot be negative: the better clip must be better")
        if self.per_prompt < 1 or self.shown < 0:
            raise ValueError(f"per_prompt={self.per_prompt} must be at least 1 and shown={self.shown} at least 0")
