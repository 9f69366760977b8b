"""Prepare: rows are what the codecs make of the windows' own time; nothing is lost to kills, full disks, bad clips."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from avgen.config import ConfigError
from avgen.data.encode import Encoders, features
from avgen.data.manifest import read_manifest
from avgen.data.media import read_clip, write_clip, write_wav
from avgen.data.prepare import Place, PrepareConfig, main, opened, prepare
from avgen.data.store import NUMBERS, Store, StoreError
from avgen.data.store_source import StoreSource
from avgen.data.store_write import LEFT_S, Digest, StoreWriter, _here, content_of
from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.data.toybox_source import ToyboxSource
from avgen.data.windows import WindowRule, WindowShape
from avgen.models.codec_files import CodecConfig, CodecFiles
from avgen.models.embedded_audio import SpectralAudioCodec
from avgen.models.embedded_video import PatchVideoCodec
from avgen.models.opening import open_audio_codec, open_video_codec
from avgen.models.text_files import TextFiles
from avgen.types import Text
from tests.data.nursery import Nursery
from tests.data.store_factory import header
from tests.train.factory import quiet

WORLD = ToyboxConfig(16, 16, fps=12.0, duration_s=1.5, scenes=("single",), sample_rate_hz=8000)
RULE = WindowRule((WindowShape(16, 16, 8.0, 1.0), WindowShape(8, 16, 6.0, 0.5)), choose="all", every_s=0.25)
CLIPS = 10


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder of toybox clips as mp4s, one of them silent, and the codecs."""
    folder = tmp_path_factory.mktemp("clips")
    items = [Toybox(WORLD)[i] for i in range(CLIPS)]
    video, audio = PatchVideoCodec(6, hidden=8), SpectralAudioCodec.at_rate(8000, 5)
    video.components.fit(video.patches(torch.stack([torch.from_numpy(i.clip.video) for i in items])).flatten(0, 3))
    audio.components.fit(audio.features(torch.stack([torch.from_numpy(i.clip.audio) for i in items])).flatten(0, 1))
    video.save_pretrained(folder / "codecs/video")
    audio.save_pretrained(folder / "codecs/audio")
    with (folder / "clips.jsonl").open("w") as file:
        for i, item in enumerate(items):
            clip = replace(item.clip, audio=None, sample_rate_hz=None) if i == 3 else item.clip
            write_clip(folder / f"{i}.mp4", clip)
            file.write(json.dumps({"path": f"{i}.mp4", "caption": item.caption, "tags": ["toy"]}) + "\n")
    return folder


def settings(clips: Path, out: Path, **changes) -> PrepareConfig:
    codec = CodecConfig(CodecFiles(str(clips / "codecs/video")), CodecFiles(str(clips / "codecs/audio")))
    given = {"manifest": clips / "clips.jsonl", "out": out, "windows": RULE, "codec": codec, "shard_clips": 2}
    return PrepareConfig(**given | changes)


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory) -> Store:
    out = tmp_path_factory.mktemp("whole") / "latents"
    assert prepare(settings(clips, out), quiet(), Place()) == 0
    return Store.open(out)


def everything(store: Store) -> list[dict]:
    return store.take(range(store.totals.rows), store.dataset.schema.names).to_pylist()


