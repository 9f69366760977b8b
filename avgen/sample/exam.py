"""Held-out items put to a model, and what the reader sees and hears in its answers: in one process or several."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from avgen.data.toybox import Toybox, ToyboxConfig, ToyClip
from avgen.data.toybox.world import Split, render_facts
from avgen.ranks import cores
from avgen.sample.guidance import Guidance
from avgen.sample.inputs import Form, GivenMedia, Request
from avgen.sample.judge import Read
from avgen.sample.method import Method, Precision
from avgen.sample.pipeline import AVPipeline
from avgen.sample.solvers import SolverConfig
from avgen.tasks import NAMED
from avgen.types import Clip

TASKS = ("t2av", "i2av", "v2a", "a2v")
MOST_PROCESSES = 16  # unless asked for: each holds the libraries, half a GiB
What = Literal["t2av", "i2av", "v2a", "a2v", "real", "twins"]


@dataclass(frozen=True)
class ExamConfig:
    """Which items are put to which model, and how it makes its clips."""

    model: Path = Path("runs/toybox")  # as in avgen sample
    clips: int = 200  # per task
    tasks: tuple[str, ...] = TASKS  # of t2av, i2av, v2a and a2v
    world: ToyboxConfig = field(default_factory=lambda: ToyboxConfig(scenes=("single",)))  # its form is the model's
    seed: int = 0  # of the world, the noise and the bootstrap
    batch: int = 20  # clips made at once
    processes: int | None = None  # that make clips, of one thread each; null: one per core, or one for an accelerator
    solver: SolverConfig = field(default_factory=SolverConfig)
    guidance: Guidance = field(default_factory=Guidance)
    precision: Precision = "auto"  # of matrix products, by autocast
    attention: str | None = None  # kernel, as model.attention of avgen train; null: the one it was trained with

    def __post_init__(self) -> None:
        if self.clips < 2 or self.batch < 1:
            raise ValueError(f"clips={self.clips} must be at least 2 and batch={self.batch} at least 1")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes={self.processes} must be at least 1")
        wrong = [task for task in self.tasks if task not in TASKS]
        if wrong:
            raise ValueError(f"tasks={wrong} cannot be scored: choose from {', '.join(TASKS)}")


@dataclass(frozen=True)
class Exam:
    """Which items, and how their clips are made: all that a process needs to do any part of it."""

    world: ToyboxConfig
    split: Split
    seed: int
    clips: int  # per task
    form: Form
    method: Method

    @classmethod
    def of(cls, pipeline: AVPipeline, world: ToyboxConfig, split: Split, seed: int, clips: int, method: Method) -> Exam:
        """In the form that the model was trained on; by a method that it can follow."""
        pipeline.check(method)
        form = pipeline.trained_form
        world = replace(
            world,
            height=form.height,
            width=form.width,
            fps=form.fps,
            duration_s=form.duration_s,
            sample_rate_hz=pipeline.audio_codec.geometry.sample_rate_hz,
            audio_channels=pipeline.audio_codec.geometry.audio_channels,
        )
        # here, not where clips are made: processes would each find out for themselves, and in each other's way
        return cls(world, split, seed, clips, form, method.settled(pipeline.model.device))

    def item(self, place: int) -> ToyClip:
        return Toybox(self.world, self.split, self.seed)[place]

    def twin(self, place: int) -> Clip:
        """Another clip of the same caption."""
        return render_facts(self.item(place).facts, self.world, self.seed, place).clip

    def asked(self, task: str, place: int) -> ToyClip:
        """What clip `place` of a task is asked for; of each caption alone two clips are made, to exchange sounds."""
        return self.item(place // 2 if task == "t2av" else place)

    def request(self, task: str, place: int) -> Request:
        return Request(self.asked(task, place).caption, id=str(place), seed=self.seed * self.clips + place)

    def parts(self, what: What, size: int) -> list[Part]:
        return [Part(self, what, range(first, min(first + size, self.clips))) for first in range(0, self.clips, size)]


@dataclass(frozen=True)
class Part:
    """A batch of clips: real ones through the codecs, or made ones."""

    exam: Exam
    what: What
    places: range

    def read(self, pipeline: AVPipeline) -> list[Read]:
        return [Read.of(clip) for clip in self.clips(pipeline)]

    def clips(self, pipeline: AVPipeline) -> list[Clip]:
        exam = self.exam
        if self.what == "real":
            return [pipeline.through_codecs(exam.item(i).clip) for i in self.places]
        if self.what == "twins":
            return [pipeline.through_codecs(exam.twin(i)) for i in self.places]
        requests = [exam.request(self.what, i) for i in self.places]
        given = [given_of(self.what, exam.asked(self.what, i)) for i in self.places]
        return [made.clip for made in pipeline.make_from(requests, given, exam.form, exam.method)]


def given_of(task: str, item: ToyClip) -> GivenMedia:
    """What the task is given of an item: of the picture no more than an image file would hold."""
    assert item.clip.video is not None
    if task == "i2av":
        return GivenMedia(NAMED[task], np.repeat(item.clip.video[:1], len(item.clip.video), axis=0))
    return GivenMedia(
        NAMED[task], item.clip.video if task == "v2a" else None, item.clip.audio if task == "a2v" else None
    )


Reader = Callable[[Sequence[Part]], Iterator[list[Read]]]


def alone(pipeline: AVPipeline) -> Reader:
    return lambda parts: (part.read(pipeline) for part in parts)


@contextmanager
def crew(model: Path, pipeline: AVPipeline, processes: int | None) -> Iterator[Reader]:
    """So many processes, each with the model and one thread: a toy's layers are too small to be shared by threads.

    None: one per core (of at most MOST_PROCESSES) without an accelerator, else this process alone.
    """
    device = pipeline.model.device.type
    if device != "cpu" and (processes or 1) > 1:
        raise ValueError(f"processes={processes}: on {device} one process makes the clips; leave processes= out")
    count = processes or usual_processes(device == "cpu")
    if count == 1:
        yield alone(pipeline)
        return
    start = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, start, _open, (model, pipeline.model.spec.attention))
    try:
        yield lambda parts: pool.map(_read, parts)
    finally:
        pool.shutdown(cancel_futures=True)


def usual_processes(cpu: bool) -> int:
    return min(cores(), MOST_PROCESSES) if cpu else 1


_pipeline: AVPipeline  # of a process of the crew


def _open(model: Path, attention: str) -> None:
    from avgen.sample.folder import open_for

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
    torch.set_num_threads(1)
    global _pipeline
    _pipeline = open_for(torch.device("cpu"), model, attention)


def _read(part: Part) -> list[Read]:
    return part.read(_pipeline)
