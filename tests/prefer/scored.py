"""Folders as `avgen sample` and `avgen eval` leave them, with whatever scores a test wants."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORM = {"duration_s": 1.0, "fps": 8.0, "height": 16, "width": 16}


def folders(
    root: Path,
    scores: Mapping[str, list[Mapping[str, Any]]],
    directions: Mapping[str, str],
    task: str = "t2av",
    **said: Any,
) -> tuple[Path, Path]:
    """Prompt -> per seed, metric -> a value, or a (status, reason) where there is none. Clips are a few bytes."""
    clips, results = root / "clips", root / "eval"
    clips.mkdir(parents=True, exist_ok=True)
    results.mkdir(exist_ok=True)
    made, lines = [], []
    for prompt, seeds in scores.items():
        for seed, found in enumerate(seeds):
            file = clips / f"{prompt}_s{seed}.mp4"
            if not file.exists():
                file.write_bytes(f"{prompt} {seed}".encode())
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            line = {"id": prompt, "seed": seed, "file": file.name, "prompt": f"text of {prompt}", "task": task}
            made.append({**line, **FORM, "model": "m" * 16, **said})
            lines.append(
                {
                    "prompt": prompt,
                    "seed": seed,
                    "file": f"../clips/{file.name}",
                    "sha256": digest,
                    "results": {metric: cell(value) for metric, value in found.items()},
                }
            )
    (clips / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    (results / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {name: {"definition": {"direction": direction}} for name, direction in directions.items()}
    (results / "summary.json").write_text(json.dumps({"metrics": metrics}))
    return clips, results


def cell(value: Any) -> dict[str, Any]:
    if isinstance(value, tuple):
        return {"value": None, "status": value[0], "reason": value[1]}
    return {"value": value, "status": "ok", "reason": ""}