def test_rows_are_the_windows_of_the_files_by_their_own_time(clips, whole):
    video = open_video_codec(CodecFiles(str(clips / "codecs/video")))
    audio = open_audio_codec(CodecFiles(str(clips / "codecs/audio")))
    records = list(read_manifest(clips / "clips.jsonl"))
    rows = everything(whole)
    starts = {}
    for row in rows:
        record, shape = records[row["clip"]], whole.header.shapes[row["bucket"]]
        starts.setdefault((row["clip"], row["bucket"]), []).append(row["start_s"])
        begin = Fraction(row["start_s"])
        clip = read_clip(record.path, begin, begin + Fraction(shape.duration_s), fps=shape.fps, sample_rate_hz=8000,
                         size=(shape.height, shape.width), audio=shape.audio).clip  # fmt: skip
        mean = video.encode(torch.from_numpy(clip.video)[None]).mean.numpy().astype(NUMBERS)
        assert row["video_mean"] == mean.tobytes()
        assert mean.shape[1:] == whole.header.video_shape(shape)
        if shape.audio:
            mean = audio.encode(torch.from_numpy(clip.audio)[None]).mean.numpy().astype(NUMBERS)
            assert row["audio_mean"] == mean.tobytes()
        assert json.loads(row["captions"]) == list(record.captions.joint)
        assert json.loads(row["tags"]) == ["toy"]
    expected = {0: [0.0, 0.25, 0.5], 3: [0.0, 0.25, 0.5, 0.75]}  # four of the five that would fit, spread
    for (clip, bucket), found in starts.items():
        assert bucket % 3 == (clip == 3)  # the silent one
        assert found == (expected[0] if bucket < 3 else [0.0, 0.25, 0.5, 1.0]), (clip, bucket)
    assert len(starts) == 2 * CLIPS


def test_the_content_hash_is_of_what_is_read_back(whole):
    records = [json.loads(path.read_text()) for path in sorted((Path(whole.path) / "shards").glob("*.json"))]
    rows, first = everything(whole), 0
    digests = []
    for record in records:
        digest = Digest()
        digest.add_rows(rows[first : first + record["rows"]])
        first += record["rows"]
        digests.append(digest.hex)
    assert content_of(digests) == whole.totals.content


def test_a_caption_is_encoded_once_and_for_other_stores_too(clips, tmp_path, monkeypatch):
    encoder = Widths()
    monkeypatch.setattr("avgen.models.encoders.TransformersText.load", lambda *_, **__: encoder)
    text, out = TextFiles("some/encoder"), tmp_path / "latents"
    assert prepare(settings(clips, out, text=text), quiet(), Place()) == 0
    rows = everything(Store.open(out))
    told = {json.loads(row["captions"])[0] for row in rows}
    assert sorted(encoder.asked) == sorted(told)
    assert len(told) < len(rows)
    for row in rows:
        assert set(np.frombuffer(row["text"], NUMBERS).tolist()) == {len(json.loads(row["captions"])[0])}
    assert not (out / "captions").exists()  # what is in the rows needs no second place

    text = replace(text, cache=tmp_path / "kept")
    for name, news in (("one", len(told)), ("other", 0)):
        encoder.asked.clear()
        assert prepare(settings(clips, tmp_path / name, text=text), quiet(), Place()) == 0
        assert len(encoder.asked) == news
        assert everything(Store.open(tmp_path / name)) == rows


def test_several_processes_make_the_same_store(clips, whole, tmp_path):
    config = settings(clips, tmp_path / "latents")
    assert prepare(config, quiet(), Place(1, 2)) == 0
    with pytest.raises(StoreError, match=r"not finished \(2 of 5 shards"):
        Store.open(config.out)
    assert prepare(config, quiet(), Place(0, 2)) == 0
    assert Store.open(config.out).totals == whole.totals
    assert prepare(config, quiet(), Place()) == 0  # once more changes nothing
    assert Store.open(config.out).totals == whole.totals


def test_the_same_command_on_two_machines_makes_one_store(clips, whole, tmp_path, monkeypatch):
    """The second one begins while the first is in the middle of a shard, finishes, and the first ends well."""
    config, shown = settings(clips, tmp_path / "latents"), Console(file=StringIO(), width=1000)
    row, state = Encoders.row, {"rows": 0}
    first_written: list[int] = []
    write = StoreWriter.write

    def written(self, shard, *words):
        if state.get("first"):
            first_written.append(shard)
        return write(self, shard, *words)

    def halfway(self, *words):
        state["rows"] += 1
        if state["rows"] == 3:
            state["first"] = False
            assert list((config.out / "data").glob(".*.part"))
            monkeypatch.setattr("avgen.data.store_write._here", lambda: "elsewhere")
            assert prepare(config, quiet(), Place()) == 0
            state["first"] = True
        return row(self, *words)

    monkeypatch.setattr(Encoders, "row", halfway)
    monkeypatch.setattr(StoreWriter, "write", written)
    state["first"] = True
    assert prepare(config, shown, Place()) == 0
    assert first_written == [0]  # what the other has made is not made again
    assert Store.open(config.out).totals == whole.totals
    assert everything(Store.open(config.out)) == everything(whole)
    assert not list(config.out.rglob("*.part"))


