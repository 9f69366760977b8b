"""Processes that share clips, each with a slice of the tokens, compute what one computes with all of them."""

from __future__ import annotations

import pytest
import torch

from avgen.train.config import ParallelConfig
from tests.distributed import ranks, training

SHARED = {
    "ddp": ParallelConfig("ddp", context=2),
    "fsdp": ParallelConfig("fsdp", context=2),
}
CHANGES = {"steps": 6, "validate_every": 6, "balance": 0.9}


@pytest.mark.parametrize("processes", [2, 3])
def test_slices_give_the_velocities_and_gradients_of_the_whole(processes, tmp_path):
    """Ragged clips, some without sound or picture, some tokens given; lengths that no number of processes divides."""
    for found in ranks.run(tmp_path, processes, training.sliced_and_whole):
        for variant, (velocity, gradient) in found.items():
            assert velocity < 1e-5, variant
            assert gradient < 1e-5, variant


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process: what it saw, its weights, its figures."""
    folder = tmp_path_factory.mktemp("alone")
    settings = training.config(folder / "run", **CHANGES)
    [(seen, weights)] = ranks.run(folder / "a", 1, training.watched, settings)
    return seen, weights, training.logged(settings.out)


@pytest.mark.parametrize("strategy", SHARED)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_that_share_clips_train_what_one_trains(alone, strategy, accumulate, tmp_path):
    expected, weights, figures = alone
    settings = training.config(tmp_path / "run", parallel=SHARED[strategy], accumulate=accumulate, **CHANGES)
    for seen, found in ranks.run(tmp_path / "a", 2, training.watched, settings):
        assert training.furthest(seen.losses, expected.losses) < 1e-5
        assert training.difference(found, weights) < 1e-5
        assert seen.norms == pytest.approx(expected.norms, rel=1e-4)
    assert training.logged(settings.out) == pytest.approx(figures, rel=1e-4)


def test_noise_levels_and_tasks_agree_between_those_that_share_clips_and_differ_between_readers(alone, tmp_path):
    """Two readers of two processes each, and across them two copies of two shards."""
    expected, weights, _ = alone
    settings = training.config(tmp_path / "run", parallel=ParallelConfig("hsdp", shard=2, context=2), **CHANGES)
    four = ranks.run(tmp_path / "a", 4, training.watched, settings)
    places = [{(step, place) for step, place, *_ in seen.draws} for seen, _ in four]
    steps = range(CHANGES["steps"])
    assert places[0] == places[1] == {(step, place) for step in steps for place in (0, 1)}
    assert places[2] == places[3] == {(step, place) for step in steps for place in (2, 3)}
    for one, other in ((0, 1), (2, 3)):
        for (*who, noise), (*they, theirs) in zip(four[one][0].draws, four[other][0].draws, strict=True):
            assert who == they
            assert all(torch.equal(noise[m], theirs[m]) for m in noise)
    assert not torch.equal(four[0][0].draws[0][-1]["video"][:1], four[2][0].draws[0][-1]["video"][:1])
    for seen, found in four:
        assert training.furthest(seen.losses, expected.losses) < 1e-5
        assert training.difference(found, weights) < 1e-5
