"""The window rule: seconds of the clip decide, whatever its frames are."""

from __future__ import annotations

from fractions import Fraction

import pytest

from avgen.data.buckets import Shape
from avgen.data.encode import captions_told
from avgen.data.manifest import Captions
from avgen.data.media import AudioInfo, MediaInfo, VideoInfo
from avgen.data.windows import WindowRule, WindowShape

LONG, SHORT = WindowShape(256, 448, 16, 5), WindowShape(256, 448, 16, 2)
TALL, BIG = WindowShape(448, 256, 16, 2), WindowShape(512, 896, 16, 2)


def info(start_s=0.0, end_s=10.0, height=480, width=832, picture=True, sound=True) -> MediaInfo:
    video = VideoInfo(width, height, Fraction(25), False, 0, "h264", "yuv420p", start_s, None)
    audio = AudioInfo(48000, 2, "stereo", "aac", "fltp", start_s, None)
    return MediaInfo("mov", start_s, end_s, video if picture else None, audio if sound else None, None)


def cuts(rule, media, start_s=0.0, end_s=None, video=True, audio=True):
    found = rule.cuts(media, media, start_s, end_s, video, audio)
    return [(cut.bucket // 3, cut.bucket % 3, float(cut.start)) for cut in found]


def test_windows_lie_side_by_side_within_the_clip():
    rule = WindowRule((LONG, SHORT))
    assert cuts(rule, info()) == [(0, 0, 0.0), (0, 0, 5.0)]
    assert cuts(rule, info(), 1.5, 9.0) == [(0, 0, 1.5)]
    assert cuts(rule, info(start_s=0.4, end_s=4.9)) == [(1, 0, 0.4), (1, 0, 2.4)]
    assert cuts(rule, info(end_s=1.9)) == []
    assert cuts(rule, info(end_s=1.98)) == [(1, 0, 0.0)]  # less than half a frame is missing
    assert cuts(rule, info(), 3.0, 99.0) == [(0, 0, 3.0)]  # a manifest may say more than there is


def test_overlapping_and_spread_windows():
    assert cuts(WindowRule((SHORT,), every_s=1.0, most=9), info(end_s=4.0)) == [(0, 0, s) for s in (0.0, 1.0, 2.0)]
    spread = cuts(WindowRule((SHORT,), most=3), info(end_s=21.0))
    assert spread == [(0, 0, s) for s in (0.0, 8.0, 18.0)]
    assert cuts(WindowRule((SHORT,), most=1), info(end_s=21.0)) == [(0, 0, 0.0)]


@pytest.mark.parametrize(("seconds", "fps"), [(10.0, 23.976), (2.002, 29.97), (3.3, 12.5)])
def test_starts_are_exact_and_no_window_leaves_the_clip(seconds, fps):
    shape = WindowShape(256, 448, fps, 0.7)
    rule = WindowRule((shape,), every_s=0.1, most=10_000)
    starts = [Fraction(start).limit_denominator(1000) for _, _, start in cuts(rule, info(end_s=seconds))]
    assert starts == [Fraction(k, 10) for k in range(len(starts))]
    half = 0.5 / fps
    assert starts[-1] + Fraction(7, 10) <= seconds + half < starts[-1] + Fraction(8, 10)


def test_a_window_knows_whether_it_is_the_whole_clip():
    rule = WindowRule((LONG, SHORT), choose="all", every_s=1.0)

    def whole(media, *window):
        found = rule.cuts(media, media, *(window or (0.0, None)), True, True)
        return [(cut.bucket // 3, float(cut.start)) for cut in found if cut.whole]

    assert whole(info(end_s=5.0)) == [(0, 0.0)]
    assert whole(info(end_s=5.03)) == [(0, 0.0)]  # less than half a frame more
    assert whole(info(end_s=5.5)) == []
    assert whole(info(end_s=5.5), 3.5, None) == [(1, 3.5)]
    assert whole(info(), 1.0, 6.0) == [(0, 1.0)]


def test_the_picture_goes_where_it_fits_best():
    rule = WindowRule((SHORT, TALL, BIG))
    assert {i for i, _, _ in cuts(rule, info())} == {2}  # 1.08 times as large: allowed
    assert {i for i, _, _ in cuts(rule, info(height=240, width=416))} == {0}
    assert {i for i, _, _ in cuts(rule, info(height=832, width=480))} == {1}
    assert cuts(rule, info(height=64, width=64)) == []
    assert {i for i, _, _ in cuts(WindowRule((SHORT, TALL), choose="all"), info())} == {0, 1}


def test_what_a_clip_lacks_names_its_bucket():
    rule = WindowRule((LONG, SHORT, TALL))
    assert cuts(rule, info(sound=False)) == [(0, 1, 0.0), (0, 1, 5.0)]
    assert cuts(rule, info(picture=False)) == [(0, 2, 0.0), (0, 2, 5.0)]
    assert cuts(rule, info(), audio=False) == [(0, 1, 0.0), (0, 1, 5.0)]
    assert cuts(rule, info(sound=False), video=False) == []
    every = WindowRule((LONG, SHORT, TALL), choose="all", most=1)  # two shapes of 2 s are one of sound
    assert cuts(every, info(picture=False)) == [(0, 2, 0.0), (1, 2, 0.0)]
    assert rule.buckets[:3] == (
        Shape(256, 448, 16.0, 5, True),
        Shape(256, 448, 16.0, 5, False),
        Shape(None, None, None, 5, True),
    )


def test_only_what_a_row_holds_is_told():
    both, mute, blind = Shape(8, 8, 8.0, 1.0), Shape(8, 8, 8.0, 1.0, False), Shape(None, None, None, 1.0)
    full = Captions(("j1", "j2"), ("v1", "v2"), ("a",), ())
    assert captions_told(full, both, True) == ["j1", "j2"]
    assert captions_told(full, mute, True) == ["v1", "v2"]
    assert captions_told(full, blind, True) == ["a"]
    apart = Captions(video=("v1", "v2"), audio=("a",), speech=("hello",))
    assert captions_told(apart, both, True) == ['v1 a Speech: "hello"', 'v2 a Speech: "hello"']
    assert captions_told(apart, both, False) == ["v1 a", "v2 a"]  # nobody knows which words fall into a part
    assert captions_told(apart, mute, True) == ["v1", "v2"]
    assert captions_told(Captions(joint=("j",)), mute, True) == ["j"]
    assert captions_told(Captions(), both, True) == [""]
