"""`python -m avgen.sample.bench model=DIR`: what guidance and caches cost, how few steps and windows do."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from avgen import command
from avgen.config import at_least_one
from avgen.sample.cache import CacheConfig
from avgen.sample.guidance import NO_GUIDANCE, Guidance, ModalityGuidance, guided
from avgen.sample.inputs import GivenMedia, Request
from avgen.sample.loop import generate
from avgen.sample.method import Method
from avgen.sample.pipeline import AVPipeline, sample_noise
from avgen.sample.seams import meetings_s, seam_ranks
from avgen.sample.solvers import SolverConfig, SolverKind
from avgen.tasks import T2AV
from avgen.types import Batch, Clip, stack_batches

CAPTION = "A medium red ball bounces three times."
Row = tuple[str, str]


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, on which model."""

    model: Path = Path("runs/toybox")  # as in avgen sample
    measure: tuple[str, ...] = ("start", "cost", "solvers", "seams", "cache")  # of these
    batch: int = 4  # clips at once
    repeats: int = 5  # of each timing, taken in turn; the median counts
    reference_steps: int = 200  # of heun, that solvers are held against
    long_s: float = 20.0  # of the clip whose seams are looked for
    attention: str | None = None  # kernel, as model.attention of avgen train; null: the one it was trained with

    def __post_init__(self) -> None:
        wrong = [name for name in self.measure if name not in MEASURES]
        if wrong:
            raise ValueError(f"measure={wrong} is unknown: choose from {', '.join(MEASURES)}")
        at_least_one(self, "batch", "repeats", "reference_steps")


def clean_batch(pipeline: AVPipeline, size: int) -> Batch:
    requests, given = [Request(CAPTION)] * size, [GivenMedia(T2AV)] * size
    return pipeline.batch(requests, given, pipeline.trained_form).to(pipeline.model.device)


def start(pipeline: AVPipeline, config: BenchConfig) -> Iterator[Row]:
    """From a shell to a clip on the disk: interpreter, libraries, model, one clip."""
    with tempfile.TemporaryDirectory() as out:
        words = [f"model={config.model}", f"prompt={CAPTION}", f"out={out}", "precision=auto"]
        words += [] if config.attention is None else [f"attention={config.attention}"]
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "avgen.sample", *words], check=True, capture_output=True)
        yield "cold start to first clip", f"{time.perf_counter() - began:.1f} s"
    size, method = 16, Method(precision="auto").settled(pipeline.model.device)
    began = time.perf_counter()
    pipeline.make([Request(CAPTION, seed=i) for i in range(size)], "t2av", pipeline.trained_form, method)
    yield f"clips per minute, {method.precision}, batch {size}", f"{60 * size / (time.perf_counter() - began):.1f}"


