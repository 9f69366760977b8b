"""avgen plan: what it prints, what it refuses, and that the model configs say of themselves what it says of them."""

from __future__ import annotations

import io
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from avgen import command
from avgen.compose import config_root, load
from avgen.models.cost import parameters
from avgen.plan import (
    AUDIO_CODECS,
    EFFICIENCY,
    VIDEO_CODECS,
    WIDEST,
    PlanConfig,
    Rate,
    batch_of,
    counted,
    gib,
    main,
    measure,
    plan,
    rate_of,
    resized,
    show,
)

MODELS = sorted((config_root() / "model").glob("*.yaml"))
TOY = ["model=toy", "height=32", "width=32", "fps=8", "duration_s=2", "batch=16", "caption_tokens=64"]


def planned(*overrides: str) -> PlanConfig:
    return load(PlanConfig, "plan", list(overrides))


def printed(*overrides: str) -> str:
    out = io.StringIO()
    show(planned(*overrides), Console(file=out, width=WIDEST))
    return out.getvalue()


@pytest.mark.parametrize("file", MODELS, ids=lambda f: f.stem)
def test_a_model_says_of_itself_what_the_plan_says(file: Path) -> None:
    head = [line.removeprefix("#").strip() for line in file.read_text().splitlines() if line.startswith("#")]
    at = next(i for i, line in enumerate(head) if line.startswith("avgen plan "))
    config = planned(*shlex.split(head[at])[2:])
    assert f"model={file.stem}" in head[at]
    made = plan(config, rate_of(config))
    assert head[at + 1] == (
        f"{parameters(config.model).total:,} parameters, {counted(made.cost.model)}FLOPs a step, "
        f"{gib(made.memory.total)} GiB at its peak (predicted)"
    )


@pytest.mark.parametrize("file", MODELS, ids=lambda f: f.stem)
def test_every_key_of_a_model_has_its_comment(file: Path) -> None:
    keys = [line for line in file.read_text().splitlines() if re.match(r"\s*\w+: \S", line)]
    assert keys
    assert [line for line in keys if not re.search(r" # \S", line)] == []


@pytest.mark.parametrize(
    "words",
    [["checkpointing=full"], ["model=toy", "ragged=true", "levels=2"], ["model=large", "dtype=fp32"], ["sizes=true"]],
    ids=" ".join,
)
def test_tables_are_narrow_and_whole(words: list[str]) -> None:
    lines = printed(*words).splitlines()
    assert max(map(len, lines)) <= WIDEST
    assert "…" not in "".join(lines)


def test_the_plan_names_what_it_computed() -> None:
    words = [*TOY, "device_tflops=0.1", "efficiency=0.25"]
    config = planned(*words)
    made, text = plan(config, rate_of(config)), printed(*words)
    count = parameters(config.model)
    assert f"{count.total:,}" in text
    assert f"{count.bridge:,}" in text
    assert counted(made.cost.model) in text
    assert gib(made.memory.total) in text
    assert "0.1 TFLOP/s (device_tflops)" in text
    assert made.step_s == pytest.approx(made.cost.executed / (0.1e12 * 0.25))
    assert "efficiency 0.25 (given)" in text


def test_a_cpu_is_not_taken_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    here, there = (planned(*TOY, "device_tflops=1", f"device={name}") for name in ("here", "h200"))
    slower = EFFICIENCY["cuda"] / EFFICIENCY["cpu"]
    assert slower > 1
    assert plan(here, rate_of(here)).step_s == pytest.approx(slower * plan(there, rate_of(there)).step_s)
    assert "(measured with recipe=toybox)" in here.efficiency_told
    assert "0.4 (assumed)" in there.efficiency_told


def test_devices_that_share_clips_share_the_time_and_the_activations() -> None:
    one, four = planned(*TOY, "device_tflops=1"), planned(*TOY, "device_tflops=1", "context=4")
    alone, shared = plan(one, rate_of(one)), plan(four, rate_of(four))
    assert shared.step_s == pytest.approx(alone.step_s / 4)
    assert shared.memory.activations == pytest.approx(alone.memory.activations / 4, rel=1e-3)
    assert shared.memory.states == alone.memory.states


