"""Figures with their bars, and the two tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from avgen.data.toybox.reader import Score, Tally


@dataclass(frozen=True)
class Figure:
    """One number of the table."""

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None  # the bar it has to reach ...
    at_most: float | None = None  # ... or to stay under
    low: float | None = None  # its 95 % interval over clips, where there is one; nan of one clip alone
    high: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None where there is none."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    @property
    def shown(self) -> str:
        if math.isnan(self.value):
            return "unknown"
        known = self.low is not None and self.high is not None and not math.isnan(self.low)
        interval = f" ({self.low:.4g} - {self.high:.4g})" if known else ""
        return f"{self.value:.4g}{interval} {self.unit}".strip()

    @property
    def bar(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"


def figure_table(figures: Sequence[Figure], bench: Path | None = None) -> Table:
    """With the page of toybench's clips named below it."""
    caption = None if bench is None else f"every metric and clip of toybench: {bench}"
    table = Table(title="avgen demo", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("bar", justify="right")
    table.add_column("")
    for figure in figures:
        verdict = {True: "[green]met[/green]", False: "[red]not met[/red]", None: ""}[figure.met]
        table.add_row(figure.name, figure.shown, figure.bar, verdict)
    return table


def reader_row(read: Score) -> dict[str, float]:
    """What the reader's score comes to, for the table and for figures.json."""

    def late_ms(errors: Sequence[float]) -> float:
        return 1000 * float(np.median(np.abs(errors))) if errors else math.nan

    def share(a: Tally, b: Tally) -> float:
        return (a + b).precision

    return {
        "seen precision": read.seen.precision,
        "seen recall": read.seen.recall,
        "heard precision": read.heard.precision,
        "heard recall": read.heard.recall,
        "sync F1": read.sync.f1,
        "kind right": share(read.seen_kind, read.heard_kind),
        "colour right": share(read.seen_colour, read.heard_colour),
        "seen off by, ms": late_ms(read.seen_error_s),
        "heard off by, ms": late_ms(read.heard_error_s),
    }


def reader_table(scores: dict[str, Score]) -> Table:
    rows = {name: reader_row(read) for name, read in scores.items()}
    table = Table(title="events read back from pixels and waveform, against the truth", title_justify="left")
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right")
    for figure in next(iter(rows.values())):
        digits = 1 if figure.endswith("ms") else 3
        table.add_row(figure, *(f"{row[figure]:.{digits}f}" for row in rows.values()))
    return table
