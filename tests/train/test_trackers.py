"""Where numbers go: the same ones to the file and to every tracker, none of them twice, and a terminal that tells."""

from __future__ import annotations

import io
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avgen.train import trackers
from avgen.train.config import TrackingConfig
from avgen.train.loop import train
from avgen.train.trackers import METRICS, Journal, Screen, check_installed, read_metrics
from tests.train.test_train import Clips, config, quiet


def next_second():
    """TensorBoard reads files in the order of their names: by the second, and within it by a counter read as text."""
    time.sleep(1.1)


def events(folder):
    """Per tag, its values by step, as TensorBoard shows them."""
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: {event.step: event.value for event in read.Scalars(tag)} for tag in read.Tags()["scalars"]}


def test_tensorboard_has_what_the_file_has_also_after_a_resume(tmp_path):
    settings = config(tmp_path, tracking=TrackingConfig())
    train(replace(settings, steps=4), Clips(), Clips(), quiet())
    next_second()
    with Journal(settings, Accelerator(), 4).open() as late:
        late.write(5, {"loss/video": 1e6})  # a step whose checkpoint was never written
    next_second()
    train(settings, Clips(), Clips(), quiet())
    shown, lines = events(tmp_path), read_metrics(tmp_path / METRICS)
    for name in ("loss/video", "loss/audio/v2a", "gradient_norm/bridge", "lr", "held_out/t2av/video"):
        written = {line["step"]: line[name] for line in lines if name in line}
        assert written
        assert shown[name] == pytest.approx(written, rel=1e-5)
    assert set(shown["loss/video"]) == {1, 2, 3, 4, 5, 6}


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())
    wanted = TrackingConfig(to=("tensorboard", "wandb"))
    with pytest.raises(ValueError, match=r"pip install wandb, or give tracking\.to=\[tensorboard\]"):
        check_installed(wanted)
    check_installed(TrackingConfig(to=("tensorboard",)))
    with pytest.raises(ValueError, match="wandb"):
        Journal(config(tmp_path, tracking=wanted), Accelerator(), 0)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_are_told_project_name_config_and_numbers(tmp_path, monkeypatch, name):
    told = []
    run = SimpleNamespace(log=lambda values, step, **_: told.append((step, values)), finish=lambda: told.append("end"))
    service = SimpleNamespace(init=lambda **about: told.append(about) or run, finish=run.finish)
    monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.setattr(trackers, "find_spec", lambda _: object())
    settings = config(tmp_path / "first try", tracking=TrackingConfig(to=(name,), project="mine"))
    settings.out.mkdir()
    with Journal(settings, Accelerator(), 0).open() as journal:
        journal.write(3, {"loss/video": 0.5})
    about, numbers, end = told
    assert (about["project"], about["name"], about["config"]["steps"]) == ("mine", "first try", 6)
    assert numbers == (3, {"loss/video": 0.5})
    assert end == "end"


def test_a_folder_is_one_run_of_wandb_whatever_changes_between_its_legs(tmp_path, monkeypatch):
    told = []
    run = SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    service = SimpleNamespace(init=lambda **about: told.append(about["id"]) or run, finish=run.finish)
    monkeypatch.setitem(sys.modules, "wandb", service)
    monkeypatch.setattr(trackers, "find_spec", lambda _: object())
    first = config(tmp_path / "a" / "run", tracking=TrackingConfig(to=("wandb",)))
    (tmp_path / "moved").mkdir()
    for settings in (first, replace(first, steps=12, accumulate=2), replace(first, out=tmp_path / "b" / "run")):
        Journal(settings, Accelerator(), 0)
    (tmp_path / "a" / "run").rename(tmp_path / "moved" / "run")
    Journal(replace(first, out=tmp_path / "moved" / "run"), Accelerator(), 0)
    one, longer, other, moved = told
    assert one == longer == moved != other


def test_elsewhere_than_on_a_terminal_every_log_point_is_one_plain_line():
    said = io.StringIO()
    with Screen(Console(file=said, width=60), 100, 0, shown=True).open() as screen:
        for step in (10, 20):
            screen.show(step, {"loss/video": 0.5, "loss/audio": 0.25, "steps_per_s": 2.0})
            screen.step(step)
    assert said.getvalue().splitlines() == [
        "step 10/100  video 0.5000  audio 0.2500  2 steps/s  0:00:45 left",
        "step 20/100  video 0.5000  audio 0.2500  2 steps/s  0:00:40 left",
    ]


def test_a_terminal_gets_a_bar_and_other_ranks_say_nothing():
    line = {"loss/audio": 0.25, "steps_per_s": 2.0}
    said, silent = io.StringIO(), io.StringIO()
    for out, shown in ((said, True), (silent, False)):
        with Screen(Console(file=out, width=100, force_terminal=True), 100, 0, shown=shown).open() as screen:
            screen.show(10, line)
            screen.step(10)
    assert "10/100" in said.getvalue()
    assert "audio 0.2500  2 steps/s" in said.getvalue()
    assert silent.getvalue() == ""