def test_drafts_of_the_dead_are_swept_and_of_the_living_not(tmp_path):
    data = tmp_path / "data"
    writer = StoreWriter.begin(tmp_path, header(), 3)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {
        "dead here": f"{_here()}.{gone.pid}",
        "alive here": f"{_here()}.{os.getpid()}",
        "elsewhere": f"elsewhere-1.{gone.pid}",
        "old": f"elsewhere-2.{gone.pid}",
    }
    drafts = {what: data / f".shard_000001.lance.{name}.0.part" for what, name in names.items()}
    for draft in drafts.values():
        draft.mkdir()
        (draft / "shard_000001.lance").touch()
    for path in (drafts["old"], drafts["old"] / "shard_000001.lance"):
        os.utime(path, (0, time.time() - 2 * LEFT_S))
    os.utime(drafts["elsewhere"] / "shard_000001.lance", (0, time.time() - 2 * LEFT_S))  # its folder is touched
    StoreWriter.begin(tmp_path, writer.header, 3)
    assert {what for what, draft in drafts.items() if draft.exists()} == {"alive here", "elsewhere"}


def test_who_is_done_before_the_others_says_who_it_is(clips, tmp_path):
    shown = Console(file=StringIO(), width=1000)
    assert prepare(settings(clips, tmp_path / "latents"), shown, Place(1, 3)) == 0
    assert "process 1 of 3 is done; 2 of 5 shards are there, other processes are at work" in shown.file.getvalue()


def test_an_unreadable_clip_is_left_out_and_named_and_can_be_brought_back(clips, whole, tmp_path):
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    (folder / "6.mp4").write_bytes(b"nothing that plays")
    config = settings(clips, tmp_path / "latents", manifest=folder / "clips.jsonl")
    assert prepare(config, quiet(), Place()) == 3
    report = json.loads((config.out / "report.json").read_text())
    assert [(entry["clip"], Path(entry["path"]).name) for entry in report["lost"]] == [(6, "6.mp4")]
    assert report["clips"] == CLIPS
    store = Store.open(config.out)
    kept = [row | {"path": ""} for row in everything(whole) if row["clip"] != 6]
    assert [row | {"path": ""} for row in everything(store)] == kept
    assert prepare(config, quiet(), Place()) == 3  # still so, without any work
    shutil.copy(clips / "6.mp4", folder / "6.mp4")
    assert prepare(replace(config, retry=True), quiet(), Place()) == 0
    assert Store.open(config.out).totals.rows == whole.totals.rows


@pytest.mark.parametrize(
    ("column", "said"), [("caption", "caf\xe9"), ("path", "\xe9.mp4"), ("tags", "\xe9"), ("audio_path", "\xe9.wav")]
)
def test_a_row_in_another_encoding_is_left_out_and_named(clips, tmp_path, column, said):
    row = {"path": str(clips / "1.mp4"), "caption": "tea", "tags": "toy", "audio_path": ""}
    rows = [row, row | {column: said}, row]
    text = "".join(",".join(r.values()) + "\n" for r in ({name: name for name in row}, *rows))
    (tmp_path / "clips.csv").write_bytes(text.encode("latin-1"))
    config = settings(clips, tmp_path / "latents", manifest=tmp_path / "clips.csv", shard_clips=8)
    assert prepare(config, quiet(), Place()) == 3
    (lost,) = json.loads((config.out / "report.json").read_text(encoding="utf-8"))["lost"]
    assert lost["clip"] == 1
    assert "line 3" in lost["reason"]
    assert "not UTF-8" in lost["reason"]
    assert {row["clip"] for row in everything(Store.open(config.out))} == {0, 2}


