"""Two processes train what one trains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avgen.models.dit import AVTransformer
from avgen.sample.solvers import SolverConfig
from avgen.train.config import LoraConfig, OptimizerConfig, ParallelConfig, PartRates, PreferenceConfig, SamplesConfig
from avgen.train.step import drawn_tasks
from tests.distributed import ranks, training
from tests.models.factory import model
from tests.train import pairs

STRATEGIES = {
    "ddp": ParallelConfig("ddp"),
    "fsdp": ParallelConfig("fsdp"),
    "hsdp": ParallelConfig("hsdp", shard=1),
}
OPTIMIZERS = {kind: OptimizerConfig(kind=kind, warmup_steps=5, muon_precision="fp32") for kind in ("adamw", "muon")}


@pytest.fixture(scope="module", params=OPTIMIZERS)
def alone(request, tmp_path_factory):
    """A run of one process: its settings, what it saw, its weights."""
    changes = {"optimizer": OPTIMIZERS[request.param]}
    folder = tmp_path_factory.mktemp("alone")
    [(seen, weights)] = ranks.run(folder, 1, training.watched, training.config(folder / "run", **changes))
    return changes, seen, weights


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_equal_one(alone, strategy, tmp_path):
    changes, expected, weights = alone
    settings = training.config(tmp_path / "run", parallel=STRATEGIES[strategy], **changes)
    both = ranks.run(tmp_path, 2, training.watched, settings)
    for seen, found in both:
        worst = training.furthest(seen.losses, expected.losses)
        apart = training.difference(found, weights)
        print(f"{strategy}: losses within {worst:.1e}, weights within {apart:.1e}")
        assert worst < 1e-5
        assert apart < 1e-5
        assert seen.norms == pytest.approx(expected.norms, rel=1e-4)
        assert seen.rates == expected.rates


def test_copies_of_shards_equal_one(tmp_path):
    """HSDP over four processes: two copies of two shards, the rates of parts unlike and one of them frozen."""
    # eps: a gradient of nothing but rounding, of which a weight or two has one, is not to become a step
    scale = PartRates(video=0.5, captions=0.0)
    optimizer = OptimizerConfig(kind="muon", muon_precision="fp32", warmup_steps=2, scale=scale, eps=1e-5)
    changes = {"steps": 6, "optimizer": optimizer}
    [(expected, weights)] = ranks.run(tmp_path / "a", 1, training.watched, training.config(tmp_path / "one", **changes))
    settings = training.config(tmp_path / "four", parallel=ParallelConfig("hsdp", shard=2), **changes)
    for seen, found in ranks.run(tmp_path / "b", 4, training.watched, settings):
        assert training.furthest(seen.losses, expected.losses) < 1e-5
        assert training.difference(found, weights) < 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_adapters_of_two_processes_equal_those_of_one(strategy, tmp_path):
    model().save_pretrained(tmp_path / "start")
    changes = {"steps": 6, "start": tmp_path / "start", "lora": LoraConfig(rank=2)}
    usual = training.config(tmp_path / "one", **changes)
    [(expected, weights)] = ranks.run(tmp_path / "a", 1, training.watched_and_exported, usual)
    settings = training.config(tmp_path / "two", parallel=STRATEGIES[strategy], **changes)
    for seen, found in ranks.run(tmp_path / "b", 2, training.watched_and_exported, settings):
        assert training.furthest(seen.losses, expected.losses) < 1e-5
        assert training.difference(found, weights) < 1e-5
    adapters = [load_file(tmp_path / run / "lora" / "pytorch_lora_weights.safetensors") for run in ("one", "two")]
    assert adapters[0].keys() == adapters[1].keys()
    assert all((adapters[0][name] - adapters[1][name]).abs().max() < 1e-5 for name in adapters[0])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_shards_follow_one_process(precision, tmp_path):
    changes = {"steps": 6, "precision": precision}
    [(expected, _)] = ranks.run(tmp_path / "a", 1, training.watched, training.config(tmp_path / "one", **changes))
    settings = training.config(tmp_path / "two", parallel=STRATEGIES["fsdp"], **changes)
    for seen, found in ranks.run(tmp_path / "b", 2, training.watched, settings):
        assert training.furthest(seen.losses, expected.losses) < 0.03
        assert all(value.dtype == torch.float32 for value in found.values())


def test_the_export_of_shards_is_the_average(tmp_path):
    settings = training.config(tmp_path / "run", steps=3, parallel=STRATEGIES["fsdp"])
    [(_, weights), _] = ranks.run(tmp_path / "a", 2, training.watched_and_exported, settings)
    exported = AVTransformer.from_pretrained(tmp_path / "run" / "model")
    assert all(torch.equal(p, weights[f"average {name}"]) for name, p in exported.named_parameters())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_share_the_samples_of_one(strategy, tmp_path):
    """Five clips for two processes: one of them runs a sample that doesn't count."""
    samples = SamplesConfig(every=2, clips=1, solver=SolverConfig(steps=2))
    changes = {"steps": 2, "samples": samples, "tasks": dict.fromkeys(("t2av", "i2av", "v2a", "a2v", "t2a"), 1)}
    [alone] = ranks.run(tmp_path / "a", 1, training.sampled, training.config(tmp_path / "one", **changes))
    settings = training.config(tmp_path / "two", parallel=STRATEGIES[strategy], **changes)
    shared = ranks.run(tmp_path / "b", 2, training.sampled, settings)[0]
    files = [{path.name for path in (tmp_path / run / "samples" / "step_000002").iterdir()} for run in ("one", "two")]
    assert files[0] == files[1]
    assert len(files[0]) == 6
    assert shared.shape == alone.shape
    assert np.mean(np.abs(shared.astype(int) - alone) > 2) < 1e-3


