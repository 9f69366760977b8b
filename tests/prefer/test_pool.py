"""Pools: candidates beside real clips and clips with exchanged sounds, scored and mined as any clips are."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from avgen.__main__ import main
from avgen.command import INCOMPLETE
from avgen.data.media import read_clip, write_clip
from avgen.data.toybox import ToyboxConfig, render_facts
from avgen.data.toybox.world import Toybox
from avgen.prefer.pairs import read_pairs
from avgen.prefer.pool import PoolConfig, pool
from avgen.sample.jobs import read_manifest
from tests.prefer.scored import folders

WORLD = ToyboxConfig(scenes=("single",), kinds=("ball",))
SEEDS = 3


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    """Two prompts of the toybox, three clips each, in which what is seen is heard."""
    folder = tmp_path_factory.mktemp("candidates")
    lines = []
    for place in range(2):
        item = Toybox(WORLD)[place]
        for seed in range(SEEDS):
            name = f"p{place}_s{seed}"
            write_clip(folder / f"{name}.mp4", render_facts(item.facts, WORLD, seed, place).clip)
            lines.append(
                {"schema": 1, "name": name, "file": f"{name}.mp4", "id": f"p{place}", "prompt": item.caption}
                | {"seed": seed, "task": "t2av", "duration_s": 2.0, "fps": 8.0, "height": 32, "width": 32}
                | {"model": "m" * 16, "bytes": (folder / f"{name}.mp4").stat().st_size}
            )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"id": line["id"], "prompt": line["prompt"]}) + "\n" for line in lines[::SEEDS])
    )
    return folder


def test_an_exchanged_clip_has_ones_picture_and_anothers_sound_bit_for_bit(candidates, tmp_path):
    found = pool(PoolConfig(candidates, tmp_path, exchanged=2))
    assert (found.candidates, found.real, found.exchanged) == (6, 0, 12)
    lines = read_manifest(tmp_path)
    asked = {(line["id"], line["seed"]): line for line in lines}
    assert len(asked) == len(lines) == 18
    for line in lines:
        if line["seed"] < 0:
            picture, sound = (asked[line["id"], line[of]] for of in ("picture_of", "sound_of"))
            assert picture is not sound
            assert line["prompt"] == picture["prompt"]
            ours, seen, heard = (read_clip(tmp_path / one["file"]).clip for one in (line, picture, sound))
            assert np.array_equal(ours.video, seen.video)
            assert np.array_equal(ours.audio, heard.audio)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")}
    assert pool(PoolConfig(candidates, tmp_path, exchanged=2)) == found
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")} == before
    assert read_manifest(tmp_path) == lines


def test_of_one_picture_the_sound_that_belongs_to_it_wins(candidates, tmp_path):
    """From the command line, by the scores of the event reader."""
    clips, scores, pairs = (tmp_path / name for name in ("pool", "scores", "pairs"))
    assert main(["prefer", "pool", f"clips={candidates}", f"out={clips}", "exchanged=1"]) == 0
    prompts = f"prompts={candidates / 'prompts.jsonl'}"
    quick = ("metrics=[toybox]", "nulls=false", "ceiling=false", "resamples=100", "workers=1")
    assert main(["eval", "suite=plain", prompts, f"clips={clips}", f"out={scores}", *quick]) == 0
    mine = (f"clips={clips}", f"results={scores}", f"out={pairs}", "mode=sum", "per_prompt=3", "shared=picture")
    assert main(["prefer", *mine]) == 0
    found = read_pairs(pairs)
    assert found
    told = {line["file"]: line for line in read_manifest(clips)}
    for pair in found:
        loser = told[pair.loser.file.rsplit("/", 1)[1]]
        assert pair.winner.seed >= 0 > pair.loser.seed
        assert loser["picture_of"] == pair.winner.seed
        assert pair.winner.scores["toybox.sync"] > pair.loser.scores["toybox.sync"]


def test_real_clips_join_the_prompts_that_are_their_captions(candidates, tmp_path):
    one = read_manifest(candidates)[0]
    item = Toybox(ToyboxConfig(48, 48, 12.0, 3.0, scenes=("single",), kinds=("ball",)))[0]
    write_clip(tmp_path / "real.mp4", item.clip)
    write_clip(tmp_path / "short.mp4", Toybox(ToyboxConfig(duration_s=1.0, scenes=("single",)))[0].clip)
    rows = [f'real.mp4,"{one["prompt"]}"', f'short.mp4,"{one["prompt"]}"', 'real.mp4,"something else"']
    (tmp_path / "clips.csv").write_text("\n".join(["path,caption", *rows]) + "\n")
    found = pool(PoolConfig(candidates, tmp_path / "pool", real=tmp_path / "clips.csv"))
    assert (found.candidates, found.real, found.exchanged) == (6, 1, 0)
    assert len(found.notes) == 2
    assert "short.mp4" in found.notes[0]
    assert "p1: no real clip has its text" in found.notes[1]
    [line] = [line for line in read_manifest(tmp_path / "pool") if line["seed"] < 0]
    assert (line["id"], line["model"], line["real"]) == ("p0", "", str(tmp_path / "real.mp4"))
    clip = read_clip(tmp_path / "pool" / line["file"]).clip
    assert clip.video.shape == (16, 32, 32, 3)
    assert clip.audio_duration_s == pytest.approx(2.0, abs=1e-3)
    shorter = tmp_path / "shorter"
    shutil.copytree(candidates, shorter)
    told = (candidates / "manifest.jsonl").read_text().replace('"duration_s": 2.0', '"duration_s": 1.0')
    (shorter / "manifest.jsonl").write_text(told)
    pool(PoolConfig(shorter, tmp_path / "pool", real=tmp_path / "clips.csv"))
    [line] = [line for line in read_manifest(tmp_path / "pool") if line["seed"] < 0 and "real.mp4" in line["real"]]
    assert read_clip(tmp_path / "pool" / line["file"]).clip.audio_duration_s == pytest.approx(1.0, abs=1e-3)


def test_a_real_clip_does_not_join_clips_that_were_made_from_a_file(candidates, tmp_path):
    """Its picture is another one: two sounds for two pictures are no choice."""
    given = tmp_path / "given"
    shutil.copytree(candidates, given)
    lines = [{**line, "task": "v2a", "video": "in.mp4"} for line in read_manifest(candidates)]
    (given / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_clip(tmp_path / "real.mp4", Toybox(ToyboxConfig(duration_s=3.0, scenes=("single",)))[0].clip)
    (tmp_path / "clips.csv").write_text(f'path,caption\nreal.mp4,"{lines[0]["prompt"]}"\n')
    found = pool(PoolConfig(given, tmp_path / "pool", real=tmp_path / "clips.csv"))
    assert (found.candidates, found.real) == (6, 0)
    assert "made from a file that was given" in found.notes[0]


def test_what_cannot_be_pooled_is_said(candidates, tmp_path, capsys):
    for words, message in (
        ((f"clips={candidates}",), "nothing would join"),
        ((f"clips={candidates}", f"out={candidates}", "exchanged=1"), "must be another folder"),
        ((f"clips={tmp_path}", "exchanged=1"), "holds no manifest.jsonl"),
        ((f"clips={candidates}", "exchanged=-1"), "cannot be negative"),
    ):
        assert main(["prefer", "pool", f"out={tmp_path / 'out'}", *words]) == 2
        assert message in capsys.readouterr().err
    clips, _ = folders(tmp_path, {"a": [{"look": 1.0}] * 2}, {"look": "higher"}, task="v2a")
    assert main(["prefer", "pool", f"clips={clips}", f"out={tmp_path / 'out'}", "exchanged=1"]) == 2
    assert "task v2a, which is given one" in capsys.readouterr().err


def test_whatever_does_not_join_is_said(candidates, tmp_path, capsys):
    clips = tmp_path / "clips"
    shutil.copytree(candidates, clips)
    lines = read_manifest(candidates)

    def told(*kept, exchanged=1, **changes):
        (clips / "manifest.jsonl").write_text(
            "".join(json.dumps({**lines[i], **changes.get(f"_{i}", {})}) + "\n" for i in kept)
        )
        return pool(PoolConfig(clips, tmp_path / "pool", exchanged=exchanged))

    found = told(0, 1, 2, exchanged=5)
    assert found.exchanged == 6
    assert found.notes == ("p0: exchanged=5, but each of its 3 candidates has 2 others",)
    found = told(0, 1, 2, _2={"fps": 4.0})
    assert (found.exchanged, len(found.notes)) == (1, 2)
    assert "cannot have the sound of p0_s2.mp4, whose form is another" in found.notes[0]
    (clips / "p0_s0.mp4").unlink()
    found = told(0, 1)
    assert found.notes == (
        "p0: its clip p0_s0.mp4 is gone",
        "p0: exchanged=1, but it has one candidate",
    )
    assert (found.candidates, found.exchanged) == (1, 0)
    assert main(["prefer", "pool", f"clips={clips}", f"out={tmp_path / 'pool'}", "exchanged=1"]) == INCOMPLETE
    assert "p0_s0.mp4 is gone" in capsys.readouterr().out


def test_clips_that_share_nothing_make_no_pair_and_are_told_why(tmp_path):
    from avgen.prefer.candidates import read_pool
    from avgen.prefer.config import Group, PreferConfig
    from avgen.prefer.mine import mine

    clips, results = folders(tmp_path, {"a": [{"look": 1.0}, {"look": 2.0}]}, {"look": "higher"})
    groups = {"look": Group({"look": 1.0})}
    for shared, reason in (("picture", "no two clips share their picture"), ("either", "share picture or sound")):
        found = mine(read_pool(clips, results), PreferConfig(clips, results, tmp_path / "p", groups, shared=shared))
        assert not found.pairs
        assert reason in found.excluded[0].reason
