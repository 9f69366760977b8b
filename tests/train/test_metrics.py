"""What is logged: sums that add up, norms per part, and no wait for the device between two lines."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from avgen.data.stream import Share
from avgen.flow import Loss
from avgen.models.cost import PARTS, parameters
from avgen.train import loop
from avgen.train.config import OptimizerConfig
from avgen.train.loop import accumulate, optimise, train
from avgen.train.metrics import LEVELS, LossTable, gradient_norms, level_name, part_of
from avgen.train.run import prepare
from avgen.train.step import draw, step_losses
from tests.models.factory import config as model_config
from tests.models.factory import model, scatter
from tests.train.test_train import Clips, config, quiet

OPERATIONS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item")
METHODS = ("tolist", "cpu", "numpy", "item", "__bool__", "__float__", "__int__", "__array__")


class Waits(TorchDispatchMode):
    """Collects what would make the host wait for a device: values read, tensors copied to the CPU.

    On the CPU some of it never reaches the dispatcher, so the methods are watched too.
    """

    def __init__(self, monkeypatch):
        super().__init__()
        self.seen, self.watching = [], False
        for name in METHODS:
            monkeypatch.setattr(torch.Tensor, name, self.noted(name, getattr(torch.Tensor, name)))

    def noted(self, name, method):
        def inner(*args, **kwargs):
            self.note(name)
            return method(*args, **kwargs)

        return inner

    def note(self, name):
        if self.watching:
            self.seen.append(name)

    def __enter__(self):
        self.watching = True
        return super().__enter__()

    def __exit__(self, *error):
        self.watching = False
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in OPERATIONS or (name == "_to_copy" and (kwargs or {}).get("device") == torch.device("cpu")):
            self.note(name)
        return func(*args, **(kwargs or {}))

    def apart_from(self, function):
        """What this function reads lies on the host by construction."""

        def inner(*args, **kwargs):
            self.watching, before = False, self.watching
            found = function(*args, **kwargs)
            self.watching = before
            return found

        return inner


@pytest.fixture
def waits(monkeypatch):
    watch = Waits(monkeypatch)
    # the batch is drawn and its tokens are counted before anything is moved to the device
    for name in ("draw", "global_totals"):
        monkeypatch.setattr(loop, name, watch.apart_from(getattr(loop, name)))
    return watch


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_no_step_waits_for_the_device_between_two_lines(tmp_path, waits, kind):
    settings = config(tmp_path, accumulate=2, balance=0.9, optimizer=OptimizerConfig(kind=kind, weight_decay=0.1))
    run, share = prepare(settings), Share(4, 2)
    micro_batches = [[Clips().batch(list(places)) for places in share.places()] for _ in range(3)]
    with waits:
        for batches in micro_batches:
            optimise(run, batches, share)
        print(f"3 steps of 2 micro-batches, {kind}: {len(waits.seen)} waits")
        assert waits.seen == []
        run.meter.read(run.accelerator)
    assert "cpu" in waits.seen  # the hook sees the one place that does wait


def test_tables_add_up_to_the_loss(tmp_path):
    """Tasks and noise buckets are two ways of cutting the same error, and both give back the whole."""
    run, share = prepare(config(tmp_path, accumulate=2)), Share(4, 2)
    scatter(run.model)
    found = accumulate(run, [Clips().batch(list(places)) for places in share.places()], share)
    run.meter.step(1, found, gradient_norms(run.model))
    line = run.meter.read(run.accelerator).line
    error, weight = run.meter.table.sums
    for i, m in enumerate(("video", "audio")):
        assert line[f"loss/{m}"] == pytest.approx(float(found[m]), rel=1e-5)
        for dim, names in ((1, list(run.meter.table.tasks)), (0, [level_name(k) for k in range(LEVELS)])):
            weights = weight[i].sum(dim)
            parts = [line[f"loss/{m}/{n}"] * w for n, w in zip(names, weights.tolist(), strict=True) if w > 0]
            assert sum(parts) / float(weights.sum()) == pytest.approx(line[f"loss/{m}"], rel=1e-5)
        assert float(error[i].sum() / weight[i].sum()) == pytest.approx(line[f"loss/{m}"], rel=1e-5)


def test_an_error_is_filed_under_its_own_task_and_level(tmp_path):
    settings = config(tmp_path, tasks={"t2av": 1, "v2a": 1})
    drawn = draw(Clips().batch(range(8)), settings, 3, range(8))
    weight = drawn.clean.audio.weight
    level = drawn.noisy.audio.level
    table = LossTable(settings.tasks, torch.device("cpu"))
    table.add({"audio": Loss(weight * level, weight.sum())}, drawn)
    means = table.means(table.sums)
    for name in ("t2av", "v2a"):
        rows = torch.tensor([task == name for task in drawn.tasks])
        expected = (weight * level)[rows].sum() / weight[rows].sum()
        assert means[f"audio/{name}"] == pytest.approx(float(expected), rel=1e-5)
    for k in range(LEVELS):
        if level_name(k) in {name.split("/")[-1] for name in means}:
            assert k / LEVELS <= means[f"audio/{level_name(k)}"] <= (k + 1) / LEVELS
    assert not any(name.startswith("video") for name in means)


def test_an_infinite_error_stays_in_its_cell():
    drawn = draw(Clips().batch(range(2)), config("unused", tasks={"t2av": 1, "v2a": 1}), 0, range(2))
    tokens = drawn.clean.audio.weight.clone()
    tokens[0, 0] = torch.inf
    table = LossTable(("t2av", "v2a"), torch.device("cpu"))
    table.add({"audio": Loss(tokens, drawn.clean.audio.weight.sum())}, drawn)
    assert int((~table.sums.isfinite()).sum()) == 1


def test_every_parameter_has_its_part_and_the_parts_are_those_of_the_plan():
    net = model()
    counts = dict.fromkeys(PARTS, 0)
    for name, p in net.named_parameters():
        counts[part_of(name)] += p.numel()
    expected = parameters(model_config())
    assert counts == {part: getattr(expected, part) for part in PARTS}


def test_gradient_norms_are_torchs():
    net, settings = model(), config("unused")
    drawn = draw(Clips().batch(range(4)), settings, 0, range(4))
    sum(loss.tokens.sum() for loss in step_losses(net, drawn, settings.flow).values()).backward()
    norms = gradient_norms(net)
    whole = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(norms["all"], whole)
    bridge = [p.grad for name, p in net.named_parameters() if part_of(name) == "bridge" and p.grad is not None]
    torch.testing.assert_close(norms["bridge"], torch.nn.utils.get_total_norm(bridge))
    assert set(norms) == {*PARTS, "all"}


def test_a_line_says_how_fast_and_with_what(tmp_path):
    run = train(config(tmp_path, steps=4, log_every=2), Clips(), Clips(), quiet())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "seconds" in line]
    assert [line["step"] for line in logged] == [2, 4]
    for line in logged:
        assert line["clips_per_s"] == pytest.approx(8 / line["seconds"], rel=1e-4)
        assert line["lr"] == pytest.approx(run.config.optimizer.lr * run.config.optimizer.factor(line["step"] - 1, 4))
        assert 0 <= line["waiting_share"] <= 1
        assert line["utilisation"] > 0
        assert 0.05 < line["memory_gib"] < 100
        assert line["gradient_norm/largest"] >= line["gradient_norm/all"] > 0


def test_log_points_do_not_change_what_is_learned(tmp_path):
    often, rarely = (
        train(replace(config(tmp_path / name), log_every=every), Clips(), Clips(), quiet())
        for name, every in (("often", 1), ("rarely", 6))
    )
    for ours, theirs in zip(often.model.parameters(), rarely.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
