"""avgen plan recipe=...: a recipe's step is so many forward passes of the plan, spread over so many devices."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from avgen import command, plan
from avgen.compose import load
from avgen.config import ConfigError
from avgen.data.buckets import Shape
from avgen.models.cost import parameters
from avgen.models.dit import AVTransformer
from avgen.plan import PlanConfig, Rate, batch_of
from avgen.train.config import OptimizerConfig, ParallelConfig, TrainConfig
from avgen.train.data_config import ToyboxData, ToyboxShape
from avgen.train.forecast import ForecastConfig, forecasts, show
from avgen.train.optim import Optimizers, memory

RATE = Rate(1.0, "given")


def recipe(**changes):
    return replace(load(TrainConfig, "train", ["recipe=toybox", "precision=bf16"]), **changes)


def one(config, **given):
    [found] = forecasts(config, ForecastConfig(**given), RATE)
    return found


def test_the_toybox_recipe_costs_what_its_model_is_said_to():
    found = one(recipe(tasks={"t2av": 1}, optimizer=OptimizerConfig(kind="adamw")))
    words = ["model=toy", "height=32", "width=32", "fps=8", "duration_s=2", "batch=16", "caption_tokens=96", "levels=2"]
    expected = plan.plan(load(PlanConfig, "plan", [*words, "device=here"]), RATE)
    assert found.one.cost.model == expected.cost.model
    assert found.one.memory == expected.memory


def test_accumulation_and_processes_divide_the_step():
    whole, parts = one(recipe()), one(recipe(accumulate=4))
    assert (parts.passes, parts.config.batch) == (4, 4)
    assert parts.one.cost.model * 4 == pytest.approx(whole.one.cost.model, rel=1e-3)
    assert parts.one.memory.activations < whole.one.memory.activations
    spread = one(recipe(parallel=ParallelConfig("fsdp")), processes=4)
    assert spread.step_s == pytest.approx(whole.step_s / 4, rel=1e-2)
    assert spread.one.memory.states == pytest.approx(whole.one.memory.states / 4, rel=1e-3)
    assert one(recipe(), processes=4).one.memory.states == whole.one.memory.states
    shared = one(recipe(parallel=ParallelConfig("ddp", context=4)), processes=4)
    assert (shared.config.batch, shared.step_s) == (16, pytest.approx(whole.step_s / 4))
    with pytest.raises(ConfigError, match="batch: 16 clips"):
        one(recipe(), processes=3)
    with pytest.raises(ConfigError, match=r"parallel\.shard: hsdp cuts within a node"):
        one(recipe(parallel=ParallelConfig("hsdp")), processes=4)
    nodes = one(recipe(parallel=ParallelConfig("hsdp", shard=2)), processes=4)
    assert nodes.one.memory.states == pytest.approx(whole.one.memory.states / 2, rel=1e-3)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_optimisers_memory_is_what_it_keeps(kind):
    config = recipe(optimizer=OptimizerConfig(kind=kind))
    torch.manual_seed(0)
    optimizers = Optimizers(AVTransformer.of(config.model), config.optimizer)
    held = [
        value.numel() * value.element_size()
        for part in optimizers.parts
        for group in part.param_groups
        for p in group["params"]
        for value in memory(part, p).values()
        if value.ndim
    ]
    assert one(config).one.memory.optimiser == sum(held)


def test_every_shape_has_its_line_and_its_clips():
    base = recipe()
    shapes = (ToyboxShape(32, 32, 8.0, 2.0), ToyboxShape(32, 32, 8.0, 4.0))
    config = replace(base, data=replace(base.data, shapes=shapes, step_tokens=6000))
    short, long = forecasts(config, ForecastConfig(), RATE)
    assert short.clips == 2 * long.clips
    for found in (short, long):
        tokens = sum(stream.tokens for stream in batch_of(found.config).streams.values())
        assert found.clips * tokens <= 6000
        assert found.clips % base.batch == 0


def test_it_prints_parameters_steps_and_hours():
    out = io.StringIO()
    config = recipe()
    show(config, ForecastConfig(device_tflops=0.1, efficiency=0.25), Console(file=out, width=plan.WIDEST))
    text = out.getvalue()
    assert f"{parameters(config.model).total:,}" in text
    hours = config.steps * one(config).one.cost.executed / (0.1e12 * 0.25) / 3600
    assert f"{config.steps:,} steps: {hours:.3g} h" in text
    assert "…" not in text


def test_the_command_takes_keys_of_both(capsys):
    assert command.run(plan.main, ["recipe=toybox", "device=h200", "batch=32", "steps=10"]) == 0
    said = capsys.readouterr().out
    assert "10 steps" in said
    assert "h200's data sheet" in said
    assert command.run(plan.main, ["recipe=toybox", "devise=h200"]) == command.USER_ERROR
    assert command.run(plan.main, ["recipe=toybox", "processes=0"]) == command.USER_ERROR
    assert "processes=0" in capsys.readouterr().err


def test_hours_are_of_the_shapes_as_often_as_they_are_read():
    """A store of 99 short windows to each long one takes hardly longer than one of short windows."""
    config = recipe()

    class Uneven(ToyboxData):
        @property
        def often(self):
            short, long = (Shape(32, 32, 8.0, seconds) for seconds in (2.0, 16.0))
            return {short: 99.0, long: 1.0}

    out = []
    for data in (config.data, Uneven(**vars(config.data))):
        said = io.StringIO()
        given = ForecastConfig(device_tflops=0.1, efficiency=0.25)
        show(replace(config, data=data), given, Console(file=said, width=plan.WIDEST))
        out.append(float(re.search(r"steps: ([\d.e+-]+) h", said.getvalue())[1]))
    assert out[0] < out[1] < 1.2 * out[0]


def test_help_names_the_keys_of_the_forecast_too(capsys):
    with pytest.raises(SystemExit):
        plan.main(["recipe=toybox", "--help"])
    said = capsys.readouterr().out
    assert "processes=1" in said
    assert "steps=2100" in said
