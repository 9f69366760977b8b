"""Broken files: one clear error or a result of the asked length; never a crash, a hang or a substitute."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from avgen.data.media import Film, MediaError, probe, read_audio, read_clip, read_image, write_clip, write_wav
from avgen.types import Clip
from tests.data import media_mutants
from tests.data.media_grid import Case, find, write_case

ROOT = Path(__file__).parents[2]


def case(container: str, sound: str, **changes) -> Case:
    axes = {"fps": "25", "picture": "plain", "rate": 48000, "layout": "stereo", "length": "equal",
            "starts": "together", "edits": "as muxed"}  # fmt: skip
    return Case(container=container, sound=sound, **{**axes, **changes})


def test_mutants_give_an_error_or_the_asked_length(tmp_path):
    folder = tmp_path / "mutants"
    folder.mkdir()
    for seed, (container, sound) in enumerate((("mp4", "aac"), ("mov", "pcm_s16le"), ("mkv", "aac"), ("webm", "opus"))):
        source = tmp_path / f"clip.{container}"
        write_case(source, case(container, sound))
        media_mutants.make(source, folder, count=56, seed=seed)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.data.media_mutants", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"after {lines[-1:]}:\n{done.stderr[-3000:]}"
    assert len(lines) == 4 * 56
    for container in ("mp4", "mov", "mkv", "webm"):
        verdicts = Counter(answer for name, answer in lines if name.endswith(container))
        assert set(verdicts) <= {f"{a}+{b}" for a in ("read", "error") for b in ("read", "error")}, verdicts
        # The damage is neither so light nor so heavy that nothing is tested.
        assert verdicts["error+error"] >= 5, verdicts
        assert sum(n for v, n in verdicts.items() if "read" in v) >= 5, verdicts


def test_files_that_are_not_media(tmp_path):
    whole = tmp_path / "whole.mp4"
    write_case(whole, case("mp4", "aac"))
    bad = {
        "missing.mp4": (None, "does not exist"),
        "empty.mp4": (b"", "empty"),
        "text.mp4": (b"hello " * 200, "cannot be opened"),
        "text.txt": (b"one line\n" * 50, "cannot be opened"),
        "list.m3u8": (b"#EXTM3U\n#EXTINF:3,\nwhole.mp4\n#EXT-X-ENDLIST\n", "cannot be opened"),
        "noise.mkv": (np.random.default_rng(0).bytes(5000), "cannot be opened"),
        "half.mp4": (whole.read_bytes()[:3000], "cannot be opened"),
    }
    for name, (data, reason) in bad.items():
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        for act in (probe, read_clip, read_audio):
            with pytest.raises(MediaError, match=reason) as caught:
                act(path)
            assert str(path) in str(caught.value)
    with pytest.raises(MediaError, match="directory"):
        probe(tmp_path)
    with pytest.raises(MediaError, match="cannot be read as an image"):
        read_image(tmp_path / "text.txt")
    with pytest.raises(MediaError, match="cannot be read as an image"):
        read_image(tmp_path / "missing.png")


def test_error_survives_the_trip_from_a_worker_process(tmp_path):
    with pytest.raises(MediaError) as caught:
        probe(tmp_path / "gone.mp4")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_streams_that_are_not_there(tmp_path):
    silent, blind = tmp_path / "silent.mp4", tmp_path / "blind.mp4"
    write_case(silent, case("mp4", "none"))
    write_case(blind, case("mp4", "aac", picture="none"))
    assert read_clip(silent, 0, 1).clip.audio is None
    assert read_clip(blind, 0, 1).clip.video is None
    with pytest.raises(MediaError, match="has no sound"):
        read_clip(silent, 0, 1, audio=True)
    with pytest.raises(MediaError, match="has no sound"):
        read_audio(silent)
    with pytest.raises(MediaError, match="has no picture"):
        read_clip(blind, 0, 1, video=True)
    with pytest.raises(MediaError, match="neither"):
        read_clip(silent, 0, 1, video=False)


def test_windows_outside_the_file(tmp_path):
    path = tmp_path / "clip.mkv"
    write_case(path, case("mkv", "aac", length="longer"))
    for start, end in ((9.0, 10.0), (-3.0, -1.0)):
        with pytest.raises(MediaError, match="holds nothing"):
            read_clip(path, start, end)
    with pytest.raises(ValueError, match="must be later"):
        read_clip(path, 2.0, 1.0)
    with pytest.raises(ValueError, match="shorter than one frame"):
        read_clip(path, 1.0, 1.01)
    with pytest.raises(MediaError, match="channels=5"):
        read_clip(path, 0.0, 1.0, channels=5)
    # Sound without picture: the last frame is held and called what it is.
    window = read_clip(path, 3.4, 4.0)
    assert not window.frame_mask().any()
    assert window.sample_mask().all()


def test_lost_data_is_not_called_the_end_of_the_clip(tmp_path):
    """The header of a fast-start mp4 outlives a download that broke off."""
    path = tmp_path / "clip.mp4"
    rng = np.random.default_rng(0)
    video = rng.integers(0, 255, (75, 48, 64, 3), dtype=np.uint8)
    write_clip(path, Clip(video, rng.normal(0, 0.1, (1, 48000)).astype(np.float32), 25.0, 16000))
    data = path.read_bytes()
    start, end = find(data, "mdat")
    path.write_bytes(data[: start + (end - start) // 2])
    assert read_clip(path, 0.0, 0.8).complete
    for window in ((1.0, 2.5), (2.0, 3.0)):
        with pytest.raises(MediaError, match=r"truncated|damaged"):
            read_clip(path, *window)


def test_a_failed_write_leaves_nothing(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"what was there before")
    audio = np.zeros((1, 16000), np.float32)
    for clip in (
        Clip(np.zeros((0, 8, 8, 3), np.uint8), None, 8.0, None),
        Clip(np.zeros((4, 8, 8, 3), np.float32), None, 8.0, None),
        Clip(None, np.full((1, 9), np.nan, np.float32), None, 16000),
        Clip(None, np.zeros((3, 9), np.float32), None, 16000),
        Clip(np.zeros((4, 1, 1, 3), np.uint8), None, 2000.0, None),
        Clip(None, None, None, None),
    ):
        with pytest.raises(ValueError, match=r"clip\.mp4|fps"):
            write_clip(path, clip)
    with pytest.raises(ValueError, match="suffix"):
        write_clip(tmp_path / "clip.avi", Clip(None, audio, None, 16000))
    with pytest.raises(ValueError, match="channels, samples"):
        write_wav(tmp_path / "clip.wav", audio[0], 16000)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == b"what was there before"


def test_a_film_is_written_as_the_clip_that_it_is(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (7, 16, 24, 3), dtype=np.uint8)
    write_clip(tmp_path / "clip.mp4", Clip(frames, None, 8.0, None))
    empty = Clip(None, None, None, None)
    write_clip(tmp_path / "film.mp4", empty, film=Film((frames[:3], frames[3:4], frames[4:]), 8.0))
    assert (tmp_path / "film.mp4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()
    before = sorted(tmp_path.iterdir())
    for film, words in (
        (Film((), 8.0), "has no piece"),
        (Film((frames, frames[:, 2:]), 8.0), r"the size \(14, 24\), those before it \(16, 24\)"),
        (Film((frames.astype(float),), 8.0), "uint8, not float64"),
    ):
        with pytest.raises(ValueError, match=words):
            write_clip(tmp_path / "wrong.mp4", empty, film=film)
    with pytest.raises(ValueError, match="leave one out"):
        write_clip(tmp_path / "wrong.mp4", Clip(frames, None, 8.0, None), film=Film((frames,), 8.0))
    assert sorted(tmp_path.iterdir()) == before


def test_memory_that_runs_out_is_not_called_damage(tmp_path):
    write_clip(tmp_path / "clip.mp4", Clip(np.zeros((4, 8, 8, 3), np.uint8), None, 8.0, None))
    with pytest.raises(MediaError, match="takes more memory than there is") as caught:
        read_clip(tmp_path / "clip.mp4", 0, 1e9, size=(1 << 12, 1 << 12))
    assert "damaged" not in str(caught.value)


def test_absurd_headers_do_not_cost_memory_or_time(tmp_path):
    """A sample rate of 1 Hz would ask for a resampling filter of gigabytes."""
    path = tmp_path / "clip.wav"
    write_wav(path, np.zeros((1, 8000), np.float32), 8000)
    data = bytearray(path.read_bytes())
    at = data.index(b"fmt ") + 12
    for rate in (1, 999, 2**31 - 1):
        data[at : at + 4] = struct.pack("<I", rate)
        path.write_bytes(data)
        with pytest.raises(MediaError, match=r"sample rate|opened"):
            read_audio(path, sample_rate_hz=48000)