def test_the_bridge_stays_below_8_percent_and_fades_with_size() -> None:
    """The bound holds at 480p; smaller clips have less self-attention to hide the bridge behind."""
    rows = [line for line in printed("sizes=true", "checkpointing=full").splitlines() if re.match(r"│ \d+ x \d+", line)]
    shares = {row.split("│")[1].strip(): float(row.split("│")[6].strip(" %")) for row in rows}
    assert len(rows) == len(list(resized(planned()))) == 6
    assert 0 < shares["480 x 832"] <= 8
    assert shares["720 x 1280"] < shares["480 x 832"] < shares["256 x 448"]


def test_a_longer_clip_a_second_clip_and_a_slower_device_cost_more() -> None:
    base = planned("checkpointing=full")
    rate = rate_of(base)
    first = plan(base, rate)
    longer, wider = plan(replace(base, duration_s=10.0), rate), plan(replace(base, batch=2), rate)
    assert wider.cost.model == pytest.approx(2 * first.cost.model, rel=1e-3)
    assert longer.cost.model > 2 * first.cost.model
    assert first.memory.total < wider.memory.total
    assert plan(base, Rate(rate.tflops / 2, "half")).step_s == pytest.approx(2 * first.step_s)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_this_machine_is_measured(dtype: str) -> None:
    rate = measure(dtype)  # type: ignore[arg-type]
    assert rate.tflops > 0
    assert dtype in rate.source


def test_a_model_of_one_modality_is_planned_alone() -> None:
    config = planned("model.audio=null")
    shape = batch_of(config)
    assert shape.audio is None
    made = plan(config, rate_of(config))
    assert made.cost.only("bridge").model == made.cost.only("audio").model == 0
    assert "audio" not in printed("model.audio=null")


def test_a_codec_can_be_described() -> None:
    codec = "video_codec={channels: 48, time: {stride: 4, first: 1}, space_stride: 16}"
    config = planned(codec, "model.video.channels=48")
    video = batch_of(config).video
    assert video is not None
    assert video.tokens == 21 * 30 * 52


def test_the_sizes_are_whole_tokens_of_every_codec() -> None:
    """Wan 2.2's, of 32 pixels: 720 is no multiple."""
    codec = "video_codec={channels: 48, time: {stride: 4, first: 1}, space_stride: 16, patch: 2}"
    said = printed("sizes=true", "model.video.channels=192", codec)
    assert set(re.findall(r"\d+ x \d+", said)) == {"256 x 448", "480 x 832", "704 x 1280"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["modle=toy"], "nearest valid one is model"),
        (["model=huge"], "offered: base, large, small, toy"),
        (["height=470"], "height=470 must be a multiple of the 16 pixels"),
        (["model.video.channels=30"], "model.video.channels=30"),
        (["audio_codec={channels: 8, time: {stride: 640, first: 640}, sample_rate_hz: 16000}"], "given: 8"),
        (["checkpointing=some"], "one of none, full, keep_attention"),
        (["efficiency=40"], "efficiency=40"),
        (["device_tflops=0"], "device_tflops=0"),
        (["batch=0"], "batch=0"),
    ],
    ids=lambda v: v[0][:20] if isinstance(v, list) else "",
)
def test_users_errors_are_one_line_and_exit_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(main, words) == command.USER_ERROR
    said = capsys.readouterr()
    assert says in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_help_names_keys_and_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    for words in ("model=base", "device_tflops=null", "sizes=false", "checkpointing=none", "avgen plan model=toy"):
        assert words in said


def test_the_embedded_codecs_are_as_written_out() -> None:
    from avgen.models.embedded_audio import SpectralAudioCodec
    from avgen.models.embedded_video import PatchVideoCodec

    assert VIDEO_CODECS["embedded"] == PatchVideoCodec().geometry
    assert AUDIO_CODECS["embedded"] == SpectralAudioCodec().geometry
