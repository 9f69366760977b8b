"""The demo's own sums, and that it runs from one end to the other."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from avgen.data.media import probe
from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.demo.__main__ import main
from avgen.demo.figures import Figure
from avgen.demo.showing import varied
from avgen.demo.stages import frames_of, waves_of
from avgen.models import fit_codecs
from avgen.models.embedded_audio import SpectralAudioCodec, fit_audio
from avgen.models.embedded_video import PatchVideoCodec, fit_video


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


@pytest.mark.slow
def test_the_demo_runs_and_leaves_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_codecs, "fit_embedded", rough_fit)
    argv = [f"out={tmp_path}", "fit_clips=24", "test_clips=6", "shown_clips=2"]
    assert main(argv) == 0
    said = json.loads((tmp_path / "figures.json").read_text())
    assert set(said["reader"]) == {"as rendered", "after H.264 + AAC", "after the codecs"}
    values = {figure["name"]: figure["value"] for figure in said["figures"]}
    assert values["codecs: video tokens per clip"] == 8 * 4 * 4  # 16 frames by 2, 32 pixels by 8
    assert values["codecs: time to fit"] > 0
    clips = sorted(tmp_path.glob("clip_*.mp4"))
    assert len(clips) == 2
    info = probe(clips[0])
    assert info.video is not None
    assert info.audio is not None
    assert (info.video.width, info.video.height, info.audio.channels) == (512, 256, 2)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width == 1400

    def never(*_: object) -> None:
        raise AssertionError("the fit of the first run was not used")

    monkeypatch.setattr(fit_codecs, "fit_embedded", never)
    assert main(argv) == 0
    with pytest.raises(AssertionError, match="was not used"):
        main([*argv, "refit=true"])
