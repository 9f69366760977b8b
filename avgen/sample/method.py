"""How clips are made, whatever they are of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from avgen.sample.cache import CacheConfig
from avgen.sample.guidance import Guidance
from avgen.sample.inputs import Edit
from avgen.sample.solvers import SolverConfig

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16"]  # auto: bf16, or fp32 on a CPU that multiplies that faster


@dataclass(frozen=True)
class Method:
    """Everything that decides a clip besides the model, the request and the form."""

    solver: SolverConfig = field(default_factory=SolverConfig)
    guidance: Guidance = field(default_factory=Guidance)
    edit: Edit = field(default_factory=Edit)
    precision: Precision = "fp32"  # of matrix products, by autocast
    cache: CacheConfig = field(default_factory=CacheConfig)

    def settled(self, device: torch.device) -> Method:
        """With the precision that `auto` means there."""
        if self.precision != "auto":
            return self
        from avgen.rate import faster_precision

        return replace(self, precision=faster_precision(device))


DEFAULT = Method()
