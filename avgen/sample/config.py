"""Everything that sampling can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from avgen.config import at_least_one
from avgen.sample.cache import CacheConfig
from avgen.sample.guidance import Guidance
from avgen.sample.inputs import Edit
from avgen.sample.method import Method, Precision
from avgen.sample.solvers import SolverConfig


@dataclass(frozen=True)
class SampleConfig:
    """Clips to make, and how."""

    model: Path = Path("runs/toybox")  # folder of a pipeline, of a training run, or of the model in a run's folder
    task: str = "t2av"  # t2av, i2av, v2a, a2v, ai2v, t2v, i2v, t2a, extend, interpolate or inpaint
    prompt: str = ""  # what is seen and heard; empty: whatever the model makes without a caption
    prompts: Path | None = None  # txt (one a line), csv or jsonl with prompt, id, image, video, audio, seed
    image: Path | None = None  # first frame: of i2av, i2v, ai2v
    video: Path | None = None  # the picture of v2a; what extend, interpolate and inpaint work on
    audio: Path | None = None  # the sound of a2v and ai2v, of extend and inpaint where the video's own is not meant
    duration_s: float | None = None  # of the clips; default: as long as what is given, else as in training
    fps: float | None = None  # default: as in training
    height: int | None = None  # pixels; default: as in training
    width: int | None = None  # pixels; default: as in training
    seed: int = 0  # of the first clip of each prompt
    samples: int = 1  # clips per prompt, with seeds seed, seed + 1, ...
    batch: int = 8  # clips made at once
    out: Path = Path("runs/sample")  # folder of the clips and of manifest.jsonl
    solver: SolverConfig = field(default_factory=SolverConfig)
    guidance: Guidance = field(default_factory=Guidance)
    edit: Edit = field(default_factory=Edit)
    precision: Precision = "fp32"  # of matrix products, by autocast
    cache: CacheConfig = field(default_factory=CacheConfig)
    attention: str | None = None  # kernel, as model.attention of avgen train; null: the one it was trained with

    def __post_init__(self) -> None:
        at_least_one(self, "samples", "batch")
        if self.prompt and self.prompts is not None:
            raise ValueError("prompt and prompts are both given: leave one out")

    @property
    def method(self) -> Method:
        return Method(self.solver, self.guidance, self.edit, self.precision, self.cache)
