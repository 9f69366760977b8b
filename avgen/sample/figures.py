"""The JSON file of a report: refused before anything is made, written once all is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from avgen.config import to_plain


def refuse_unwritable(out: Path) -> None:
    """Found out by opening it: as root, and on disks that are read-only, permissions say nothing."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        there = out.exists()
        out.open("a").close()
    except OSError as error:
        raise ValueError(f"out={out} cannot be written ({error.strerror}): give the name of a file that can") from error
    if not there:  # an empty file is no report
        out.unlink()


def write_figures(out: Path, config: Any, model: str, figures: dict[str, Any], console: Console) -> None:
    """`model` is its fingerprint."""
    said = {"config": to_plain(config), "model": model, **figures}
    out.write_text(json.dumps(said, indent=2, allow_nan=False) + "\n")
    console.print(f"figures are in [bold]{out}[/bold]")