def test_a_folder_that_went_away_is_no_empty_store(clips, tmp_path):
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text((clips / "clips.jsonl").read_text())  # beside it lies nothing
    config = settings(clips, tmp_path / "latents", manifest=manifest)
    with pytest.raises(StoreError, match="none of the 2 clips of shard 0 can be read"):
        prepare(config, quiet(), Place())
    assert not list((config.out / "shards").iterdir())


def test_changed_settings_and_clips_are_refused(clips, tmp_path):
    config = settings(clips, tmp_path / "latents")
    prepare(config, quiet(), Place(0, 2))
    with pytest.raises(StoreError, match=r"windows .* changed"):
        prepare(replace(config, windows=replace(RULE, most=1)), quiet(), Place())
    changed = tmp_path / "clips.jsonl"
    rows = [json.loads(line) for line in (clips / "clips.jsonl").read_text().splitlines()]
    changed.write_text("".join(json.dumps(row | {"path": str(clips / row["path"])}) + "\n" for row in rows[::-1]))
    with pytest.raises(StoreError, match=r"clips .* changed"):
        prepare(replace(config, manifest=changed), quiet(), Place())
    with pytest.raises(ConfigError, match=r"windows.shapes.0: 12 x 16 pixels: both must be multiples of 8"):
        prepare(replace(config, windows=WindowRule((WindowShape(12, 16, 8, 1),))), quiet(), Place())


def test_clips_are_known_by_their_files_however_the_list_is_named(clips, whole, tmp_path, monkeypatch):
    moved = clips / "the_same.jsonl"
    moved.write_text((clips / "clips.jsonl").read_text())
    config = settings(clips, tmp_path / "latents", manifest=moved)
    assert prepare(config, quiet(), Place(0, 2)) == 0
    monkeypatch.chdir(clips)
    here = replace(config, manifest=Path("../") / clips.name / "clips.jsonl")
    assert prepare(here, quiet(), Place()) == 0  # goes on: the same clips
    assert Store.open(config.out).fingerprint == whole.fingerprint


def listing(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_shards_of_another_size_are_refused_even_where_they_are_as_many(clips, tmp_path):
    """Five clips are two shards of three, and of four; the clips between were in neither, or in both."""
    manifest = listing(tmp_path / "clips.jsonl", [{"path": str(clips / f"{i}.mp4"), "caption": "a"} for i in range(5)])
    config = settings(clips, tmp_path / "latents", manifest=manifest, shard_clips=3)
    assert prepare(config, quiet(), Place(0, 2)) == 0
    other = replace(config, shard_clips=4)
    with pytest.raises(StoreError, match="begun with shard_clips=3, not 4"):
        prepare(other, quiet(), Place())
    about = config.out / "store.json"  # as earlier versions wrote it
    about.write_text(json.dumps({k: v for k, v in json.loads(about.read_text()).items() if k != "shard_clips"}))
    with pytest.raises(StoreError, match="holds 4 clips of 5 in the list"):
        prepare(other, quiet(), Place())
    with pytest.raises(StoreError, match="not finished"):
        Store.open(config.out)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, Place(1, 4, 0)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}, Place(3, 4, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, Place()),  # sbatch without srun: it is alone
    ],
)
def test_a_process_knows_its_place(monkeypatch, given, place):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Place.here() == place


