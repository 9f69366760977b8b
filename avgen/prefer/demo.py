"""`python -m avgen.prefer.demo`: does training on mined pairs make a trained toybox model better, and than what?

Sample, score, mine and train are the commands that anybody runs, each as a process of its own, each going on where it
was stopped. Then clips of held-out prompts are compared prompt by prompt: after against before, and against the same
adapters trained for the same time on clips alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avgen import __version__, command
from avgen.config import to_plain

EXAMPLES = ("python -m avgen.prefer.demo model=runs/toybox", "python -m avgen.prefer.demo mode=sum steps=200 rounds=2")
METRICS = "[toybox,picture,loudness]"
# what must not get worse while the reward rises; the first four are in it
FIGURES = (
    "toybox.sync",
    "toybox.kind",
    "toybox.colour",
    "toybox.count",
    "toybox.size",
    "picture.sharpness",
    "picture.motion_per_s",
    "loudness.integrated_lufs",
)
VARIETY = "variety"
LEARNED_PASSES = 4 / 3  # a step on pairs runs forward once more than one on clips, whose backward pass costs two


@dataclass(frozen=True)
class DemoConfig:
    """How much is sampled and trained."""

    model: Path = Path("runs/toybox")  # the training run to improve
    out: Path = Path("runs/demo_dpo")  # everything made, and figures.json
    prompts: int = 160  # that candidates are made of, in each round
    candidates: int = 5  # clips of each
    held_out: int = 120  # prompts to compare by
    mode: str = "all"  # as in avgen prefer
    steps: int = 120  # of training, in each round
    rounds: int = 1  # of sample, score, mine, train; each goes on from the last one's model
    solver_steps: int = 12  # of every clip that is made
    seed: int = 0  # of prompts, noise and training
    train: tuple[str, ...] = ()  # further keys of avgen train: ['preference.anchor=0']

    def __post_init__(self) -> None:
        for name in ("prompts", "held_out", "steps", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.candidates < 2:
            raise ValueError(f"candidates={self.candidates} must be at least 2: a pair has two clips")


@dataclass(frozen=True)
class Folders:
    """What a stage of the demonstration leaves."""

    config: DemoConfig

    def round(self, number: int, what: str) -> Path:
        return self.config.out / f"round_{number}" / what

    def prompts(self, name: str) -> Path:
        return self.config.out / f"{name}.jsonl"

    def clips(self, name: str) -> Path:
        return self.config.out / "held_out" / name

    def scores(self, name: str) -> Path:
        return self.config.out / "held_out" / f"{name}_scores"


def avgen(verb: str, *words: str) -> float:
    """One command; the seconds it took."""
    said = [verb, *words]
    print(f"\navgen {' '.join(said)}", flush=True)
    began = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", "avgen", *said], check=False).returncode
    if code:
        raise ValueError(f"avgen {verb} ended with exit code {code}: see above; the same command goes on from there")
    return time.perf_counter() - began


def write_prompts(path: Path, split: str, seed: int, count: int) -> None:
    """Distinct captions of single actors."""
    from avgen.data.toybox import Toybox, ToyboxConfig

    world, texts = Toybox(ToyboxConfig(scenes=("single",)), split, seed), dict[str, None]()  # type: ignore[arg-type]
    for index in range(100 * count):
        texts[world[index].caption] = None
        if len(texts) == count:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": f"{split}_{i:04d}", "prompt": text}) for i, text in enumerate(texts)]
    path.write_text("".join(line + "\n" for line in lines))


def sample_and_score(config: DemoConfig, model: Path, prompts: Path, clips: Path, scores: Path, seeds: int) -> float:
    how = (f"samples={seeds}", f"seed={config.seed * 1000}", f"solver.steps={config.solver_steps}", "batch=20")
    spent = avgen("sample", f"model={model}", f"prompts={prompts}", f"out={clips}", *how, "precision=bf16")
    fast = ("nulls=false", "ceiling=false", "resamples=100")
    asked = ("suite=plain", f"prompts={prompts}", f"clips={clips}", f"metrics={METRICS}", f"out={scores}")
    return spent + avgen("eval", *asked, *fast)


def improve(config: DemoConfig, folders: Folders) -> tuple[Path, dict[str, float]]:
    """The rounds; the last one's run, and the seconds of each stage."""
    spent = {"candidates": 0.0, "training": 0.0}
    model, start = config.model, config.model / "model"
    for number in range(1, config.rounds + 1):
        clips, scores, pairs, run = (folders.round(number, what) for what in ("clips", "scores", "pairs", "run"))
        prompts = folders.prompts(f"train_{number}")
        write_prompts(prompts, "train", 1000 * config.seed + number, config.prompts)
        spent["candidates"] += sample_and_score(config, model, prompts, clips, scores, config.candidates)
        avgen("prefer", f"clips={clips}", f"results={scores}", f"out={pairs}", f"mode={config.mode}")
        spent["training"] += avgen(
            *("train", "recipe=toybox_dpo", f"start={start}", f"data.pairs={pairs}", f"data.pipeline={config.model}"),
            *(f"out={run}", f"steps={config.steps}", f"seed={config.seed}", "tracking.to=[]", *config.train),
        )
        model, start = run, folders.round(number, "model")
        if number < config.rounds:
            fold(run, start)
    return model, spent


