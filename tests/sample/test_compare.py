"""Two ways of guidance on the same items and noise."""

from __future__ import annotations

import pytest

from avgen import command
from avgen.sample import compare as compare_command
from avgen.sample import long_report, scores
from avgen.sample.compare import CompareConfig, compare, table
from avgen.sample.exam import Exam, alone
from avgen.sample.figures import refuse_unwritable
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


@pytest.mark.parametrize(
    ("report", "words"), [(scores, []), (compare_command, ["guidance.audio.cross=4"]), (long_report, [])]
)
@pytest.mark.parametrize("out", ["", "file/x.json"])
def test_figures_that_cannot_be_written_are_refused_before_the_model_is_opened(
    report, words, out, tmp_path, monkeypatch, capsys
):
    opened = []
    monkeypatch.setattr("avgen.sample.folder.open_for", lambda *named: opened.append(named))
    (tmp_path / "file").touch()
    assert command.run(report.main, [f"out={tmp_path / out}", *words]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not opened


def test_asking_whether_figures_can_be_written_writes_none(tmp_path):
    there = tmp_path / "there.json"
    there.write_text("{}")
    for out in (there, tmp_path / "new" / "x.json"):
        refuse_unwritable(out)
    assert there.read_text() == "{}"
    assert list((tmp_path / "new").iterdir()) == []
