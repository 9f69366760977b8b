"""One repetition of the demonstration: arms that go on from one model, compared on prompts that none has seen.

Sample, score, mine and train are the commands that anybody runs, each a process of its own. What has run to its end
is written into a ledger with the seconds it took, and is not run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from avgen.command import typed
from avgen.compose import load
from avgen.config import fingerprint, to_plain
from avgen.data.toybox.world import Split, ToyboxConfig
from avgen.lines import write_whole
from avgen.models.compilation import words_without_compiler
from avgen.models.identity import folder_mark
from avgen.prefer.config import PreferConfig
from avgen.train.config import TrainConfig
from avgen.train.data_config import ToyboxData
from avgen.types import Clip

METRICS = "[toybox,picture,loudness]"
# what must not get worse while the reward rises; the first six are, or may be, in it
FIGURES = (
    "toybox.sync",
    "toybox.kind",
    "toybox.colour",
    "toybox.count",
    "toybox.size",
    "toybox.right",
    "picture.sharpness",
    "picture.motion_per_s",
    "loudness.integrated_lufs",
)
VARIETY = "variety"
BATCH = 20  # clips made at once
HELD_OUT_CLIPS = 2  # of each prompt
GIVEN = {"i2av": "image", "v2a": "video", "a2v": "audio"}  # what a prompt's line gives the task, besides the text
OTHER_CLIPS = 1000  # added to the seed of training on clips: the model has read those of its own seed
LEARNED_PASSES = 4 / 3  # a step on pairs runs forward once more than one on clips, whose backward pass costs two
Values = dict[str, dict[str, float]]  # metric -> prompt -> mean over its clips


@dataclass(frozen=True)
class Arm:
    """One way to go on from the model."""

    words: tuple[str, ...] = ()  # of avgen train, on top of the recipe
    mode: str | None = None  # of mining; null: the demonstration's
    mine: tuple[str, ...] = ()  # further keys of avgen prefer
    pairs: bool = True  # false: the same weights and rates, on clips of the world, for as long


class Gone(NamedTuple):
    """How far an arm came."""

    run: Path  # of its last training
    seconds: float  # all that led to it
    training_s: float  # of them


PAIRS, CLIPS = "pairs", "clips"
ARMS = {PAIRS: Arm(), CLIPS: Arm(pairs=False)}


@dataclass(frozen=True)
class Ledger:
    """Seconds of every stage that has run to its end."""

    path: Path

    def read(self) -> dict[str, float]:
        return json.loads(self.path.read_text()) if self.path.is_file() else {}

    def run(self, words: Sequence[str], processes: int = 1) -> float:
        """`avgen ...`, or the same over several processes of one thread each; the seconds it took, now or before."""
        stage = f"{' '.join(words[:1])} {fingerprint(list(words))[:12]}"
        cut = f"{stage}, cut short"
        if (spent := self.read().get(stage)) is not None:
            return spent
        print(f"\navgen {' '.join(words)}", flush=True)
        start = [sys.executable, "-m", "avgen", *words]
        environment = dict(os.environ)
        if processes > 1:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            start = [*launch, "-m", f"avgen.{words[0]}", *words[1:]]
            environment["OMP_NUM_THREADS"] = "1"
        began, before, code = time.perf_counter(), self.read().get(cut, 0.0), -1
        try:
            code = run_to_end(start, environment)
        finally:
            spent = before + time.perf_counter() - began
            others = {name: seconds for name, seconds in self.read().items() if name != cut}
            self.write(others | {cut if code else stage: spent})
        if code:
            raise ValueError(
                f"avgen {words[0]} ended with exit code {code}: see above; the same command goes on from there"
            )
        return spent

    def write(self, seconds: Mapping[str, float]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(seconds, indent=1) + "\n")


def run_to_end(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit code. Ctrl-C is the command's as well, which saves what it has: it is waited for, and a second one kills
    it."""
    with subprocess.Popen(words, env=environment) as command:
        try:
            return command.wait()
        except KeyboardInterrupt:
            try:
                command.wait()
            except KeyboardInterrupt:
                command.kill()
            raise


@dataclass(frozen=True)
class Size:
    """How much a repetition samples and trains."""

    prompts: int
    candidates: int
    per_prompt: int
    held_out: int
    steps: int
    rounds: int
    solver_steps: int
    candidate_steps: int | None  # null: solver_steps
    mode: str
    task: str
    mine: tuple[str, ...]  # further keys of avgen prefer, of every arm
    train: tuple[str, ...]  # and of avgen train


