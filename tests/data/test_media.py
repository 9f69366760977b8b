"""What reading and writing must keep: the clock, the pitch, the colours, the length."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from avgen.data.media import MediaError, probe, read_audio, read_clip, read_image, unit_count, write_clip, write_wav
from avgen.data.media.edits import read_edits
from avgen.data.media.picture import Renderer
from avgen.data.media.sound import mix_matrix, resample
from avgen.data.media.source import exact_seconds
from avgen.types import Clip
from tests.conftest import CLIPS
from tests.data.media_grid import Case, chirp, copied, find, measure, write_case

RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000)


def tone(hz: float, seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    wave = 0.4 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[None], channels, axis=0).astype(np.float32)


def pitch_hz(wave: np.ndarray, rate: int) -> float:
    """By zero crossings, which know nothing of the reader."""
    rising = np.flatnonzero((wave[:-1] < 0) & (wave[1:] >= 0))
    return (len(rising) - 1) / (rising[-1] - rising[0]) * rate


def moving_picture(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth, every frame plainly different from the next."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    phase = rng.uniform(0, 6, 3)
    t = np.arange(frames)[:, None, None]
    channels = [110 + 90 * np.sin(0.7 * t + 3 * y + 2 * x + p) for p in phase]
    return np.stack(channels, axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    """Three seconds of 25 fps and 48 kHz stereo noise, with B-frames and short groups of pictures."""
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    wave = np.random.default_rng(0).normal(0, 0.1, (2, 3 * 48000)).astype(np.float32)
    write_clip(path, Clip(moving_picture(75, 48, 64), wave, 25.0, 48000), comment="made by a test")
    return path


@pytest.mark.parametrize("suffix", ["mp4", "wav"])
@pytest.mark.parametrize("target", [None, 16000, 48000])
def test_a_planar_stereo_tone_keeps_its_pitch(tmp_path, suffix, target):
    path = tmp_path / f"tone.{suffix}"
    wave = tone(440, 2, 16000, channels=2)
    write_clip(path, Clip(None, wave, None, 16000)) if suffix == "mp4" else write_wav(path, wave, 16000)
    for channels in (1, 2, None):
        clip = read_clip(path, 0.25, 1.75, sample_rate_hz=target, channels=channels).clip
        assert clip.audio is not None
        assert clip.audio.shape == (channels or 2, round(1.5 * (target or 16000)))
        for row in clip.audio:
            assert pitch_hz(row, target or 16000) == pytest.approx(440, abs=0.5)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 72), min_size=3, max_size=3, unique=True).map(sorted))
def test_two_windows_side_by_side_are_the_whole(clip_path, cuts):
    a, b, c = (Fraction(cut, 25) for cut in cuts)
    for rate in (48000, 16000, 44100):
        whole, left, right = (read_clip(clip_path, *w, sample_rate_hz=rate).clip for w in ((a, c), (a, b), (b, c)))
        np.testing.assert_array_equal(np.concatenate([left.video, right.video]), whole.video)
        joined = np.concatenate([left.audio, right.audio], axis=1)
        np.testing.assert_allclose(joined, whole.audio, atol=0 if rate == 48000 else 1e-5)


@settings(max_examples=25, deadline=None)
@given(start=st.floats(0, 2.5), length=st.floats(0.1, 3), fps=st.sampled_from([7.5, 12, 23.976, 25, 29.97, 60]),
       rate=st.sampled_from(RATES))  # fmt: skip
def test_the_length_is_the_one_asked_for(clip_path, start, length, fps, rate):
    window = read_clip(clip_path, start, start + length, fps=fps, sample_rate_hz=rate, size=(16, 16))
    clip = window.clip
    assert len(clip.video) == unit_count(start, start + length, Fraction(clip.fps).limit_denominator(1001))
    assert abs(len(clip.video) - length * clip.fps) <= 0.5 + 1e-6
    assert clip.audio.shape[1] == unit_count(start, start + length, rate)
    assert abs(clip.audio.shape[1] - length * rate) <= 0.5 + 1e-6
    # Three seconds are there; beyond them nothing is called real, and nothing is heard.
    middles = start + (np.arange(len(clip.video)) + 0.5) / clip.fps
    clear = np.abs(middles - 3) > 0.002
    np.testing.assert_array_equal(window.frame_mask()[clear], middles[clear] < 3)
    times = start + np.arange(clip.audio.shape[1]) / rate
    clear = np.abs(times - 3) > 0.002
    np.testing.assert_array_equal(window.sample_mask()[clear], times[clear] < 3)
    assert not clip.audio[:, times > 3 + 0.02].any()


@settings(max_examples=20, deadline=None)
@given(
    fps=st.sampled_from([8.0, 12.0, 23.976, 24000 / 1001, 24.0, 25.0, 29.97, 30.0, 60.0]),
    rate=st.sampled_from(RATES),
    channels=st.sampled_from([1, 2]),
    height=st.integers(16, 50),
    width=st.integers(16, 50),
)
def test_what_is_written_is_read_back(tmp_path_factory, fps, rate, channels, height, width):
    path = tmp_path_factory.mktemp("round") / "clip.mp4"
    frames = moving_picture(round(1.5 * fps), height, width)
    beep_at = 0.6137
    wave = np.repeat(chirp(np.arange(round(1.5 * rate)) / rate - beep_at)[None], channels, axis=0)
    write_clip(path, Clip(frames, wave, fps, rate), crf=12)
    window = read_clip(path)
    back = window.clip
    # An odd edge is repeated once.
    assert back.video.shape == (len(frames), height + height % 2, width + width % 2, 3)
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    error = np.abs(back.video.astype(float) - even).mean(axis=(1, 2, 3))
    neighbour = np.abs(back.video[1:].astype(float) - even[:-1]).mean(axis=(1, 2, 3))
    assert error.max() < 8  # small sizes lose colour to 4:2:0; a neighbouring frame is off by dozens
    assert neighbour.min() > 3 * error.max(), "frames are off by one"
    exact = {23.976: 24000 / 1001, 29.97: 30000 / 1001}.get(fps, fps)
    assert back.fps == exact
    assert back.sample_rate_hz == rate
    match = np.correlate(back.audio[0], chirp(np.arange(round(0.06 * rate)) / rate))
    assert abs(match.argmax() / rate - beep_at) <= 0.001
    info = probe(path)
    assert info.video.fps == Fraction(exact).limit_denominator(1001)
    assert (info.audio.sample_rate_hz, info.audio.channels) == (rate, channels)


def test_a_two_second_window_of_an_hour_costs_as_much_as_one_of_ten_seconds(tmp_path):
    for container, sound in (("mp4", "aac"), ("webm", "opus")):
        case = Case(container, "25", "plain", sound, 48000, "mono", "equal", "together", "as muxed")
        short, hour = tmp_path / f"short.{container}", tmp_path / f"hour.{container}"
        truth = write_case(short, case, seconds=10)
        repeat(short, hour, times=360)
        assert probe(hour).duration_s == pytest.approx(3600, abs=1)
        header = index_bytes(hour, container)
        read_clip(short, 0, 1)  # libraries that are loaded when they are first needed are read too
        costs = []
        for path, start in ((short, 5.3), (hour, 5.3), (hour, 1805.3), (hour, 3595.3)):
            before = bytes_read()
            window = read_clip(path, start, start + 2)
            costs.append((window.cost.packets, window.cost.frames_decoded))
            assert bytes_read() - before < header + 120_000
            assert window.complete
        assert max(p for p, _ in costs) <= 1.1 * costs[0][0]
        assert max(f for _, f in costs) <= 1.1 * costs[0][1]
        # And it is the right two seconds: the tenfold-second pattern begins anew every ten.
        window = read_clip(hour, 1801.0, 1802.5)
        measure(window, truth, 1.0, 2.5)


def bytes_read() -> int:
    """What this process has asked the system for so far, whoever asked."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("counts bytes through /proc")
    return int(counters.read_text().split()[1])


