"""A summary on the screen."""

from __future__ import annotations

from typing import Any

ARROWS = {"higher": "↑", "lower": "↓", "zero": "→0", "none": ""}


def table(summary: dict[str, Any]) -> Any:
    """Every metric between its null and its ceiling; what was not fully measured says so."""
    from rich.table import Table

    suite = summary["suite"]
    title = f"{suite['name']}: {suite['clips']} clips of {suite['prompts']} prompts, {suite['missing']} missing"
    if len(suite.get("models", ())) > 1:  # a job that was stopped after it had begun anew with another
        title += f"; made by {len(suite['models'])} models"
    shown = Table(title=title, title_justify="left")
    for column in ("metric", "", "mean", "95 %", "unit", "n", "coverage", "null", "ceiling"):
        left = column in ("metric", "unit", "")
        # a name cut short is no name
        shown.add_column(column, justify="left" if left else "right", overflow="fold", no_wrap=column == "metric")
    for name, found in {**summary["metrics"], **summary["sets"]}.items():
        definition = found["definition"]
        nulls = found.get("nulls", {})
        shown.add_row(
            name,
            ARROWS[definition["direction"]],
            number(found["mean"]),
            "" if found["low"] is None else f"{number(found['low'])} .. {number(found['high'])}",
            definition["unit"],
            f"{found['n']['ok']} / {found['references']}" if found.get("references") else str(found["n"]["ok"]),
            "" if found["coverage"] is None else f"{found['coverage']:.0%}",
            " ".join(number(null["mean"]) for null in nulls.values()),
            number(found["ceiling"]["mean"]) if "ceiling" in found else "",
        )
    return shown


def number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return "-"
    return f"{value:.3f}" if 0.001 <= abs(value) < 100 or value == 0 else f"{value:.3g}"
