"""The demo's own sums, and that it runs from one end to the other."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from avgen import command
from avgen.compose import load
from avgen.data.media import probe
from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.demo import learned
from avgen.demo.__main__ import main
from avgen.demo.config import DemoConfig
from avgen.demo.figures import Figure
from avgen.demo.learned import Bar
from avgen.demo.page import scores_table
from avgen.demo.showing import varied
from avgen.demo.stages import frames_of, waves_of
from avgen.models import fit_codecs
from avgen.models.embedded_audio import SpectralAudioCodec, fit_audio
from avgen.models.embedded_video import PatchVideoCodec, fit_video
from avgen.sample import exam
from avgen.sample.judge import Counted
from avgen.train.config import TrainConfig
from avgen.train.data_config import ToyboxData


def test_a_bar_is_met_or_not_or_absent() -> None:
    assert Figure("a", 1.0).met is None
    assert Figure("a", 1.0, at_least=1.0).met is True
    assert Figure("a", 0.9, at_least=1.0).met is False
    assert Figure("a", 1.1, at_most=1.0).met is False
    assert Figure("a", math.nan, at_least=1.0).met is False


def test_the_clips_shown_cover_every_kind() -> None:
    world = Toybox(ToyboxConfig(), "test")
    items = [world[i] for i in range(60)]
    places = varied(items, 8)
    assert len(set(places)) == 8
    shown = {actor.kind for i in places[:4] for actor in items[i].facts.actors}
    assert shown == set(world.config.kinds)


def rough_fit(world_config: ToyboxConfig, n_clips: int, seed: int) -> tuple[PatchVideoCodec, SpectralAudioCodec]:
    """Codecs after a few steps: the demo's course is tested here, the codecs themselves elsewhere."""
    clips = [Toybox(world_config, "train", seed)[i].clip for i in range(n_clips)]
    video, audio = PatchVideoCodec(), SpectralAudioCodec.at_rate(world_config.sample_rate_hz)
    fit_video(video, frames_of(clips), steps=5, seed=seed)
    fit_audio(audio, waves_of(clips), steps=5, seed=seed)
    return video.eval(), audio.eval()


