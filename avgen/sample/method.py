"""How clips are made, whatever they are of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from avgen.sample.cache import CacheConfig
from avgen.sample.guidance import Guidance
from avgen.sample.inputs import Edit
from avgen.sample.solvers import SolverConfig

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Method:
    """Everything that decides a clip besides the model, the request and the form."""

    solver: SolverConfig = field(default_factory=SolverConfig)
    guidance: Guidance = field(default_factory=Guidance)
    edit: Edit = field(default_factory=Edit)
    precision: Precision = "fp32"  # of matrix products, by autocast
    cache: CacheConfig = field(default_factory=CacheConfig)


DEFAULT = Method()
