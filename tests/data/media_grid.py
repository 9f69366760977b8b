"""Clips with a flash and a beep at known instants, over the whole grid of containers, rates and defects.

What is true of a clip comes from the timestamps handed to the muxer and from bytes patched by hand, never
from the reader. `python -m tests.data.media_grid` prints the worst errors per container and frame rate.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avgen.data.media import Window, read_clip

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder otherwise talks to stderr

RATES = {"23.976": Fraction(24000, 1001), "29.97": Fraction(30000, 1001)}
SECONDS = 3
FLASHES = ((0.25, 0.6), (1.2, 1.55), (2.15, 2.5))
BEEPS = (0.2537, 1.2291, 2.1463)
BEEP_S = 0.06
PRIMED = "aac", "opus", "ac3", "mp3"


@dataclass(frozen=True)
class Case:
    container: str
    fps: str
    picture: str
    sound: str
    rate: int
    layout: str
    length: str
    starts: str
    edits: str

    def __str__(self) -> str:
        return "-".join(str(getattr(self, f.name)) for f in fields(self))


AXES: dict[str, tuple] = {
    "container": ("mp4", "mov", "mkv", "webm"),
    "fps": ("8", "12", "23.976", "24", "25", "29.97", "30", "60", "variable"),
    "picture": ("plain", "odd", "tenbit", "turned90", "turned180", "turned270", "none"),
    "sound": ("aac", "opus", "pcm_s16le", "pcm_f32le", "pcm_u8", "flac", "alac", "ac3", "mp3", "vorbis", "none"),
    "rate": (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000),
    "layout": ("mono", "stereo", "5.1"),
    "length": ("equal", "shorter", "longer"),
    "starts": ("together", "video late", "audio late", "both late"),
    "edits": ("as muxed", "trimmed", "removed"),
}
SOUNDS = {
    "mp4": ("aac", "opus", "alac", "ac3", "mp3", "none"),
    "mov": ("aac", "pcm_s16le", "pcm_f32le", "pcm_u8", "alac", "none"),
    "mkv": ("aac", "opus", "pcm_s16le", "pcm_f32le", "pcm_u8", "flac", "ac3", "mp3", "vorbis", "none"),
    "webm": ("opus", "vorbis", "none"),
}
LOWEST = {"ac3": 32000, "mp3": 16000}


def valid(axes: dict) -> bool:
    """Whether these axes (some may be missing) can be had together in one file."""
    container, sound, rate = axes.get("container"), axes.get("sound"), axes.get("rate")
    picture, layout = axes.get("picture"), axes.get("layout")
    if container and sound and sound not in SOUNDS[container]:
        return False
    if container in ("mkv", "webm") and (str(picture).startswith("turned") or axes.get("edits") in AXES["edits"][1:]):
        return False
    if picture == "none" and sound == "none":
        return False
    if sound == "opus" and rate in (11025, 22050, 32000, 44100):
        return False
    if rate and rate < LOWEST.get(sound or "", 0):
        return False
    if sound in ("ac3", "mp3") and rate in (11025,):
        return False
    if sound == "ac3" and rate in (8000, 16000, 22050, 24000):
        return False
    return not (layout and ((sound == "vorbis" and layout != "stereo") or (sound == "mp3" and layout == "5.1")))


def pairwise_cases(seed: int = 0) -> list[Case]:
    """Few cases in which every possible pair of values of any two axes occurs."""
    rng = random.Random(seed)
    names = list(AXES)
    wanted = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in AXES[a]
        for y in AXES[b]
        if valid({a: x, b: y})
    }
    cases: list[Case] = []
    impossible: set = set()
    while wanted:
        first = min(wanted, key=str)
        best: dict | None = None
        best_gain = -1
        for _ in range(24):
            axes = dict(first)
            for name in sorted(names, key=lambda _: rng.random()):
                if name in axes:
                    continue
                options = [v for v in AXES[name] if valid({**axes, name: v})]
                if not options:
                    break
                scores = [sum(_pair(names, (name, v), item) in wanted for item in axes.items()) for v in options]
                top = max(scores)
                axes[name] = rng.choice([v for v, s in zip(options, scores, strict=True) if s == top])
            if len(axes) < len(names):
                continue
            gain = sum(_pair(names, p, q) in wanted for p, q in itertools.combinations(axes.items(), 2))
            if gain > best_gain:
                best, best_gain = axes, gain
        if best is None:  # a pair that no whole file can have
            impossible.add(first)
            wanted.discard(first)
            continue
        wanted -= {_pair(names, p, q) for p, q in itertools.combinations(best.items(), 2)}
        cases.append(Case(**best))
    assert len(impossible) < 20, impossible
    return cases


def _pair(names: list[str], p: tuple, q: tuple) -> tuple:
    return (p, q) if names.index(p[0]) < names.index(q[0]) else (q, p)


def product_cases() -> Iterator[Case]:
    """Every container, frame rate, sound codec, start and edit list; the other axes run through their values."""
    names = ("container", "fps", "sound", "starts", "edits")
    rest = [name for name in AXES if name not in names]
    rng = random.Random(1)
    for values in itertools.product(*(AXES[name] for name in names)):
        axes = dict(zip(names, values, strict=True))
        if not valid(axes) or axes["starts"] == "both late":
            continue
        for _ in range(200):
            whole = {**axes, **{name: rng.choice(AXES[name]) for name in rest}}
            if valid(whole):
                yield Case(**whole)
                break


@dataclass(frozen=True)
class Truth:
    """What is in a file, in seconds of its presentation clock."""

    edges: tuple[float, ...]  # the flash goes on, off, on, off ...
    beeps: tuple[float, ...]
    video_span: tuple[float, float] | None
    audio_span: tuple[float, float] | None
    turn: int  # degrees clockwise
    size: tuple[int, int]  # upright
    tick_s: float  # the container's rounding of times
    lead_s: float  # sound that may come before the start: a muxer presents the priming of a late stream
    padding_s: float  # sound that the encoder may leave after the end


def chirp(at: np.ndarray) -> np.ndarray:
    """The beep, at times from its start: 300 to 2500 Hz under a Hann window; sharp in time, within 8 kHz sound."""
    inside = (at >= 0) & (at < BEEP_S)
    phase = 2 * np.pi * (300 * at + (2500 - 300) / (2 * BEEP_S) * at**2)
    return np.where(inside, 0.6 * np.sin(phase) * np.sin(np.pi * at / BEEP_S) ** 2, 0).astype(np.float32)


def write_case(path: Path, case: Case, seconds: float = SECONDS) -> Truth:
    video_times, tick = _video_times(case, seconds)
    audio_s = seconds * {"equal": 1.0, "shorter": 0.7, "longer": 1.4}[case.length]
    audio_start = Fraction(1, 4) if case.starts in ("audio late", "both late") else Fraction(0)
    beeps = [round(Fraction(b).limit_denominator(10000) * case.rate) for b in BEEPS if b < audio_s - BEEP_S]
    height, width = (47, 63) if case.picture == "odd" else (48, 64)
    muxer = {"movie_timescale": "90000"} if case.container in ("mp4", "mov") else {}
    edges: list[float] = []
    with av.open(str(path), "w", options=muxer) as out:
        video = _video_stream(out, case, tick, height, width) if case.picture != "none" else None
        audio = _audio_stream(out, case) if case.sound != "none" else None
        if video is not None:
            edges = _mux_video(out, video, video_times, tick, height, width)
        if audio is not None:
            _mux_audio(out, audio, case, beeps, audio_start, audio_s)
    shift = {"video": Fraction(0), "audio": Fraction(0)}
    if case.container in ("mp4", "mov"):
        shift = patch_mp4(path, case.edits, case.picture)
    vs, as_ = float(shift["video"]), float(shift["audio"])
    end = float(video_times[-1] + (video_times[-1] - video_times[-2]))
    # Removed: the priming, or the reordering delay, is presented like anything else. Trimmed: an empty edit stays.
    first = {"video": float(video_times[0]), "audio": float(audio_start)}
    if case.edits == "removed":
        first = {"video": vs + first["video"], "audio": 312 / 48000 if case.sound == "opus" else 0.0}
    stop = float(audio_start) + audio_s + as_
    turn = int(case.picture[6:]) if case.picture.startswith("turned") else 0
    coarse = case.container in ("mkv", "webm")
    return Truth(
        edges=tuple(e + vs for e in edges),
        beeps=tuple(float(audio_start) + b / case.rate + as_ for b in beeps) if audio is not None else (),
        video_span=None if video is None else (first["video"], end + vs),
        audio_span=None if audio is None else (first["audio"], stop),
        turn=turn,
        size=(width, height) if turn in (90, 270) else (height, width),
        tick_s=0.001 if coarse else 2 / 90000,
        lead_s=2 * 2048 / case.rate if audio_start and case.sound in PRIMED else 0.0,
        # Two codec frames: what is left of the last and one of overlap. mp4 says where the sound really ends.
        padding_s=2 * 2048 / case.rate if case.sound in (*PRIMED, "vorbis") else 0.0,
    )


def _video_times(case: Case, seconds: float) -> tuple[list[Fraction], Fraction]:
    """Presentation times of the frames, and the time base that holds them exactly."""
    late = case.starts in ("video late", "both late")
    if case.fps == "variable":
        rng = random.Random(str(case))
        at = Fraction(1, 5) if late else Fraction(0)
        times = []
        while at < seconds:
            times.append(at)
            at += Fraction(rng.choice((17, 33, 40, 67, 90)), 1000)
        return times, Fraction(1, 1000)
    fps = RATES.get(case.fps) or Fraction(case.fps)
    first = round(fps / 5) if late else 0
    return [(first + i) / fps for i in range(round(seconds * fps))], 1 / fps


def _video_stream(out, case: Case, tick: Fraction, height: int, width: int):
    webm = case.container == "webm"
    codec = "libx264" if not webm else "libsvtav1" if case.picture == "tenbit" else "libvpx-vp9"
    if codec == "libsvtav1":
        options = {"preset": "12", "svtav1-params": "keyint=20:lp=1"}
    elif webm:
        options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "g": "20", "crf": "20"}
    else:
        options = {"preset": "ultrafast", "bf": "2", "g": "20", "crf": "18"}
    stream = out.add_stream(codec, rate=min(1 / tick, Fraction(60)), options=options)
    stream.width, stream.height = width, height
    stream.pix_fmt = {"tenbit": "yuv420p10le", "odd": "yuv420p" if webm else "yuv444p"}.get(case.picture, "yuv420p")
    stream.codec_context.time_base = tick
    return stream


def _mux_video(out, stream, times: list[Fraction], tick: Fraction, height: int, width: int) -> list[float]:
    """The flash is the coded top left quarter, so that turned pictures are told apart."""
    edges: list[float] = []
    lit = False
    for at in times:
        since = float(at - times[0])
        now = any(on <= since < off for on, off in FLASHES)
        if now != lit:
            edges.append(float(at))
            lit = now
        image = np.full((height, width, 3), 30, np.uint8)
        if lit:
            image[: height // 2, : width // 2] = 235
        frame = av.VideoFrame.from_ndarray(image, "rgb24")
        frame.pts, frame.time_base = int(at / tick), tick
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
    return edges


def _audio_stream(out, case: Case):
    names = {"opus": "libopus", "mp3": "libmp3lame"}
    options = {"strict": "-2"} if case.sound in ("vorbis", "flac") else {}
    stream = out.add_stream(names.get(case.sound, case.sound), rate=case.rate, options=options)
    stream.layout = case.layout
    stream.format = {
        "aac": "fltp", "opus": "flt", "ac3": "fltp", "mp3": "fltp", "vorbis": "fltp", "pcm_s16le": "s16",
        "pcm_f32le": "flt", "pcm_u8": "u8", "flac": "s16", "alac": "s16p",
    }[case.sound]  # fmt: skip
    if case.sound in (*PRIMED, "vorbis"):
        stream.bit_rate = min(4 * case.rate, 64_000) * {"mono": 1, "stereo": 2, "5.1": 5}[case.layout]
    return stream


def _mux_audio(out, stream, case: Case, beeps: list[int], start: Fraction, seconds: float) -> None:
    count = round(seconds * case.rate)
    at = np.arange(count)
    wave = sum((chirp((at - b) / case.rate) for b in beeps), np.zeros(count, np.float32))
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[case.layout]
    sound = np.repeat(wave[None], channels, axis=0)
    if channels == 6:
        sound[3] = 0  # LFE
    form = stream.format.name
    if form.startswith("s16"):
        sound = np.rint(sound * 32767).astype(np.int16)
    elif form == "u8":
        sound = np.rint(sound * 127 + 128).astype(np.uint8)
    first = int(start * case.rate)
    for begin in range(0, count, 1000):
        part = sound[:, begin : begin + 1000]
        if not stream.format.is_planar:
            part = part.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), form, layout=case.layout)
        frame.sample_rate, frame.pts, frame.time_base = case.rate, first + begin, Fraction(1, case.rate)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


# ISO base media by hand: boxes as (type, start, end) so that edit lists and matrices can be rewritten.


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        if size == 1:
            size = struct.unpack(">Q", data[start + 8 : start + 16])[0]
        yield kind, start, start + size
        start += size


def find(data: bytes, names: str, start: int = 0, end: int | None = None) -> tuple[int, int]:
    """(start, end) of the first box at a path like 'moov/trak/edts'."""
    end = len(data) if end is None else end
    for name in names.split("/"):
        start, end = next((s, e) for kind, s, e in boxes(data, start, end) if kind == name.encode())
        start += 8
    return start - 8, end


MATRICES = {
    "turned90": (0, 1, -1, 0),
    "turned180": (-1, 0, 0, -1),
    "turned270": (0, -1, 1, 0),
}


def patch_mp4(path: Path, edits: str, picture: str) -> dict[str, Fraction]:
    """Rewrite edit lists and rotation in place; how much later each stream is then presented."""
    data = bytearray(path.read_bytes())
    shift = {"video": Fraction(0), "audio": Fraction(0)}
    moov = find(data, "moov")
    tracks = [(s, e) for kind, s, e in boxes(data, moov[0] + 8, moov[1]) if kind == b"trak"]
    for start, end in tracks:
        handler = find(data, "mdia/hdlr", start + 8, end)[0]
        kind = {b"vide": "video", b"soun": "audio"}[bytes(data[handler + 16 : handler + 20])]
        if kind == "video" and picture in MATRICES:
            matrix = find(data, "tkhd", start + 8, end)[0] + 48
            a, b, c, d = (v << 16 for v in MATRICES[picture])
            data[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        header = find(data, "mdia/mdhd", start + 8, end)[0]
        timescale = struct.unpack(">I", data[header + 20 : header + 24])[0]
        elst = find(data, "edts/elst", start + 8, end)[0]
        entries = [list(struct.unpack(">Iii", data[elst + 16 + 12 * i : elst + 28 + 12 * i]))
                   for i in range(struct.unpack(">I", data[elst + 12 : elst + 16])[0])]  # fmt: skip
        last = entries[-1]
        empty = sum(duration for duration, media, _ in entries if media == -1)
        if edits == "removed":
            data[elst - 4 : elst] = b"free"
            shift[kind] = Fraction(last[1], timescale) - Fraction(empty, 90000)
        elif edits == "trimmed":
            # 0.2 s, in the middle of a group of pictures and of a codec frame, off the front of both
            cut = timescale // 5 if kind == "audio" else int(Fraction(1, 5) * timescale)
            last[0] -= int(Fraction(cut, timescale) * 90000)
            last[1] += cut
            data[elst + 16 + 12 * (len(entries) - 1) : elst + 28 + 12 * (len(entries) - 1)] = struct.pack(">Iii", *last)
            shift[kind] = -Fraction(cut, timescale)
    path.write_bytes(data)
    return shift


@dataclass(frozen=True)
class Errors:
    """How far off a window was, in output frames and in milliseconds."""

    flash_frames: float
    beep_ms: float
    edges: int
    beeps: int


def windows(truth: Truth) -> Iterator[tuple[float, float, dict]]:
    """Start, aligned, unaligned and end windows, each at another output rate; None is the file's own."""
    end = max(s[1] for s in (truth.video_span, truth.audio_span) if s is not None)
    yield 0.0, end, {"fps": None, "sample_rate_hz": None}
    yield 0.0, 1.0, {"fps": 24, "sample_rate_hz": 16000, "channels": 1}
    yield 1.0, 2.0, {"fps": None, "sample_rate_hz": None, "channels": 2}
    yield 0.8731, 2.2917, {"fps": 60, "sample_rate_hz": 48000, "size": (32, 32)}
    yield end - 0.97, end, {"fps": 25, "sample_rate_hz": 44100, "channels": 2}
    yield 1.0307, 2.6, {"fps": 10, "sample_rate_hz": 22050}


