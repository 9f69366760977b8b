"""Every rule finds the fault put into a clip, keeps quiet about a sound one, and the reports say what was done."""

from __future__ import annotations

import base64
import json
import os
import re
import tracemalloc
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avgen import command
from avgen.config import build
from avgen.data.doctor.__main__ import main
from avgen.data.doctor.config import DoctorConfig
from avgen.data.doctor.copies import Copies
from avgen.data.doctor.crew import Crew, Lost
from avgen.data.doctor.measure import Measures, measure
from avgen.data.doctor.report import strip_of
from avgen.data.doctor.rules import CaptionCommon, Duplicate, Rules
from avgen.data.manifest import Captions, Record, read_manifest, write_manifest
from avgen.data.media import read_clip, write_clip, write_wav
from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.types import Clip
from tests.data.fates import fate, only_of_broken, out_of_memory, undrawable
from tests.data.media_grid import Case, write_case

RULES = Rules()
SEEN_AND_HEARD = ToyboxConfig(scenes=("single", "pair", "turn"))


def found(path: Path, caption: str | tuple[str, ...] = "a clip", rules: Rules = RULES, **window) -> dict[str, str]:
    captions = Captions((caption,) if isinstance(caption, str) and caption else tuple(caption))
    record = Record(path, captions=captions, **window)
    clip = measure(record.path, record.start_s, record.end_s, record.audio_path)
    return {finding.rule: finding.reason for finding in rules.findings(record, clip)}


def lively(seconds: float = 4.0, channels: int = 2, fps: float = 12.0, rate: int = 16000) -> Clip:
    """Everything moves and sounds all the time: no rule has a reason to speak."""
    rng = np.random.default_rng(0)
    t = np.arange(round(seconds * fps))[:, None, None]
    y, x = np.mgrid[:48, :64] / 10
    video = np.stack([120 + 90 * np.sin(0.6 * t + y * a + x) for a in (1, 2, 3)], axis=-1).astype(np.uint8)
    wave = 0.1 * rng.standard_normal((channels, round(seconds * rate)))
    wave *= 0.6 + 0.4 * np.sin(np.arange(wave.shape[1]) / rate * 9)
    return Clip(video, wave.astype(np.float32), fps, rate)


def still(clip: Clip, first: int, last: int) -> Clip:
    video = clip.video.copy()
    video[first:last] = video[first]
    return replace(clip, video=video)


def sounding(clip: Clip, change) -> Clip:
    return replace(clip, audio=change(clip.audio.copy()).astype(np.float32))


def hushed(wave: np.ndarray) -> np.ndarray:
    wave[:, 16000 : 16000 + 40000] = 0
    return wave


