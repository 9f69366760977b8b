"""`avgen bench`: what it times is what training runs, and what it cannot do is said in a line."""

from __future__ import annotations

import json

import pytest

from avgen import bench, command
from avgen.bench import BenchConfig, random_batch
from avgen.compose import load
from avgen.types import Batch

WORDS = ("model=toy", "model.video.depth=1", "model.audio.depth=1", "height=16", "width=16", "duration_s=1", "fps=8")
QUICK = (*WORDS, "batch=2", "caption_tokens=8", "dtype=fp32", "warmup=1", "repeats=1")


@pytest.mark.parametrize("levels", [1, 2])
def test_every_stream_has_the_levels_that_are_asked_for(levels):
    found: Batch = random_batch(load(BenchConfig, "plan", [*QUICK, f"levels={levels}"]))
    assert {m: s.levels.shape[1] for m, s in found.streams.items()} == {"video": levels, "audio": levels}


def test_each_way_is_said_as_it_is_measured_and_kept(tmp_path, capsys):
    file = tmp_path / "figures.jsonl"
    assert command.run(bench.main, [*QUICK, "attentions=[sdpa,math]", f"out={file}"]) == 0
    said = capsys.readouterr().out
    assert said.index("sdpa, compiled=False, none:") < said.index("math, compiled=False, none:") < said.index("CPU,")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["variant"]["attention"] for line in lines] == ["sdpa", "math"]
    assert all(line["step_s"] > 0 and 0 < line["utilisation"] < 2 for line in lines)


@pytest.mark.parametrize("wrong", ["repeats=0", "warmup=0", "levels=3"])
def test_counts_that_measure_nothing_are_refused(wrong, capsys):
    assert command.run(bench.main, [*QUICK, wrong]) == command.USER_ERROR
    assert wrong in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "says"),
    [("height=20", "height=20 must be a multiple of"), ("attentions=[sdpa,cudnn]", "attention=cudnn")],
)
def test_what_cannot_be_timed_is_refused_before_anything_is(wrong, says, capsys):
    assert command.run(bench.main, [*QUICK, wrong]) == command.USER_ERROR
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""