def check_case(path: Path, truth: Truth) -> Errors:
    """Read every window and compare it with the truth; raises AssertionError where the clip is wrong."""
    worst = Errors(0.0, 0.0, 0, 0)
    for start, end, want in windows(truth):
        if not any(s is not None and s[0] < end - 0.05 and s[1] > start + 0.05
                   for s in (truth.video_span, truth.audio_span)):  # fmt: skip
            continue
        window = read_clip(path, start, end, **want)
        found = measure(window, truth, start, end)
        worst = Errors(
            max(worst.flash_frames, found.flash_frames),
            max(worst.beep_ms, found.beep_ms),
            worst.edges + found.edges,
            worst.beeps + found.beeps,
        )
    return worst


def measure(window: Window, truth: Truth, start: float, end: float) -> Errors:
    clip = window.clip
    flash, edges, beep, beeps = 0.0, 0, 0.0, 0
    if truth.video_span is None:
        assert clip.video is None
    else:
        assert clip.video is not None
        assert clip.fps is not None
        assert len(clip.video) == np.floor((end - start) * clip.fps + 0.5 + 1e-9)
        assert clip.video.shape[1:3] == (truth.size if clip.video.shape[1:3] != (32, 32) else (32, 32))
        flash, edges = _flash_error(clip.video, clip.fps, window, truth, start)
    if truth.audio_span is None:
        assert clip.audio is None
    else:
        assert clip.audio is not None
        assert clip.sample_rate_hz is not None
        assert clip.audio.shape[1] == np.floor((end - start) * clip.sample_rate_hz + 0.5 + 1e-9)
        beep, beeps = _beep_error(clip.audio, clip.sample_rate_hz, window, truth, start)
    return Errors(flash, beep, edges, beeps)


