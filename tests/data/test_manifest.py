"""Manifests: every form reads to the same records, writes back without loss, and refuses with the line's number."""

from __future__ import annotations

import csv
import json
import os
import tracemalloc
from dataclasses import replace
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avgen.data.manifest import (
    COLUMNS,
    PICTURE_SUFFIXES,
    SOUND_SUFFIXES,
    BadRow,
    Captions,
    Record,
    copy_rows,
    read_manifest,
    scan_manifest,
    write_manifest,
)
from avgen.data.media import probe
from avgen.data.tables import ManifestError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
TEXTS = st.lists(TEXT | st.sampled_from(['["a"]', "[music] plays", "[]", '"', "a,b", " x "]), max_size=3).map(tuple)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/:"), min_size=1, max_size=12)
SECONDS = st.floats(0, 1e6)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT


def records(folder: Path, extra: st.SearchStrategy) -> st.SearchStrategy[Record]:
    path = NAMES.filter(lambda n: n not in (".", "..")).map(lambda n: folder / n)
    return st.builds(
        lambda start, length, **rest: Record(start_s=start, end_s=length and start + 1 + length, **rest),
        start=SECONDS,
        length=st.none() | SECONDS.filter(bool),
        path=path | path.map(lambda p: Path("/elsewhere") / p.name),
        captions=st.builds(Captions, TEXTS, TEXTS, TEXTS, TEXTS),
        tags=TEXTS.map(lambda tags: tuple(t for t in tags if t.strip())),
        audio_path=st.none() | st.just(folder / "sound" / "of it.wav"),
        extra=extra,
    )


@settings(max_examples=40)
@given(st.data(), st.sampled_from(["csv", "tsv", "jsonl"]))
def test_what_is_written_reads_back_equal(tmp_path_factory, data, suffix):
    folder = tmp_path_factory.mktemp("manifest")
    known = {name for names in COLUMNS.values() for name in names}
    free = NAMES.filter(lambda n: n.strip().lower() not in known)
    if suffix == "jsonl":
        extra = st.dictionaries(free, PLAIN | st.lists(PLAIN, max_size=3), max_size=3)
    else:  # every row has the same columns, and they are text
        extra = st.fixed_dictionaries({name: st.text(max_size=5) for name in data.draw(st.sets(free, max_size=2))})
        extra = extra.filter(lambda e: all(v.isprintable() for v in e.values()))
    wanted = data.draw(st.lists(records(folder, extra), max_size=5))
    assert write_manifest(folder / f"clips.{suffix}", wanted) == len(wanted)
    assert list(read_manifest(folder / f"clips.{suffix}")) == wanted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path


def test_all_forms_of_one_list_agree(folder):
    rows = [
        {"path": "raw/a.mp4", "start_s": 1.5, "end_s": 3.0, "caption": "a dog barks", "audio_caption": "barking"},
        {"path": "/data/b.mp4", "start_s": None, "end_s": None, "caption": None, "audio_caption": None},
    ]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "c.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "c.tsv").write_text((folder / "c.csv").read_text().replace(",", "\t"))
    wanted = [
        Record(folder / "raw" / "a.mp4", 1.5, 3.0, Captions(("a dog barks",), audio=("barking",))),
        Record(Path("/data/b.mp4")),
    ]
    for suffix in ("csv", "tsv", "jsonl"):
        assert list(read_manifest(folder / f"c.{suffix}")) == wanted, suffix
    parquet = pytest.importorskip("pyarrow.parquet", reason="only the store's dependencies bring pyarrow")
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "c.parquet")
    assert list(read_manifest(folder / "c.parquet")) == wanted
    (folder / "d.parquet").write_text("no")
    with pytest.raises(ManifestError, match=r"d\.parquet cannot be read as parquet"):
        list(read_manifest(folder / "d.parquet"))