def index_bytes(path: Path, container: str) -> int:
    """The part that any reader must load whole: mp4's sample tables, Matroska's cues."""
    if container == "mp4":
        start, end = find(path.read_bytes(), "moov")
        return end - start
    return 150_000


def repeat(source: Path, target: Path, times: int) -> None:
    """The ten seconds of `source` over and over, by copying packets."""
    with av.open(str(source)) as clip, av.open(str(target), "w") as out:
        packets = [p for p in clip.demux() if p.dts is not None]
        streams = {s.index: out.add_stream_from_template(s) for s in clip.streams}
        last: dict[int, int] = {}
        for turn in range(times):
            for packet in packets:
                shift = int(turn * 10 / packet.time_base)
                if packet.dts + shift <= last.get(packet.stream_index, -(10**9)):
                    continue  # priming and padding overlap at the seams
                last[packet.stream_index] = packet.dts + shift
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts = packet.pts + shift, packet.dts + shift
                copy.duration, copy.time_base = packet.duration, packet.time_base
                copy.is_keyframe, copy.stream = packet.is_keyframe, streams[packet.stream_index]
                out.mux(copy)


@pytest.fixture(scope="module")
def reordered(tmp_path_factory) -> Path:
    """Six seconds with B-frames and keyframes in between."""
    path = tmp_path_factory.mktemp("reordered") / "clip.mp4"
    write_case(path, Case("mp4", "25", "plain", "aac", 48000, "stereo", "equal", "together", "as muxed"), 6.0)
    return path