def _flash_error(video: np.ndarray, fps: float, window: Window, truth: Truth, start: float) -> tuple[float, int]:
    height, width = video.shape[1:3]
    top, left = {0: (0, 0), 90: (0, 1), 180: (1, 1), 270: (1, 0)}[truth.turn]
    rows = slice(top * height // 2 + 3, (top + 1) * height // 2 - 3)
    columns = slice(left * width // 2 + 3, (left + 1) * width // 2 - 3)
    lit = video[:, rows, columns].mean(axis=(1, 2, 3)) > 130
    other = video[:, ::-1, ::-1][:, rows, columns].mean(axis=(1, 2, 3))
    assert other.max() < 80, "the flash is not only in its own quarter"
    found = start + (np.flatnonzero(lit[1:] != lit[:-1]) + 1) / fps
    end = start + len(video) / fps
    slack = 0.5 / fps + truth.tick_s
    inside = [e for e in truth.edges if start + 0.5 / fps + slack < e < end - 0.5 / fps - slack]
    possible = [e for e in truth.edges if start - slack < e < end + slack]
    assert len(inside) <= len(found) <= len(possible), (inside, found)
    assert truth.video_span is not None
    mask = window.frame_mask()
    middles = start + (np.arange(len(video)) + 0.5) / fps
    sure = (middles > truth.video_span[0] + 2 * truth.tick_s) & (middles < truth.video_span[1] - 0.1)
    never = (middles < truth.video_span[0] - 2 * truth.tick_s) | (middles > truth.video_span[1] + 0.1)
    assert mask[sure].all(), "a frame that the file has was called missing"
    assert not mask[never].any(), "a frame that the file lacks was called real"
    errors = [max(0.0, abs(found - e).min() - truth.tick_s) * fps for e in inside]
    return max(errors, default=0.0), len(errors)


def _beep_error(audio: np.ndarray, rate: int, window: Window, truth: Truth, start: float) -> tuple[float, int]:
    assert truth.audio_span is not None
    mask = window.sample_mask()
    times = start + np.arange(len(mask)) / rate
    near = 0.0015 + truth.tick_s
    sure = (times > truth.audio_span[0] + near) & (times < truth.audio_span[1] - near)
    never = (times < truth.audio_span[0] - near - truth.lead_s) | (times > truth.audio_span[1] + near + truth.padding_s)
    assert mask[sure].all(), "sound that the file has was called missing"
    assert not mask[never].any(), "sound that the file lacks was called real"
    worst, count = 0.0, 0
    for channel in audio if len(audio) < 6 else audio[:3]:
        for at in truth.beeps:
            if not start + 0.005 <= at <= start + len(mask) / rate - BEEP_S - 0.005:
                continue
            low = max(0, int((at - start - 0.1) * rate))
            part = channel[low : int((at - start + BEEP_S + 0.1) * rate)]
            worst = max(worst, 1000 * abs(start + low / rate + _lag(part, rate) - at))
            count += 1
    return worst, count


def _lag(wave: np.ndarray, rate: int) -> float:
    """Seconds from the wave's start to the beep's, by matched filter, to a fraction of a sample."""
    template = chirp(np.arange(round(BEEP_S * rate)) / rate)
    match = np.correlate(np.pad(wave, (len(template),) * 2), template)
    peak = int(match.argmax())
    assert match[peak] > 0.3 * (template**2).sum(), "no beep"
    left, middle, right = match[peak - 1 : peak + 2]
    return (peak + 0.5 * (left - right) / (left - 2 * middle + right) - len(template)) / rate


def main() -> None:
    """The accuracy table of docs/media.md."""
    cases = list(product_cases()) if "--all" in sys.argv else pairwise_cases()
    table: dict[tuple[str, str], list[Errors]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            path = Path(folder) / f"clip.{case.container}"
            errors = check_case(path, write_case(path, case))
            table.setdefault((case.container, case.fps), []).append(errors)
    print(f"{len(cases)} clips; worst flash error in output frames / worst beep error in ms")
    print("| fps | " + " | ".join(AXES["container"]) + " |")
    print("|---|" + "---|" * len(AXES["container"]))
    for fps in AXES["fps"]:
        cells = [table.get((container, fps), []) for container in AXES["container"]]
        row = [f"{max(e.flash_frames for e in c):.3f} / {max(e.beep_ms for e in c):.3f}" if c else "-" for c in cells]
        print(f"| {fps} | " + " | ".join(row) + " |")
    total = [e for row in table.values() for e in row]
    print(f"{sum(e.edges for e in total)} flash edges, {sum(e.beeps for e in total)} beeps measured")


if __name__ == "__main__":
    main()


def copied(source: Path, target: Path, flags: str) -> Path:
    """The same packets under other flags of the muxer."""
    with av.open(str(source)) as clip, av.open(str(target), "w", options={"movflags": flags}) as out:
        streams = {s.index: out.add_stream_from_template(s) for s in clip.streams}
        for packet in clip.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
    return target