@dataclass(frozen=True)
class Trial:
    """A repetition: seed of prompts, noise and training, and the folder it lies in."""

    model: Path
    out: Path
    seed: int
    size: Size
    processes: int  # that make clips

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.out / "seconds.json")

    @cached_property
    def weights(self) -> str:
        """Of the model that every arm goes on from."""
        return folder_mark(self.model / "model")

    @cached_property
    def known(self) -> ToyboxData:
        """What the model learned from."""
        from avgen.sample.folder import config_of

        data = config_of(self.model).data
        assert isinstance(data, ToyboxData), "the demonstration takes no other model"
        return data

    def folder(self, name: str, steps: int, *decides: Any) -> Path:
        """Named by all that decides what lies in it, with `steps` of its clips: nothing is taken for what was made
        otherwise."""
        decides = (self.weights, self.seed, steps, self.size.task, *decides)
        return self.out / f"{name}_{fingerprint(decides)[:8]}"

    @property
    def candidates(self) -> Path:
        """The folder of those of the first round."""
        return self.folder("candidates", self.candidate_steps, self.size.prompts, self.size.candidates)

    def held_out(self, name: str, model: Path) -> Path:
        """The folder of a model's clips to compare by."""
        return self.folder(f"held_out_{name}", self.size.solver_steps, str(model), self.size.held_out)

    @property
    def candidate_steps(self) -> int:
        return self.size.candidate_steps or self.size.solver_steps

    def own(self, name: str, arm: Arm) -> Path:
        """An arm's folder."""
        made = (self.candidates.name, self.size.steps, self.size.rounds)
        # what is compiled learns the same
        return self.folder(
            name, self.size.solver_steps, made, replace(self.taught(arm), compile=True), self.mining(arm)
        )

    def taught(self, arm: Arm) -> TrainConfig:
        """What an arm is trained with."""
        return load(TrainConfig, "train", self.told(arm))

    def told(self, arm: Arm) -> list[str]:
        # an arm's own words come last: they are what it differs by
        return ["recipe=toybox_dpo", *words_without_compiler(), *self.size.train, *arm.words]

    def mining(self, arm: Arm) -> PreferConfig:
        return load(PreferConfig, "prefer", ["clips=.", "results=.", *self.how(arm)])

    def how(self, arm: Arm) -> list[str]:
        """Pairs are mined."""
        return [f"mode={arm.mode or self.size.mode}", f"per_prompt={self.size.per_prompt}", *self.size.mine, *arm.mine]

    def judged(self, name: str, model: Path) -> Values:
        """Clips of held-out prompts by a model, scored."""
        folder = self.held_out(name, model)
        prompts, clips, scores = folder / "prompts.jsonl", folder / "clips", folder / "scores"
        write_prompts(prompts, self.known.world, "test", 1000 + self.seed, self.size.held_out, self.size.task)
        self.sampled(model, prompts, clips, HELD_OUT_CLIPS, self.size.solver_steps)
        self.scored(prompts, clips, scores, METRICS)
        return values_of(scores)

    def sampled(self, model: Path, prompts: Path, clips: Path, each: int, steps: int) -> float:
        how = (f"samples={each}", f"seed={self.seed * 1000}", f"solver.steps={steps}")
        what = (f"task={self.size.task}", f"prompts={prompts}", f"out={clips}", f"batch={BATCH}")
        return self.ledger.run(["sample", f"model={model}", *what, *how, "precision=auto"], self.processes)

    def scored(self, prompts: Path, clips: Path, scores: Path, metrics: str) -> float:
        asked = ("suite=plain", f"prompts={prompts}", f"clips={clips}", f"metrics={metrics}", f"out={scores}")
        return self.ledger.run(["eval", *asked, "nulls=false", "ceiling=false", "resamples=100"])

    def mined(self, name: str, arm: Arm) -> Path:
        """The pairs of the first round."""
        return self.own(name, arm) / "pairs_1"

    def improved(self, name: str, arm: Arm) -> Gone:
        if not arm.pairs:
            return self.continued_on_clips(name, arm)
        own = self.own(name, arm)
        run, model, start, spent, training = self.model, self.model, self.model / "model", 0.0, 0.0
        for number in range(1, self.size.rounds + 1):
            # candidates of the first round are every arm's: all go on from one model
            whose = self.candidates if number == 1 else own / f"candidates_{number}"
            prompts, clips, scores = whose / "prompts.jsonl", whose / "clips", whose / "scores"
            seed = 1000 * self.seed + number
            write_prompts(prompts, self.known.world, "train", seed, self.size.prompts, self.size.task)
            spent += self.sampled(model, prompts, clips, self.size.candidates, self.candidate_steps)
            spent += self.scored(prompts, clips, scores, "[toybox]")
            pairs, run = own / f"pairs_{number}", own / f"run_{number}"
            mined = [f"clips={clips}", f"results={scores}", f"out={pairs}", *self.how(arm)]
            spent += self.ledger.run(["prefer", *mined])
            what = (f"data.pairs={pairs}", f"data.pipeline={self.model}", f"data.latents={whose / 'latents'}")
            same = (f"start={start}", f"out={run}", f"seed={self.seed}", "tracking.to=[]")
            long = (f"steps={self.size.steps}", f"validate_every={self.size.steps}")  # looks take time from steps
            training += self.ledger.run(["train", *what, *same, *long, *self.told(arm)])
            model, start = run, own / f"model_{number}"
            if number < self.size.rounds:
                fold(run, start)
        return Gone(run, spent + training, training)

    def continued_on_clips(self, name: str, arm: Arm) -> Gone:
        """The same weights at the same rates and levels on clips of the kind that the model learned from, for as long
        as pairs took with sampling, scoring and mining; starting a process counts for neither."""
        pairs, taught = self.improved(PAIRS, ARMS[PAIRS]), self.taught(ARMS[PAIRS])
        step_s = seconds_per_step(pairs.run)
        busy_s = pairs.seconds - pairs.training_s + self.size.rounds * self.size.steps * step_s
        run, steps = self.own(name, arm) / "run", round(LEARNED_PASSES * busy_s / step_s)
        words = (
            *("recipe=toybox", f"start={self.model / 'model'}", f"out={run}", f"steps={steps}"),
            f"seed={OTHER_CLIPS + self.seed}",
            *words_of("data", to_plain(self.known)),
            *(() if taught.lora is None else words_of("lora", to_plain(taught.lora))),
            *words_of("optimizer", to_plain(taught.optimizer)),
            *words_of("flow", to_plain(taught.flow)),
            *(f"{key}={getattr(taught, key)}" for key in ("batch", "precision", "ema_decay", "compile")),
            *("samples.every=0", f"tasks={{{self.size.task}:1}}", "validate_every=100000", "tracking.to=[]"),
        )
        seconds = self.ledger.run(["train", *words])
        return Gone(run, seconds, seconds)