@pytest.mark.parametrize("flags", ["cmaf+frag_keyframe+delay_moov", "cmaf+frag_keyframe+delay_moov+global_sidx"])
def test_fragments_that_show_before_they_decode_are_on_the_clock(reordered, tmp_path, flags):
    """FFmpeg says their picture late; the same packets in an ordinary file are what it should be."""
    path = copied(reordered, tmp_path / "fragments.mp4", flags)
    with av.open(str(path)) as file:
        assert min(p.pts for p in file.demux(video=0) if p.pts is not None) > 0, "no longer late: this is not needed"
    for start in (Fraction(0), Fraction(11, 10), Fraction(4)):  # from the top, near it, and by a seek
        whole, other = (read_clip(p, start, start + 1).clip for p in (reordered, path))
        np.testing.assert_array_equal(other.video, whole.video)
        np.testing.assert_array_equal(other.audio, whole.audio)
    info, truth = probe(path), probe(reordered)
    assert (info.start_s, info.video.start_s) == (truth.start_s, truth.video.start_s) == (0, 0)
    assert info.end_s == pytest.approx(truth.end_s, abs=0.002)


@pytest.mark.parametrize("flags", ["cmaf+frag_every_frame+delay_moov", "frag_keyframe+negative_cts_offsets"])
def test_fragments_of_which_some_are_late_are_refused(reordered, tmp_path, flags):
    path = copied(reordered, tmp_path / "fragments.mp4", flags)
    with pytest.raises(MediaError, match=r"has fragments whose video FFmpeg reads late.*write it without fragments"):
        probe(path)


def test_fragments_without_negative_offsets_are_read_as_they_were(reordered, tmp_path):
    path = copied(reordered, tmp_path / "fragments.mp4", "frag_keyframe+delay_moov")
    whole, other = (read_clip(p, 2, 3).clip for p in (reordered, path))
    np.testing.assert_array_equal(other.video, whole.video)
    np.testing.assert_array_equal(other.audio, whole.audio)


@pytest.mark.parametrize("chroma", ["full", "fast"])
def test_colours_survive(tmp_path, chroma):
    """Flat colours through H.264 and back, tagged (BT.709) and judged by the size of the error alone."""
    colours = np.array(
        [[0, 0, 0], [255, 255, 255], [200, 30, 30], [30, 200, 30], [30, 30, 200], [240, 200, 20]], np.uint8
    )
    video = np.repeat(np.repeat(colours[:, None, None], 48, 1), 64, 2)
    path = tmp_path / "colours.mp4"
    write_clip(path, Clip(video, None, 8.0, None), crf=4)
    back = read_clip(path, chroma=chroma).clip.video
    assert np.abs(back.astype(int) - video).max() <= 4