def test_javisdit_tables_are_understood_and_keep_their_columns(folder):
    text = (
        "path,id,relpath,num_frames,height,width,aspect_ratio,fps,resolution,audio_path,audio_fps,text,audio_text\n"
        'raw/a.mp4,a,a.mp4,65,240,426,0.56,16.0,102240,raw/a.wav,16000,"a dog, barking",a bark\n'
        "raw/b.mp4,b,b.mp4,65,240,426,0.56,16.0,102240,raw/b.mp4,16000,a cat,\n"
    )
    (folder / "javis.csv").write_text(text)
    a, b = read_manifest(folder / "javis.csv")
    assert (a.path, a.audio_path) == (folder / "raw/a.mp4", folder / "raw/a.wav")
    assert a.captions == Captions(("a dog, barking",), audio=("a bark",))
    assert (a.extra["num_frames"], a.extra["relpath"]) == ("65", "a.mp4")
    assert b.audio_path is None  # the clip's own sound
    assert b.captions == Captions(("a cat",))
    copy_rows(folder / "javis.csv", folder / "same.csv", lambda number: True)
    assert (folder / "same.csv").read_text() == text


def test_columns_are_known_however_they_are_written(folder):
    names = ("Path", " Start_timestamp", "END_TIMESTAMP ", "Caption", " audio_caption", "Id", "id")
    text = ",".join(names) + "\nraw/a.mp4,00:01:02.5,65,a dog,a bark,1,2\n"
    (folder / "c.csv").write_text(text)
    (clip,) = read_manifest(folder / "c.csv")
    wanted = Record(folder / "raw/a.mp4", 62.5, 65.0, Captions(("a dog",), audio=("a bark",)), extra=clip.extra)
    assert clip == wanted
    assert clip.extra == {"Id": "1", "id": "2"}
    copy_rows(folder / "c.csv", folder / "below" / "c.csv", lambda number: True)
    assert list(read_manifest(folder / "below" / "c.csv")) == [clip]
    with pytest.raises(ManifestError, match="the extra column ' Tags' has a meaning of its own"):
        write_manifest(folder / "d.csv", [Record(folder / "a.mp4", extra={" Tags": "x"})])


def test_a_copy_keeps_text_and_columns_and_its_paths_still_lead_to_the_files(folder):
    lines = ['{"path": "raw/a.mp4",  "caption":"\\u00e4", "n": 1.0}', '{"caption": "x", "path": "/abs/b.mp4"}', "{}"]
    (folder / "c.jsonl").write_text("\n".join(lines))
    assert copy_rows(folder / "c.jsonl", folder / "kept.jsonl", lambda number: number != 1) == 2
    assert (folder / "kept.jsonl").read_text().splitlines() == [lines[0], lines[2]]
    copy_rows(folder / "c.jsonl", folder / "below" / "kept.jsonl", lambda number: number < 2)
    original, copied = (list(islice(read_manifest(folder / n), 2)) for n in ("c.jsonl", "below/kept.jsonl"))
    assert original == copied


def test_a_folder_is_a_list_of_its_clips_with_captions_beside_them(folder):
    for name in ("b.mp4", "a.MOV", "a.wav", "c.flac", "notes.md", ".hidden.mp4"):
        (folder / "raw" / name).touch()
    (folder / "raw" / "b.txt").write_text(" a bell rings\n")
    clips = list(read_manifest(folder))
    assert [c.path.name for c in clips] == ["a.MOV", "b.mp4", "c.flac"]  # a.wav is a.MOV's sound
    assert [c.captions.joint for c in clips] == [(), ("a bell rings",), ()]
    assert copy_rows(folder, folder / "out.csv", lambda number: number != 0) == 2
    assert list(read_manifest(folder / "out.csv")) == clips[1:]
    (folder / "manifest.jsonl").write_text('{"path": "raw/b.mp4"}\n')
    assert [c.path.name for c in read_manifest(folder)] == ["b.mp4"]
    with pytest.raises(ManifestError, match="holds no media files"):
        list(read_manifest(folder.joinpath("empty").mkdir() or folder / "empty"))


