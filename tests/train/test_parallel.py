"""Which meshes are refused, which weights move, what half precision does: everything that one process can show."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from avgen.data.stream import Share
from avgen.models.dit import AVTransformer
from avgen.models.lora import load_lora
from avgen.train.config import LoraConfig, OptimizerConfig, ParallelConfig, PartRates
from avgen.train.loop import optimise, train
from avgen.train.metrics import part_of
from avgen.train.optim import LossScale, Muon, orthogonalised
from avgen.train.parallel import Processes
from avgen.train.run import built, export, prepare
from tests.models.factory import model, scatter
from tests.train.test_train import Clips, config, quiet, same, weights


@given(st.integers(1, 4), st.integers(1, 4))
def test_a_mesh_holds_all_processes(replicate, shard):
    processes = replicate * shard
    assert ParallelConfig("hsdp", shard=shard, replicate=replicate).mesh(processes) == (replicate, shard)
    assert ParallelConfig("hsdp", shard=shard).mesh(processes) == (replicate, shard)
    assert ParallelConfig("fsdp").mesh(processes) == (1, processes)
    assert ParallelConfig("ddp").mesh(processes) == (processes, 1)
    with pytest.raises(ValueError, match=rf"must be the number of processes, {processes + 1}: change parallel.shard"):
        ParallelConfig("hsdp", shard=shard, replicate=replicate).mesh(processes + 1)


@given(st.integers(1, 6), st.integers(1, 4))
def test_those_that_share_clips_are_neighbours_and_the_weights_do_not_mind(readers, context):
    processes = readers * context
    for strategy, mesh in (("ddp", (processes, 1)), ("fsdp", (1, processes))):
        assert ParallelConfig(strategy, context=context).mesh(processes) == mesh
    all_of_them = [Processes(rank, processes, context, None, None) for rank in range(processes)]
    assert [p.reader for p in all_of_them] == sorted(list(range(readers)) * context)
    assert [p.rank for p in all_of_them if p.leads] == list(range(0, processes, context))
    with pytest.raises(ValueError, match=rf"context={processes + 1} must divide the number of processes, {processes}:"):
        ParallelConfig("ddp", context=processes + 1).mesh(processes)


def test_a_node_holds_a_copy_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert ParallelConfig("hsdp").mesh(8) == (2, 4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"strategy": "ddp", "shard": 2}, "shard=2 must be 1 where strategy=ddp"),
        ({"strategy": "fsdp", "replicate": 2}, "replicate=2 must be 1 where strategy=fsdp"),
        ({"shard": 0}, "shard=0 must be at least 1"),
    ],
)
def test_what_a_strategy_cannot_do_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        ParallelConfig(**wrong)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_part_of_rate_zero_stays_and_has_no_memory(tmp_path, kind):
    optimizer = OptimizerConfig(kind=kind, warmup_steps=0, weight_decay=0.1, scale=PartRates(video=0.0, captions=0.0))
    run = train(config(tmp_path, optimizer=optimizer, steps=3), Clips(), Clips(), quiet())
    fresh = dict(built(run.config).named_parameters())
    moved = {part_of(name) for name, p in run.model.named_parameters() if not torch.equal(p, fresh[name])}
    assert moved == {"audio", "bridge"}
    assert {part_of(name) for name in run.optimizers.state_dict()} == {part_of(n) for n in run.average.weights} == moved


def test_rates_of_parts_multiply_the_rate(tmp_path):
    """The first step of AdamW has the size of the rate, whatever the gradient."""
    optimizer = OptimizerConfig(kind="adamw", warmup_steps=0, lr=1e-4, scale=PartRates(audio=0.25))
    run, share = prepare(config(tmp_path, optimizer=optimizer)), Share(4, 1)
    scatter(run.model)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    optimise(run, [Clips().batch(range(4))], share)
    steps = {"video": [], "audio": []}
    for name, p in run.model.named_parameters():
        if part_of(name) in steps:
            steps[part_of(name)].append((p - before[name]).abs().max().item())
    assert max(steps["video"]) == pytest.approx(1e-4, rel=1e-2)
    assert max(steps["audio"]) == pytest.approx(0.25e-4, rel=1e-2)


def test_everything_frozen_is_refused(tmp_path):
    frozen = OptimizerConfig(scale=PartRates(0.0, 0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"optimizer.scale freezes every weight"):
        prepare(config(tmp_path, optimizer=frozen))


@pytest.fixture
def trained_model(tmp_path):
    model().save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def test_adapters_alone_are_trained_saved_resumed_and_exported(tmp_path, trained_model):
    lora = LoraConfig(parts=("video", "bridge"), rank=2)
    settings = {"start": trained_model, "lora": lora}
    whole = train(config(tmp_path / "whole", **settings), Clips(), Clips(), quiet())
    assert all(".lora_" in name for name in whole.average.weights)
    assert set(whole.optimizers.state_dict()) == set(whole.average.weights) == set(whole.state()["model"])
    base = dict(model().named_parameters())
    for name, p in whole.model.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(p, base[name.replace(".base_layer", "")])
    cut = config(tmp_path / "cut", **settings)
    again = prepare(cut)
    for step in range(2):
        optimise(again, [Clips().batch(range(step * 4, step * 4 + 4))], Share(4, 1))
    with again.writer:
        again.writer.save(again.about(), again.state())
    assert same(weights(whole), weights(train(cut, Clips(), Clips(), quiet())))
    adapted = AVTransformer.from_pretrained(trained_model)
    load_lora(adapted, export(whole))
    assert same({n: p for n, p in adapted.named_parameters() if ".lora_" in n}, whole.average.weights)


def test_adapters_want_a_model_and_a_model_wants_its_own_description(tmp_path, trained_model):
    with pytest.raises(ValueError, match="lora adapts a trained model: give start="):
        config(tmp_path, lora=LoraConfig())
    with pytest.raises(ValueError, match="holds another model than model= describes"):
        prepare(config(tmp_path, start=trained_model, model=model(coupling="none").spec))


def test_half_precision_takes_a_step_again_at_half_the_scale(tmp_path, monkeypatch):
    """An overflow costs time, not a step: weights end as if the scale had fitted from the start."""
    monkeypatch.setattr("avgen.train.metrics.matmul_rate", lambda *_: 1e9)
    runs = {}
    for name, scale in (("fits", 2.0**8), ("overflows", 2.0**40)):
        runs[name] = prepare(config(tmp_path / name, precision="fp16"))
        scatter(runs[name].model)
        runs[name].loss_scale.value = scale
        for step in range(2):
            optimise(runs[name], [Clips().batch(range(step * 4, step * 4 + 4))], Share(4, 1))
    fits, overflows = runs["fits"], runs["overflows"]
    assert fits.meter.clips == overflows.meter.clips == 8  # what is taken again is logged once
    assert fits.meter.flops == overflows.meter.flops
    torch.testing.assert_close(fits.meter.counts, overflows.meter.counts)
    torch.testing.assert_close(fits.meter.table.sums[1], overflows.meter.table.sums[1])
    assert fits.loss_scale.value == 2.0**8
    assert 1 < overflows.loss_scale.value < 2.0**40
    assert fits.step == overflows.step == 2
    assert all(p.isfinite().all() for p in overflows.model.parameters())
    apart = max((weights(fits)[n] - weights(overflows)[n]).abs().max().item() for n in weights(fits))
    assert apart < 2 * 2 * 1e-3  # two steps of AdamW at most, where a gradient is lost to one scale and not the other


def test_the_scale_falls_grows_and_gives_up():
    scale = LossScale(on=True)
    bad, good = torch.tensor(math.nan), torch.tensor(1.0)
    assert scale.overflowed(bad)
    assert scale.value == 2.0**15
    for _ in range(LossScale.GROWTH_STEPS):
        assert not scale.overflowed(good)
    assert scale.value == 2.0**16
    assert sum(scale.overflowed(bad) for _ in range(40)) == 16  # down to 1; then the guard must hear of it
    assert not LossScale(on=False).overflowed(bad)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**31))
def test_orthogonalised_keeps_directions_and_levels_sizes(rows, columns, seed):
    matrices = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, sizes, v = torch.linalg.svd(matrices[1], full_matrices=False)
    found = torch.linalg.multi_dot([u.T, orthogonalised(matrices, torch.float64)[1], v.T])
    assert (found - found.diag().diag()).abs().max() < 1e-6
    assert found.diag()[sizes > 0.05 * sizes.max()].min() > 0.3
    assert found.diag().max() < 1.3


def test_muon_is_torchs():
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(12, 20, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    mine = Muon([{"params": list(ours.parameters()), "lr": 0.02}], weight_decay=0.1, dtype=torch.float32)
    reference = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.1)
    for _ in range(5):
        x = torch.randn(8, 12)
        for layer, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    # theirs iterates in bfloat16, which keeps two to three digits
    assert (ours.weight - theirs.weight).norm() < 0.03 * (theirs.weight - start).norm()
