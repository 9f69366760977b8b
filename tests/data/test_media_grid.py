"""The flash within half a frame and the beep within a millisecond, for every kind of file and window."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.media_grid import AXES, Case, check_case, pairwise_cases, product_cases, valid, write_case

SHARDS = 4


def check(case: Case, folder: Path) -> tuple[int, int]:
    path = folder / f"clip.{case.container}"
    try:
        errors = check_case(path, write_case(path, case))
        assert errors.flash_frames <= 0.5 + 1e-6
        assert errors.beep_ms <= 1.0
    except Exception as error:
        error.add_note(f"in {case!r}")
        raise
    return errors.edges, errors.beeps


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_pair_of_properties(tmp_path, shard):
    cases = pairwise_cases()[shard::SHARDS]
    found = [check(case, tmp_path) for case in cases]
    assert sum(edges for edges, _ in found) > 5 * len(cases), "the windows hardly saw a flash"
    assert sum(beeps for _, beeps in found) > 4 * len(cases), "the windows hardly heard a beep"


def test_pairwise_cases_hold_every_pair():
    cases = pairwise_cases()
    seen = {((a, getattr(c, a)), (b, getattr(c, b))) for c in cases for a in AXES for b in AXES if a < b}
    missing = [
        ((a, x), (b, y))
        for a in AXES for b in AXES if a < b
        for x in AXES[a] for y in AXES[b]
        if valid({a: x, b: y}) and ((a, x), (b, y)) not in seen
    ]  # fmt: skip
    # Pairs that only a third property rules out: what no container has together.
    for pair in missing:
        axes = dict(pair)
        assert not any(valid({**axes, "container": c, "sound": s}) for c in AXES["container"] for s in AXES["sound"]
                       if axes.get("container", c) == c and axes.get("sound", s) == s), pair  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fps", AXES["fps"])
@pytest.mark.parametrize("container", AXES["container"])
def test_product_of_the_main_properties(tmp_path, container, fps):
    for case in product_cases():
        if case.container == container and case.fps == fps:
            check(case, tmp_path)
