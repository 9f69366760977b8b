"""Two processes log what one logs, and both stop at the same bad step with the weights before it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from avgen.train import loop
from avgen.train.config import ParallelConfig
from avgen.train.metrics import reproducible
from avgen.train.parallel import gathered
from avgen.train.trackers import METRICS, read_metrics
from avgen.train.watch import Stopped
from tests.distributed import ranks, training

STRATEGIES = [ParallelConfig("ddp"), ParallelConfig("fsdp")]


class Poisoned(training.Both):
    def clip(self, i):
        clip = super().clip(i)
        if i == 15:  # the last place of the fourth step: the second process's
            clip.audio.x[0, 0, 0] = math.nan
        return clip


def logged(settings):
    loop.train(settings, training.Clips(), training.Clips(), training.quiet())
    return [reproducible(line) for line in read_metrics(settings.out / METRICS)]


def stopped(settings):
    """The message, and the weights that were left."""
    runs = []
    prepare = loop.prepare
    loop.prepare = lambda config: runs.append(prepare(config)) or runs[-1]
    with pytest.raises(Stopped) as stop:
        loop.train(settings, Poisoned(), Poisoned(), training.quiet())
    return str(stop.value), {name: gathered(p.detach()).clone() for name, p in runs[0].model.named_parameters()}


def sound(settings):
    run = loop.train(settings, training.Both(), training.Both(), training.quiet())
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


@pytest.mark.parametrize("parallel", STRATEGIES, ids=lambda p: p.strategy)
def test_what_is_logged_does_not_depend_on_the_processes(tmp_path, parallel):
    """11 held-out clips do not divide evenly; losses by task and level, norms by part, held-out figures."""
    changes = {"steps": 6, "log_every": 3, "validate_every": 3, "validation_clips": 11}
    [alone] = ranks.run(tmp_path / "one", 1, logged, training.config(tmp_path / "a", **changes))
    settings = training.config(tmp_path / "b", parallel=parallel, **changes)
    together = ranks.run(tmp_path / "two", 2, logged, settings)[0]
    assert len(alone) == len(together) == 4
    for ours, theirs in zip(alone, together, strict=True):
        assert ours.keys() == theirs.keys()
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("kind", "strategy"), [("adamw", "ddp"), ("adamw", "fsdp"), ("muon", "fsdp")])
def test_one_processes_poison_stops_both_at_the_same_step(tmp_path, kind, strategy):
    changes = {
        "tasks": {"t2av": 1},
        "optimizer": training.OptimizerConfig(kind=kind, muon_precision="fp32", warmup_steps=1, schedule="constant"),
    }
    settings = training.config(tmp_path / "run", parallel=ParallelConfig(strategy), log_every=6, steps=6, **changes)
    first, second = ranks.run(tmp_path / "two", 2, stopped, settings)
    assert "at step 4" in first[0]
    assert "clip" not in first[0].split(". Its batch")[0]
    assert "clip 3 (t2av, 'clip 15') is not finite" in second[0]
    [expected] = ranks.run(tmp_path / "one", 1, sound, training.config(tmp_path / "sound", steps=3, **changes))
    for _, left in (first, second):
        assert all(p.isfinite().all() for p in left.values())
        assert training.difference(left, expected) < 1e-5
    folder = tmp_path / "run" / "stopped_at_00000004"
    places = [[c["place"] for c in json.loads((folder / f"rank_{r}.json").read_text())["clips"]] for r in range(2)]
    assert places == [[0, 1], [2, 3]]
    assert torch.load(folder / "rank_1.pt", weights_only=True)["rank"] == 1