@torch.no_grad()
def cost(pipeline: AVPipeline, config: BenchConfig) -> Iterator[Row]:
    """A step with three guidance terms against four forwards, in one batch of as many samples and one by one."""
    batch = clean_batch(pipeline, config.batch)
    each = ModalityGuidance(text=2.0, cross=1.5, perturbed=0.5, layers=(0,), rescale=0.5)
    made = {m: getattr(batch, m).level > 0 for m in ("video", "audio")}
    fourfold = stack_batches([batch] * 4)
    ways: dict[str, Callable[[], object]] = {
        "guided": lambda: guided(pipeline.model, batch, Guidance(each, each), dict.fromkeys(made, 1.0), made),
        "one by one": lambda: [pipeline.model(batch) for _ in range(4)],
        "together": lambda: pipeline.model(fourfold),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(config.repeats + 1):  # the first is a warm-up
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if pipeline.model.device.type == "cuda":
                torch.cuda.synchronize()
            spent[name].append(time.perf_counter() - began)
    median = {name: float(np.median(times[1:])) for name, times in spent.items()}
    began = time.perf_counter()
    pipeline.make([Request(CAPTION, seed=i) for i in range(config.batch)], "t2av", pipeline.trained_form)
    yield (
        f"clips per minute, {SolverConfig().steps} steps, batch {config.batch}",
        f"{60 * config.batch / (time.perf_counter() - began):.1f}",
    )
    yield f"guided step, {config.batch} clips", f"{1000 * median['guided']:.0f} ms"
    for name in ("one by one", "together"):
        yield f"over four forwards {name}", f"{median['guided'] / median[name]:.3f}"


def solvers(pipeline: AVPipeline, config: BenchConfig) -> Iterator[Row]:
    """RMS distance of the tokens from those of many steps of heun, the same noise, without guidance."""
    batch = clean_batch(pipeline, config.batch)
    keys = [(seed, CAPTION) for seed in range(config.batch)]
    noise = {m: sample_noise(getattr(batch, m).x, m, keys) for m in ("video", "audio")}

    def solved(kind: SolverKind, steps: int) -> dict[str, torch.Tensor]:
        return generate(pipeline.model, batch, noise, SolverConfig(kind, steps), NO_GUIDANCE, pipeline.config.predict)

    truth = solved("heun", config.reference_steps)
    runs: Sequence[tuple[SolverKind, int]] = (("euler", 12), ("euler", 30), ("heun", 6), ("multistep", 12))
    for kind, steps in runs:
        found = solved(kind, steps)
        far = {m: (found[m] - truth[m]).square().mean((1, 2)).sqrt() for m in found}
        said = ", ".join(f"{m} {float(d.mean()):.4f} (median {float(d.median()):.4f})" for m, d in far.items())
        yield f"{kind}, {steps} steps, from the reference", said


def seams(pipeline: AVPipeline, config: BenchConfig) -> Iterator[Row]:
    """How far sound and picture jump where windows meet, as a share of instants drawn at random that jump less."""
    form = replace(pipeline.trained_form, duration_s=config.long_s)
    clip = pipeline.make([Request(CAPTION)], "t2av", form, Method(SolverConfig(steps=12)))[0].clip
    for name, ranks in seam_ranks(clip, meetings_s(pipeline, form)).items():
        said = f"median {np.median(ranks):.2f}, highest {max(ranks):.2f} of {len(ranks)}" if len(ranks) else "none"
        yield f"{name} at seams, share of other instants that jump less", said


def cache(pipeline: AVPipeline, config: BenchConfig) -> Iterator[Row]:
    """Clips with blocks left out, and with fewer steps instead, against those with neither."""
    requests = [Request(CAPTION, seed=seed) for seed in range(config.batch)]
    few = SolverConfig().steps * 3 // 5
    ways = {
        "uncached": Method(),
        "every=2": Method(cache=CacheConfig(every=2)),
        "every=3": Method(cache=CacheConfig(every=3)),
        f"{few} steps instead": Method(SolverConfig(steps=few)),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    clips: dict[str, list[Clip]] = {}
    for _ in range(config.repeats):
        for name, method in ways.items():
            began = busy_s(pipeline)
            clips[name] = [m.clip for m in pipeline.make(requests, "t2av", pipeline.trained_form, method)]
            spent[name].append(busy_s(pipeline) - began)
    truth, whole = clips["uncached"], min(spent["uncached"])
    for name in list(ways)[1:]:
        pictures, sounds = (
            [nearness_db(getattr(a, m), getattr(b, m), peak) for a, b in zip(truth, clips[name], strict=True)]
            for m, peak in (("video", 255.0), ("audio", 1.0))
        )
        yield (
            f"cache, {name}",
            f"{min(spent[name]) / whole:.2f} of the time; PSNR of picture median {np.median(pictures):.1f}, lowest"
            f" {min(pictures):.1f} dB, of sound {np.median(sounds):.1f}, {min(sounds):.1f} dB",
        )


def busy_s(pipeline: AVPipeline) -> float:
    """A clock that other processes on the same cores do not drive."""
    if pipeline.model.device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def nearness_db(one: np.ndarray, other: np.ndarray, peak: float) -> float:
    error = np.square(one.astype(np.float64) - other).mean()
    return float(10 * np.log10(peak**2 / max(error, 1e-12)))


MEASURES: dict[str, Callable[[AVPipeline, BenchConfig], Iterator[Row]]] = {
    "start": start,
    "cost": cost,
    "solvers": solvers,
    "seams": seams,
    "cache": cache,
}


def main(argv: list[str] | None = None) -> int:
    about = "what guidance and caches cost, how near few steps come, how windows meet"
    config = command.configure(
        BenchConfig,
        None,
        argv,
        about,
        ["python -m avgen.sample.bench model=runs/toybox measure=[cost]"],
        "python -m avgen.sample.bench",
    )
    began = time.perf_counter()
    from avgen.ranks import this_process
    from avgen.sample.folder import open_for

    pipeline = open_for(this_process().device, config.model, config.attention)
    print(f"{'opening the model':60} {time.perf_counter() - began:.1f} s")
    for name in config.measure:
        for what, value in MEASURES[name](pipeline, config):
            print(f"{what:60} {value}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
