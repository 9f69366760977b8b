"""`avgen eval report RUN [BASELINE ...]`: one HTML file that holds a scored folder of clips, or several side by side.

The page draws itself from the data put into it; it loads nothing. The worst clips are embedded as far as `embed_mb`
goes, the others are linked beside it.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from avgen import command
from avgen.compose import quoted
from avgen.lines import finite, write_whole
from eval import statistics
from eval.compare import values as of_prompts

HEADLINE = 12  # metrics of the verdict strip
BINS = 240  # of a timeline's curves
MEDIA = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".mov": "video/mp4"}
# what metrics call the instants that they found, in the order of whom to believe
INSTANTS = {"onsets_s": ("heard_s", "onsets_s"), "peaks_s": ("seen_s", "peaks_s")}
Json = dict[str, Any]


@dataclass(frozen=True)
class ReportConfig:
    """Which scored folders a page shows, and how much of their clips it carries."""

    runs: tuple[Path, ...] = (Path("runs/eval"),)  # folders of results.jsonl and summary.json; plain words do as well
    out: Path | None = None  # the page; default: report.html in the first folder
    baseline: Path | None = None  # which of them the others are held against; default: the second
    title: str = ""  # default: the suite's name
    headline: tuple[str, ...] = ()  # metrics of the verdict strip; default: those with a null, then others
    embed_mb: float = 16.0  # clips put into the page itself, worst first
    resamples: int = 2000  # of the bootstrap of differences

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("runs is empty: name at least one folder that avgen eval wrote")
        if self.embed_mb < 0:
            raise ValueError(f"embed_mb={self.embed_mb} must not be negative")
        if self.resamples < 100:
            raise ValueError(f"resamples={self.resamples} must be at least 100")


@dataclass(frozen=True)
class Run:
    """One scored folder."""

    name: str
    folder: Path
    summary: Json
    lines: tuple[Json, ...]

    @property
    def measured(self) -> Json:
        return {**self.summary["metrics"], **self.summary.get("sets", {})}


def open_run(folder: Path) -> Run:
    for name in ("summary.json", "results.jsonl"):
        if not (folder / name).is_file():
            raise ValueError(f"runs={folder}: has no {name}; score clips with avgen eval out={folder}")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return Run(folder.name or str(folder), folder, summary, tuple(json.loads(line) for line in lines))


def write_report(config: ReportConfig) -> Path:
    runs = [open_run(folder) for folder in ordered(config.runs, config.baseline)]
    # of one name there may be several: two lists of prompts of one's own are both `plain`
    if len({(run.summary["suite"]["name"], run.summary["suite"]["digest"]) for run in runs}) > 1:
        raise ValueError(f"runs={[str(r) for r in config.runs]} are of different suites: make one page each")
    if len(schemas := {run.summary.get("schema") for run in runs}) > 1:
        raise ValueError(
            f"runs={[str(r) for r in config.runs]} have schemas {sorted(map(str, schemas))}: their clips were read "
            "otherwise; score the older ones again"
        )
    runs = named_apart(runs)
    out = config.out or runs[0].folder / "report.html"
    metrics = metrics_of(runs)
    headline = list(config.headline or headline_of(runs[0], metrics))
    unknown = [name for name in headline if name not in {m["name"] for m in metrics}]
    if unknown:
        raise ValueError(f"headline={unknown}: these runs have {', '.join(m['name'] for m in metrics)}")
    suite = runs[0].summary["suite"]
    data = {
        "title": config.title or f"{suite['name']}: {' and '.join(run.name for run in runs)}",
        "about": f"Suite {suite['name']} ({suite['prompts']} prompts), {suite['clips']} clips"
        + (f", {suite['missing']} missing" if suite.get("missing") else "")
        + (f", made by {len(suite['models'])} models" if len(suite.get("models", ())) > 1 else "")
        + f". avgen {runs[0].summary['made_with'].get('avgen', '')}.",
        "metrics": metrics,
        "headline": headline,
        "runs": [described(run) for run in runs],
        "pairs": pairs_of(runs, metrics, config.resamples),
        "cells": [cell for run in runs for cell in cells_of(run)],
        "least": runs[0].summary["config"].get("least", 1),
        "clips": clips_of(runs, headline, out.parent, round(config.embed_mb * 1e6)),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page_of(data))
    return out


def ordered(runs: Sequence[Path], baseline: Path | None) -> list[Path]:
    """The baseline second: what is new comes first."""
    if baseline is None:
        return list(runs)
    rest = [run for run in runs if run != baseline]
    return [*rest[:1], baseline, *rest[1:]]


def named_apart(runs: Sequence[Run]) -> list[Run]:
    names = [run.name for run in runs]
    return [replace(run, name=str(run.folder)) if names.count(run.name) > 1 else run for run in runs]


def page_of(data: Json) -> str:
    """The data last: nothing in it can be taken for a place to fill. `<` is escaped, so no text ends the script."""
    folder = resources.files("eval") / "page"
    page, css, js = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js"))
    said = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    head, tail = page.replace("__CSS__", css).replace("__JS__", js).split("__DATA__")
    return head.replace("__TITLE__", html.escape(data["title"])) + said + tail


def metrics_of(runs: Sequence[Run]) -> list[Json]:
    """Definitions in the order of the first run that has them."""
    found: dict[str, Json] = {}
    for run in runs:
        for name, measured in run.measured.items():
            said = measured["definition"]
            kept = ("name", "says", "unit", "direction", "version", "hash")
            found.setdefault(name, {k: said[k] for k in kept} | {"licence": said.get("needs", {}).get("licence", "")})
    return list(found.values())


def headline_of(run: Run, metrics: Sequence[Json]) -> list[str]:
    """Scores that chance could give come first: whether they beat it is the question."""
    measured = run.measured
    names = [m["name"] for m in metrics if m["direction"] != "none" and has_value(measured.get(m["name"]))]
    with_null = [n for n in names if measured[n].get("nulls")]
    return [*with_null, *(n for n in names if n not in with_null)][:HEADLINE]


def has_value(measured: Json | None) -> bool:
    return measured is not None and measured["mean"] is not None


def described(run: Run) -> Json:
    said = run.summary
    provenance = {
        "folder": str(run.folder),
        **said["made_with"],
        "suite": f"{said['suite']['name']} (digest {said['suite']['digest']})",
        **{f"config.{key}": value for key, value in said["config"].items()},
        **{f"licence of {name}": licence for name, licence in said.get("licences", {}).items()},
    }
    cost = list(said.get("cost_s", {}).items())
    provenance["processor seconds"] = ", ".join(f"{name} {spent['total']:.3g}" for name, spent in cost[:12])
    return {
        "name": run.name,
        "clips": said["suite"]["clips"],
        "prompts": said["suite"]["prompts"],
        "summary": {name: shown(measured) for name, measured in run.measured.items()},
        "provenance": provenance,
    }


def shown(measured: Json) -> Json:
    """One metric of one run, as the page's tables need it."""
    n = measured["n"]
    said = {
        **{key: measured.get(key) for key in ("mean", "low", "high", "sd")},
        "n": n["ok"],
        "references": measured.get("references", 0),
        **{f"n_{status}": n[status] for status in ("not_applicable", "failed", "skipped")},
        "coverage": measured["coverage"],
    }
    nulls = {kind: null for kind, null in measured.get("nulls", {}).items() if null["mean"] is not None}
    if nulls:
        kind = next(iter(nulls))
        said["null"] = {"kind": kind, **{key: nulls[kind][key] for key in ("mean", "low", "high")}}
    if has_value(measured.get("ceiling")):
        said["ceiling"] = {"mean": measured["ceiling"]["mean"]}
    return said


