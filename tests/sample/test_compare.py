"""Two ways of guidance on the same items and noise."""

from __future__ import annotations

import pytest

from avgen.sample.compare import CompareConfig, compare, table
from avgen.sample.exam import Exam, alone
from avgen.sample.guidance import NO_GUIDANCE, Guidance, ModalityGuidance
from avgen.sample.method import Method
from avgen.sample.solvers import SolverConfig
from tests.sample.factory import pipeline
from tests.sample.test_scores import WORLD


def test_a_way_gains_nothing_over_itself_and_the_other_is_really_used(monkeypatch):
    pipe = pipeline(height=32, width=32, duration_s=2.0)
    used = []
    make = pipe.make_from
    monkeypatch.setattr(pipe, "make_from", lambda *a: used.append(([r.seed for r in a[0]], a[3].guidance)) or make(*a))
    exam = Exam.of(pipe, WORLD, "test", 0, 3, Method(SolverConfig("euler", 1), NO_GUIDANCE))
    found = compare(exam, NO_GUIDANCE, alone(pipe), ("a2v",), 3)
    for figure in found["a2v"].values():
        assert figure.one == figure.other
        assert not figure.gain.high > 0
    assert table(found).row_count == len(found["a2v"])
    used.clear()
    other = Guidance(ModalityGuidance(cross=3.0), ModalityGuidance())
    compare(exam, other, alone(pipe), ("a2v",), 3)
    (seeds, first), (same_seeds, second) = used
    assert seeds == same_seeds
    assert (first, second) == (NO_GUIDANCE, other)


def test_two_equal_ways_are_refused():
    with pytest.raises(ValueError, match="the same"):
        CompareConfig()


def test_less_than_one_process_is_refused():
    with pytest.raises(ValueError, match="processes=0 must be at least 1"):
        CompareConfig(guidance=NO_GUIDANCE, processes=0)
