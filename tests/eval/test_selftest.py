"""The self-test: faults do what they say, and a metric that notices nothing does not pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from avgen.types import Clip
from eval import selftest
from eval.ladder import ladder
from eval.metric import Result
from eval.selftest import SelftestConfig, monotone, response
from eval.selftest import selftest as tried

RATE = 8000


@pytest.fixture
def clip() -> Clip:
    t = np.arange(2 * RATE) / RATE
    wave = (0.5 * np.sin(2 * np.pi * 500 * t) * (t > 0.5) * (t < 0.8)).astype(np.float32)[None]
    video = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 3), np.uint8)
    return Clip(video, wave, 8.0, RATE)


def heard(clip: Clip) -> np.ndarray:
    assert clip.audio is not None
    return clip.audio


def start_s(clip: Clip) -> float:
    return float(np.argmax(np.abs(heard(clip)[0]) > 0.1)) / RATE


def pitch_hz(clip: Clip) -> float:
    spectrum = np.abs(np.fft.rfft(heard(clip)[0]))
    return float(np.fft.rfftfreq(heard(clip).shape[1], 1 / RATE)[np.argmax(spectrum)])


def test_every_fault_does_what_it_says(clip: Clip) -> None:
    rungs = ladder(8.0)
    other = Clip(clip.video, -heard(clip), clip.fps, RATE)
    assert start_s(rungs["shift"].damage(clip, 250, other)) == pytest.approx(start_s(clip) + 0.25)
    fast = rungs["speed"].damage(clip, 25, other)
    assert start_s(fast) == pytest.approx(start_s(clip) / 1.25, abs=0.003)
    assert pitch_hz(fast) == pytest.approx(625, abs=4)
    high = rungs["pitch"].damage(clip, 12, other)
    assert pitch_hz(high) == pytest.approx(1000, rel=0.03)
    assert start_s(high) == pytest.approx(start_s(clip), abs=0.06)
    assert np.abs(heard(rungs["low_pass"].damage(clip, 5, other))).max() < 0.2  # 250 Hz lets no 500 Hz through
    noisy = heard(rungs["noise"].damage(clip, 40, other)) - heard(clip)
    assert np.std(noisy) == pytest.approx(np.sqrt(np.square(heard(clip)).mean()), rel=0.02)
    frozen = rungs["freeze"].damage(clip, 0.5, other).video
    assert frozen is not None
    assert clip.video is not None
    assert (frozen[:8] == clip.video[:8]).all()
    assert (frozen[7:] == frozen[7]).all()
    assert (heard(rungs["swap"].damage(clip, 1, other)) == -heard(clip)).all()
    muted = heard(rungs["mute"].damage(clip, 0.75, other))
    assert not muted[:, RATE // 2 :].any()
    assert heard(clip).any()


@pytest.mark.parametrize("name", ladder(8.0))
def test_faults_keep_the_form_of_a_clip(clip: Clip, name: str) -> None:
    rung = ladder(8.0)[name]
    for dose in rung.doses:
        made = rung.damage(clip, dose, clip)
        assert heard(made).shape == heard(clip).shape
        assert heard(made).dtype == np.float32
        assert made.video is not None
        assert clip.video is not None
        assert made.video.shape == clip.video.shape


def results(values: np.ndarray) -> list[Result]:
    return [Result(float(v)) for v in values]


def test_a_metric_that_rises_with_the_fault_is_not_monotone() -> None:
    random = np.random.default_rng(0)
    clean = random.normal(1, 0.05, 20)
    falling = [(float(d), results(clean - 0.2 * d + random.normal(0, 0.01, 20))) for d in range(4)]
    assert monotone(falling, "higher")
    assert not monotone(falling, "lower")
    back = [*falling[:3], (3.0, falling[0][1])]
    assert not monotone(back, "higher")


def test_a_metric_that_does_not_change_detects_nothing() -> None:
    clean = results(np.linspace(0, 1, 20))
    assert not response(1.0, clean, clean, "higher").detected
    worse = response(1.0, results(np.linspace(0, 1, 20) - 0.1), clean, "higher")
    assert worse.detected
    assert worse.change == pytest.approx(-0.1)
    absent = response(1.0, [Result.none("not_applicable", "silent")] * 20, clean, "higher")
    assert (absent.mean, absent.clips, absent.detected) == (None, 0, False)


def test_wrong_faults_are_named() -> None:
    with pytest.raises(ValueError, match=r"faults=\['tilt'\]"):
        SelftestConfig(faults=("tilt",))


@pytest.mark.slow
def test_sync_metrics_pass_their_checks(tmp_path: Path) -> None:
    """The ladder that every metric of synchrony stands on: shifts, silence, still pictures, chance."""
    found = tried(SelftestConfig(("sync",), ("shift", "freeze", "mute")))
    assert [check for check in found.checks if not check.passed] == []
    assert len(found.checks) >= 20
    said = json.dumps(selftest.plain(found), allow_nan=False)
    assert "limit" in said
    selftest.figure(found, tmp_path / "selftest.png")
    assert (tmp_path / "selftest.png").stat().st_size > 10_000


@pytest.mark.slow
def test_event_sync_notices_one_frame() -> None:
    found = tried(SelftestConfig(("toybox.sync",), ("shift",), clips=10, size=32))
    assert [check for check in found.checks if not check.passed] == []
    (table,) = found.tables
    assert table.limit == 62.5  # one frame at 16 fps


def test_a_distance_between_sets_cannot_be_tried_with_faults() -> None:
    with pytest.raises(ValueError, match=r"metrics=\['videomae'\]: none of them measures single clips"):
        tried(SelftestConfig(metrics=("videomae",)))
