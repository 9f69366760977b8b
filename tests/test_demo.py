"""The demo's own sums, and that it runs from one end to the other."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from avgen import command
from avgen.compose import load
from avgen.config import ConfigError
from avgen.data.media import probe
from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.demo import learned, stages
from avgen.demo.__main__ import main
from avgen.demo.config import DemoConfig
from avgen.demo.figures import Figure
from avgen.demo.learned import Bar
from avgen.demo.page import scores_table, write_page
from avgen.demo.showing import varied
from avgen.demo.stages import frames_of, keep_full, waves_of, write_figures
from avgen.models import fit_codecs
from avgen.models.embedded_audio import SpectralAudioCodec, fit_audio
from avgen.models.embedded_video import PatchVideoCodec, fit_video
from avgen.sample import exam
from avgen.sample.inputs import Form
from avgen.sample.judge import Counted
from avgen.sample.method import Method
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


def test_the_model_is_the_same_however_the_demos_folder_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(DemoConfig, "demo", [])
    folders = {
        learned.settings(replace(config, out=out))[1].out.name
        for out in (Path("a"), tmp_path / "a", Path("../elsewhere"))
    }
    assert len(folders) == 1


def test_a_note_that_a_kill_cut_short_costs_the_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(load(DemoConfig, "demo", []), out=tmp_path)
    monkeypatch.setattr("avgen.train.__main__.main", lambda words: 0)
    record = learned.settings(config)[1].out / "demo.json"
    record.parent.mkdir(parents=True)
    record.write_text("")  # as earlier versions could leave it
    _, seconds = learned.train(config, Console(quiet=True))
    assert math.isnan(seconds)
    assert json.loads(record.read_text())["done"]


def test_a_kill_while_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(load(DemoConfig, "demo", []), out=tmp_path)
    record = tmp_path / "model" / "demo.json"

    def written() -> None:
        learned.note(record, 1.0, True, config)
        write_figures(config, [], {}, {})
        write_page(tmp_path, [], [], "", False, None)

    written()
    files = (record, tmp_path / "figures.json", tmp_path / "index.html")
    before = [path.read_bytes() for path in files]

    def killed(path: Path, text: str, **_: object) -> None:
        with path.open("w") as file:
            file.write(text[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    for write in (
        lambda: learned.note(record, 2.0, False, config),
        lambda: write_figures(config, [Figure("a", 1.0)], {}, {}),
        lambda: write_page(tmp_path, [], [], "another", False, None),
    ):
        with pytest.raises(KeyboardInterrupt):
            write()
    assert [path.read_bytes() for path in files] == before


def test_answers_are_kept_for_the_world_reader_and_judge_that_gave_them(monkeypatch: pytest.MonkeyPatch) -> None:
    form = Form(duration_s=2, fps=8, height=32, width=32)
    asked = exam.Exam(ToyboxConfig(), "test", 0, 4, form, Method())
    keys = {learned.key_of("model", asked, 4), learned.key_of("other", asked, 4), learned.key_of("model", asked, 3)}
    for version in ("WORLD_VERSION", "READER_VERSION", "JUDGE_VERSION", "__version__"):
        with monkeypatch.context() as patch:
            patch.setattr(learned, version, "another")
            keys.add(learned.key_of("model", asked, 4))
    assert len(keys) == 7
    assert learned.key_of("model", asked, 4) in keys


def test_the_demos_clips_are_made_where_there_is_an_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, gpu = replace(load(DemoConfig, "demo", []), out=tmp_path), torch.device("cuda:0")

    class Opened(Exception):
        pass

    def opened(device: torch.device, path: Path, attention: str | None) -> None:
        assert device == gpu
        raise Opened

    monkeypatch.setattr(learned, "this_process", lambda: SimpleNamespace(device=gpu))
    monkeypatch.setattr(learned, "open_for", opened)
    with pytest.raises(Opened):
        learned.examine(config, learned.settings(config)[1], Console(quiet=True))


def test_a_quick_demo_has_less_of_everything_in_a_folder_of_its_own(tmp_path: Path) -> None:
    quick = load(DemoConfig, "demo", ["quick=true", "shown_clips=30", "sampled_clips=3"]).settled
    assert (quick.test_clips, quick.shown_clips, quick.sampled_clips) == (20, 20, 3)
    assert quick.out != DemoConfig.out
    assert load(DemoConfig, "demo", ["quick=true", f"out={tmp_path}"]).settled.out == tmp_path
    full = load(DemoConfig, "demo", [])
    assert full.settled == full


def test_a_quick_demo_does_not_replace_a_full_one(tmp_path: Path) -> None:
    full, quick = (load(DemoConfig, "demo", [f"out={tmp_path}", *more]) for more in ([], ["quick=true"]))
    keep_full(quick)
    write_figures(quick, [], {}, {})
    keep_full(quick)
    keep_full(full)  # which may replace a quick one
    write_figures(full, [], {}, {})
    keep_full(full)
    with pytest.raises(ConfigError, match="holds the figures of a full demo: give quick=true another out="):
        keep_full(quick)


def test_what_there_is_can_be_looked_at_before_toybench_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(load(DemoConfig, "demo", []), out=tmp_path)

    def stopped(shop: stages.Workshop) -> list[Figure]:
        assert "speed" in (tmp_path / "index.html").read_text()
        raise learned.Unfinished(command.INTERRUPTED)

    monkeypatch.setattr(stages, "STAGES", (lambda shop: [Figure("speed", 1.0)],))
    monkeypatch.setattr(stages, "bench_stage", stopped)
    with pytest.raises(learned.Unfinished):
        stages.run(config, Console(quiet=True))
    assert [figure["name"] for figure in json.loads((tmp_path / "figures.json").read_text())["figures"]] == ["speed"]


def test_files_in_between_lie_outside_the_demos_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves them behind."""
    shop = stages.Workshop(replace(load(DemoConfig, "demo", []), out=tmp_path), Console(quiet=True))
    world = Toybox(ToyboxConfig(), "test")
    shop.test = [world[0]]
    written = []
    write = stages.write_clip
    monkeypatch.setattr(stages, "write_clip", lambda path, clip: written.append(path) or write(path, clip))
    stages.media_stage(shop)
    assert written
    assert not any(path.is_relative_to(shop.config.out) for path in written)


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
    speed = "model: clips made and read per minute"
    assert {f["name"]: f["value"] for f in again["figures"]}[speed] == values[speed] > 0
    assert all((tmp_path / file).stat().st_mtime_ns == made[file] for file in shown)
    with pytest.raises(AssertionError, match="was not used"):
        main([*argv, "refit=true"])
