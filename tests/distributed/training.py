"""What the processes of the tests do: real, tiny training runs, and what is seen of them."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from PIL import Image

from avgen.models.dit import Perturbation
from avgen.train import loop
from avgen.train.config import OptimizerConfig
from avgen.train.metrics import reproducible
from avgen.train.parallel import ContextGroup, gathered
from avgen.train.run import export
from avgen.train.trackers import METRICS, read_metrics
from avgen.types import stack_batches
from tests.models.factory import batch, model, scatter
from tests.train.factory import CODECS, quiet
from tests.train.factory import config as tiny
from tests.train.pairs import Pairs, order


class Clips:
    """Ragged clips by index; every third is silent, every fifth blind."""

    def batch(self, indices, at=None):
        return stack_batches([self.clip(i) for i in indices])

    def clip(self, i):
        clip = batch((f"clip {i}",), frames=2 + i % 3, audio_steps=4 + i % 4, level=1.0, seed=i)
        if i % 5 == 4:
            return replace(clip, video=None)
        return replace(clip, audio=None) if i % 3 == 2 else clip


class Both(Clips):
    """Clips that lack nothing."""

    def clip(self, i):
        return batch((f"clip {i}",), frames=2 + i % 3, audio_steps=4 + i % 4, level=1.0, seed=i)


def config(folder, **changes):
    optimizer = OptimizerConfig(kind="adamw", warmup_steps=5)
    return tiny(folder, **{"steps": 20, "optimizer": optimizer} | changes)


def opened(model):
    """A fresh model has closed gates, behind which half of it has no gradient."""
    return scatter(model)


class Seen:
    """Everything random that a process drew, and the rates and gradients of its steps."""

    def __init__(self):
        self.draws, self.rates, self.norms, self.losses = [], [], [], []


def watched(settings, source=None, order=None, after=lambda run: None):
    """Train; what this process saw, and the whole weights at the end."""
    seen = Seen()
    real_draw, real_optimise, real_model = loop.draw, loop.optimise, loop.prepare.__globals__["AVTransformer"]

    def draw(clips, config, at, places):
        drawn = real_draw(clips, config, at, places)
        for row, place in enumerate(places):
            streams = {m: getattr(drawn.noisy, m) for m in ("video", "audio")}
            noise = {m: getattr(drawn.noise, m)[row, :4].clone() for m in streams}
            levels = {m: s.levels[row].amax().item() for m, s in streams.items() if s.present[row]}
            seen.draws.append((at, place, drawn.tasks[row], levels, noise))
        return drawn

    def optimise(run, *rest):
        found = real_optimise(run, *rest)
        seen.rates.append([sorted({group["lr"] for group in part.param_groups}) for part in run.optimizers.parts])
        seen.norms.append(run.meter.norms[-1]["all"].item())
        seen.losses.append(
            {m: run.processes.summed(v.detach().clone()).item() for m, v in found.items() if m in ("video", "audio")}
        )
        return found

    class Opened(real_model):
        def initialise(self):
            super().initialise()
            opened(self)

    loop.draw, loop.optimise, loop.prepare.__globals__["AVTransformer"] = draw, optimise, Opened
    try:
        run = loop.train(settings, source or Clips(), Clips(), quiet(), order)
    finally:
        loop.draw, loop.optimise, loop.prepare.__globals__["AVTransformer"] = real_draw, real_optimise, real_model
    after(run)
    return seen, whole(run)


def watched_and_exported(settings):
    return watched(settings, after=export)


def sampled(settings):
    """A run that shows samples; the sheet of its last step."""
    loop.train(settings, Clips(), Clips(), quiet(), codecs=CODECS)
    with Image.open(settings.out / "samples" / f"step_{settings.steps:06d}" / "sheet.png") as sheet:
        return np.asarray(sheet)


def sliced_and_whole():
    """Per kind of model: how far velocities and gradients of slices are from those of whole clips, as fractions."""
    accelerator = Accelerator(cpu=True)
    count = accelerator.num_processes
    sharing = ContextGroup.of(accelerator, count)
    noisy = loop.draw(Clips().batch(range(5)), config(Path("unused"), batch=5), 0, range(5)).noisy
    off = Perturbation(torch.tensor([1.0, 0, 1, 0, 1]), *(torch.eye(5, depth).bool() for depth in (3, 2)))
    variants = {
        "cross": ({}, "none", None),
        "cross, checkpointed": ({}, "full", None),
        "cross, attention kept": ({}, "keep_attention", None),
        "cross, perturbed": ({}, "none", off),
        "joint": ({"coupling": "joint"}, "none", None),
        "alone": ({"coupling": "none"}, "none", None),
        "anchored": ({"anchored": True}, "none", None),
        "local": ({"local": True}, "none", None),
        "local, joint": ({"local": True, "coupling": "joint"}, "none", None),
    }
    found = {}
    for name, (changes, checkpointing, perturbation) in variants.items():
        whole, parts = model(**changes), model(**changes)
        parts.sharing = sharing
        velocities = []
        for one in (whole, parts):
            one.set_checkpointing(checkpointing)
            velocities.append(one(noisy, perturbation))
            sum(v.square().sum() for v in velocities[-1]).backward()
        for p in parts.parameters():
            dist.all_reduce(p.grad)
        gradients = [(p.grad / count, q.grad) for p, q in zip(parts.parameters(), whole.parameters(), strict=True)]
        found[name] = (apart(zip(*velocities, strict=True)), apart(gradients))
    return found


def apart(pairs):
    return max(((one - other).abs().max() / (1 + other.abs().max())).item() for one, other in pairs)


def logged(folder):
    """The figures of a run that follow from what it did, by step and name."""
    lines = read_metrics(folder / METRICS)
    return {(line["step"], name): value for line in lines for name, value in reproducible(line).items()}


def trained(settings):
    """The whole weights at the end."""
    return whole(loop.train(settings, Clips(), Clips(), quiet()))


def preferring(settings):
    """Of a run on pairs: what its steps noted, over all processes, and the whole weights at the end."""
    noted, real_step = [], loop.optimise

    def optimise(run, *rest):
        before = run.meter.noted.clone()
        found = real_step(run, *rest)
        noted.append(run.processes.summed((run.meter.noted - before).cpu()))
        return found

    loop.optimise = optimise
    settings = replace(settings, log_every=settings.steps)  # a line clears what was noted
    try:
        run = loop.train(settings, Pairs(), Pairs(), quiet(), order(settings))
    finally:
        loop.optimise = real_step
    names = {name.replace(".base_layer", "") for name, _ in run.model.named_parameters()}
    return torch.stack(noted), {n: v for n, v in whole(run).items() if n.replace(".base_layer", "") in names}


class Until(Clips):
    """Clips that ask the run to stop in the step that reads clip `last`."""

    def __init__(self, last):
        self.last = last

    def batch(self, indices, at=None):
        if self.last in indices:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(indices)


def watched_until(settings, step):
    """As `watched`, stopped after so many steps by a signal to whichever process reads the last clip of them."""
    return watched(settings, Until(step * settings.batch - 1))


def whole(run):
    weights = {name: gathered(value.detach()).clone() for name, value in run.model.state_dict().items()}
    return weights | {f"average {name}": gathered(value).clone() for name, value in run.average.weights.items()}


def difference(one, other):
    """The largest difference of two sets of weights.

    A bias common to all keys of a softmax changes nothing: its gradient is zero but for rounding, which Adam, blind to
    size, makes into steps. The byte encoder's is left out; the towers' keys are normalised after theirs.
    """
    assert one.keys() == other.keys()
    return max((one[name] - other[name])[meant(name, one[name])].abs().max().item() for name in one)


def furthest(losses, others):
    """The largest difference between the losses of two runs' steps."""
    assert len(losses) == len(others)
    assert all(one.keys() == other.keys() for one, other in zip(losses, others, strict=True))
    return max(abs(one[m] - other[m]) for one, other in zip(losses, others, strict=True) for m in one)


def meant(name, value):
    third = len(value) // 3 if value.dim() else 0
    return torch.tensor([not (name.endswith("qkv.bias") and third <= i < 2 * third) for i in range(len(value))])


def identical(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
