"""From clips' results to a summary: means with intervals, coverage, nulls, ceilings and categories.

Means are over clips with their weights, intervals over prompts. What has no value is counted by status, never averaged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval import statistics
from eval.metric import ClipMetric, Definition, Result, SetMetric
from eval.record import Prompt

STATUSES = ("ok", "not_applicable", "failed", "skipped")


@dataclass(frozen=True)
class Statistics:
    """How means are made."""

    resamples: int
    least: int  # prompts that a category needs
    seed: int


def summarised(
    metric: ClipMetric, lines: Sequence[Mapping[str, Any]], prompts: Mapping[str, Prompt], how: Statistics
) -> dict[str, Any]:
    """One metric over all clips. `lines` are those of results.jsonl."""
    said = metric.definition
    cells = [line["results"][said.name] for line in lines]
    names = [line["prompt"] for line in lines]
    found = {"definition": described(said), **counted(cells), **averaged(cells, names, how)}
    found["by"] = by_category(cells, names, prompts, how)
    for variant in (*said.nulls, *(("ceiling",) if said.ceiling else ())):
        others = [line["variants"].get(variant, {}).get(said.name) for line in lines]
        if not any(others):
            continue
        known = [other or {"value": None, "status": "not_applicable"} for other in others]
        whole = {**counted(known), **averaged(known, names, how), "gap": gap(cells, known, names, how)}
        if variant == "ceiling":
            found["ceiling"] = whole
        else:
            found.setdefault("nulls", {})[variant] = whole
    return found


def described(said: Definition) -> dict[str, Any]:
    needs = {k: v for k, v in asdict(said.needs).items() if v not in (False, "", ())}
    needs.pop("commercial", None)
    if not said.needs.commercial:
        needs["commercial"] = False
    return {
        "name": said.name,
        "says": said.says,
        "unit": said.unit,
        "direction": said.direction,
        "version": said.version,
        "hash": said.hash,
        "parameters": dict(said.parameters),
        "needs": needs,
    }


def counted(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statuses; coverage is the share with a value of those that should have one; the commonest reasons why not."""
    statuses = Counter(cell["status"] for cell in cells)
    expected = len(cells) - statuses["not_applicable"]
    reasons = Counter(cell.get("reason", "") for cell in cells if cell["status"] in ("failed", "skipped"))
    return {
        "n": {status: statuses[status] for status in STATUSES},
        "coverage": statuses["ok"] / expected if expected else None,
        "reasons": dict(sorted(reasons.items(), key=lambda kv: (-kv[1], kv[0]))[:5]),
    }


def averaged(cells: Sequence[Mapping[str, Any]], names: Sequence[str], how: Statistics) -> dict[str, Any]:
    """Weighted mean with its interval over prompts; nothing but nulls where no clip has a value."""
    rows = [(c, n) for c, n in zip(cells, names, strict=True) if c["status"] == "ok"]
    if not rows:
        return {"mean": None, "low": None, "high": None, "sd": None, "median": None, "prompts": 0}
    values = np.array([c["value"] for c, _ in rows])
    tops, bottoms = np.array([weighed(c) for c, _ in rows]).T
    estimate = statistics.ratio(tops, bottoms, [n for _, n in rows], resamples=how.resamples, seed=how.seed)
    return {
        "mean": finite(estimate.value),
        "low": finite(estimate.low),
        "high": finite(estimate.high),
        "sd": finite(float(values.std(ddof=1))) if len(values) > 1 else None,
        "median": float(np.median(values)),
        "prompts": estimate.clusters,
    }


def weighed(cell: Mapping[str, Any]) -> tuple[float, float]:
    """What a clip adds to both sums of a weighted mean."""
    weight = cell.get("weight", 1.0)
    return cell["value"] * weight, weight


def gap(
    cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], names: Sequence[str], how: Statistics
) -> dict[str, Any] | None:
    """The clips' own mean minus that of the variant, where both have a value."""
    pairs = [
        (mine, other, name)
        for mine, other, name in zip(cells, others, names, strict=True)
        if mine["status"] == other["status"] == "ok"
    ]
    if not pairs:
        return None
    sums = np.array([[n for c in (p[0], p[1]) for n in weighed(c)] for p in pairs])
    estimate = statistics.ratio_gap(sums, [p[2] for p in pairs], resamples=how.resamples, seed=how.seed)
    return {
        "mean": finite(estimate.value),
        "low": finite(estimate.low),
        "high": finite(estimate.high),
        "clips": len(pairs),
    }


def by_category(
    cells: Sequence[Mapping[str, Any]], names: Sequence[str], prompts: Mapping[str, Prompt], how: Statistics
) -> dict[str, dict[str, Any]]:
    """Per axis and category; `shown` is false where too few prompts stand behind a mean."""
    places: dict[str, dict[str, list[int]]] = {}
    for i, name in enumerate(names):
        for axis, categories in prompts[name].tags.items():
            for category in categories:
                places.setdefault(axis, {}).setdefault(category, []).append(i)
    found: dict[str, dict[str, Any]] = {}
    for axis, categories_of in sorted(places.items()):
        for category, chosen in sorted(categories_of.items()):
            mean = averaged([cells[i] for i in chosen], [names[i] for i in chosen], how)
            kept = {k: mean[k] for k in ("mean", "low", "high", "prompts")}
            found.setdefault(axis, {})[category] = {**kept, "shown": mean["prompts"] >= how.least}
    return found


def set_summary(
    metric: SetMetric, made: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, Any]:
    """A set-level metric from the clips' embeddings. Its coverage is the lower one of the two sets: distances depend on
    the size of both."""
    vectors = [np.array(c["extras"]["vector"]) for c in made if c["status"] == "ok"]
    real = [np.array(c["extras"]["vector"]) for c in reference if c["status"] == "ok"]
    result = set_result(metric, vectors, real, seed)
    low, high = result.interval or (None, None)
    ours, theirs = counted(made), counted(reference)
    covered = [part["coverage"] for part in (ours, theirs) if part["coverage"] is not None]
    lost = {f"real clip: {reason}": count for reason, count in theirs["reasons"].items()}
    status, reason = result.status, result.reason
    if status == "not_applicable" and lost and len(real) < 2:
        status, reason = "failed", f"{reason}; {next(iter(lost))}"
    return {
        "definition": described(metric.definition),
        "embedder": described(metric.embedder.definition),
        "n": ours["n"],
        "coverage": min(covered) if covered else None,
        "reasons": {**ours["reasons"], **lost},
        "status": status,
        "reason": reason,
        "mean": result.value,
        "low": low,
        "high": high,
        "prompts": len(vectors),
        "references": len(real),
        "n_references": theirs["n"],
        "extras": dict(result.extras),
    }


def set_result(metric: SetMetric, vectors: list[np.ndarray], real: list[np.ndarray], seed: int) -> Result:
    if len(vectors) < 2:
        return Result.none("not_applicable", f"{len(vectors)} clips have an embedding: a set needs at least 2")
    if metric.definition.needs.reference and len(real) < 2:
        return Result.none("not_applicable", f"{len(real)} real clips have an embedding: a set needs at least 2")
    try:
        return metric.over(np.stack(vectors), np.stack(real) if real else None, seed)
    except Exception as error:
        return Result.none("failed", f"{type(error).__name__}: {error}")


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