FAULTS = {
    "no_picture": lambda c: replace(c, video=None, fps=None),
    "no_sound": lambda c: replace(c, audio=None, sample_rate_hz=None),
    "end_gap": lambda c: sounding(c, lambda w: w[:, : 3 * 16000]),
    "silent": lambda c: sounding(c, lambda w: 1e-4 * w),
    "silent_part": lambda c: sounding(c, hushed),
    "clipping": lambda c: sounding(c, lambda w: np.clip(20 * w, -1, 1)),
    "false_stereo": lambda c: sounding(c, lambda w: w[[0, 0]]),
    "static": lambda c: still(c, 0, 48),
    "frozen": lambda c: still(c, 10, 40),
    "black": lambda c: replace(c, video=np.where(np.arange(48)[:, None, None, None] < 8, c.video // 20, c.video)),
}


def test_a_lively_clip_breaks_no_rule(tmp_path):
    write_clip(tmp_path / "c.mp4", lively())
    every = build(Rules, {"untied": {"action": "off"}})
    assert found(tmp_path / "c.mp4", rules=every) == {}


@pytest.mark.parametrize("rule", FAULTS)
def test_a_fault_is_found_and_nothing_else(tmp_path, rule):
    write_clip(tmp_path / "c.mp4", FAULTS[rule](lively()))
    assert set(found(tmp_path / "c.mp4")) == {rule}


@pytest.mark.parametrize(
    ("gains", "words"),
    [((1, 0), "the right channel is"), ((0, 1), "the left channel is"), ((1, -1), "cancel each other")],
)
def test_other_false_stereo_is_told_apart(tmp_path, gains, words):
    write_clip(tmp_path / "c.mp4", sounding(lively(), lambda w: w[[0]] * np.array(gains)[:, None]))
    assert words in found(tmp_path / "c.mp4")["false_stereo"]


@pytest.mark.parametrize(
    ("rule", "case"),
    [
        ("variable_rate", Case("mp4", "variable", "plain", "aac", 16000, "mono", "equal", "together", "as muxed")),
        ("start_offset", Case("mkv", "25", "plain", "opus", 48000, "mono", "equal", "audio late", "as muxed")),
        ("start_offset", Case("mp4", "25", "plain", "aac", 16000, "mono", "equal", "video late", "as muxed")),
    ],
)
def test_faults_of_timing_are_found(tmp_path, rule, case):
    write_case(tmp_path / f"c.{case.container}", case)
    assert rule in found(tmp_path / f"c.{case.container}")
    even = replace(case, fps="25", starts="together")
    write_case(tmp_path / f"d.{case.container}", even)
    assert not {"variable_rate", "start_offset", "end_gap"} & set(found(tmp_path / f"d.{case.container}"))


def damaged(data: bytes, how: str) -> bytes:
    if how == "cut short":
        return data[: len(data) // 2]
    if how == "overwritten":
        middle = len(data) // 2
        return data[:middle] + bytes(4000) + data[middle + 4000 :]
    return {"empty": b"", "text": b"no film\n"}[how]


@pytest.mark.parametrize("how", ["cut short", "overwritten", "empty", "text", "missing"])
def test_what_cannot_be_decoded_is_unreadable(tmp_path, how):
    write_clip(tmp_path / "whole.mp4", lively())
    if how != "missing":
        (tmp_path / "c.mp4").write_bytes(damaged((tmp_path / "whole.mp4").read_bytes(), how))
    broken = found(tmp_path / "c.mp4")
    assert set(broken) == {"unreadable"}
    assert str(tmp_path / "c.mp4") in broken["unreadable"]


def test_a_sound_that_is_no_number_costs_its_clip_alone(tmp_path):
    write_clip(tmp_path / "c.mp4", lively())
    wave = lively().audio
    wave[0, 1000] = np.nan
    write_wav(tmp_path / "s.wav", wave, 16000, bits=32)
    assert "NaN" in found(tmp_path / "c.mp4", audio_path=tmp_path / "s.wav")["unreadable"]
    if os.geteuid():  # root may read everything
        (tmp_path / "c.mp4").chmod(0)
        assert set(found(tmp_path / "c.mp4")) == {"unreadable"}


def test_a_header_that_promises_nothing_breaks_no_promise(tmp_path):
    """Of live recordings: no length in the header, whether the row says where the clip ends or not."""
    write_clip(tmp_path / "c.mp4", lively())
    for name, form in (("c.ts", {"format": "mpegts"}), ("c.mkv", {"format": "matroska", "options": {"live": "1"}})):
        with av.open(str(tmp_path / "c.mp4")) as source, av.open(str(tmp_path / name), "w", **form) as out:
            streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    out.mux(packet)
        assert "unreadable" not in found(tmp_path / name, end_s=4.5), name
        whole, promised = measure(tmp_path / name, 0.0, None), measure(tmp_path / "c.mp4", 0.0, None)
        assert not whole.error, name
        # two of AAC's frames: neither says where the sound really ends
        assert whole.sound.end_s == pytest.approx(promised.sound.end_s, abs=2.01 * 1024 / 16000), name
        assert whole.picture.frames == promised.picture.frames, name


def variable(path: Path, times: list[float], rate: int = 10) -> Path:
    """Frames, each of another grey, at these times alone."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.width = stream.height = 32
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 8 * i, np.uint8), "rgb24")
            frame.pts, frame.time_base = round(time * rate), Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("container", ["mkv", "mp4"])
def test_a_frame_is_on_screen_until_the_next_one_comes(tmp_path, container):
    """Matroska does not say how long a frame lasts, FFmpeg then 1 / fps: good windows were dropped."""
    path = variable(tmp_path / f"c.{container}", [0.1 * i for i in range(11)] + [3 + 0.1 * i for i in range(11)])
    for start, end, frames in ((0.5, 2.0, 6), (1.5, 2.5, 1), (2.5, 3.5, 6), (0.0, 4.0, 21)):
        clip = measure(path, start, end)
        assert clip.error == ""
        assert (clip.picture.frames, clip.picture.start_s, clip.picture.end_s) == (frames, start, end)


def test_a_long_clip_takes_little_memory(tmp_path):
    """A quarter of an hour took a gigabyte: thumbnails ten times a second, and all the sound for the page."""
    variable(tmp_path / "c.mkv", [0, 450, 900], rate=1)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (1, 900 * 4000)).astype(np.float32)
    write_wav(tmp_path / "s.wav", noise, 4000)
    for function, name in ((measure, "c.mkv"), (strip_of, "s.wav")):
        function(tmp_path / name, 0.0, 1.0)  # what is imported when first used
        tracemalloc.start()
        assert function(tmp_path / name, 0.0, None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6, function


def test_a_window_is_judged_by_itself(tmp_path):
    write_clip(tmp_path / "c.mp4", sounding(lively(), hushed))  # silent from 1 s to 3.5 s
    assert set(found(tmp_path / "c.mp4", start_s=1.1, end_s=3.4)) == {"silent"}
    assert found(tmp_path / "c.mp4", start_s=0.0, end_s=1.0) == {}
    assert "1.000 s after the file" in found(tmp_path / "c.mp4", end_s=5.0)["beyond_end"]
    assert set(found(tmp_path / "c.mp4", start_s=10.0, end_s=11.0)) == {"unreadable"}


def test_sound_in_a_file_of_its_own_is_what_is_judged(tmp_path):
    write_clip(tmp_path / "c.mp4", sounding(lively(), lambda w: 0 * w))
    write_clip(tmp_path / "s.m4a", replace(lively(), video=None, fps=None))
    assert set(found(tmp_path / "c.mp4")) == {"silent"}
    assert found(tmp_path / "c.mp4", audio_path=tmp_path / "s.m4a") == {}


@pytest.mark.parametrize(
    ("captions", "rule"),
    [
        ("", "caption_missing"),
        ("  ", "caption_missing"),
        ("x" * 2001, "caption_long"),
        (("a dog", "a cat", "a dog"), "caption_twice"),
        ("a caf\udce9", "caption_garbled"),
        ("a cafÃ©", "caption_garbled"),
        ("itâ€™s a dog", "caption_garbled"),
        ("a \ufffd", "caption_garbled"),
        ("a\x00dog", "caption_garbled"),
        ("café, ‘naïve’ – 犬がほえる", None),
        (("a dog", "a cat"), None),
        ("x" * 2000, None),
    ],
)
def test_captions_are_judged(captions, rule):
    record = Record(Path("c.mp4"), captions=Captions((captions,) if isinstance(captions, str) else captions))
    healthy = Measures(error="not read here")
    assert [f.rule for f in RULES.findings(record, healthy) if f.rule != "unreadable"] == ([rule] if rule else [])


def test_nothing_is_drawn_of_a_clip_that_cannot_be_read(tmp_path):
    (tmp_path / "c.mp4").write_bytes(b"nothing that plays")
    assert strip_of(tmp_path / "c.mp4", 0.0, None) == b""
    assert strip_of(tmp_path / "none.mp4", 0.0, None) == b""


def test_clean_toybox_clips_raise_no_alarm(tmp_path):
    """What the world did not render silent or still has no fault."""
    copies = Copies(RULES.duplicate)
    world = Toybox(ToyboxConfig(), "train", 5)
    for index in range(30):
        item = world[index]
        path = tmp_path / f"{index}.mp4"
        write_clip(path, item.clip)
        record, clip = Record(path, captions=Captions((item.caption,))), measure(path, 0.0, None)
        copies.add(index, record, clip)
        true = {"silent"} if not item.clip.audio.any() else set()
        true |= {"static"} if (item.clip.video == item.clip.video[0]).all() else set()
        assert {f.rule for f in RULES.findings(record, clip)} == true, item.scene
    assert copies.found() == {}


def test_copies_are_found_however_they_were_made_and_the_largest_stays(tmp_path):
    world = Toybox(replace(SEEN_AND_HEARD, height=64, width=64, fps=12.0), "train", 5)
    copies = Copies(Duplicate())
    first = world[0].clip
    half = read_clip(write(tmp_path / "0.mp4", first), size=(32, 32)).clip
    variants = [
        (first, {}),
        (half, {"crf": 28}),
        (first, {"crf": 38, "audio_bitrate": 24000}),
        (read_clip(tmp_path / "0.mp4", size=(96, 80), fit="stretch", sample_rate_hz=44100).clip, {"crf": 23}),
        (read_clip(tmp_path / "0.mp4", fps=24).clip, {"crf": 23}),
        (sounding(first, lambda w: 0.3 * w), {}),
        *((world[i].clip, {}) for i in range(1, 7)),  # other clips
        (replace(first, audio=world[1].clip.audio), {}),  # the same picture, with another sound
    ]
    for number, (clip, how) in enumerate(variants):
        path = tmp_path / f"{number}.mp4"
        write_clip(path, clip, **how)
        copies.add(number, Record(path), measure(path, 0.0, None))
    copies.add(99, Record(tmp_path / "7.mp4"), measure(tmp_path / "7.mp4", 0.0, None))  # listed twice
    dubbed = Record(tmp_path / "7.mp4", audio_path=tmp_path / "8.mp4")  # the same picture again, sound from elsewhere
    copies.add(100, dubbed, measure(dubbed.path, 0.0, None, dubbed.audio_path))
    same = copies.found()
    assert set(same) == {0, 1, 2, 4, 5, 99}
    assert "copy of 3.mp4, row 4" in same[0]  # the largest
    assert "the same file and window as row 8" in same[99]
    assert Copies(Duplicate(action="off")).found() == {}


def test_the_sound_that_is_judged_is_the_one_that_is_drawn(tmp_path):
    write_clip(tmp_path / "c.mp4", sounding(lively(), lambda w: 0 * w))
    write_wav(tmp_path / "s.wav", lively().audio, 16000)
    own, other = (strip_of(tmp_path / "c.mp4", 0.0, None, sound) for sound in (None, tmp_path / "s.wav"))
    assert own
    assert other
    assert own != other
    row = Record(tmp_path / "c.mp4", audio_path=tmp_path / "s.wav")  # without a caption: flagged, so drawn
    write_manifest(tmp_path / "c.jsonl", [row])
    assert main([str(tmp_path / "c.jsonl"), "workers=1"]) == 0
    page = (tmp_path / "c.doctor/report.html").read_text()
    assert base64.b64encode(other).decode() in page


def test_short_clips_with_another_sound_are_no_copies(tmp_path):
    """Below 1.6 s the sound did not count."""
    copies, t = Copies(Duplicate()), np.arange(24000) / 16000
    for number, hz in enumerate((300, 3000, 300)):
        clip = sounding(lively(1.5), lambda w, hz=hz: 0 * w + 0.3 * np.sin(2 * np.pi * hz * t))
        path = write(tmp_path / f"{number}.mp4", clip)
        copies.add(number, Record(path), measure(path, 0.0, None))
    assert set(copies.found()) == {2}


def write(path: Path, clip: Clip) -> Path:
    write_clip(path, clip)
    return path


@pytest.fixture
def collection(tmp_path):
    """Eight rows: two fine, then one each: silent, copy, broken, missing, bad row, long caption."""
    folder = tmp_path / "clips"
    folder.mkdir()
    world = Toybox(SEEN_AND_HEARD, "train", 5)
    for i in range(2):
        write_clip(folder / f"fine{i}.mp4", world[i].clip)
    write_clip(folder / "silent.mp4", sounding(world[2].clip, lambda w: 0 * w))
    write_clip(folder / "copy.mp4", world[0].clip, crf=30)
    (folder / "broken.mp4").write_bytes(damaged((folder / "fine0.mp4").read_bytes(), "cut short"))
    names = ["fine0", "fine1", "silent", "copy", "broken", "missing", "fine0", "fine1"]
    lines = [f"{name}.mp4,,,<b>a clip</b> {n},{n}" for n, name in enumerate(names)]
    lines[6] = "fine0.mp4,2,1,a clip,6"
    lines[7] = f"fine1.mp4,,1,{'x' * 3000},7"
    (folder / "clips.csv").write_text("path,start,end,text,mine\n" + "\n".join(lines) + "\n")
    return folder


def test_the_command_reports_drops_with_reasons_and_resumes(collection, capsys, monkeypatch):
    table = str(collection / "clips.csv")
    assert main([table, "workers=1"]) == command.INCOMPLETE
    out = collection / "clips.doctor"
    report = json.loads((out / "report.json").read_text())
    assert (report["clips"], report["kept"], report["unreadable"]) == (8, 4, 3)
    rules = {p["row"]: [f["rule"] for f in p["findings"]] for p in report["found"]}
    assert rules == {
        2: ["silent"],
        3: ["duplicate"],
        4: ["unreadable"],
        5: ["unreadable"],
        6: ["row"],
        7: ["caption_long"],
    }
    assert all(f["reason"] for p in report["found"] for f in p["findings"])
    assert "clips.csv line 8" in report["found"][4]["where"]

    # every row is either in the cleaned manifest, its columns as they were, or dropped with a reason
    kept = list(read_manifest(out / "clean.csv"))
    assert [r.extra["mine"] for r in kept] == ["0", "1", "2", "7"]
    assert {int(r.extra["mine"]) for r in kept} | {
        p["row"] for p in report["found"] if any(f["action"] == "drop" for f in p["findings"])
    } == set(range(8))
    assert all(r.path.exists() for r in kept)

    page = (out / "report.html").read_text()
    assert page.count("<article") == 6
    assert page.count("data:image/jpeg;base64,") == 3  # not of what cannot be read
    assert not re.search(r"https?:|url\(|href=|src=(?!\"data:)", page), "the page must fetch nothing"
    assert "<b>a clip</b>" not in page
    assert "{{" not in page

    # again with other rules: nothing is decoded anew but what could not be read
    monkeypatch.setattr("avgen.data.doctor.__main__.measure", only_of_broken)
    assert main([table, "workers=1", "pictures=0", "rules.silent.action=drop", "rules.duplicate.action=off"]) == 3
    again = json.loads((out / "report.json").read_text())
    assert (again["kept"], again["counts"]["silent"]) == (4, {"action": "drop", "clips": 1})
    assert "duplicate" not in again["counts"]
    capsys.readouterr()


def test_a_dropped_clip_is_not_the_copy_that_is_kept(tmp_path):
    write_clip(tmp_path / "large.mp4", lively())
    write_clip(tmp_path / "small.mp4", read_clip(tmp_path / "large.mp4", size=(24, 32)).clip, crf=28)
    (tmp_path / "clips.csv").write_text("path,caption\nlarge.mp4,\nsmall.mp4,a wave\n")
    words = [f"manifest={tmp_path / 'clips.csv'}", "rules.caption_missing.action=drop", "workers=1"]
    main(words)
    (kept,) = (tmp_path / "clips.doctor" / "clean.csv").read_text().splitlines()[1:]
    assert kept.endswith("small.mp4,a wave")


def test_a_folder_of_good_clips_ends_with_0_and_stays_as_it_is(tmp_path, capsys):
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(folder / "a.mp4", lively())
    (folder / "a.txt").write_text("waves")
    assert main([str(folder), "workers=1"]) == 0
    assert list(read_manifest(tmp_path / "clips.doctor" / "clean.jsonl")) == list(read_manifest(folder))
    assert {p.name for p in folder.iterdir()} == {"a.mp4", "a.txt"}
    assert "1 clips: 1 kept, 0 dropped, 0 more flagged" in capsys.readouterr().err
    (tmp_path / "empty.csv").write_text("path\n")
    assert command.run(main, [str(tmp_path / "empty.csv")]) == command.USER_ERROR
    assert command.run(main, [str(tmp_path / "nowhere.csv")]) == command.USER_ERROR


def test_a_changed_file_is_looked_at_again(tmp_path, capsys):
    write_clip(tmp_path / "a.mp4", lively(2.0))
    write_manifest(tmp_path / "c.jsonl", [Record(tmp_path / "a.mp4", captions=Captions(("waves",)))])
    assert main([str(tmp_path / "c.jsonl"), "workers=1"]) == 0
    (tmp_path / "a.mp4").write_bytes(b"no film")
    assert main([str(tmp_path / "c.jsonl"), "workers=1"]) == command.INCOMPLETE
    capsys.readouterr()


def test_what_could_not_be_read_is_tried_again(tmp_path, capsys, monkeypatch):
    """It may have been the machine: memory, rights, a disk that went away."""
    write_clip(tmp_path / "a.mp4", lively(2.0))
    write_manifest(tmp_path / "c.jsonl", [Record(tmp_path / "a.mp4", captions=Captions(("waves",)))])
    with monkeypatch.context() as patch:
        patch.setattr("avgen.data.doctor.__main__.measure", out_of_memory)
        assert main([str(tmp_path / "c.jsonl"), "workers=1"]) == command.INCOMPLETE
    assert main([str(tmp_path / "c.jsonl"), "workers=1"]) == 0
    capsys.readouterr()


def test_a_time_that_no_file_has_costs_its_row_alone(tmp_path, capsys):
    """As in tables whose start_timestamp counts microseconds since 1970."""
    write_clip(tmp_path / "a.mp4", lively(2.0))
    (tmp_path / "c.csv").write_text("path,start_timestamp,caption\na.mp4,0,waves\na.mp4,1700000000000000,waves\n")
    assert main([str(tmp_path / "c.csv"), "workers=1"]) == command.INCOMPLETE
    (found,) = json.loads((tmp_path / "c.doctor/report.json").read_text())["found"]
    assert (found["row"], [f["rule"] for f in found["findings"]]) == (1, ["row"])
    assert (tmp_path / "c.doctor/clean.csv").read_text().splitlines()[1:] == [f"{tmp_path}/a.mp4,0,waves"]
    capsys.readouterr()


def test_the_cleaned_list_does_not_hang_on_the_pictures(tmp_path, monkeypatch, capsys):
    write_clip(tmp_path / "a.mp4", lively(2.0))
    write_manifest(tmp_path / "c.jsonl", [Record(tmp_path / "a.mp4")])  # without a caption: flagged, so drawn
    monkeypatch.setattr("avgen.data.doctor.__main__.strip_of", undrawable)
    with pytest.raises(RuntimeError, match="undrawable"):
        main([str(tmp_path / "c.jsonl"), "workers=1"])
    assert len(list(read_manifest(tmp_path / "c.doctor/clean.jsonl"))) == 1
    capsys.readouterr()


def test_a_caption_that_many_share_is_named(tmp_path):
    from avgen.data.doctor.__main__ import _common

    said = ["a clip", *(["video"] * 4), "a dog"]
    write_manifest(tmp_path / "c.jsonl", [Record(tmp_path / "a", captions=Captions((text,))) for text in said])
    assert [n for n, _ in _common(tmp_path / "c.jsonl", CaptionCommon(clips=3))] == [1, 2, 3, 4]
    assert list(_common(tmp_path / "c.jsonl", CaptionCommon(clips=4))) == []


def test_a_crash_or_a_hang_costs_its_own_task_alone():
    tasks = ["a", "crash", "b", "hang", "c"]
    with Crew(size=2, timeout_s=2.0, modules=[fate.__module__]) as crew:
        done = dict(crew.run(fate, ((i, (task,)) for i, task in enumerate(tasks))))
    assert [done[i] for i in (0, 2, 4)] == ["A", "B", "C"]
    assert done[1] == Lost("the process that read it was killed by SIGSEGV")
    assert done[3] == Lost("took longer than timeout_s=2")


def test_every_rule_has_its_key_and_its_test():
    tested = {*FAULTS, "variable_rate", "start_offset", "unreadable", "beyond_end", "duplicate", "caption_common"}
    tested |= {"caption_missing", "caption_long", "caption_twice", "caption_garbled", "untied"}
    assert {f.name for f in fields(Rules)} == tested
    for field in fields(Rules):
        off = build(DoctorConfig, {"manifest": "c", "rules": {field.name: {"action": "off"}}})
        assert getattr(off.rules, field.name).action == "off"


def test_real_clips_are_judged_as_one_sees_and_hears_them(clips_dir):
    """Looked at by eye, and at the streams' own times with PyAV alone."""
    expected = {
        "hiker_no_audio_8fps.mp4": {"no_sound"},
        "ovi_output_24fps.mp4": {"false_stereo"},  # a mono voice in both channels
        "web_10fps_offset_audio.mp4": {"black"},  # its last three seconds
    }
    for path in sorted(clips_dir.glob("*.mp4")):
        assert set(found(path)) == expected.get(path.name, set()), path.name
        clip = measure(path, 0.0, None)
        with av.open(str(path)) as container:
            streams = {s.type: s for s in container.streams}
            for part in filter(None, (clip.picture, clip.sound)):
                stream = streams["video" if part is clip.picture else "audio"]
                assert part.start_s == pytest.approx(float((stream.start_time or 0) * stream.time_base), abs=0.002)
                assert part.end_s - part.start_s == pytest.approx(float(stream.duration * stream.time_base), abs=0.03)
            assert clip.picture.frames == streams["video"].frames
            assert clip.picture.off_beat == 0


def test_onsets_tied_to_motion_are_told_from_music_more_often_than_not():
    from avgen.data.doctor.measure import Picture, _tie

    rng = np.random.default_rng(0)
    motion = np.where(rng.random(200) < 0.1, 40.0, 1.0)
    picture = Picture(8, 8, 10.0, "h264", 0.0, 20.0, 200, 0.0, tuple(motion), (255,) * 200, "")
    assert _tie(picture, np.roll(motion, 1)) > 5
    assert abs(_tie(picture, rng.permutation(motion))) < 3
    rules = build(Rules, {"untied": {"action": "flag"}})
    for tie, broken in ((0.2, True), (5.0, False), (None, False)):
        rule_names = [f.rule for f in rules.findings(Record(Path("c"), captions=Captions(("x",))), Measures(tie=tie))]
        assert ("untied" in rule_names) is broken


def test_brackets_in_names_and_captions_are_what_they_are(tmp_path, capsys):
    write_clip(tmp_path / "a [bC].mp4", lively(2.0))
    rows = [{"path": "a [bC].mp4", "caption": "x [/INST]"}, {"path": "x" * 300 + ".mp4", "caption": "x [/INST]"}]
    (tmp_path / "c [bC].jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [str(tmp_path / "c [bC].jsonl"), "workers=1", "rules.caption_common.clips=1"]
    assert command.run(main, words) == command.INCOMPLETE
    said = capsys.readouterr().err
    assert "a [bC].mp4" in said
    assert "c [bC].doctor" in said


def test_folders_whose_names_end_alike_have_reports_of_their_own(tmp_path, monkeypatch):
    for name in ("clips.v1", "clips.v2"):
        (tmp_path / name).mkdir()
        write_clip(tmp_path / name / "a.mp4", lively(2.0))
        (tmp_path / name / "a.txt").write_text("waves")
        assert main([str(tmp_path / name), "workers=1"]) == 0
    monkeypatch.chdir(tmp_path / "clips.v1")
    assert main([".", "workers=1"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"clips.v1", "clips.v2", "clips.v1.doctor", "clips.v2.doctor"}