def pairs_of(runs: Sequence[Run], metrics: Sequence[Json], resamples: int) -> list[Json]:
    """Every run against every other, where the definitions agree; computed once and turned round."""
    found: list[Json] = []
    higher = {m["name"]: m["direction"] == "higher" for m in metrics}
    judged = {m["name"]: m["direction"] for m in metrics if m["direction"] != "none"}  # else neither run can be better
    values = [{n: v for n, d in judged.items() if (v := of_prompts(run.lines, n, d))} for run in runs]
    for i, first in enumerate(runs):
        for j in range(i + 1, len(runs)):
            second = runs[j]
            hashes = [{n: m["definition"]["hash"] for n, m in run.measured.items()} for run in (first, second)]
            same = {n for n in values[i] if hashes[0].get(n) == hashes[1].get(n)}
            ours, theirs = ({n: v for n, v in values[k].items() if n in same} for k in (i, j))
            for name, one in statistics.compare_all(ours, theirs, higher, resamples=resamples).items():
                spread = one.value / one.effect if one.effect and math.isfinite(one.effect) else None
                said = {"metric": name, "spread": spread, **finite(asdict(one))}
                found.append({"candidate": first.name, "baseline": second.name, **said})
                found.append({"candidate": second.name, "baseline": first.name, **turned(said)})
    return found


def turned(said: Json) -> Json:
    verdicts = {"better": "worse", "worse": "better", "indistinguishable": "indistinguishable"}
    minus = {key: None if said[key] is None else -said[key] for key in ("value", "effect", "low", "high")}
    flipped = {**minus, "low": minus["high"], "high": minus["low"], "verdict": verdicts[said["verdict"]]}
    return {**said, **flipped}


def cells_of(run: Run) -> Iterable[Json]:
    for name, measured in run.summary["metrics"].items():
        mean, sd, direction = measured["mean"], measured.get("sd"), measured["definition"]["direction"]
        for axis, categories in measured.get("by", {}).items():
            for category, cell in categories.items():
                far = 0.0
                if cell["mean"] is not None and mean is not None and sd:
                    far = (abs(mean) - abs(cell["mean"]) if direction == "zero" else cell["mean"] - mean) / sd
                yield {
                    "run": run.name,
                    "metric": name,
                    "axis": axis,
                    "category": category,
                    "n": cell["prompts"],
                    "z": round(-far if direction == "lower" else far, 3),
                    **{key: cell[key] for key in ("mean", "low", "high", "shown")},
                }