def test_fit_rules(tmp_path):
    """A wide picture of three bars: cover keeps the middle, contain shows all with black, stretch fills."""
    bars = np.zeros((8, 40, 120, 3), np.uint8)
    bars[:, :, :40, 0] = bars[:, :, 40:80, 1] = bars[:, :, 80:, 2] = 200
    path = tmp_path / "bars.mp4"
    write_clip(path, Clip(bars, None, 8.0, None), crf=8)
    cover = read_clip(path, size=(40, 40), fit="cover").clip.video[0].astype(int)
    assert cover[20, 20, 1] > 150
    assert cover[5:-5, 5:-5, [0, 2]].max() < 40
    contain = read_clip(path, size=(60, 60), fit="contain").clip.video[0].astype(int)
    assert contain[:18].max() == contain[-18:].max() == 0
    assert [contain[30, x].argmax() for x in (8, 30, 52)] == [0, 1, 2]
    stretch = read_clip(path, size=(30, 30), fit="stretch").clip.video[0].astype(int)
    assert [stretch[15, x].argmax() for x in (4, 15, 26)] == [0, 1, 2]
    assert read_clip(path, size=(25, 33)).clip.video.shape[1:3] == (25, 33)
    with pytest.raises(ValueError, match="fit="):
        Renderer((8, 8), "zoom")
    with pytest.raises(ValueError, match="size="):
        read_clip(path, size=(0, 8))


def test_shrinking_does_not_alias(tmp_path):
    """A one-pixel checkerboard shrunk fourfold is grey; picking pixels would make it black or white."""
    board = (np.indices((128, 128)).sum(axis=0) % 2 * 255).astype(np.uint8)
    path = tmp_path / "board.mp4"
    write_clip(path, Clip(np.repeat(board[None, ..., None], 3, axis=-1).repeat(4, 0), None, 8.0, None), crf=0)
    for size in ((32, 32), (31, 45)):
        small = read_clip(path, size=size).clip.video.astype(int)
        assert np.abs(small - 127).max() < 25


def test_speed_changes_hold_and_skip_frames(tmp_path):
    """Each output frame shows the source frame on screen in the middle of its interval."""
    path = tmp_path / "count.mp4"
    steps = np.arange(30, dtype=np.uint8) * 8
    write_clip(path, Clip(np.tile(steps[:, None, None, None], (1, 32, 32, 3)), None, 10.0, None), crf=4)
    for fps in (3, 5, 10, 20, 25, 30, 59.94):
        clip = read_clip(path, 0, 3, fps=fps).clip
        shown = np.rint(clip.video.mean(axis=(1, 2, 3)) / 8).astype(int)
        middles = (np.arange(len(shown)) + 0.5) / clip.fps
        np.testing.assert_array_equal(shown, np.ceil(middles * 10 - 1e-9).astype(int) - 1)


