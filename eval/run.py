"""A folder of clips to results.jsonl and summary.json: cached, resumable, over processes and ranks.

Each clip's measurements are one file of the cache, written whole or not at all; results.jsonl and summary.json are put
together from them at the end, in the suite's order. So a run that was killed and started again writes the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from avgen import __version__
from avgen.config import to_plain
from avgen.lines import file_hash, relative, write_whole
from eval import registry
from eval.clips import Found, find_clips, models_of
from eval.config import EvalConfig
from eval.metric import SetMetric
from eval.pool import Died, spread
from eval.record import Prompt
from eval.score import Cell, Job, Scored, Scorer, decoder, digest
from eval.suites import Suite, read_suite
from eval.summary import Statistics, set_summary, summarised

SCHEMA = 2  # of both files, and of what a clip is read as: other ones are measured again
RESULTS, SUMMARY = "results.jsonl", "summary.json"
KEPT = ("ok", "not_applicable")  # what is worth keeping: a failure may be mended, a package installed


@dataclass(frozen=True)
class Plan:
    """All clips of a run and what is to be measured on each."""

    suite: Suite
    scorer: Scorer
    jobs: tuple[Job, ...]
    cells: tuple[tuple[Cell, ...], ...]
    cache: Path
    decoder: str
    models: tuple[str, ...]  # that made the clips, where that is known

    def entry(self, job: Job) -> Path:
        """The cache file of a clip: same bytes, same prompt, same seed, same decoder."""
        said = [job.sha256, digest(job.prompt), job.seed, self.decoder, SCHEMA]
        key = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
        return self.cache / key[:2] / f"{key}.json"


def planned(config: EvalConfig) -> Plan:
    if wrong := sorted(set(config.weights) - {group.name for group in registry.GROUPS}):
        known = ", ".join(group.name for group in registry.GROUPS)
        raise ValueError(f"weights.{wrong[0]}: no group of metrics has that name; there are {known}")
    suite = read_suite(config.suite, config.prompts)
    found = find_clips(config.clips, suite)
    if config.limit is not None:
        kept = {prompt.id for prompt in suite.prompts[: config.limit]}
        found = [one for one in found if one.prompt in kept]
    names = tuple(dict.fromkeys([*config.metrics, *suite.metrics]))
    how = (config.nulls, config.ceiling, config.strict_licence, config.seed)
    scorer = Scorer(names, config.setup, *how, suite.ideal, suite.ideal_mark)
    jobs = jobs_of(found, {prompt.id: prompt for prompt in suite.prompts})
    cells = tuple(tuple(scorer.cells(job)) for job in jobs)
    models = models_of(config.clips, found)
    return Plan(suite, scorer, jobs, cells, config.cache or config.out / "cache", decoder(), models)


def jobs_of(found: Sequence[Found], prompts: Mapping[str, Prompt]) -> tuple[Job, ...]:
    """Each clip's partner is the next one there is of another prompt."""
    hashes = ["" if one.path is None else sha256(one.path) for one in found]
    jobs = []
    for i, one in enumerate(found):
        order = (place % len(found) for place in range(i + 1, i + len(found)))
        other = next((o for o in order if found[o].prompt != one.prompt and hashes[o]), None)
        partner, its_hash = (None, "") if other is None else (found[other].path, hashes[other])
        jobs.append(Job(prompts[one.prompt], one.seed, one.path, hashes[i], partner, its_hash))
    return tuple(jobs)


def sha256(path: Path) -> str:
    """Of a file; "" where there is none, which scoring will report."""
    return file_hash(path) if path.is_file() else ""


def evaluate(config: EvalConfig, console: Any = None) -> dict[str, Any]:
    """Score what is not in the cache yet, then write both files. Returns the summary."""
    plan = planned(config)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    config.out.mkdir(parents=True, exist_ok=True)
    mine = range(rank, len(plan.jobs), ranks)
    fresh = fill(plan, mine, config.processes, console if rank == 0 else None)
    if ranks > 1:
        from avgen.ranks import this_process

        this_process().wait_for_everyone()
        if rank > 0:
            return {}
        # what other ranks measured and did not keep is measured again: a failure is told by whoever reports it
        fresh |= fill(plan, [i for i in range(len(plan.jobs)) if i not in mine], config.processes, None)
    return written(config, plan, fresh)


def fill(plan: Plan, places: Sequence[int], workers: int, console: Any) -> dict[int, Scored]:
    """Measure what the cache lacks; returns what was measured now, failures included."""
    from rich.progress import Progress

    tasks, owners = [], []
    for i in places:
        known = read_entry(plan.entry(plan.jobs[i]))
        missing = distinct(cell for cell in plan.cells[i] if cell.key not in known.results)
        if missing:
            tasks.append((plan.jobs[i], missing))
            owners.append(i)
    fresh: dict[int, Scored] = {}
    with Progress(console=console, disable=console is None) as bar:
        clips = bar.add_task("clips", total=len(places), completed=len(places) - len(tasks))
        for at, scored in spread(plan.scorer, tasks, workers):
            place = owners[at]
            if isinstance(scored, Died):
                lost = {"value": None, "status": "failed", "reason": scored.reason}
                scored = Scored({cell.key: lost for cell in tasks[at][1]}, {}, {})
            fresh[place] = scored
            write_entry(plan.entry(plan.jobs[place]), scored)
            bar.advance(clips)
    return fresh


