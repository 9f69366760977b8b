"""Everything that an evaluation can be told."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from avgen.ranks import cores
from eval.metric import Setup


@dataclass(frozen=True)
class EvalConfig:
    """Clips to score, and how."""

    suite: str = "toybench"  # toybench, plain, javisbench, verse_bench, vabench, t2av_compass, phyavbench or avbench
    prompts: Path | None = None  # the suite's file, or folder of files; toybench brings its own
    clips: Path = Path("runs/sample")  # folder of the clips: by manifest.jsonl, by id, or sample_0000.mp4 by row
    out: Path = Path("runs/eval")  # folder of results.jsonl and summary.json
    metrics: tuple[str, ...] = ("tier0",)  # tiers, groups or single metrics; the suite's own come on top
    limit: int | None = None  # score only the first so many prompts
    nulls: bool = True  # also score each clip with its sound shifted, swapped or silenced, for what chance gives
    ceiling: bool = True  # also score the real clip, where there is one
    strict_licence: bool = False  # refuse metrics whose weights or code forbid commercial use
    seed: int = 0  # of the shifts of the nulls and of the bootstrap
    resamples: int = 2000  # of the bootstrap
    least: int = 20  # prompts that a category needs for its score to be shown as one
    workers: int = 0  # processes that score clips; 0: one per core, or one where networks run on a GPU
    device: str = "cpu"  # of metrics that run a network; cuda: of several processes of a launcher each takes its own
    weights: dict[str, str] = field(default_factory=dict)  # metric group -> model id or folder, where not the default
    cache: Path | None = None  # folder of finished measurements; default: cache/ in out

    def __post_init__(self) -> None:
        for name, least in (("resamples", 100), ("least", 1), ("workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1, or null for every prompt")

    @property
    def setup(self) -> Setup:
        own = os.environ.get("LOCAL_RANK")
        return Setup(f"cuda:{own}" if self.device == "cuda" and own else self.device, self.weights)

    @property
    def processes(self) -> int:
        """That score clips here, beside those of other ranks on this machine."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return self.workers or (max(1, cores() // here) if self.device == "cpu" else 1)
