"""`python -m avgen.prefer.demo`: does training on mined pairs make a trained toybox model better, and than what?

Each repetition (`seeds`) samples candidates, scores, mines and trains, trains the same weights on clips of the world
for as long, and compares both with the model they began from, prompt by prompt, on held-out prompts. `ablations` are
further arms of the first repetition. It goes on where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from avgen import __version__, command
from avgen.compose import load
from avgen.config import at_least_one, to_plain
from avgen.lines import write_whole
from avgen.prefer.__main__ import MINED
from avgen.prefer.trial import ARMS, CLIPS, PAIRS, VARIETY, Arm, Size, Trial, Values, gains, means
from avgen.train.data_config import ToyboxData

EXAMPLES = (
    "python -m avgen.prefer.demo model=runs/toybox",
    "python -m avgen.prefer.demo 'seeds=[0,1,2]'",
    "python -m avgen.prefer.demo 'ablations=[all,modality,sound,weak,strong,anchor]'",
)
BEFORE = "before"
ABLATIONS = ("all", "modality", "sum", "sound", "weak", "strong", "anchor", "no_anchor")
SOUND = "groups={sync:{metrics:{toybox.sync:1.0},trains:[audio]}}"
ANCHORS = {"anchor": 1.0, "no_anchor": 0.0}
STRENGTH = 4.0  # what the betas of weak and strong are divided and multiplied by


@dataclass(frozen=True)
class DemoConfig:
    """How much is sampled and trained."""

    model: Path | None = None  # the training run to improve; null: the one of `make demo`, in runs/demo
    out: Path = Path("runs/demo_dpo")  # everything made, figures.json, gains.png and clips.png
    seeds: tuple[int, ...] = (0,)  # a repetition each: of prompts, noise and training
    prompts: int = 570  # that candidates are made of, in each round
    candidates: int = 6  # clips of each
    per_prompt: int = 3  # most pairs of each
    held_out: int = 150  # prompts to compare by
    mode: Literal["all", "modality", "sum"] = "sum"  # as in avgen prefer
    task: Literal["t2av", "i2av", "v2a", "a2v"] = "t2av"  # of all clips
    steps: int = 600  # of training, in each round
    rounds: int = 1  # of sample, score, mine, train; each goes on from the last one's model
    solver_steps: int = 12  # of every clip that is made
    candidate_steps: int | None = 8  # of those that pairs are made of; null: as many
    control: Literal["each", "first"] = "each"  # repetitions that also train on clips, for as long as pairs took
    # of all, modality, sum, sound (it alone), weak, strong (betas / 4, x 4), anchor, no_anchor
    ablations: tuple[str, ...] = ()
    mine: tuple[str, ...] = ("margin=0.66",)  # further keys of avgen prefer
    train: tuple[str, ...] = ()  # further keys of avgen train: ['preference.anchor=0']
    processes: int | None = None  # that make clips, of one thread each; null: one per core, or one for an accelerator

    def __post_init__(self) -> None:
        at_least_one(self, "prompts", "held_out", "steps", "rounds", "per_prompt", "solver_steps")
        if self.candidate_steps is not None:
            at_least_one(self, "candidate_steps")
        if self.candidates < 2:
            raise ValueError(f"candidates={self.candidates} must be at least 2: a pair has two clips")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)} must name at least one repetition, and none twice")
        if wrong := [name for name in self.ablations if name not in ABLATIONS]:
            raise ValueError(f"ablations={wrong} are unknown: choose from {', '.join(ABLATIONS)}")

    @property
    def size(self) -> Size:
        return Size(**{name: getattr(self, name) for name in Size.__dataclass_fields__})


def ablated(name: str, train: Sequence[str]) -> Arm:
    """The recipe with one thing changed."""
    from avgen.train.config import TrainConfig

    taught = load(TrainConfig, "train", ["recipe=toybox_dpo", *train]).preference
    assert taught is not None
    if name in ("weak", "strong"):
        by = STRENGTH if name == "strong" else 1 / STRENGTH
        return Arm(
            (f"preference.beta_video={by * taught.beta_video}", f"preference.beta_audio={by * taught.beta_audio}")
        )
    if name == "sound":
        return Arm(mode="modality", mine=(SOUND,))
    if name in ANCHORS:
        return Arm((f"preference.anchor={ANCHORS[name]}",))
    return Arm(mode=name)


def trained(asked: Path | None, demo: Path = Path("runs/demo")) -> Path:
    """The run to improve."""
    if asked is not None:
        return asked
    records = {path.parent: json.loads(path.read_text()) for path in demo.glob("model/*/demo.json")}
    done = [run for run, record in records.items() if record["done"] and not record.get("quick")]
    if not done:
        raise ValueError(f"model is null and {demo} holds no finished model: run `make demo` first, or give model=")
    return max(done, key=lambda run: (run / "demo.json").stat().st_mtime)


def check(model: Path, arms: Mapping[str, Arm], trial: Trial) -> None:
    """Refuse at once what would end some stage hours from now."""
    from avgen.sample.folder import config_of

    if not (model / "run.json").is_file() or not (model / "model" / "config.json").is_file():
        raise ValueError(
            f"model={model} holds no run.json with a model/ beside it: give a training run of all weights, not one of "
            "adapters"
        )
    known = config_of(model)
    if not isinstance(known.data, ToyboxData):
        raise ValueError(f"model={model} was not trained on the toybox: there are no clips to go on with")
    for arm in arms.values():
        trial.mining(arm)
        taught = trial.taught(arm)
        if replace(known.model, attention=taught.model.attention) != taught.model:
            raise ValueError(
                f"model={model} is another model than recipe=toybox_dpo describes: give train= the model.* keys that "
                "it was trained with"
            )


def processes(asked: int | None) -> int:
    import torch

    from avgen.sample.exam import usual_processes

    return asked or usual_processes(not torch.cuda.is_available())


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        DemoConfig, None, argv, "does preference training help? With figures", EXAMPLES, "python -m avgen.prefer.demo"
    )
    model, count = trained(config.model), processes(config.processes)
    ablations = {name: ablated(name, config.train) for name in config.ablations}
    trials = [Trial(model, config.out / f"seed_{seed}", seed, config.size, count) for seed in config.seeds]
    check(model, ARMS | ablations, trials[0])
    print(f"goes on from {model}")
    values: dict[str, list[Values]] = {}  # by arm, one per repetition
    spent: dict[str, list[float]] = {}
    mined: list[int] = []
    pictures: dict[str, Path] = {BEFORE: trials[0].held_out(BEFORE, model)}  # whose clips of the first repetition
    for place, trial in enumerate(trials):
        values.setdefault(BEFORE, []).append(trial.judged(BEFORE, model))
        arms = dict(ARMS)
        if place > 0 and config.control == "first":
            del arms[CLIPS]
        if place == 0:
            arms |= ablations
        for name, arm in arms.items():
            gone = trial.improved(name, arm)
            if place == 0 and name in ARMS:
                pictures[name] = trial.held_out(name, gone.run)
            values.setdefault(name, []).append(trial.judged(name, gone.run))
            spent.setdefault(name, []).append(round(gone.seconds, 1))
        mined.append(json.loads((trial.mined(PAIRS, ARMS[PAIRS]) / MINED).read_text())["pairs"])
        # after every repetition: what is there may be looked at
        said = found(config, values, spent, mined)
        write_whole(config.out / "figures.json", json.dumps(said, indent=1) + "\n")
    show(said)
    print(f"figures.json, {drawn(said, config.out)} and {pictured(pictures, config.out)} are in {config.out}")
    return 0


def found(
    config: DemoConfig, values: Mapping[str, Sequence[Values]], spent: Mapping[str, list[float]], mined: list[int]
) -> dict[str, Any]:
    """What figures.json holds."""
    arms = {}
    for name, each in values.items():
        if name == BEFORE:
            continue
        before, clips = (values[other][: len(each)] for other in (BEFORE, CLIPS))
        both = each[: len(clips)]
        arms[name] = {
            "means": [means(v) for v in each],
            "gain": gains(each, before),
            "gain_of_each_seed": [gains([a], [b]) for a, b in zip(each, before, strict=True)],
            "over_clips": None if name == CLIPS or not clips else gains(both, clips),  # of the repetitions with both
            "seconds": spent[name],
        }
    done = len(values[PAIRS])
    return {
        "schema": 2,
        "avgen": __version__,
        "config": to_plain(config),
        "seeds": list(config.seeds[:done]),
        "before": [means(v) for v in values[BEFORE]],
        "pairs": mined,
        "arms": arms,
    }


def told(gain: Mapping[str, float] | None) -> str:
    return "" if gain is None else f"{gain['value']:+.3f} ({gain['low']:+.3f} .. {gain['high']:+.3f})"


def show(said: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    seeds = len(said["seeds"])
    table = Table(title=f"held-out prompts of {seeds} seeds; gains with their 95 % interval", title_justify="left")
    main, control = said["arms"][PAIRS], said["arms"][CLIPS]
    for column in ("metric", "before", "pairs - before", "clips - before", "pairs - clips"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric in main["gain"]:
        before = sum(m.get(metric, float("nan")) for m in said["before"]) / seeds
        gaps = (main["gain"], control["gain"], main["over_clips"])
        table.add_row(metric, f"{before:.4g}", *(told(gap[metric]) for gap in gaps))
    console = Console()
    console.print(table)
    arms = Table(title="gain of synchrony, by arm and seed", title_justify="left")
    for column in ("arm", "all seeds", "each seed", "seconds"):
        arms.add_column(column)
    for name, arm in said["arms"].items():
        each = ", ".join(told(gain["toybox.sync"]) for gain in arm["gain_of_each_seed"])
        arms.add_row(name, told(arm["gain"]["toybox.sync"]), each, ", ".join(map(str, arm["seconds"])))
    console.print(arms)
    console.print(f"pairs: {', '.join(map(str, said['pairs']))}", highlight=False)


def drawn(
    said: Mapping[str, Any], folder: Path, metrics: Sequence[str] = ("toybox.sync", "toybox.count", VARIETY)
) -> str:
    """The gains of every arm, with their intervals, as a picture; its name."""
    from matplotlib.figure import Figure

    names = list(said["arms"])
    figure = Figure(figsize=(11, 1.4 + 0.45 * len(names)), layout="constrained")
    figure.suptitle("gain over the model before", fontsize=10)
    for axes, metric in zip(figure.subplots(1, len(metrics), sharey=True), metrics, strict=True):
        for row, name in enumerate(names):
            arm = said["arms"][name]
            gain = arm["gain"][metric]
            axes.plot([gain["low"], gain["high"]], [row, row], color="tab:blue", linewidth=3, alpha=0.5)
            axes.plot(gain["value"], row, "o", color="tab:blue")
            values = [one[metric]["value"] for one in arm["gain_of_each_seed"]]
            axes.plot(values, [row - 0.2] * len(values), "|", color="black", markersize=7)
        axes.axvline(0, color="grey", linewidth=1)
        axes.set_title(metric, fontsize=10)
        axes.locator_params(axis="x", nbins=5)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(folder / "gains.png", dpi=110)
    return "gains.png"


def pictured(folders: Mapping[str, Path], out: Path, count: int = 6) -> str:
    """The first held-out prompts as every model makes them from the same noise, in a picture; its name."""
    from avgen.data.contact_sheet import contact_sheet
    from avgen.data.media import read_clip

    clips, captions = [], []
    prompts = (folders[BEFORE] / "prompts.jsonl").read_text().splitlines()[:count]
    for line in map(json.loads, prompts):
        for name, folder in folders.items():
            made = sorted((folder / "clips").glob(f"{line['id']}_s*.mp4"))
            if made:  # none where its sampling failed
                clips.append(read_clip(made[0]).clip)
                captions.append(f"{name}: {line['prompt']}")
    contact_sheet(clips, captions, width=1000, most_frames=16, wave_height=40).save(out / "clips.png", optimize=True)
    return "clips.png"


if __name__ == "__main__":
    raise SystemExit(command.run(main))