def seconds_per_step(run: Path) -> float:
    """The middle one of those that a run has logged: the first include compilation."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return 1 / median(line["steps_per_s"] for line in lines if "steps_per_s" in line)


def words_of(key: str, value: Any) -> list[str]:
    """Plain values as they are typed: data.world.scenes=[single]."""
    if isinstance(value, dict):
        return [word for name, inner in value.items() for word in words_of(f"{key}.{name}", inner)]
    return [f"{key}={typed(value)}"]


def write_prompts(path: Path, config: ToyboxConfig, split: Split, seed: int, count: int, task: str = "t2av") -> None:
    """Distinct captions of a world, each with what the task is given: a clip of it."""
    from avgen.data.toybox import Toybox, caption, facts_of

    world, items = Toybox(config, split, seed), dict[str, int]()
    for index in range(100 * count):
        scene = world.scene(index)  # the clip itself is not needed
        items.setdefault(caption(facts_of(scene, world.config.duration_s), scene.wording), index)
        if len(items) == count:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"id": f"{split}_{i:04d}", "prompt": text} for i, text in enumerate(items)]
    if task in GIVEN:
        for line, index in zip(lines, items.values(), strict=True):
            file = path.with_name("given") / f"{line['id']}.{'png' if task == 'i2av' else 'mp4'}"
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                give(world[index].clip, file)
            line[GIVEN[task]] = str(file.resolve())
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def give(clip: Clip, file: Path) -> None:
    """The clip as a file, or its first frame."""
    from PIL import Image

    from avgen.data.media import write_clip

    if file.suffix == ".png":
        assert clip.video is not None
        Image.fromarray(clip.video[0]).save(file)
    else:
        write_clip(file, clip)


def fold(run: Path, into: Path) -> None:
    """A run's adapters in its weights, for the next round to start from."""
    from avgen.sample.folder import open_pipeline

    if not into.exists():
        draft = into.with_name(f"{into.name}.part")
        open_pipeline(run).model.save_pretrained(draft)
        draft.replace(into)


def values_of(scores: Path) -> Values:
    from avgen.data.media import read_clip
    from avgen.train.cheating import clip_difference

    found: dict[str, dict[str, list[float]]] = {name: {} for name in (*FIGURES, VARIETY)}
    files: dict[str, list[Path]] = {}
    for line in map(json.loads, (scores / "results.jsonl").read_text().splitlines()):
        files.setdefault(line["prompt"], []).append(scores / line["file"])
        for name in FIGURES:
            cell = line["results"].get(name)  # none where an earlier version scored it
            if cell is not None and cell["status"] == "ok":
                found[name].setdefault(line["prompt"], []).append(cell["value"])
    for prompt, (one, other, *_) in files.items():
        found[VARIETY][prompt] = [clip_difference(read_clip(one).clip, read_clip(other).clip)]
    return {name: {p: sum(v) / len(v) for p, v in prompts.items()} for name, prompts in found.items()}


def gains(one: Sequence[Values], other: Sequence[Values], seed: int = 0) -> dict[str, Any]:
    """One less the other, of each repetition by the prompts that both have; intervals are of 95 % of resampled
    prompts, those of all repetitions together."""
    from avgen.sample.judge import difference

    found: dict[str, Any] = {}
    for name in one[0]:
        ours: list[tuple[float, float]] = []
        theirs: list[tuple[float, float]] = []
        for a, b in zip(one, other, strict=True):
            both = sorted(a[name].keys() & b[name].keys())
            ours += [(a[name][prompt], 1.0) for prompt in both]
            theirs += [(b[name][prompt], 1.0) for prompt in both]
        found[name] = asdict(difference(ours, theirs, seed)) if ours else None
    return found


def means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {metric: sum(found.values()) / len(found) for metric, found in values.items() if found}
