"""Optimisers: a part that learned nothing in a step stays put, and one that did moves as it always would."""

from __future__ import annotations

import pytest
import torch

from avgen.data.stream import Share
from avgen.train.config import OptimizerConfig, TaskStage
from avgen.train.loop import optimise
from avgen.train.metrics import gradient_norms, part_of
from avgen.train.optim import Muon, Optimizers
from avgen.train.run import prepare
from tests.models.factory import model, scatter
from tests.train.test_train import Clips, config


def copied(tensors):
    return {name: value.detach().clone() for name, value in tensors}


def memories(run):
    found = run.optimizers.state_dict().items()
    return {f"{name} {kind}": value.clone() for name, kinds in found for kind, value in kinds.items()}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_tower_without_clips_stays_put_and_remembers(tmp_path, kind):
    optimizer = OptimizerConfig(kind=kind, warmup_steps=0, weight_decay=0.1, schedule="constant")
    stages = (TaskStage(3, {"t2av": 1}), TaskStage(5, {"t2v": 1}))
    run, share = prepare(config(tmp_path, tasks={"t2av": 1}, task_stages=stages, optimizer=optimizer)), Share(4, 1)
    scatter(run.model)
    found = []
    for _ in range(6):
        optimise(run, [Clips().batch([0, 1, 3, 4])], share)
        found.append((copied(run.model.named_parameters()), memories(run)))
    (before, kept), (silent, remembered), (after, _) = found[2], found[4], found[5]
    assert moved(before, silent) == {"video", "captions"}
    assert {part_of(name) for name in kept if not torch.equal(kept[name], remembered[name])} == {"video", "captions"}
    assert moved(silent, after) == {"video", "audio", "bridge", "captions"}


def moved(before, after):
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


def taught(learner, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in learner.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def test_a_step_in_which_all_parts_learn_is_the_plain_optimisers_bit_for_bit():
    """Whatever cuts them by part."""
    settings = OptimizerConfig(kind="muon", lr=1e-2, muon_lr=2e-2, weight_decay=0.1, muon_precision="fp32")
    ours, theirs = model(), model()
    optimizers = Optimizers(ours, settings)
    names = {p: name for name, p in optimizers.named.items()}
    by_muon = {names[p] for o in optimizers.parts if isinstance(o, Muon) for g in o.param_groups for p in g["params"]}
    whole = dict(theirs.named_parameters())
    # decay as the guard hands it over
    muon = Muon([{"params": [whole[n] for n in by_muon], "lr": 2e-2}], torch.tensor(0.1), torch.float32)
    vectors = [p for n, p in whole.items() if n not in by_muon]
    adamw = torch.optim.AdamW(vectors, lr=1e-2, betas=settings.betas, eps=settings.eps, weight_decay=0.1, fused=True)
    for step in range(4):
        taught(ours, step)
        taught(theirs, step)
        optimizers.step(1.0, gradient_norms(ours))
        muon.step()
        adamw.step()
    assert all(torch.equal(p, whole[name]) for name, p in ours.named_parameters())
