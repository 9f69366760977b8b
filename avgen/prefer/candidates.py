"""Candidates: what `avgen sample` says it made, joined with what `avgen eval` found in it.

Both are read as the JSON files they are. A clip that cannot be used is named with the reason, never dropped in silence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avgen.lines import file_hash
from avgen.sample.inputs import FILE_KINDS, Form
from avgen.sample.jobs import MANIFEST, read_manifest
from avgen.tasks import NAMED

RESULTS, SUMMARY = "results.jsonl", "summary.json"  # of avgen eval
Direction = Literal["higher", "lower", "zero", "none"]


@dataclass(frozen=True)
class Candidate:
    """A clip that was made, and what is known of it."""

    prompt: str  # its id
    text: str
    task: str
    form: Form
    given: tuple[str, ...]  # the files it was made from
    seed: int
    file: Path
    sha256: str
    model: str
    picture: int = 0  # seed of the candidate whose picture it has
    sound: int = 0  # and whose sound: its own seed but where they were exchanged
    values: Mapping[str, float] = field(default_factory=dict)  # metric -> value, where there is one
    why_not: Mapping[str, str] = field(default_factory=dict)  # metric -> status and reason, where there is none

    @property
    def asked(self) -> tuple[Any, ...]:
        """What the clips of a pair must have in common."""
        return self.task, self.form, self.given, self.text


@dataclass(frozen=True)
class Excluded:
    """Something that made no pair, and why."""

    prompt: str
    reason: str  # in a few words, the same for all of a kind: they are counted
    says: str = ""  # what it is in this case
    seed: int | None = None  # of the clip; None: the whole prompt


@dataclass(frozen=True)
class Pool:
    """All candidates by prompt, in the order of the results."""

    prompts: Mapping[str, tuple[Candidate, ...]]
    excluded: tuple[Excluded, ...]
    directions: Mapping[str, Direction]  # of each metric: which values are better
    fingerprint: str  # of the scores


def read_pool(clips: Path, results: Path) -> Pool:
    lines, directions = read_results(results)
    named = [line for line in read_manifest(clips) if "file" in line and "id" in line]
    made = {(str(line["id"]), int(line["seed"])): line for line in named}
    if not made:
        raise ValueError(f"clips={clips} holds no {MANIFEST} with a clip: give a folder that avgen sample wrote")
    prompts: dict[str, list[Candidate]] = {}
    excluded: list[Excluded] = []
    for line in lines:
        prompt, seed = str(line["prompt"]), int(line["seed"])
        prompts.setdefault(prompt, [])
        said = made.get((prompt, seed))
        found = "the clip is missing" if not line["sha256"] else checked(said, line, clips, results)
        if isinstance(found, Candidate):
            prompts[prompt].append(found)
        else:
            excluded.append(Excluded(prompt, found, seed=seed))
    scored = {(str(line["prompt"]), int(line["seed"])) for line in lines}
    for prompt, seed in made:
        if (prompt, seed) not in scored:
            excluded.append(Excluded(prompt, "the clip has no scores: evaluate the clips again", seed=seed))
    digest = hashlib.sha256("".join(json.dumps(line, sort_keys=True) for line in lines).encode()).hexdigest()[:16]
    return Pool({name: tuple(found) for name, found in prompts.items()}, tuple(excluded), directions, digest)


def read_results(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Direction]]:
    for name in (RESULTS, SUMMARY):
        if not (folder / name).is_file():
            raise ValueError(f"results={folder} holds no {name}: give a folder that avgen eval wrote (its out=)")
    lines = [json.loads(line) for line in (folder / RESULTS).read_text(encoding="utf-8").splitlines()]
    metrics = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["metrics"]
    return lines, {name: said["definition"]["direction"] for name, said in metrics.items()}


def checked(said: Mapping[str, Any] | None, line: Mapping[str, Any], clips: Path, results: Path) -> Candidate | str:
    """The candidate, or why the clip cannot be one."""
    if said is None:
        return "the manifest does not know the clip"
    file = clips / said["file"]
    if not file.is_file():
        return "the clip is missing"
    # scores of another clip of that name would make a pair of nothing
    if line["file"] is None or (results / line["file"]).resolve() != file.resolve():
        return "the scores are of another file"
    # avgen sample keeps spaces at the ends, readers of suites drop them
    if "text" in line and line["text"].strip() != said["prompt"].strip():
        return "the scores are for another caption: evaluate the clips with the prompts they were made of"
    if file_hash(file) != line["sha256"]:
        return "the clip is not the one that was scored: evaluate the clips again"
    if said["task"] not in NAMED:
        return f"task {said['task']} is not trained on pairs"
    cells = line["results"]
    return Candidate(
        prompt=str(line["prompt"]),
        text=said["prompt"],
        task=said["task"],
        form=Form.of(said),
        given=tuple(str(said[kind]) for kind in FILE_KINDS if kind in said),
        seed=int(line["seed"]),
        file=file,
        sha256=line["sha256"],
        model=said.get("model", ""),
        picture=int(said.get("picture_of", line["seed"])),
        sound=int(said.get("sound_of", line["seed"])),
        values={name: cell["value"] for name, cell in cells.items() if cell["status"] == "ok"},
        why_not={
            name: f"{cell['status'].replace('_', ' ')}: {cell.get('reason', '')}"
            for name, cell in cells.items()
            if cell["status"] != "ok"
        },
    )
