"""A run that is killed, stopped or moved to other numbers of processes ends as the one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace

import pytest

from avgen.models.architecture import BridgeConfig, TextConfig, TowerConfig
from avgen.train import checkpoint
from avgen.train.config import OptimizerConfig, ParallelConfig
from tests.distributed import ranks, training
from tests.models.factory import config as model_config

KILLS = {"one": 20, "ddp": 20, "fsdp": 5}
STEPS = {"one": 200, "ddp": 200, "fsdp": 60}  # a start and a step of FSDP take several times longer
SMALL = model_config(
    video=TowerConfig(channels=6, width=16, heads=2, depth=1),
    audio=TowerConfig(channels=5, width=16, heads=2, depth=1),
    text=TextConfig(width=8, depth=1, heads=2),
    bridge=BridgeConfig(1, 8),
)


def settings(folder, **changes):
    optimizer = OptimizerConfig(kind="muon", muon_precision="fp32", warmup_steps=20)
    usual = {"model": SMALL, "steps": 200, "batch": 2, "save_every": 10, "log_every": 50, "optimizer": optimizer}
    return training.config(folder, **(usual | changes))


def newest(folder):
    """The step of the newest checkpoint, 0 before the first."""
    return max((int(name.removeprefix("step_")) for name in names(folder) if name.startswith("step_")), default=0)


def names(folder):
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def saving(folder):
    """Whether a checkpoint is being written, or was when its run was killed."""
    return any(name.startswith(".step_") and name.endswith(".part") for name in names(folder))


def kill_at_random(processes, folder, chance, before, steps):
    """Kill all of them: none to two saves further on, at some instant after it or while the next is being written."""

    def wait_until(reached):
        while not reached() and all(p.is_alive() for p in processes):
            time.sleep(0.004)

    target = min(before + chance.choice([0, 10, 10, 20]), steps - 10)
    wait_until(lambda: newest(folder) >= target)
    if chance.random() < 0.5:
        wait_until(lambda: saving(folder))
    time.sleep(chance.uniform(0, 0.4))
    alive = [p for p in processes if p.is_alive()]
    for process in chance.sample(alive, len(alive)):
        process.kill()
    for process in processes:
        process.join()
    return bool(alive)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", KILLS)
def test_kills_change_no_bit(strategy, tmp_path):
    """A run that reaches its end before the last kill is followed by another."""
    count = 1 if strategy == "one" else 2
    changes = {"parallel": ParallelConfig("ddp" if strategy == "one" else strategy), "steps": STEPS[strategy]}
    whole = ranks.run(tmp_path / "whole", count, training.trained, settings(tmp_path / "left alone", **changes))
    chance, kills, during_a_save, runs = random.Random(strategy), 0, 0, []
    while kills < KILLS[strategy]:
        cut = settings(tmp_path / f"run {len(runs)}", **changes)
        folder, before, ended = cut.out / "checkpoints", 0, False
        while kills < KILLS[strategy] and not ended:
            processes = ranks.start(count, training.trained, cut)
            ended = not kill_at_random(processes, folder, chance, before, cut.steps)
            kills += not ended
            during_a_save += saving(folder)
            assert checkpoint.checkpoints(folder) == sorted(folder.glob("step_*"))
            assert newest(folder) >= before
            before = newest(folder)
        runs.append(cut)
    print(f"{strategy}: {kills} kills, {during_a_save} of them during a save, in {len(runs)} runs")
    assert during_a_save
    for i, cut in enumerate(runs):
        found = ranks.run(tmp_path / f"end {i}", count, training.trained, cut)
        for ours, theirs in zip(found, whole, strict=True):
            assert training.identical(ours, theirs)


def test_two_one_and_two_processes_follow_the_run_left_alone(tmp_path):
    """Sharded, whole, sharded: each reads what the other wrote."""
    usual = {"steps": 24, "log_every": 1, "save_every": 8}
    [(expected, weights)] = ranks.run(tmp_path / "a", 1, training.watched, settings(tmp_path / "whole", **usual))
    moved = settings(tmp_path / "moved", parallel=ParallelConfig("fsdp"), **usual)
    losses = []
    for i, (count, until) in enumerate([(2, 8), (1, 16), (2, 24)]):
        parallel = ParallelConfig("fsdp" if count == 2 else "ddp")
        part = replace(moved, parallel=parallel)
        seen, found = ranks.run(tmp_path / str(i), count, training.watched_until, part, until)[0]
        losses += seen.losses
    furthest = training.furthest(losses, expected.losses)
    print(f"2 -> 1 -> 2 processes: losses within {furthest:.1e}")
    assert furthest < 1e-4
    assert training.difference(found, weights) < 1e-4


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    cut = settings(tmp_path / "run", steps=10_000, save_every=10_000)
    processes = ranks.start(2, training.trained, cut)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert all(p.is_alive() for p in processes)
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert ranks.join(processes) == [0, 0]
    [saved] = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoint.about(saved).processes == 2
    assert checkpoint.about(saved).step >= 50