def test_linked_folders_are_entered_once_and_circles_end(folder):
    clips, away = folder / "clips", folder / "away"
    for place in (clips / "own", away / "deep"):
        place.mkdir(parents=True)
        (place / "a.mp4").touch()
    (clips / "there").symlink_to(away)
    (clips / "there_again").symlink_to(away)
    (away / "round").symlink_to(clips)
    found = [clip.path.relative_to(clips).as_posix() for clip in read_manifest(clips)]
    assert found == ["own/a.mp4", "there/deep/a.mp4"]


def test_a_folder_that_cannot_be_listed_is_no_empty_one(folder, monkeypatch):
    (folder / "a.mp4").touch()
    scandir = os.scandir

    def listed(place):
        if Path(place).name == "raw":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", listed)
    with pytest.raises(ManifestError, match="raw cannot be listed: Permission denied: its clips would be missing"):
        list(read_manifest(folder))


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(s, "mpeg4") for s in (".wmv", ".asf", ".3gp")]
    + [(s, "mpeg2video") for s in (".mts", ".m2ts", ".vob", ".mxf")]
    + [(s, "flac") for s in (".mka", ".oga")]
    + [(s, "pcm_s16be") for s in (".aif", ".aiff", ".caf")],
)
def test_a_folder_lists_what_the_reader_opens(folder, suffix, codec):
    with av.open(str(folder / f"a{suffix}"), "w", format={".mts": "mpegts"}.get(suffix)) as out:
        if suffix in PICTURE_SUFFIXES:
            stream = out.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            frames = [av.VideoFrame(64, 48, "yuv420p") for _ in range(10)]
        else:
            stream = out.add_stream(codec, rate=48000, layout="mono")
            frames = [av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), "s16", "mono")]
            frames[0].sample_rate = 48000
        for number, frame in enumerate(frames):
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    (clip,) = read_manifest(folder)
    info = probe(clip.path)
    assert (info.video is None) == (suffix in SOUND_SUFFIXES)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"path": ""}, "path is empty: every row needs a file"),
        ({"path": "s3://bucket/a.mp4"}, "path='s3://bucket/a.mp4' is a URL"),
        ({"start": "one"}, "start='one' must be seconds, a number of at least 0"),
        ({"start": "-1"}, "start='-1' must be seconds"),
        ({"start": "1e15"}, "start='1e15' must be seconds, a number of at least 0 and less than 1e+09"),  # microseconds
        ({"start": "nan"}, "start='nan' must be seconds"),
        ({"start": "2", "end_time": "2"}, "end_time=2 must be later than the start, 2"),
    ],
)
def test_a_bad_row_names_file_line_value_and_rule(folder, row, words):
    full = {"path": "a.mp4", "start": "", "end_time": "", "caption": "over\ntwo lines"}
    with (folder / "c.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(full))
        writer.writeheader()
        writer.writerows([full, {**full, **row}])
    with pytest.raises(ManifestError) as refused:
        list(read_manifest(folder / "c.csv"))
    assert f"{folder / 'c.csv'} line 4: {words}" in str(refused.value)
    good, bad = scan_manifest(folder / "c.csv")
    assert isinstance(good, Record)
    assert isinstance(bad, BadRow)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.jsonl", '{"path": "a"}\n\n{"path": "b"\n', 'c.jsonl line 3: \'{"path": "b"\' is not JSON'),
        ("c.jsonl", "[1]\n", "line 1: '[1]' is no JSON object"),
        ("c.jsonl", '{"path": "a", "caption": 5}\n', "caption=5 must be text or a list of texts"),
        ("c.jsonl", '{"path": 5}\n', "path=5 must be a path, as text"),
        ("c.jsonl", '{"path": "a", "start": 1' + 400 * "0" + "}\n", "must be seconds"),
        ("c.jsonl", '{"paht": "a"}\n', "no column says where the file is"),
        ("c.csv", "a.mp4,a dog\nb.mp4,a cat\n", "is the header line missing?"),
        ("c.csv", "Paths,caption\na.mp4,a cat\n", "did you mean to name 'Paths' so?"),
        ("c.csv", "path,caption, Caption\na,b,c\n", "the columns 'caption' and ' Caption' are both caption: rename"),
        ("c.csv", "file,video\na,b\n", "the columns file and video both mean path"),
        ("c.csv", "path,x,x\na,b,c\n", "two columns are named 'x'"),
        ("c.csv", "path,x\na\n", "line 2: has 1 cells, the header names 2 columns"),
        ("c.csv", "", "is empty: its first line must name the columns"),
        ("c.txt", "", "is no manifest: give a folder of clips or a .csv"),
    ],
)
def test_a_file_that_is_no_manifest_says_what_is_wrong(folder, name, text, words):
    (folder / name).write_text(text)
    with pytest.raises(ManifestError) as refused:
        list(read_manifest(folder / name))
    assert words in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    ("head", "bad", "row"),
    [
        ("path,caption", 'b.mp4,"a dog', "{}.mp4,a cat"),  # nothing behind it closes the mark
        ("path,caption", 'b.mp4,"a dog', '{}.mp4,"a cat"'),  # the next row's mark does, in the middle of a cell
        ("path,caption", '"b.mp4,a dog', '"{}.mp4","a ""cat"""'),
        ("path\tcaption", 'b.mp4\t"a dog', "{}.mp4\ta cat"),
    ],
)
def test_a_quotation_mark_left_open_hides_no_rows(folder, head, bad, row):
    name = "c.tsv" if "\t" in head else "c.csv"
    lines = [head, row.format("a"), bad, *(row.format(i) for i in range(100))]
    (folder / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(ManifestError, match=rf"{name} line 3: .* is a quotation mark left open\?"):
        list(scan_manifest(folder / name))
    (folder / name).write_text(head.replace("caption", '"caption') + "\n")
    with pytest.raises(ManifestError, match=rf"{name} line 1: .* is a quotation mark left open\?"):
        list(scan_manifest(folder / name))


def test_quotes_that_are_closed_or_within_a_cell_are_text(folder):
    (folder / "c.csv").write_text('path,caption\n"a.mp4","a ""big"" dog,\nthen a cat"\nb.mp4,a 5" screen\n')
    assert [c.captions.joint for c in read_manifest(folder / "c.csv")] == [
        ('a "big" dog,\nthen a cat',),
        ('a 5" screen',),
    ]


def test_a_line_in_another_encoding_is_named_and_hides_no_other(folder):
    (folder / "c.csv").write_bytes(b"path,caption\na.mp4,caf\xe9\nb.mp4,tea\n")
    with pytest.raises(ManifestError, match=r"line 2: the joint caption .* holds bytes that are not UTF-8"):
        list(read_manifest(folder / "c.csv"))
    assert [r.path.name for r in scan_manifest(folder / "c.csv") if isinstance(r, Record)] == ["a.mp4", "b.mp4"]
    copy_rows(folder / "c.csv", folder / "d.csv", lambda number: True)
    assert (folder / "d.csv").read_bytes() == (folder / "c.csv").read_bytes()


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_long_list_is_read_and_written_in_little_memory(folder, suffix):
    """Memory must not grow with the rows: 3,000 of them would take over 3 MB."""
    path = folder / f"c.{suffix}"
    one = Record(folder / "a.mp4", 1.0, 2.0, Captions(("a caption of some length, as they are " * 5,)))
    tracemalloc.start()
    write_manifest(path, (replace(one, start_s=i / 1e6) for i in range(3_000)))
    assert sum(1 for _ in read_manifest(path)) == 3_000
    copy_rows(path, folder / "below" / path.name, lambda number: number % 2 == 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


def test_nothing_is_left_of_a_write_that_fails(folder):
    with pytest.raises(ManifestError, match="column 'a' is not in every row"):
        write_manifest(folder / "c.csv", (Record(folder / "a", extra={n: "1"}) for n in ("a", "b")))
    with pytest.raises(ManifestError, match="change the suffix"):
        write_manifest(folder / "c.parquet", [])
    assert [path.name for path in folder.iterdir()] == ["raw"]