@pytest.mark.parametrize(("gpus", "number"), [(8, 3), (1, 0)])
def test_a_process_takes_a_gpu_that_it_sees(monkeypatch, gpus, number):
    """Under `srun --gpus-per-task=1` each sees one, whatever its number on the machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert Place(11, 16, 3).device == torch.device("cuda", number)


@pytest.mark.parametrize(("broken", "ends"), [([2], (0, 0)), ([0, 2], (0, 3))])
def test_a_retry_is_not_finished_before_every_process_has_tried_again(clips, tmp_path, broken, ends):
    """It ended with code 3 in a process that had nothing to try, at which torchrun stopped the one that had."""
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    for number in broken:
        (folder / f"{number}.mp4").write_bytes(b"nothing that plays")
    config = settings(clips, tmp_path / "latents", manifest=folder / "clips.jsonl")
    assert prepare(config, quiet(), Place()) == 3
    shutil.copy(clips / "2.mp4", folder / "2.mp4")
    report = (config.out / "report.json").read_text()
    for rank, code in enumerate(ends):  # clip 2 is in the second's shard, clip 0 in the first's
        assert (config.out / "report.json").read_text() == report
        assert prepare(replace(config, retry=True), quiet(), Place(rank, 2)) == code
    lost = json.loads((config.out / "report.json").read_text())["lost"]
    assert [entry["clip"] for entry in lost] == [number for number in broken if number != 2]
    assert 2 in Store.open(config.out).column("clip")
    assert prepare(replace(config, retry=True), quiet(), Place()) == ends[-1]  # by one alone


def test_a_list_that_changes_while_it_is_prepared_is_refused(clips, tmp_path, monkeypatch):
    rows = [{"path": str(clips / f"{i}.mp4"), "caption": "a"} for i in range(5)]
    config = settings(clips, tmp_path / "latents", manifest=listing(tmp_path / "clips.jsonl", rows[1:]))

    def meanwhile(*words):
        listing(config.manifest, rows)
        return opened(*words)

    monkeypatch.setattr("avgen.data.prepare.opened", meanwhile)
    with pytest.raises(StoreError, match=r"clips\.jsonl has changed since this command began"):
        prepare(config, quiet(), Place())
    assert not list((config.out / "shards").iterdir())


def test_columns_that_nobody_reads_may_change(clips, tmp_path):
    rows = [{"path": str(clips / f"{i}.mp4"), "caption": "a"} for i in range(4)]
    config = settings(clips, tmp_path / "latents", manifest=listing(tmp_path / "clips.jsonl", rows))
    assert prepare(config, quiet(), Place(0, 2)) == 0
    listing(config.manifest, [row | {"score": i} for i, row in enumerate(rows)])
    assert prepare(config, quiet(), Place()) == 0


def test_a_store_in_the_folder_of_its_clips_does_not_list_its_own(clips, tmp_path):
    for number in range(2):
        shutil.copy(clips / f"{number}.mp4", tmp_path)
    config = settings(clips, tmp_path / "latents", manifest=tmp_path, verify=True, verify_windows=1)
    assert prepare(config, quiet(), Place()) == 0
    assert list((config.out / "verify").glob("*.mp4"))
    assert prepare(config, quiet(), Place()) == 0


def test_what_is_spoken_is_told_of_whole_clips_alone(clips, tmp_path):
    row = {"path": str(clips / "0.mp4"), "caption": "a", "speech": ["one two three four", "never"]}
    manifest = listing(tmp_path / "clips.jsonl", [row, row | {"start_s": 0.25, "end_s": 0.75}])
    rule = WindowRule((WindowShape(16, 16, 8.0, 1.5), WindowShape(16, 16, 8.0, 0.5)), choose="all")
    config = settings(clips, tmp_path / "latents", manifest=manifest, windows=rule)
    assert prepare(config, quiet(), Place()) == 0
    told = {(row["clip"], row["bucket"], row["captions"]) for row in everything(Store.open(config.out))}
    spoken = json.dumps(['a Speech: "one two three four"'])
    assert told == {(0, 0, spoken), (0, 3, '["a"]'), (1, 3, spoken)}


def test_clips_without_captions_and_columns_that_are_not_read_are_told(clips, tmp_path):
    rows = [{"path": str(clips / f"{i}.mp4"), "subtitle": "a ball", "n": i} for i in range(3)]
    rows[1]["caption"] = "a ball falls"
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for rank, said in ((0, "2 of 3 clips have no caption; columns not read: subtitle, n"), (1, "")):
        shown = Console(file=StringIO(), width=1000)
        config = settings(clips, tmp_path / f"latents_{rank}", manifest=tmp_path / "clips.jsonl", shard_clips=8)
        prepare(config, shown, Place(rank, 2))
        assert ("no caption" in shown.file.getvalue()) == bool(said)
        assert said in shown.file.getvalue()


def test_a_page_shows_originals_beside_what_the_store_gives_back(clips, tmp_path):
    config = settings(clips, tmp_path / "latents", verify=True, verify_windows=3)
    assert prepare(config, quiet(), Place()) == 0
    page = (config.out / "verify/index.html").read_text()
    pictures = sorted((config.out / "verify").glob("*.png"))
    assert len(pictures) == 3
    assert all(picture.name in page for picture in pictures)
    for made in (config.out / "verify").glob("*_decoded.mp4"):
        one, other = read_clip(made.with_name(made.name.replace("decoded", "original"))).clip, read_clip(made).clip
        assert one.video_duration_s == other.video_duration_s
        assert one.audio_duration_s == other.audio_duration_s


class Widths:
    """A text encoder whose features say how long a caption is."""

    width = 3
    fingerprint = "widths"
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self):
        self.asked = []

    def encode(self, captions):
        self.asked += captions
        return Text.of(torch.full((1, 8, 3), float(len(captions[0]))), torch.arange(8)[None] < len(captions[0]))


def test_features_are_kept_without_padding():
    made = features(Widths(), ["ab", "abc"])
    assert json.loads(made["text_tokens"]) == [2, 3]
    assert np.frombuffer(made["text"], NUMBERS).reshape(-1, 3)[:, 0].tolist() == [2, 2, 3, 3, 3]


@pytest.fixture(scope="module")
def spare():
    """`prepare` in a process that starts at once and can be killed: its exit code."""
    with Nursery() as nursery:
        yield nursery.run


def test_a_full_disk_is_said_and_loses_nothing(clips, whole, tmp_path, spare):
    config = settings(clips, tmp_path / "latents")
    assert prepare(config, quiet(), Place(0, 3)) == 0  # shards 0 and 3 are there
    assert spare(config, most_bytes=6000) == 2
    said = (tmp_path / "said.txt").read_text()
    assert re.search(r"shard \d cannot be written to .*: .*[23] of 5 shards are whole and stay: make room", said)
    assert not list(config.out.rglob("*.part"))
    assert prepare(config, quiet(), Place()) == 0
    assert Store.open(config.out).totals == whole.totals


@pytest.mark.slow
def test_twenty_kills_change_nothing(clips, whole, tmp_path, spare):
    config = settings(clips, tmp_path / "latents", shard_clips=1)
    began = time.monotonic()
    assert spare(replace(config, out=tmp_path / "whole")) == 0
    longest = 0.7 * (time.monotonic() - began)
    expected = Store.open(tmp_path / "whole")
    draw, kills, finished = random.Random(8), 0, 0
    while kills < 20 or not finished:
        code = spare(config, seconds=draw.uniform(0.0, longest) if kills < 20 else 300)
        if code == -signal.SIGKILL:
            kills += 1
            continue
        assert code == 0
        finished += 1
        store = Store.open(config.out)
        assert store.totals == expected.totals
        assert everything(store) == everything(expected)
        for path in sorted((tmp_path / "whole/data").iterdir()):
            assert path.read_bytes() == (config.out / "data" / path.name).read_bytes()
        assert len(list((config.out / "data").iterdir())) == len(list((tmp_path / "whole/data").iterdir()))
        assert not list(config.out.rglob("*.part"))
        if kills < 20:
            shutil.rmtree(config.out)


def test_the_toybox_through_files_is_the_toybox_in_memory(clips, tmp_path):
    """By the command, as a user would; what mp4 loses is little beside what tells one clip from another."""
    paths = [f"codec.{m}.path={clips}/codecs/{m}" for m in ("video", "audio")]
    shape = "windows.shapes=[{height: 16, width: 16, fps: 12, duration_s: 1.5}]"
    assert main([str(clips / "clips.jsonl"), f"out={tmp_path / 'latents'}", *paths, shape]) == 0
    store = Store.open(tmp_path / "latents")
    numbers = [i for i in range(CLIPS) if i != 3]
    codecs = (
        open_video_codec(CodecFiles(f"{clips}/codecs/video")),
        open_audio_codec(CodecFiles(f"{clips}/codecs/audio")),
    )
    direct = ToyboxSource(Toybox(WORLD), *codecs).batch(numbers)
    through = StoreSource((store,)).batch(numbers)
    assert torch.equal(through.video_text.x, direct.video_text.x)
    for m, stream in direct.streams.items():
        other = getattr(through, m)
        assert torch.equal(other.time, stream.time)
        assert torch.corrcoef(torch.stack([other.x.flatten(), stream.x.flatten()]))[0, 1] > 0.95
        assert torch.corrcoef(torch.stack([other.x.flatten(), stream.x.roll(1, 0).flatten()]))[0, 1] < 0.9


def test_a_window_past_the_end_of_its_own_sound_file_has_no_sound_there(clips, tmp_path):
    item = Toybox(WORLD)[0]
    write_clip(tmp_path / "picture.mp4", replace(item.clip, audio=None, sample_rate_hz=None))
    write_wav(tmp_path / "sound.wav", item.clip.audio[:, :4000], 8000)  # half a second of one and a half
    line = {"path": "picture.mp4", "audio_path": "sound.wav", "caption": item.caption}
    (tmp_path / "clips.jsonl").write_text(json.dumps(line) + "\n")
    rule = WindowRule((WindowShape(16, 16, 8.0, 0.5),), choose="all", every_s=0.5)
    config = settings(clips, tmp_path / "store", manifest=tmp_path / "clips.jsonl", windows=rule)
    assert prepare(config, quiet(), Place()) == 0
    store = Store.open(tmp_path / "store")
    assert store.totals.rows == 3
    masks = StoreSource((store,)).batch([0, 1, 2]).audio.mask().any(1)
    assert masks.tolist() == [True, False, False]


@pytest.mark.parametrize("name", ["x" * 300 + ".mp4", "a\0b.mp4"])
def test_a_name_that_no_file_can_have_costs_its_clip_alone(clips, tmp_path, name):
    rows = [{"path": str(clips / "1.mp4"), "caption": "tea"}, {"path": name, "caption": "odd"}]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = settings(clips, tmp_path / "latents", manifest=tmp_path / "clips.jsonl", shard_clips=8)
    assert prepare(config, quiet(), Place()) == 3
    (lost,) = json.loads((config.out / "report.json").read_text(encoding="utf-8"))["lost"]
    assert lost["clip"] == 1
    assert {row["clip"] for row in everything(Store.open(config.out))} == {0}


def test_of_two_that_finish_together_the_second_accepts_what_the_first_wrote(clips, tmp_path, monkeypatch):
    lance = pytest.importorskip("lance")
    commit = lance.LanceDataset.commit

    def late(*words, **more):
        commit(*words, **more)
        raise OSError("Dataset already exists")

    monkeypatch.setattr(lance.LanceDataset, "commit", late)
    assert prepare(settings(clips, tmp_path / "latents"), quiet(), Place()) == 0


def test_as_many_tensors_may_wait_as_the_system_allows():
    """A shell's 1,024 open files are soon used up by what readers have handed over and nobody has fetched."""
    code = (
        "import resource; from avgen.data.readers import context; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)); context();"
        "soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0];"
        "assert soft == (65536 if hard < 0 else min(hard, 65536)), (soft, hard)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