def test_what_is_random_differs_between_processes_and_follows_the_place_in_the_batch(alone, tmp_path):
    changes, expected, _ = alone
    both = ranks.run(tmp_path, 2, training.watched, training.config(tmp_path / "run", steps=3, **changes))
    drawn = [{draw[:2]: draw[2:] for draw in seen.draws} for seen, _ in both]
    alone_drew = {draw[:2]: draw[2:] for draw in expected.draws if draw[0] < 3}
    assert {place for _, place in drawn[0]} == {0, 1}
    assert {place for _, place in drawn[1]} == {2, 3}
    together = drawn[0] | drawn[1]
    assert together.keys() == alone_drew.keys()
    for where, (task, levels, noise) in together.items():
        its_task, its_levels, its_noise = alone_drew[where]
        assert (task, levels) == (its_task, its_levels)
        for m in noise:
            count = min(len(noise[m]), len(its_noise[m]))  # tokens; a batch is padded to its longest
            assert torch.equal(noise[m][:count], its_noise[m][:count])
    for at in range(3):
        assert not torch.equal(drawn[0][at, 0][2]["video"][:1], drawn[1][at, 2][2]["video"][:1])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_tower_that_one_process_does_not_use_is_no_trouble(strategy, tmp_path):
    """Two clips a step: some steps make one process a picture without sound, the other the sound alone."""
    changes = {"batch": 2, "tasks": {"t2v": 1, "t2a": 1}, "steps": 6}
    settings = training.config(tmp_path / "run", parallel=STRATEGIES[strategy], **changes)
    tasks = [
        {task.name for task in drawn_tasks(settings, training.Both().batch(range(2)), step, range(2))}
        for step in range(6)
    ]
    assert {"t2v", "t2a"} in tasks
    [(expected, weights)] = ranks.run(
        tmp_path / "one", 1, training.watched, training.config(tmp_path / "a", **changes), training.Both()
    )
    for seen, found in ranks.run(tmp_path / "two", 2, training.watched, settings, training.Both()):
        assert training.furthest(seen.losses, expected.losses) < 1e-5
        assert seen.norms == pytest.approx(expected.norms, rel=1e-5)
        # gradients through one caption are small, and Adam divides their rounding by their size
        assert training.difference(found, weights) < 1e-4


def test_accumulation_over_two_processes_equals_the_big_batch(tmp_path):
    """16 ragged clips with silent ones among them, as one batch and as 2 processes x 4 x 2.

    Adam divides a gradient of next to nothing by its size, and so makes steps of rounding; this `eps` is above it.
    """
    changes = {"batch": 16, "steps": 4, "optimizer": OptimizerConfig(kind="adamw", warmup_steps=5, eps=1e-4)}
    [(expected, weights)] = ranks.run(tmp_path / "one", 1, training.watched, training.config(tmp_path / "a", **changes))
    [(parts, in_parts)] = ranks.run(
        tmp_path / "4", 1, training.watched, training.config(tmp_path / "b", accumulate=4, **changes)
    )
    assert training.furthest(parts.losses, expected.losses) < 1e-5
    assert training.difference(in_parts, weights) < 1e-5
    for strategy in ("ddp", "fsdp"):
        settings = training.config(tmp_path / strategy, accumulate=4, parallel=STRATEGIES[strategy], **changes)
        for seen, found in ranks.run(tmp_path / f"2 {strategy}", 2, training.watched, settings):
            assert training.furthest(seen.losses, expected.losses) < 1e-5
            assert training.difference(found, weights) < 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("lora", [LoraConfig(rank=4), None], ids=["adapters", "copy"])
def test_two_processes_prefer_as_one_does(strategy, lora, tmp_path):
    """Margins, losses and weights; the reference is sharded like the model."""
    # rounding, multiplied by thousands, would be all that is compared
    gentle = PreferenceConfig(beta_video=30.0, beta_audio=10.0, cheating=pairs.NEVER)
    optimizer = OptimizerConfig(kind="adamw", lr=1e-3, warmup_steps=2, eps=1e-3)
    changes = {"lora": lora, "steps": 4, "preference": gentle, "optimizer": optimizer}
    alone = pairs.config(tmp_path, **changes)
    [(expected, weights)] = ranks.run(tmp_path / "a", 1, training.preferring, alone)
    settings = replace(alone, out=tmp_path / "two", parallel=STRATEGIES[strategy])
    assert expected[0].abs().sum() > 0
    for noted, found in ranks.run(tmp_path / "b", 2, training.preferring, settings):
        torch.testing.assert_close(noted, expected, rtol=1e-3, atol=2e-4)
        assert training.difference(found, weights) < 1e-5