def clips_of(runs: Sequence[Run], headline: Sequence[str], beside: Path, budget: int) -> list[Json]:
    """Every clip's row; those worst in a headline metric carry their media until the budget is spent."""
    embedded = embeddable(runs, headline, budget)
    rows = []
    for run in runs:
        for place, line in enumerate(run.lines):
            row: Json = {
                "run": run.name,
                **{key: line[key] for key in ("prompt", "text", "tags", "seed")},
                "values": {name: rounded(c["value"]) for name, c in line["results"].items() if c["value"] is not None},
                "faults": {
                    name: [c["status"], c.get("reason", "")]
                    for name, c in line["results"].items()
                    if c["value"] is None
                },
            }
            path = None if line["file"] is None else (run.folder / line["file"]).resolve()
            if path is None or not path.is_file():
                row["missing"] = "There is no clip of this prompt." if path is None else f"{path} is gone."
            elif (run.name, place) in embedded:
                media = MEDIA.get(path.suffix.lower(), "application/octet-stream")
                row["src"] = f"data:{media};base64,{base64.b64encode(path.read_bytes()).decode()}"
                row["timeline"] = timeline(path, line)
            else:
                row["src"] = quote(Path(os.path.relpath(path, beside.resolve())).as_posix())
            rows.append(row)
    return rows


def embeddable(runs: Sequence[Run], headline: Sequence[str], budget: int) -> set[tuple[str, int]]:
    """Clips in turns: the worst of each headline metric and run, then the second worst, and so on."""
    queues = []
    for run in runs:
        for name in headline:
            direction = run.measured[name]["definition"]["direction"] if name in run.measured else "none"
            scored = [
                (c, i)
                for i, line in enumerate(run.lines)
                if (c := line["results"].get(name)) and c["value"] is not None
            ]
            bad = {"higher": lambda v: -v, "lower": lambda v: v, "zero": abs}.get(direction, lambda v: 0.0)
            queues.append([(run, i) for _, i in sorted(scored, key=lambda ci: -bad(ci[0]["value"]))])
        queues.append([(run, i) for i in range(len(run.lines))])
    chosen: set[tuple[str, int]] = set()
    for rank in range(max((len(q) for q in queues), default=0)):
        for queue in queues:
            if rank >= len(queue) or (queue[rank][0].name, queue[rank][1]) in chosen:
                continue
            run, place = queue[rank]
            file = run.lines[place]["file"]
            path = None if file is None else run.folder / file
            size = path.stat().st_size if path is not None and path.is_file() else 0
            if 0 < size <= budget:
                budget -= size
                chosen.add((run.name, place))
    return chosen


def timeline(path: Path, line: Json) -> Json | None:
    """Level and motion over time, with the instants that the metrics say they found; None where it cannot be read."""
    from avgen.data.media import MediaError, read_clip

    try:
        clip = read_clip(path, threads=1).clip
    except (MediaError, ValueError):
        return None
    said: dict[str, list[float]] = {}
    for key, names in INSTANTS.items():
        extras = [c.get("extras", {}).get(name) for name in names for c in line["results"].values()]
        said[key] = next((list(times) for times in extras if times), [])
    sound = np.zeros(0) if clip.audio is None else np.square(clip.audio.mean(0))
    motion = np.zeros(0)
    if clip.video is not None and len(clip.video) > 1:
        steps = np.abs(np.diff(clip.video.astype(np.int16), axis=0)).mean((1, 2, 3))
        motion = np.concatenate([[0.0], steps])
    duration = max(clip.video_duration_s, clip.audio_duration_s)
    return {
        "duration_s": round(duration, 4),
        "sound": curve(np.sqrt(binned(sound, clip.audio_duration_s, duration))),
        "motion": curve(binned(motion, clip.video_duration_s, duration)),
        **{key: [round(s, 3) for s in times] for key, times in said.items()},
    }


def binned(values: np.ndarray, length_s: float, duration_s: float) -> np.ndarray:
    """Means over BINS equal parts of the duration; where there are fewer values, each is held."""
    edges = np.linspace(0, duration_s, BINS + 1) / max(length_s, 1e-9) * len(values)
    parts = [values[int(a) : max(int(b), int(a) + 1)] for a, b in pairwise(edges)]
    return np.array([part.mean() if len(part) else 0.0 for part in parts])


def curve(values: np.ndarray) -> list[float]:
    top = float(values.max()) if len(values) else 0.0
    return [round(float(v), 2) for v in values / top] if top > 0 else [0.0] * len(values)


def rounded(value: float) -> float:
    return float(f"{value:.5g}")


def main(argv: list[str] | None = None) -> int:
    folders, rest = command.folders_first(argv)
    if folders:
        rest.append(f"runs=[{','.join(map(quoted, folders))}]")
    config = command.configure(
        ReportConfig,
        None,
        rest,
        "one HTML page of scored clips",
        ["avgen eval report runs/eval", "avgen eval report runs/eval_b runs/eval_a out=page.html"],
        "eval report",
    )
    from rich.console import Console

    Console().print(f"the page is [bold]{write_report(config)}[/bold]")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
