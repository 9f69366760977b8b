"""`python -m eval.calibration`: whether the error bars of eval are honest, on data whose truth is known.

How often 95 % intervals cover the truth, and what set distances make of two samples of one distribution.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from avgen import command
from eval import statistics
from eval.metrics import sets

Draw = Callable[[np.random.Generator, int], np.ndarray]
FEATURES = 64
BAND = (0.93, 0.97)  # in which the share of covering intervals should lie

LAWS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda r, n: r.normal(0.3, 1.0, n), 0.3),
    "exponential": (lambda r, n: r.exponential(1.0, n), 1.0),
    "80 % ones": (lambda r, n: (r.random(n) < 0.8).astype(float), 0.8),
    "mostly 0 or 1": (lambda r, n: r.beta(0.5, 0.5, n), 0.5),
}


@dataclass(frozen=True)
class CalibrationConfig:
    """How much is simulated."""

    times: int = 1000  # intervals per row
    sets: int = 100  # pairs of sets per row
    resamples: int = 1000  # of each bootstrap
    seed: int = 0  # of everything drawn
    out: Path | None = None  # a JSON file of the figures; null: none


@dataclass(frozen=True)
class Coverage:
    law: str
    prompts: int
    covered: float  # share of intervals that hold the truth


@dataclass(frozen=True)
class SetRow:
    """Two samples of one distribution; each true distance is 0."""

    rows: int
    plain: float  # mean Frechet distance
    extrapolated: float  # mean absolute value, so that errors below 0 count too
    nearer: float  # share of pairs where the extrapolated one is nearer to 0
    mmd: float  # mean
    covered: float  # share of MMD's intervals that hold 0


def coverage(name: str, prompts: int, times: int, resamples: int = 1000, seed: int = 0) -> Coverage:
    draw, truth = LAWS[name]
    random = np.random.default_rng(seed)
    found = 0
    for i in range(times):
        e = statistics.mean(draw(random, prompts), resamples=resamples, seed=seed + i)
        found += e.low <= truth <= e.high
    return Coverage(name, prompts, found / times)


def seeds_coverage(prompts: int, seeds: int, times: int, resamples: int = 1000, seed: int = 0) -> Coverage:
    """Prompts differ more than seeds of one prompt: intervals that took clips for independent would be too short."""
    random = np.random.default_rng(seed)
    names = np.repeat(np.arange(prompts), seeds).tolist()
    found = 0
    for i in range(times):
        values = np.repeat(random.normal(size=prompts), seeds) + 0.5 * random.normal(size=prompts * seeds)
        e = statistics.mean(values, names, resamples=resamples, seed=seed + i)
        found += e.low <= 0 <= e.high
    return Coverage(f"{seeds} seeds a prompt", prompts, found / times)


def pair_coverage(prompts: int, times: int, resamples: int = 1000, seed: int = 0) -> Coverage:
    random = np.random.default_rng(seed)
    found = 0
    for i in range(times):
        hard = random.normal(size=prompts)
        runs = [
            {str(k): [v] for k, v in enumerate(hard + shift + 0.5 * random.normal(size=prompts))} for shift in (0.1, 0)
        ]
        e = statistics.compare(runs[0], runs[1], resamples=resamples, seed=seed + i)
        found += e.low <= 0.1 <= e.high
    return Coverage("paired difference", prompts, found / times)


def same_distribution(rows: int, pairs: int, features: int = FEATURES, seed: int = 0) -> SetRow:
    """A decaying spectrum, as embeddings have."""
    random = np.random.default_rng(seed)
    scale = np.exp(-np.arange(features) / (features / 6))
    scale /= np.sqrt(np.square(scale).sum())
    plain, extrapolated, mmd, covered = [], [], [], 0
    for i in range(pairs):
        x, y = (random.normal(size=(rows, features)) * scale for _ in range(2))
        distance, found = sets.frechet(x, y, seed + i), sets.discrepancy(x, y)
        plain.append(distance.plain)
        extrapolated.append(abs(distance.extrapolated))
        mmd.append(found.value)
        covered += found.low <= 0 <= found.high
    nearer = np.mean(np.array(extrapolated) < np.array(plain))
    return SetRow(
        rows,
        float(np.mean(plain)),
        float(np.mean(extrapolated)),
        float(nearer),
        float(np.mean(mmd)),
        covered / pairs,
    )


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        CalibrationConfig,
        None,
        argv,
        "how honest the error bars are, on data whose truth is known",
        ["python -m eval.calibration times=1000"],
        "python -m eval.calibration",
    )
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    console = Console()
    work: list[Callable[[], Coverage]] = [
        lambda name=name, n=n: coverage(name, n, config.times, config.resamples, config.seed)  # type: ignore[misc]
        for name in LAWS
        for n in (50, 200)
    ]
    work.append(lambda: seeds_coverage(50, 4, config.times, config.resamples, config.seed))
    work.append(lambda: pair_coverage(50, config.times, config.resamples, config.seed))
    covered = [job() for job in track(work, "intervals", console=console)]
    rows = [
        same_distribution(n, max(2, config.sets * 100 // n), seed=config.seed)
        for n in track((100, 250, 500, 1000), "sets", console=console)
    ]
    table = Table(title=f"95 % intervals over {config.times} simulations", title_justify="left")
    for column in ("law", "prompts", "covered"):
        table.add_column(column, justify="left" if column == "law" else "right")
    for c in covered:
        table.add_row(c.law, str(c.prompts), f"{c.covered:.1%}")
    console.print(table)
    table = Table(title=f"two samples of one distribution, {FEATURES} features: true distance 0", title_justify="left")
    for column in ("rows", "Frechet", "extrapolated", "nearer to 0", "MMD^2", "covers 0"):
        table.add_column(column, justify="right")
    for r in rows:
        table.add_row(
            *(str(r.rows), f"{r.plain:.4f}", f"{r.extrapolated:.4f}", f"{r.nearer:.0%}", f"{r.mmd:+.5f}"),
            f"{r.covered:.0%}",
        )
    console.print(table)
    if config.out is not None:
        said = {"coverage": [asdict(c) for c in covered], "sets": [asdict(r) for r in rows]}
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(said, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