class Sources(HTMLParser):
    """Every file that a page shows, and whatever else it reaches for."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.files += [value for name, value in attrs if name in ("src", "href") and value]


def test_figures_are_held_against_shares_of_ceilings_and_distances_from_nulls() -> None:
    rng = np.random.default_rng(0)
    real, null = ([(float(n), 10.0) for n in rng.integers(least, 11, 40)] for least in (6, 0))
    made = [(0.75 * top, bottom) for top, bottom in real]  # of every item three quarters of what can be had
    s = Counted(made, real, null).scored(0)
    found = {"t2av": {"sync": s}}
    share = Bar("t2av", "sync", 0.7, "ceiling").held_against(found)
    above = Bar("t2av", "sync", 0.9, "null").held_against(found)
    plain = Bar("t2av", "sync", 0.5).held_against(found)
    assert share is not None
    assert above is not None
    assert plain is not None
    # the ceiling is of the same items: that some are harder leaves nothing open
    assert (share.value, share.low, share.high) == pytest.approx((0.75, 0.75, 0.75))
    assert share.met is True
    assert above.value == pytest.approx(s.figure.value - s.null.value)
    assert (above.low, above.high, above.met) == (s.above.low, s.above.high, False)
    assert above.low < above.value < above.high
    assert (plain.value, plain.low, plain.high, plain.met) == (s.figure.value, s.figure.low, s.figure.high, True)
    assert share.shown in scores_table(found)
    assert Bar("v2a", "onset", 0.5).held_against(found) is None


def test_what_one_clip_cannot_say_is_not_shown_as_an_interval(tmp_path: Path) -> None:
    counted = [(1.0, 2.0)]
    found = {"t2av": {"sync": Counted(counted, counted).scored(0)}}
    figure = Bar("t2av", "sync", 0.5, "ceiling").held_against(found)
    assert figure is not None
    assert figure.shown == "1"
    assert "nan" not in scores_table(found)


def test_types_of_scenes_are_judged_alike_however_they_are_trained() -> None:
    plain, weighted = (
        load(TrainConfig, "train", ["recipe=toybox", "data.world.scenes=[turn,pair]", *more])
        for more in ([], ["data.world.scene_weights=[3,1]"])
    )
    assert learned.world_of(weighted) == learned.world_of(plain)
    assert isinstance(plain.data, ToyboxData)
    assert isinstance(weighted.data, ToyboxData)
    assert weighted.data.fitted_world == plain.data.fitted_world
    assert weighted.data.worlds != plain.data.worlds


def test_training_goes_on_after_a_stop_and_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(load(DemoConfig, "demo", []), out=tmp_path)
    codes, told = [command.INTERRUPTED, 0], []

    def main(words: list[str]) -> int:
        told.append(words)
        learned.settings(config)[1].out.mkdir(parents=True, exist_ok=True)
        return codes.pop(0)

    monkeypatch.setattr("avgen.train.__main__.main", main)
    with pytest.raises(learned.Unfinished) as stopped:
        learned.train(config, Console(quiet=True))
    assert stopped.value.code == command.INTERRUPTED
    run, first = learned.train(config, Console(quiet=True))
    again, seconds = learned.train(config, Console(quiet=True))
    assert told[0] == told[1]
    assert len(told) == 2
    assert (again, seconds) == (run, first)
    other = learned.settings(replace(config, recipe="toybox_shapes"))[1]
    assert other.out != run.out
    with pytest.raises(ValueError, match="recipe"):
        learned.settings(replace(config, recipe="nothing"))


def test_what_a_killed_training_took_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(load(DemoConfig, "demo", []), out=tmp_path)

    def killed(words: list[str]) -> int:
        (record,) = tmp_path.glob("model/*/demo.json")
        left.append(record.read_text())  # what a kill at this instant leaves
        return 0

    left: list[str] = []
    monkeypatch.setattr("avgen.train.__main__.main", killed)
    learned.train(config, Console(quiet=True))
    (record,) = tmp_path.glob("model/*/demo.json")
    record.write_text(left[0])
    for _ in range(2):  # trained to its end, then found done
        _, seconds = learned.train(config, Console(quiet=True))
        assert math.isnan(seconds)
    figure = Figure("model: time to train", seconds, "min", at_most=10.0)
    assert (figure.met, figure.shown) == (False, "unknown")


def test_what_an_exception_stops_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(load(DemoConfig, "demo", []), out=tmp_path)

    def full(words: list[str]) -> int:
        time.sleep(0.2)
        raise OSError("no space left")

    monkeypatch.setattr("avgen.train.__main__.main", full)
    with pytest.raises(OSError, match="space"):
        learned.train(config, Console(quiet=True))
    monkeypatch.setattr("avgen.train.__main__.main", lambda words: 0)
    assert learned.train(config, Console(quiet=True))[1] >= 0.2


@pytest.mark.slow
def test_the_demo_runs_and_leaves_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_codecs, "fit_embedded", rough_fit)
    monkeypatch.setattr(exam, "cores", lambda: 1)  # clips are made in this process
    argv = [f"out={tmp_path}", "quick=true", "fit_clips=24", "test_clips=6", "shown_clips=2", "sampled_clips=2"]
    assert main(argv) == 0
    said = json.loads((tmp_path / "figures.json").read_text())
    assert set(said["reader"]) == {"as rendered", "after H.264 + AAC", "after the codecs"}
    values = {figure["name"]: figure["value"] for figure in said["figures"]}
    assert values["codecs: video tokens per clip"] == 8 * 4 * 4  # 16 frames by 2, 32 pixels by 8
    assert values["codecs: time to fit"] > 0
    assert values["model: time to train"] > 0
    assert {"t2av", "i2av", "v2a", "a2v"} <= set(said["scores"])
    assert {f"t2av: sync, {against}" for against in ("share of its ceiling", "above its null")} <= set(values)
    assert 0 <= values["toybench, 4 prompts: kind"] <= 1
    clips = sorted(tmp_path.glob("clip_*.mp4"))
    assert len(clips) == 2
    info = probe(clips[0])
    assert info.video is not None
    assert info.audio is not None
    assert (info.video.width, info.video.height, info.audio.channels) == (512, 256, 2)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width == 1400

    page = Sources()
    page.feed((tmp_path / "index.html").read_text())
    assert {"video", "audio", "img", "table"} <= page.tags
    assert not {"script", "link"} & page.tags
    shown = [file for file in page.files if file.startswith("samples/")]
    assert len(shown) == 4 * 2 + 3  # a clip and a sheet per task, and what three of them were given
    assert all((tmp_path / file).stat().st_size > 0 for file in page.files)
    assert len([file for file in page.files if file.startswith("toybench/")]) == 1
    made = {file: (tmp_path / file).stat().st_mtime_ns for file in page.files}

    def never(*_: object) -> None:
        raise AssertionError("what the first run made was not used")

    monkeypatch.setattr(fit_codecs, "fit_embedded", never)
    monkeypatch.setattr("avgen.train.__main__.main", never)
    assert main(argv) == 0
    again = json.loads((tmp_path / "figures.json").read_text())
    assert again["scores"] == said["scores"]
    assert all((tmp_path / file).stat().st_mtime_ns == made[file] for file in shown)
    with pytest.raises(AssertionError, match="was not used"):
        main([*argv, "refit=true"])
