"""What a run leaves behind for people: run.json and its curves."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from avgen import command
from avgen.config import build
from avgen.models.cost import parameters
from avgen.train import curves, record
from avgen.train.config import LoraConfig, OptimizerConfig, PartRates, TrainConfig
from avgen.train.curves import CurvesConfig, draw, series, smoothed
from avgen.train.loop import train
from avgen.train.trackers import METRICS, read_metrics
from tests.models.factory import model
from tests.train.test_train import Clips, config, quiet


def test_run_json_says_what_made_the_run_and_how_the_prediction_fared(tmp_path):
    settings = config(tmp_path, accumulate=2)
    run = train(settings, Clips(), Clips(), quiet())
    written = json.loads((tmp_path / record.RECORD).read_text())
    assert build(TrainConfig, written["config"]) == settings
    assert sum(written["parameters"].values()) == sum(p.numel() for p in run.model.parameters())
    assert sum(written["parameters"].values()) == parameters(settings.model).total
    assert written["machine"]["processes"] == 1
    assert set(written["versions"]) == {*record.LIBRARIES, "python"}
    lines = [line for line in read_metrics(tmp_path / METRICS) if "seconds" in line][1:]
    assert written["measured"]["step_s"] == pytest.approx(np.mean([line["seconds"] for line in lines]), rel=1e-4)
    assert 0 < written["predicted"]["step_s"] < 10
    assert 0 < written["predicted"]["memory_gib"] < 1


def test_the_same_command_once_more_leaves_what_was_measured(tmp_path):
    settings = config(tmp_path)
    train(settings, Clips(), Clips(), quiet())
    written = (tmp_path / record.RECORD).read_text()
    assert "measured" in json.loads(written)
    train(settings, Clips(), Clips(), quiet())
    assert (tmp_path / record.RECORD).read_text() == written


@pytest.mark.parametrize("frozen", ["adapters", "part"])
def test_costs_that_count_every_gradient_are_not_told_where_weights_are_frozen(tmp_path, frozen):
    model().save_pretrained(tmp_path / "start")
    changes = {
        "adapters": {"start": tmp_path / "start", "lora": LoraConfig(rank=2)},
        "part": {"optimizer": OptimizerConfig(scale=PartRates(video=0.0))},
    }
    train(config(tmp_path / "run", **changes[frozen]), Clips(), Clips(), quiet())
    lines = [line for line in read_metrics(tmp_path / "run" / METRICS) if "seconds" in line]
    assert lines
    assert not any("utilisation" in line for line in lines)
    assert "predicted" not in json.loads((tmp_path / "run" / record.RECORD).read_text())


def test_measured_is_what_was_measured_since_the_resume(tmp_path):
    """The leg before may have run on another number of processes."""
    train(config(tmp_path, steps=4), Clips(), Clips(), quiet())
    slow = [
        line | {name: 1e3 * line[name] for name in ("seconds", "memory_gib") if name in line}
        for line in read_metrics(tmp_path / METRICS)
    ]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in slow))
    train(config(tmp_path, steps=8), Clips(), Clips(), quiet())
    lines = [line for line in read_metrics(tmp_path / METRICS) if "seconds" in line and line["step"] > 5]
    measured = json.loads((tmp_path / record.RECORD).read_text())["measured"]
    assert measured["step_s"] == pytest.approx(np.mean([line["seconds"] for line in lines]), rel=1e-4)
    assert measured["memory_gib"] < max(line["memory_gib"] for line in lines)


def test_a_prediction_counts_every_micro_batch(tmp_path):
    """The same clips in one forward pass or in four cost the same work."""
    steps = []
    for accumulate in (1, 4):
        folder = tmp_path / str(accumulate)
        train(config(folder, accumulate=accumulate, tasks={"t2av": 1}), Equal(), Equal(), quiet())
        steps.append(json.loads((folder / record.RECORD).read_text())["predicted"]["step_s"])
    assert steps[0] == pytest.approx(steps[1], rel=0.02)


class Equal(Clips):
    def batch(self, indices, at=None):
        return super().batch([0] * len(indices))


def test_curves_show_what_was_logged(tmp_path):
    train(config(tmp_path, steps=8), Clips(), Clips(), quiet())
    picture = Image.open(draw(CurvesConfig(tmp_path)))
    assert picture.width > picture.height > 500
    lines = read_metrics(tmp_path / METRICS)
    steps, values = series(lines, "loss/")["audio"]
    assert steps == [line["step"] for line in lines if "loss/audio" in line]
    assert values[-1] == [line for line in lines if "loss/audio" in line][-1]["loss/audio"]
    blue = np.asarray(picture.convert("RGB")).astype(int) - np.array([31, 119, 180])
    assert (np.abs(blue).max(-1) < 8).sum() > 100  # the picture's curve is there


@pytest.mark.filterwarnings("error:Data has no positive values")
def test_a_run_that_failed_early_is_drawn_too(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1, "loss/video": NaN, "gradient_norm/all": NaN}\n{"step": 2, "loss/vid')
    assert draw(CurvesConfig(tmp_path)).is_file()
    (tmp_path / METRICS).write_text("")
    assert draw(CurvesConfig(tmp_path)) is None


def test_smoothing_keeps_constants_and_forgets_at_the_named_rate():
    assert smoothed([3.0] * 5, 0.9) == pytest.approx([3.0] * 5)
    assert smoothed([1.0, 2.0, 4.0], 0.0) == [1.0, 2.0, 4.0]
    tail = smoothed([0.0] * 200 + [1.0], 0.9)[-1]
    assert tail == pytest.approx(0.1, rel=1e-6)
    assert math.isnan(smoothed([math.nan], 0.5)[0])


def test_the_verb_draws_and_refuses_what_is_no_run(tmp_path, capsys):
    (tmp_path / METRICS).write_text('{"step": 1, "loss/video": 1.0}\n')
    assert command.run(curves.main, [f"run={tmp_path}", "smoothing=0"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / curves.PICTURE)
    assert command.run(curves.main, [f"run={tmp_path / 'nowhere'}"]) == command.USER_ERROR
    assert "holds no metrics.jsonl" in capsys.readouterr().err
