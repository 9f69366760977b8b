"""`avgen toybox`: whole clips, resumed exactly, and errors a user can act on."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avgen.command import run
from avgen.data.media import read_clip
from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.data.toybox.__main__ import main
from avgen.data.toybox.reader import read_events, score


def lines_of(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_written_is_what_the_world_holds(tmp_path):
    assert main(["export", f"out={tmp_path}", "n=3", "first=5", "split=test", "seed=9", "world.fps=12"]) == 0
    world = Toybox(ToyboxConfig(fps=12.0), "test", 9)
    lines = lines_of(tmp_path)
    assert [line["index"] for line in lines] == [5, 6, 7]
    for line in lines:
        item = world[line["index"]]
        assert line["world"] == world.fingerprint
        assert line["caption"] == item.caption
        assert [e["instant_s"] for e in line["events"]] == [e.instant_s for e in item.events]
        clip = read_clip(tmp_path / line["path"], 0.0, line["duration_s"]).clip
        assert clip.video.shape == item.clip.video.shape
        assert np.abs(clip.video.astype(float) - item.clip.video).mean() < 4
        result = score(read_events(clip), item.events)
        assert result.seen.matched == result.seen.true
        assert result.heard.matched == result.heard.true


def test_a_broken_off_export_is_completed(tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    main(["export", f"out={once}", "n=5"])
    main(["export", f"out={twice}", "n=4"])
    first, second, third = (twice / line["path"] for line in lines_of(twice)[:3])
    kept = third.stat().st_mtime_ns
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    manifest = twice / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-40])  # killed while writing a line
    assert main(["export", f"out={twice}", "n=5"]) == 0
    assert contents(twice).keys() == contents(once).keys()
    for line, other in zip(lines_of(twice), lines_of(once), strict=True):
        assert (twice / line["path"]).stat().st_size == line["bytes"]
        # the encoders may differ in a few bytes from run to run
        assert {**line, "bytes": 0} == {**other, "bytes": 0}
        clip, whole = (read_clip(folder / line["path"]).clip for folder in (twice, once))
        assert np.abs(clip.video.astype(float) - whole.video).mean() < 1
        assert np.abs(clip.audio - whole.audio).max() < 0.02
    assert third.stat().st_mtime_ns == kept  # what was whole wasn't made again


def test_clips_of_two_worlds_are_not_mixed(tmp_path, capsys):
    main(["export", f"out={tmp_path}", "n=1"])
    before = contents(tmp_path)
    assert run(main, ["export", f"out={tmp_path}", "n=2", "seed=1"]) == 2
    assert "another world" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["exprt"], "export, preview or check"),
        (["export"], "out"),
        (["export", "out=x", "n=0"], "n=0"),
        (["export", "out=x", "splt=test"], "split"),
        (["export", "out=x", "split=tset"], "test"),
        (["export", "out=x", "world.fsp=3"], "world.fps"),
        (["export", "out=x", "world.duration_s=0.1"], "duration_s=0.1"),
        (["export", "out=x", "many"], "key=value"),
        (["export", "out=x", "world.scenes=[single"], "are brackets and quotes closed?"),
        (["export", "out=x", "first=3000000000"], "first=3000000000 must lie between"),
        (["preview", "out=x.jpg"], ".png"),
        (["check", "through=fog"], "blur"),
    ],
)
def test_mistakes_are_explained(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(main, words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list(Path().iterdir())


def test_help_names_every_key(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for key in ("out=", "n=", "split=", "seed=", "world.fps=", "world.scenes="):
        assert key in said


@pytest.mark.parametrize("through", ["nothing", "mp4", "blur"])
def test_check_prints_its_table(through, capsys):
    assert main(["check", "n=2", f"through={through}"]) == 0
    said = capsys.readouterr().out
    assert "all" in said
    assert "actors" in said


def test_preview_is_a_picture(tmp_path):
    assert main(["preview", f"out={tmp_path / 'some' / 'toys.png'}", "n=2"]) == 0
    with Image.open(tmp_path / "some" / "toys.png") as picture:
        assert picture.width == 1400
        assert len(picture.getcolors(1 << 20)) > 50


def test_a_folder_of_other_clips_is_refused(tmp_path, capsys):
    (tmp_path / "manifest.jsonl").write_text('{"name": "00000_s0", "prompt": "made by a model"}\n')
    assert run(main, ["export", f"out={tmp_path}", "n=1"]) == 2
    assert "lists clips of another world" in capsys.readouterr().err
