"""`avgen eval compare A B`: is B better than A, prompt by prompt, and could that be chance?

Both are folders that `avgen eval` wrote, of one suite. Only metrics with a better direction are judged, only where
both definitions have the same hash, and only on prompts with a value in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avgen import command
from eval import statistics
from eval.run import RESULTS, SUMMARY
from eval.show import number

EXAMPLES = (
    "avgen eval compare runs/eval_step500 runs/eval_step1500",
    "avgen eval compare runs/eval_a runs/eval_b 'metrics=[toybox,sync.correlation]' out=runs/a_b.json",
)


@dataclass(frozen=True)
class CompareConfig:
    """Two evaluations of one suite."""

    baseline: Path  # folder of results.jsonl and summary.json; the first word of the command
    candidate: Path  # likewise; the second word
    metrics: tuple[str, ...] = ()  # groups or names to compare; none: all that both have. Fewer are tested more sharply
    out: Path | None = None  # file for the figures as JSON
    resamples: int = 2000  # of the bootstrap
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} cannot be negative")
        if self.resamples < 100:
            raise ValueError(f"resamples={self.resamples} must be at least 100")


@dataclass(frozen=True)
class Comparison:
    """Candidate minus baseline by metric, and what could not be compared."""

    baseline: str
    candidate: str
    differences: dict[str, statistics.Difference]
    means: dict[str, tuple[float, float]]  # of the prompts that both have: baseline, candidate
    left_out: dict[str, str]  # metric -> why


def compare(config: CompareConfig) -> Comparison:
    (old, old_lines), (new, new_lines) = (read(folder) for folder in (config.baseline, config.candidate))
    if old.get("schema") != new.get("schema"):
        raise ValueError(
            f"baseline={config.baseline} has schema {old.get('schema')} and candidate={config.candidate}"
            f" {new.get('schema')}: clips were read otherwise; score the older one again"
        )
    if old["suite"]["digest"] != new["suite"]["digest"]:
        raise ValueError(
            f"baseline={config.baseline} scored suite {old['suite']['name']} ({old['suite']['digest']}) and"
            f" candidate={config.candidate} {new['suite']['name']} ({new['suite']['digest']}): compare one suite's"
        )
    names, left_out = comparable(measured(old), measured(new), config.metrics)
    directions = {name: old["metrics"][name]["definition"]["direction"] for name in names}
    a = {name: values(old_lines, name, directions[name]) for name in names}
    b = {name: values(new_lines, name, directions[name]) for name in names}
    for name in list(names):
        shared = a[name].keys() & b[name].keys()
        if len(shared) < 2:
            left_out[name] = f"{len(shared)} prompts have a value in both"
            names.remove(name)
    found = statistics.compare_all(
        {name: b[name] for name in names},
        {name: a[name] for name in names},
        {name: directions[name] == "higher" for name in names},
        resamples=config.resamples,
        seed=config.seed,
    )
    means = {}
    for name in names:
        both = [prompt for prompt in a[name] if prompt in b[name]]
        means[name] = (statistics.mean_over(a[name], both), statistics.mean_over(b[name], both))
    return Comparison(str(config.baseline), str(config.candidate), found, means, left_out)


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    for name in (SUMMARY, RESULTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}: give a folder that avgen eval wrote (out=)")
    lines = (folder / RESULTS).read_text(encoding="utf-8").splitlines()
    return json.loads((folder / SUMMARY).read_text(encoding="utf-8")), [json.loads(line) for line in lines]


def comparable(
    old: Mapping[str, Any], new: Mapping[str, Any], wanted: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Metrics that can be judged, and why the others cannot."""
    unknown = [w for w in wanted if not any(w in (name, name.split(".")[0]) for name in (*old, *new))]
    if unknown:
        raise ValueError(f"metrics={unknown[0]!r}: neither folder has such a metric or group")
    names: list[str] = []
    left_out: dict[str, str] = {}
    for name in dict.fromkeys((*old, *new)):
        if wanted and not {name, name.split(".")[0]} & set(wanted):
            continue
        if name not in new:
            left_out[name] = "the candidate was not scored by it"
        elif name not in old:
            left_out[name] = "the baseline was not scored by it"
        elif old[name]["definition"]["hash"] != new[name]["definition"]["hash"]:
            left_out[name] = "defined otherwise in the two: score one of them again"
        elif "references" in old[name]:
            left_out[name] = "a distance between sets has no value for each prompt: see both summaries"
        elif old[name]["definition"]["direction"] != "none":
            names.append(name)
        elif wanted:
            left_out[name] = "it has no better direction"
    return names, left_out


def measured(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {**summary["metrics"], **summary.get("sets", {})}


def values(
    lines: Iterable[Mapping[str, Any]], name: str, direction: str
) -> dict[str, list[float | tuple[float, float]]]:
    """(value, weight) of every clip by prompt; of what should be zero its size, so that errors of opposite sign do not
    make up for each other."""
    found: dict[str, list[float | tuple[float, float]]] = {}
    for line in lines:
        result = line["results"].get(name)
        if result and result["status"] == "ok":
            value = abs(result["value"]) if direction == "zero" else result["value"]
            found.setdefault(line["prompt"], []).append((value, result.get("weight", 1.0)))
    return found


def table(found: Comparison) -> Any:
    from rich.table import Table

    title = f"{found.candidate} minus {found.baseline}; p by exchanging prompts' clips, Holm-corrected"
    shown = Table(title=title, title_justify="left")
    for column in ("metric", "baseline", "candidate", "difference", "95 %", "prompts", "p", "d", "verdict"):
        words = column in ("metric", "verdict")  # cut into pieces they could not be read
        shown.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=words)
    colours = {"better": "green", "worse": "red", "indistinguishable": "dim"}
    for name, d in found.differences.items():
        before, after = found.means[name]
        shown.add_row(
            name,
            number(before),
            number(after),
            f"{d.value:+.4g}",
            f"{d.low:+.3g} .. {d.high:+.3g}",
            str(d.prompts),
            f"{d.p_holm:.3g}",
            f"{d.effect:+.2f}",
            f"[{colours[d.verdict]}]{d.verdict}[/]",
        )
    return shown


def plain(found: Comparison) -> dict[str, Any]:
    import math

    said = asdict(found)
    for difference in said["differences"].values():
        for key, value in difference.items():
            if isinstance(value, float) and not math.isfinite(value):
                difference[key] = None
    return said


def main(argv: list[str] | None = None) -> int:
    folders, words = command.folders_first(argv)
    places = [name for name in ("baseline", "candidate") if not any(word.startswith(f"{name}=") for word in words)]
    if len(folders) > len(places):
        raise ValueError(f"{', '.join(folders)}: two folders are compared, the baseline and the candidate")
    words += [f"{name}={folder}" for name, folder in zip(places, folders, strict=False)]
    config = command.configure(
        CompareConfig, None, words, "is the candidate better than the baseline?", EXAMPLES, "eval compare"
    )
    from rich.console import Console

    console = Console()
    found = compare(config)
    console.print(table(found))
    for name, reason in found.left_out.items():
        console.print(f"{name} left out: {reason}", highlight=False, markup=False)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(plain(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
