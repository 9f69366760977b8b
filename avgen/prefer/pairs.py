"""Pairs of clips: the one file in which preferences reach training, whether metrics or people made them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from avgen.config import ConfigError, build, to_plain
from avgen.lines import file_hash
from avgen.sample.inputs import Form
from avgen.tasks import EVERYTHING, NAMED
from avgen.types import MODALITIES, Modality

PAIRS = "pairs.jsonl"
SCHEMA = 1


def require_unchanged(file: Path, sha256: str) -> None:
    """That a clip which was compared is gone, or another has taken its name, is an error."""
    if not file.is_file():
        raise ValueError(f"{file} is not there, but stands in a pair: bring it back, or mine again without it")
    if file_hash(file) != sha256:
        raise ValueError(f"{file} is not the clip that was compared: evaluate the clips and mine again")


@dataclass(frozen=True)
class Side:
    """One clip of a pair."""

    file: str  # in the pairs' folder, or the way there from it
    seed: int
    sha256: str  # of the file
    model: str = ""  # fingerprint of what made it; "" where nobody says, as of a real clip
    scores: Mapping[str, float] = field(default_factory=dict)  # metric -> value, of those that were asked


@dataclass(frozen=True)
class Pair:
    """Two clips that were asked for alike, of which one is better."""

    prompt: str  # its id
    text: str
    task: str
    form: Form  # of both
    winner: Side
    loser: Side
    trains: tuple[Modality, ...]  # in which the winner is better; of the others the loss sees nothing
    by: str  # who says so: "metrics", or a person's name
    gaps: Mapping[str, float] = field(default_factory=dict)  # group -> how far apart, in standard deviations
    mined: str = ""  # fingerprint of the settings and scores it follows from
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema={self.schema} is unknown: this version reads {SCHEMA}, mine the pairs again")
        if self.task not in NAMED:
            raise ValueError(f"task={self.task!r} cannot be trained on pairs: choose from {', '.join(NAMED)}")
        made = generated(self.task)
        if not self.trains or not set(self.trains) <= set(made):
            raise ValueError(f"trains={list(self.trains)} must name some of what task {self.task} makes: {list(made)}")

    @property
    def reason(self) -> str:
        """In words, for people who look."""
        apart = ", ".join(f"{name} {gap:+.2f} sd" for name, gap in self.gaps.items())
        return f"{' and '.join(self.trains)}: {apart}" if apart else f"{' and '.join(self.trains)}, says {self.by}"


def generated(task: str) -> tuple[Modality, ...]:
    """What a task makes, and a preference can be about."""
    return tuple(m for m in MODALITIES if getattr(NAMED[task], m) not in (None, EVERYTHING))


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # people who label write it at the same time
    draft.write_text("".join(json.dumps(to_plain(pair), allow_nan=False) + "\n" for pair in pairs), encoding="utf-8")
    draft.replace(path)


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file, or of pairs.jsonl in a folder; a line that is none is named."""
    path = path / PAIRS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"pairs={path}: no such file; avgen prefer makes one")
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            if not isinstance(said, dict):
                raise ConfigError("", f"{line.strip()[:40]} is no pair")
            pairs.append(build(Pair, said))
        except (json.JSONDecodeError, ConfigError) as error:
            raise ValueError(f"pairs={path}, line {number}: {error}") from error
    if not pairs:
        raise ValueError(f"pairs={path} holds no pair: lower the margins it was mined with, or add candidates")
    return pairs