def distinct(cells: Any) -> tuple[Cell, ...]:
    """One cell per key: set metrics share their embedder's."""
    return tuple({cell.key: cell for cell in cells}.values())


def read_entry(path: Path) -> Scored:
    if not path.is_file():
        return Scored({}, {}, {})
    said = json.loads(path.read_text(encoding="utf-8"))
    return Scored(said["results"], said["media"], said["cost_s"])


def write_entry(path: Path, now: Scored) -> None:
    """Beside what is known by now, to others that share the cache too; under another name first: a kill leaves the old
    entry or the new one."""
    kept = {key: cell for key, cell in now.results.items() if cell["status"] in KEPT}
    if not kept:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path.parent):
        before = read_entry(path)
        said = {
            "results": {**before.results, **kept},
            "media": now.media or before.media,
            "cost_s": {**before.cost_s, **now.cost_s},
        }
        draft = path.with_name(f".{path.stem}.{os.getpid()}.part")
        draft.write_text(json.dumps(said), encoding="utf-8")
        draft.replace(path)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Of the processes that write into a folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def written(config: EvalConfig, plan: Plan, fresh: Mapping[int, Scored]) -> dict[str, Any]:
    lines, embedded = [], []
    cost: dict[str, list[float]] = {}
    for i, job in enumerate(plan.jobs):
        kept = read_entry(plan.entry(job))
        results = {**kept.results, **(fresh[i].results if i in fresh else {})}
        media = kept.media or (fresh[i].media if i in fresh else {})
        spent = kept.cost_s or (fresh[i].cost_s if i in fresh else {})
        for name, seconds in spent.items():
            cost.setdefault(name, []).append(seconds)
        lines.append(line_of(config, plan, i, results, media))
        embedded.append(results)
    write_whole(config.out / RESULTS, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    summary = summary_of(config, plan, lines, embedded, cost)
    write_whole(config.out / SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return summary


def line_of(
    config: EvalConfig, plan: Plan, place: int, results: Mapping[str, Any], media: Mapping[str, Any]
) -> dict[str, Any]:
    """One clip's line of results.jsonl."""
    job = plan.jobs[place]
    own: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = {}
    for cell in plan.cells[place]:
        metric = plan.scorer.metrics[cell.metric]
        if isinstance(metric, SetMetric):
            continue
        into = own if not cell.variant else variants.setdefault(cell.variant, {})
        found = results[cell.key]
        # a variant's timelines are of no use to a reader
        into[metric.definition.name] = found if into is own else {k: v for k, v in found.items() if k != "extras"}
    path = job.path
    return {
        "schema": SCHEMA,
        "suite": plan.suite.name,
        "prompt": job.prompt.id,
        "text": job.prompt.text,
        "tags": {axis: list(categories) for axis, categories in job.prompt.tags.items()},
        "seed": job.seed,
        "file": None if path is None else relative(path, config.out),
        "sha256": job.sha256,
        "media": media,
        "results": own,
        "variants": variants,
    }


def summary_of(
    config: EvalConfig,
    plan: Plan,
    lines: Sequence[Mapping[str, Any]],
    embedded: Sequence[Mapping[str, Any]],
    cost: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    how = Statistics(config.resamples, config.least, config.seed)
    prompts = {job.prompt.id: job.prompt for job in plan.jobs}
    metrics: dict[str, Any] = {}
    sets: dict[str, Any] = {}
    for place, metric in enumerate(plan.scorer.metrics):
        if isinstance(metric, SetMetric):
            vectors = [[r[c.key] for c in cs if c.metric == place] for r, cs in zip(embedded, plan.cells, strict=True)]
            made = [row[0] for row in vectors]
            # of each prompt once, however many clips were made of it; what one worker lost another may have
            real: dict[str, Mapping[str, Any]] = {}
            for job, row in zip(plan.jobs, vectors, strict=True):
                if len(row) > 1 and real.get(job.prompt.id, {}).get("status") != "ok":
                    real[job.prompt.id] = row[1]
            sets[metric.definition.name] = set_summary(metric, made, list(real.values()), config.seed)
        else:
            metrics[metric.definition.name] = summarised(metric, lines, prompts, how)
    return {
        "schema": SCHEMA,
        "suite": {
            "name": plan.suite.name,
            "digest": plan.suite.digest,
            "axes": {axis: list(categories) for axis, categories in plan.suite.axes.items()},
            "prompts": len(prompts),
            "clips": len(lines),
            "missing": sum(not line["sha256"] for line in lines),
            "models": list(plan.models),
        },
        "metrics": metrics,
        "sets": sets,
        "config": {k: v for k, v in to_plain(config).items() if k not in ("workers", "out", "cache")},
        "made_with": made_with(plan),
        "licences": {
            m.definition.name: m.definition.needs.licence for m in plan.scorer.metrics if m.definition.needs.licence
        },
        # seconds of processor time; "feature:..." are shared by several metrics and computed once a clip
        "cost_s": {
            name: {"clips": len(s), "mean": round(sum(s) / len(s), 5), "total": round(sum(s), 3)}
            for name, s in sorted(cost.items(), key=lambda kv: -sum(kv[1]))
        },
    }


def made_with(plan: Plan) -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("numpy", "scipy", "torch", "transformers")}
    return {
        "avgen": __version__,
        "python": platform.python_version(),
        **versions,
        "decoder": plan.decoder,
        "statistics": "means weighted over clips; 95 % bootstrap intervals over prompts (BCa, t-widened)",
    }