def fold(run: Path, into: Path) -> None:
    """A run's adapters in its weights, for the next round to start from."""
    from avgen.sample.folder import open_pipeline

    if not into.exists():
        open_pipeline(run).model.save_pretrained(into)


def continue_on_clips(config: DemoConfig, run: Path) -> float:
    """The same adapters, rate and time, on clips of the world."""
    steps = round(LEARNED_PASSES * config.steps * config.rounds)
    same = ("lora.rank=16", "optimizer.kind=adamw", "optimizer.lr=2e-4", "optimizer.warmup_steps=20")
    fair = ("optimizer.schedule=constant", "precision=fp32", "ema_decay=0.95", "compile=false", "samples.every=0")
    return avgen(
        *("train", "recipe=toybox", f"start={config.model / 'model'}", f"out={run}", f"steps={steps}", *same, *fair),
        *("tasks={t2av:1}", f"seed={config.seed}", "tracking.to=[]"),
    )


def values_of(clips: Path, scores: Path) -> dict[str, dict[str, float]]:
    """Metric -> prompt -> mean over its clips."""
    from avgen.data.media import read_clip
    from avgen.train.cheating import difference

    found: dict[str, dict[str, list[float]]] = {name: {} for name in (*FIGURES, VARIETY)}
    files: dict[str, list[Path]] = {}
    for line in map(json.loads, (scores / "results.jsonl").read_text().splitlines()):
        files.setdefault(line["prompt"], []).append(scores / line["file"])
        for name in FIGURES:
            cell = line["results"][name]
            if cell["status"] == "ok":
                found[name].setdefault(line["prompt"], []).append(cell["value"])
    for prompt, (one, other, *_) in files.items():
        found[VARIETY][prompt] = [difference(read_clip(one).clip, read_clip(other).clip)]
    return {name: {p: sum(v) / len(v) for p, v in prompts.items()} for name, prompts in found.items()}


def compared(
    one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]], seed: int
) -> dict[str, Any]:
    """One less the other, by the prompts that both have, with the interval that 95 % of resampled prompts give."""
    from avgen.sample.judge import difference

    found = {}
    for name in one:
        both = sorted(one[name].keys() & other[name].keys())
        ours, theirs = ([(side[name][prompt], 1.0) for prompt in both] for side in (one, other))
        found[name] = asdict(difference(ours, theirs, seed)) if both else None
    return found


def main(argv: list[str] | None = None) -> int:
    config = command.configure(DemoConfig, None, argv, "does preference training help? With figures", EXAMPLES, "demo")
    folders = Folders(config)
    held_out = folders.prompts("held_out")
    write_prompts(held_out, "test", 1000 + config.seed, config.held_out)
    run, spent = improve(config, folders)
    spent["on clips"] = continue_on_clips(config, config.out / "on_clips")
    values = {}
    for name, model in (("before", config.model), ("after", run), ("on_clips", config.out / "on_clips")):
        took = sample_and_score(config, model, held_out, folders.clips(name), folders.scores(name), seeds=2)
        spent["held out"] = spent.get("held out", 0.0) + took
        values[name] = values_of(folders.clips(name), folders.scores(name))
    said = {
        "schema": 1,
        "avgen": __version__,
        "config": to_plain(config),
        "means": {n: {m: sum(v.values()) / len(v) for m, v in found.items() if v} for n, found in values.items()},
        "gain": compared(values["after"], values["before"], config.seed),
        "over_clips": compared(values["after"], values["on_clips"], config.seed),
        "mined": json.loads((folders.round(config.rounds, "pairs") / "mined.json").read_text())["pairs"],
        "seconds": {name: round(seconds, 1) for name, seconds in spent.items()},
    }
    (config.out / "figures.json").write_text(json.dumps(said, indent=1) + "\n")
    show(said)
    return 0


def show(said: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="held-out prompts; differences with their 95 % interval", title_justify="left")
    for column in ("metric", "before", "after", "on clips", "after - before", "after - on clips"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name in said["gain"]:
        means = [f"{said['means'][run].get(name, float('nan')):.4g}" for run in ("before", "after", "on_clips")]
        gaps = [said[key][name] for key in ("gain", "over_clips")]
        told = ["" if g is None else f"{g['value']:+.3f} ({g['low']:+.3f} .. {g['high']:+.3f})" for g in gaps]
        table.add_row(name, *means, *told)
    console = Console()
    console.print(table)
    console.print(f"{said['mined']} pairs; seconds: {said['seconds']}", highlight=False)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
