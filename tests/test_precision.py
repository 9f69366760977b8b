"""`precision=auto`: bf16, or fp32 where this processor multiplies that faster; a run and a clip say which it was."""

from __future__ import annotations

import json

import pytest
import torch

from avgen.rate import GLANCE_SIZE, MATMUL_SIZE, faster_precision, matmul_rate
from avgen.sample.inputs import Request
from avgen.sample.method import Method
from avgen.train.config import OptimizerConfig
from avgen.train.forecast import ForecastConfig
from avgen.train.loop import train
from tests.sample.factory import pipeline
from tests.train.test_train import Clips, config, quiet

CPU = torch.device("cpu")


@pytest.mark.parametrize(("bf16", "fp32", "wanted"), [(1.0, 2.0, "fp32"), (2.0, 1.0, "bf16"), (1.0, 1.0, "bf16")])
def test_a_cpu_takes_what_it_multiplies_faster(bf16, fp32, wanted, monkeypatch):
    rates = {torch.bfloat16: bf16, torch.float32: fp32}
    monkeypatch.setattr("avgen.rate.matmul_rate", lambda device, dtype: rates[dtype])
    assert faster_precision.__wrapped__(CPU) == wanted


def test_a_slow_type_is_measured_on_small_products_alone(monkeypatch):
    sizes = []

    def product(device, dtype, size=None):
        sizes.append(size)
        return lambda: None

    monkeypatch.setattr("avgen.rate.matmul", product)
    monkeypatch.setattr("avgen.rate.timed", lambda work, device: 0.5)
    assert matmul_rate.__wrapped__(CPU, torch.bfloat16) == pytest.approx(4 * GLANCE_SIZE**3)
    monkeypatch.setattr("avgen.rate.timed", lambda work, device: 0.001)
    assert matmul_rate.__wrapped__(CPU, torch.bfloat16) == pytest.approx(2000 * MATMUL_SIZE["cpu"] ** 3)
    assert sizes == [GLANCE_SIZE, GLANCE_SIZE, None]


def test_an_accelerator_takes_bf16_unmeasured(monkeypatch):
    monkeypatch.setattr("avgen.rate.matmul_rate", None)
    assert faster_precision.__wrapped__(torch.device("cuda")) == "bf16"


@pytest.mark.parametrize("faster", ["bf16", "fp32"])
def test_a_run_records_the_precision_it_settled_on(faster, tmp_path, monkeypatch):
    monkeypatch.setattr("avgen.train.run.faster_precision", lambda device: faster)
    asked = config(tmp_path, steps=1, precision="auto", optimizer=OptimizerConfig(muon_precision="auto"))
    run = train(asked, Clips(), Clips(), quiet())
    written = json.loads((tmp_path / "run.json").read_text())["config"]
    assert run.config.precision == written["precision"] == faster
    assert run.config.optimizer.muon_precision == written["optimizer"]["muon_precision"] == faster


def test_what_is_said_is_not_changed(tmp_path):
    said = config(tmp_path, precision="fp16", optimizer=OptimizerConfig(muon_precision="auto"))
    settled = said.settle("fp32")
    assert (settled.precision, settled.optimizer.muon_precision) == ("fp16", "fp32")
    assert settled.settled


def test_a_forecast_for_another_device_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("avgen.train.forecast.faster_precision", None)
    assert ForecastConfig(device="h200").settled(config(tmp_path, precision="auto")).precision == "bf16"


@pytest.mark.parametrize("faster", ["bf16", "fp32"])
def test_a_clip_is_as_if_its_precision_had_been_said(faster, monkeypatch):
    monkeypatch.setattr("avgen.rate.faster_precision", lambda device: faster)
    maker = pipeline()
    made = [
        maker.make([Request("a ball")], "t2av", maker.trained_form, Method(precision=p))[0] for p in ("auto", faster)
    ]
    assert made[0].record == made[1].record
    assert (made[0].clip.video == made[1].clip.video).all()
    assert (made[0].clip.audio == made[1].clip.audio).all()
