"""The contract: no value without the status ok, one computation of what metrics share, and faults as typed results."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avgen.data.media import write_clip
from avgen.types import Clip
from eval.metric import Definition, Measure, Needs, NotApplicable, Result, Skipped, measure, reward
from eval.record import Prompt
from eval.registry import GROUPS, chosen
from eval.take import Picture, Sound, Take

CLIP = Clip(np.zeros((4, 8, 8, 3), np.uint8), np.zeros((1, 800), np.float32), 8.0, 1600)


def fails(error: BaseException):
    def work(take: Take) -> float:
        raise error

    return Measure(Definition("test.fails", "never gives a number"), work)


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (NotApplicable("no speech"), "not_applicable", "no speech"),
        (Skipped("no weights"), "skipped", "no weights"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (MemoryError(), "failed", "out of memory"),
        (OutOfMemoryError("CUDA out of memory"), "failed", "out of memory: CUDA"),
        (RuntimeError("No CUDA GPUs are available"), "failed", "No CUDA GPUs"),
    ],
)
def test_every_fault_is_a_typed_result_without_a_number(error: BaseException, status: str, reason: str) -> None:
    result = measure(fails(error), Take.of(CLIP))
    assert (result.status, result.value) == (status, None)
    assert reason in result.reason


def test_an_interrupt_is_no_fault_of_a_metric() -> None:
    with pytest.raises(KeyboardInterrupt):
        measure(fails(KeyboardInterrupt()), Take.of(CLIP))


@given(st.floats())
def test_a_value_is_finite_or_it_is_none(value: float) -> None:
    result = measure(Measure(Definition("test.value", "as given"), lambda take: value), Take.of(CLIP))
    assert (result.status == "ok") == math.isfinite(value)
    assert result.value == value if math.isfinite(value) else result.value is None


@pytest.mark.parametrize("status", ["not_applicable", "failed", "skipped"])
def test_no_number_with_a_reason_for_having_none(status: str) -> None:
    with pytest.raises(ValueError, match="cannot have value"):
        Result(0.0, status, "because")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must say why"):
        Result(None, status)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("needs", "take", "status"),
    [
        (Needs(picture=True), Take.of(Clip(None, CLIP.audio, None, 1600)), "not_applicable"),
        (Needs(sound=True), Take.of(Clip(CLIP.video, None, 8.0, None)), "not_applicable"),
        (Needs(text=True), Take.of(CLIP), "not_applicable"),
        (Needs(reference=True), Take.of(CLIP), "not_applicable"),
        (Needs(packages=("no_such_package",)), Take.of(CLIP), "skipped"),
        (Needs(licence="CC BY-NC", commercial=False), Take.of(CLIP), "skipped"),
        (Needs(picture=True), Take(Prompt("7", "a ball")), "failed"),
        (Needs(picture=True), Take(Prompt("7", "a ball"), Path("no/such.mp4")), "failed"),
    ],
)
def test_needs_are_checked_before_anything_runs(needs: Needs, take: Take, status: str) -> None:
    metric = Measure(Definition("test.one", "always 1", needs=needs), lambda take: 1.0)
    assert measure(metric, take, strict_licence=True).status == status


def test_what_metrics_share_is_computed_once_and_an_error_reaches_each() -> None:
    calls = []

    def feature(picture: Picture) -> float:
        calls.append(picture)
        raise ArithmeticError("odd picture")

    metric = Measure(Definition("test.shared", "a feature"), lambda take: take.picture.once(feature))
    take = Take.of(CLIP)
    assert [measure(metric, t).reason for t in (take, take)] == ["ArithmeticError: odd picture"] * 2
    other = take.with_sound(Sound(np.ones((1, 800), np.float32), 1600))
    assert measure(metric, other).reason == "ArithmeticError: odd picture"
    assert len(calls) == 1
    assert other.clip.audio is not None
    assert other.clip.audio.max() == 1
    assert take.sound.wave.max() == 0


def test_rewards_grow_as_clips_get_better() -> None:
    for direction, value, wanted in (("higher", 2.0, 2.0), ("lower", 2.0, -2.0), ("zero", -2.0, -2.0)):
        metric = Measure(Definition("test.value", "2", direction=direction), lambda take, v=value: v)  # type: ignore
        assert reward(metric)(CLIP) == wanted
    assert (
        reward(
            Measure(fails(ValueError()).definition.__class__("a.b", "", direction="higher"), fails(ValueError()).of)
        )(CLIP)
        is None
    )
    with pytest.raises(ValueError, match="no better direction"):
        reward(Measure(Definition("test.value", "2"), lambda take: 2.0))


def test_a_definition_hash_follows_what_decides_the_numbers() -> None:
    one = Definition("a.b", "says", parameters={"window_s": 0.1})
    assert one.hash == Definition("a.b", "says", parameters={"window_s": 0.1}).hash
    others = [
        Definition("a.b", "says", parameters={"window_s": 0.2}),
        Definition("a.b", "says", version=2, parameters={"window_s": 0.1}),
        Definition("a.b", "says otherwise", parameters={"window_s": 0.1}),
        Definition("a.b", "says", "s", parameters={"window_s": 0.1}),
    ]
    assert len({one.hash, *(o.hash for o in others)}) == 5


def test_the_registry_builds_what_is_named_once_and_names_are_of_their_group() -> None:
    names = [metric.definition.name for metric in chosen(["tier0"])]
    assert len(names) == len(set(names))
    assert {name.split(".")[0] for name in names} == {g.name for g in GROUPS if g.tier == "tier0"}
    assert [m.definition.name for m in chosen(["file.fps", "file"])] == [m.definition.name for m in chosen(["file"])]
    assert [m.definition.name for m in chosen(["file.fps"])] == ["file.fps"]
    with pytest.raises(ValueError, match="the nearest is file"):
        chosen(["fil"])
    with pytest.raises(ValueError, match="file has"):
        chosen(["file.nothing"])


def test_a_file_is_described(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    video = np.zeros((16, 32, 48, 3), np.uint8)
    write_clip(path, Clip(video, np.zeros((1, 32000), np.float32), 8.0, 16000))
    take = Take(Prompt("1", ""), path)
    found = {m.definition.name: measure(m, take).value for m in chosen(["file"])}
    assert found["file.fps"] == 8
    assert found["file.sample_rate_hz"] == 16000
    assert found["file.megapixels"] == pytest.approx(32 * 48 / 1e6)
    assert found["file.variable_rate"] == 0
    assert found["file.duration_gap_s"] == pytest.approx(0, abs=0.07)  # AAC ends on a packet
    assert found["file.start_gap_s"] == pytest.approx(0, abs=1e-3)
