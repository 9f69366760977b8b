"""Two processes that read buckets train what one trains."""

from __future__ import annotations

import pytest

from avgen.data.buckets import Bucket, Schedule
from avgen.train.config import ParallelConfig
from tests.distributed import ranks, training

# batches of 12 clips, of 8 and of 4, read in turns
ORDER = Schedule((Bucket(range(40), 2), Bucket(range(40, 60), 3), Bucket(range(60, 70), 6)), 4, step_tokens=24, seed=3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_that_read_buckets_equal_one(strategy, tmp_path):
    assert {len(ORDER.clips(step)) for step in range(8)} == {4, 8, 12}
    changes = {"steps": 8, "accumulate": 2}
    alone = training.config(tmp_path / "one", **changes)
    [(expected, weights)] = ranks.run(tmp_path / "a", 1, training.watched, alone, training.Clips(), ORDER)
    both = training.config(tmp_path / "two", parallel=ParallelConfig(strategy), **changes)
    for seen, found in ranks.run(tmp_path / "b", 2, training.watched, both, training.Clips(), ORDER):
        assert training.furthest(seen.losses, expected.losses) < 1e-5
        assert training.difference(found, weights) < 1e-5