def test_resampling_is_right_and_does_not_drift():
    rng = np.random.default_rng(0)
    for source, target in ((44100, 16000), (8000, 48000), (48000, 44100), (11025, 16000), (48000, 16000)):
        seconds, start = 30, Fraction(rng.integers(0, 10**6), 10**6)
        low = min(source, target)
        for hz in (100.0, 0.2 * low, 0.44 * low):
            wave = tone(hz, seconds + 2, source)
            out = resample(wave, start * source, seconds * target, source, target)[0]
            truth = 0.4 * np.sin(2 * np.pi * hz * (float(start) + np.arange(seconds * target) / target))
            inner = slice(target // 10, -target // 10)
            # A grid of the least common multiple is at most 1/500000 s coarse here: at 20 kHz 0.03 of a cycle.
            slack = 2 * np.pi * hz * 0.4 / (2 * source * Fraction(target, source).numerator)
            assert np.abs(out - truth)[inner].max() < slack + 2e-3
        if target < source:  # what the lower rate cannot hold is gone, not folded back
            folded = resample(tone(0.53 * target, 1, source), Fraction(0), target, source, target)
            assert np.abs(folded[:, target // 10 : -target // 10]).max() < 2e-4 if 0.53 * target < source / 2 else True


def test_mixing():
    names = ("FL", "FR", "FC", "LFE", "BL", "BR")
    stereo, mono = mix_matrix(names, 2), mix_matrix(names, 1)
    for matrix in (stereo, mono):
        assert (matrix >= 0).all()
        assert (matrix.sum(axis=1) <= 1 + 1e-6).all(), "a mix of full scale must not clip"
    assert stereo[0, 0] > 0
    assert stereo[1, 0] == 0
    assert stereo[0, 2] == stereo[1, 2] == pytest.approx(stereo[0, 0] * 10 ** (-3 / 20), rel=0.01)
    np.testing.assert_allclose(mono, stereo.mean(axis=0, keepdims=True))
    np.testing.assert_array_equal(mix_matrix(("FC",), 2), [[1], [1]])
    np.testing.assert_array_equal(mix_matrix(("FL", "FR"), 1), [[0.5, 0.5]])


@pytest.mark.parametrize(("suffix", "codec", "form"), [
    ("wav", "pcm_s16le", "s16"), ("wav", "pcm_f32le", "flt"), ("wav", "pcm_u8", "u8"), ("flac", "flac", "s16"),
    ("mp3", "libmp3lame", "fltp"), ("ogg", "libopus", "flt"), ("m4a", "aac", "fltp"), ("m4a", "alac", "s16p"),
])  # fmt: skip
def test_sound_files_of_every_kind(tmp_path, suffix, codec, form):
    """Whole files start with their first sample, whatever priming the format hides."""
    path = tmp_path / f"sound.{suffix}"
    beep_at, rate = 0.7, 48000
    wave = chirp(np.arange(rate * 3 // 2) / rate - beep_at)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.layout, stream.format = "stereo", form
        data = np.stack([wave, 0.5 * wave])
        data = data if form.startswith("flt") else _integers(data, form)
        block = stream.codec_context.frame_size or 1024
        for begin in range(0, len(wave), block):
            part = data[:, begin : begin + block]
            part = np.ascontiguousarray(part if stream.format.is_planar else part.T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(part, form, layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    clip = read_audio(path)
    assert clip.video is None
    assert clip.audio.shape[0] == 2
    exact = suffix not in ("mp3",)
    assert len(wave) <= clip.audio.shape[1] <= len(wave) + (0 if exact else 2304)
    match = np.correlate(clip.audio[0], chirp(np.arange(round(0.06 * rate)) / rate))
    assert abs(match.argmax() / rate - beep_at) <= 0.001
    loud = [np.abs(row).max() for row in clip.audio]
    assert loud[1] / loud[0] == pytest.approx(0.5, abs=0.05)
    assert loud[0] == pytest.approx(0.6, abs=0.05)
    low = read_audio(path, sample_rate_hz=16000, channels=1)
    assert low.audio.shape == (1, unit_count(0, Fraction(clip.audio.shape[1], rate), 16000))


def _integers(data: np.ndarray, form: str) -> np.ndarray:
    return np.rint(data * 127 + 128).astype(np.uint8) if form == "u8" else np.rint(data * 32767).astype(np.int16)


def test_wav_round_trip(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.999, 0.999, (2, 4001)).astype(np.float32)
    write_wav(tmp_path / "float.wav", wave, 22050, bits=32)
    np.testing.assert_array_equal(read_audio(tmp_path / "float.wav").audio, wave)
    write_wav(tmp_path / "short.wav", wave, 22050)
    np.testing.assert_allclose(read_audio(tmp_path / "short.wav").audio, wave, atol=0.6 / 32768)


def test_a_hole_in_the_sound_is_silent_and_reported(tmp_path):
    path = tmp_path / "hole.mkv"
    rate = 16000
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=rate)
        stream.layout = "mono"
        for start in (0, 2 * rate):  # one second of sound, one of nothing, one of sound
            for begin in range(start, start + rate, 1000):
                frame = av.AudioFrame.from_ndarray(np.full((1, 1000), 8000, np.int16), "s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
                out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    window = read_clip(path, 0.5, 2.5)
    assert window.audio_real == ((0, rate // 2), (3 * rate // 2, 2 * rate))
    assert not window.clip.audio[:, rate // 2 : 3 * rate // 2].any()
    assert (window.clip.audio[:, window.sample_mask()] > 0.2).all()
    assert not window.complete
    inside = read_clip(path, 0.5, 1.8)  # ends within the hole: there is more behind it, so nothing is cut off
    assert inside.audio_real == ((0, rate // 2),)
    assert not inside.clip.audio[:, rate // 2 :].any()


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_part_of_a_longer_recording_ends_where_it_ends(tmp_path, suffix):
    """Pieces that FFmpeg's segmenter cuts keep the times they had."""
    path = tmp_path / f"part.{suffix}"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        for i in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 8 * i, np.uint8), "rgb24")
            frame.pts, frame.time_base = 100 + i, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    info = probe(path)
    assert (info.start_s, info.end_s) == (pytest.approx(10.0), pytest.approx(13.0))
    assert read_clip(path, 10.0).clip.video.shape[0] == 30


def test_an_edit_list_that_cuts_the_end_is_honoured(tmp_path):
    path = tmp_path / "cut.mp4"
    case = Case("mp4", "25", "plain", "aac", 48000, "mono", "equal", "together", "as muxed")
    write_case(path, case)
    data = bytearray(path.read_bytes())
    at = 0
    while (at := data.find(b"elst", at + 1)) > 0:
        data[at + 12 : at + 16] = (2 * 90000).to_bytes(4, "big")  # both tracks: two seconds of three
    path.write_bytes(data)
    assert probe(path).end_s == pytest.approx(2, abs=0.001)
    window = read_clip(path, 1.0, 3.0)
    assert window.video_real == ((0, 25),)
    assert window.audio_real[0][1] == pytest.approx(48000, abs=2)
    assert not window.clip.audio[:, 48010:].any()
    assert (window.clip.video[25:] == window.clip.video[24]).all()


def test_a_late_window_of_sound_that_cannot_be_sought_holds_little_of_what_is_before_it(tmp_path):
    """An hour of mp3 took 1.3 GB for its last second; what is read is the same to the last bit."""
    path, rate = tmp_path / "long.mp3", 48000
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libmp3lame", rate=rate)
        stream.layout, stream.format = "stereo", "fltp"
        for begin in range(0, 40 * rate, 1152):
            wave = tone(440, 1152 / rate, rate, channels=2)
            frame = av.AudioFrame.from_ndarray(wave, "fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    whole = read_audio(path).audio
    tracemalloc.start()
    late = read_clip(path, 38, 39).clip.audio
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * rate * 2 * 4  # ten seconds of it
    np.testing.assert_array_equal(late, whole[:, 38 * rate : 39 * rate])


def test_the_edit_list_of_a_track_that_is_neither_seen_nor_heard_leaves_those_of_the_others(reordered, tmp_path):
    """Chapters and subtitles may have lists that are no shift and two cuts; then FFmpeg's were taken for all tracks."""
    path = tmp_path / "clip.mp4"
    data = bytearray(reordered.read_bytes())
    rate = data.rfind(b"elst") + 20
    assert data[rate : rate + 4] == (1 << 16).to_bytes(4, "big")
    data[rate : rate + 4] = bytes(4)  # the sound's: stand still
    path.write_bytes(data)
    assert read_edits(path) is None
    kind = data.find(b"hdlr" + bytes(8) + b"soun") + 12
    data[kind : kind + 4] = b"text"
    path.write_bytes(data)
    whole = read_edits(reordered)
    assert read_edits(path) == {track: edit for track, edit in whole.items() if track == min(whole)}


def test_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    np.testing.assert_array_equal(read_image(tmp_path / "plain.png"), pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(pixels, -1))
    clear = np.dstack([pixels, np.full((20, 30), 0, np.uint8)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert not read_image(tmp_path / "clear.png").any()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_images_of_16_bits_are_as_bright_as_those_of_8(tmp_path, suffix):
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / f"in{suffix}")
    with Image.open(tmp_path / f"in{suffix}") as opened:
        assert opened.mode == ("I" if suffix == ".pgm" else "I;16")
    assert np.array_equal(read_image(tmp_path / f"in{suffix}"), np.repeat(eight[..., None], 3, axis=-1))
    # what lies between is rounded to the nearest
    near = np.array([[128, 129, 65535 - 128, 65535 - 129]], np.uint16)
    Image.fromarray(near).save(tmp_path / f"near{suffix}")
    assert read_image(tmp_path / f"near{suffix}")[0, :, 0].tolist() == [0, 1, 255, 254]


def test_transparency_of_16_bits_falls_on_black(tmp_path):
    Image.fromarray(np.array([[65535, 30000]], np.uint16)).save(tmp_path / "in.png", transparency=65535)
    assert read_image(tmp_path / "in.png")[0, :, 0].tolist() == [0, round(30000 / 257)]


@pytest.mark.parametrize(("kind", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_images_that_do_not_say_what_is_white_are_refused(tmp_path, kind, mode):
    Image.fromarray(np.array([[0, 1], [2, 3]], kind)).save(tmp_path / "in.tif")
    with pytest.raises(MediaError, match=f"in.tif: is an image of mode {mode} .* save it with 8 or 16 bits"):
        read_image(tmp_path / "in.tif")


def test_comment_and_probe(clip_path):
    info = probe(clip_path)
    assert info.comment == "made by a test"
    assert (info.video.height, info.video.width, info.video.fps) == (48, 64, 25)
    assert not info.video.variable
    assert (info.start_s, info.end_s) == (0, 3)


@pytest.mark.parametrize(
    ("container", "fps"), [("mp4", "variable"), ("mkv", "variable"), ("mkv", "23.976"), ("mkv", "29.97")]
)
def test_probe_knows_variable_from_rounded(tmp_path, container, fps):
    path = tmp_path / f"clip.{container}"
    write_case(path, Case(container, fps, "plain", "none", 48000, "mono", "equal", "together", "as muxed"))
    assert probe(path).video.variable == (fps == "variable")


CLIP_NAMES = ["crush_16fps", "hiker_no_audio_8fps", "mmaudio_example_720p30", "mova_output_48k", "ovi_output_24fps",
              "vggsound_a", "vggsound_b", "web_10fps_offset_audio"]  # fmt: skip


@pytest.mark.skipif(not CLIPS.is_dir(), reason="no real clips here: set AVGEN_CLIPS")
@pytest.mark.parametrize("name", CLIP_NAMES)
def test_real_clips(name):
    path = CLIPS / f"{name}.mp4"
    info = probe(path)
    assert (info.audio is None) == ("no_audio" in name)
    want = {"fps": 16, "size": (64, 112), "sample_rate_hz": 16000, "channels": 1}
    one = read_clip(path, 1.0, 3.0, **want)
    assert one.complete
    assert one.clip.video.shape == (32, 64, 112, 3)
    # The same instants again, reached by another seek, are the same frames.
    other = read_clip(path, 2.0, 4.0, **want)
    np.testing.assert_array_equal(other.clip.video[:16], one.clip.video[16:])
    if info.audio is None:
        return
    # Not to the last bit: AAC may fill bands with noise from a generator that runs on from where decoding began.
    difference = other.clip.audio[:, :16000] - one.clip.audio[:, 16000:]
    assert np.sqrt((difference**2).mean()) < 0.01 * np.sqrt((one.clip.audio**2).mean())
    assert np.abs(one.clip.audio).max() > 1e-3
    # Decoded from the top by hand, the sound lies where its timestamps say.
    with av.open(str(path)) as clip:
        frames = list(clip.decode(audio=0))
    rate = info.audio.sample_rate_hz
    first = round(frames[0].pts * frames[0].time_base * rate)
    wave = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    native = read_clip(path, 0.5, 1.5, video=False).clip.audio  # near enough to the top to be decoded from it
    np.testing.assert_allclose(native, wave[:, rate // 2 - first : rate // 2 + rate - first], atol=1e-6)
    assert info.audio.start_s == pytest.approx(first / rate, abs=1e-6)


@pytest.mark.parametrize(("fps", "seconds", "count"), [(15, Fraction(5, 2), 38), (25, Fraction(1, 2), 13)])
def test_a_windows_length_does_not_depend_on_where_it_begins(fps, seconds, count):
    """Where frames times seconds ends in a half, rounding the ends of a window would cost some of them a frame."""
    for k in range(1, 50):
        for start in (Fraction(k, 9_999_991), 5 - Fraction(k, 9_999_991)):
            assert unit_count(exact_seconds(start), exact_seconds(start + seconds), fps) == count
