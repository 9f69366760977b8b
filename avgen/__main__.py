"""The `avgen` command: one table of verbs, each a module with `main(argv) -> int`.

Nothing heavy is imported until a verb is chosen. Each verb also runs as `python -m <module>`, which is
what `accelerate launch -m` and `torchrun -m` need.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

from avgen import __version__


@dataclass(frozen=True)
class Verb:
    name: str
    module: str  # has main(argv: list[str] | None) -> int
    about: str
    config: str | None = None  # configs/<config>.yaml, validated against `schema`
    schema: str | None = None  # "module:Dataclass"
