"""The contact sheet: everything on one time axis."""

import numpy as np
import pytest

from avgen.data.contact_sheet import MARGIN, Mark, contact_sheet
from avgen.types import Clip

WIDTH = 1040  # 1000 between the margins


def clip(video_at=None, audio_at=None, duration_s=2.0):
    """Black and silent, but for a white frame and a loud stretch of 0.1 s that begin at the given times."""
    video = np.zeros((round(duration_s * 10), 16, 16, 3), np.uint8)
    audio = np.zeros((1, round(duration_s * 8000)), np.float32)
    if video_at is not None:
        video[round(video_at * 10)] = 255
    if audio_at is not None:
        audio[:, round(audio_at * 8000) : round((audio_at + 0.1) * 8000)] = 0.9
    return Clip(video, audio, 10.0, 8000)


def columns_changed(a, b):
    """Pixel columns, counted from the strip's left edge, in which two sheets differ."""
    return np.flatnonzero((np.asarray(a) != np.asarray(b)).any((0, 2))) - MARGIN


@pytest.mark.parametrize("at_s", [0.0, 0.7, 1.9])
def test_frames_sound_and_marks_stand_at_their_time(at_s):
    blank = contact_sheet([clip()], width=WIDTH, most_frames=20)
    for sheet in (
        contact_sheet([clip(video_at=at_s)], width=WIDTH, most_frames=20),
        contact_sheet([clip(audio_at=at_s)], width=WIDTH, most_frames=20),
    ):
        changed = columns_changed(sheet, blank)
        assert abs(changed[0] - 500 * at_s) <= 3
        assert abs(changed[-1] - 500 * (at_s + 0.1)) <= 4
    marked = contact_sheet([clip()], marks=[[Mark(at_s)]], width=WIDTH, most_frames=20)
    assert abs(np.median(columns_changed(marked, blank)) - 500 * at_s) <= 5


def test_a_clip_may_lack_either_half():
    both = clip()
    seen = contact_sheet([Clip(both.video, None, 10.0, None)])
    heard = contact_sheet([Clip(None, both.audio, None, 8000)])
    assert contact_sheet([both]).height > max(seen.height, heard.height)
    with pytest.raises(ValueError, match="neither frames nor samples"):
        contact_sheet([Clip(None, None, None, None)])


def test_one_caption_per_clip():
    assert contact_sheet([clip()] * 2, ["one", "two"]).height > contact_sheet([clip()] * 2).height
    with pytest.raises(ValueError, match="1 captions for 2 clips"):
        contact_sheet([clip()] * 2, ["one"])
    with pytest.raises(ValueError, match="at least one clip"):
        contact_sheet([])


@pytest.mark.parametrize("duration_s", [0.1, 0.5, 3.0, 60.0])
def test_any_duration_and_odd_samples_can_be_drawn(duration_s):
    made = clip(duration_s=duration_s)
    made.audio[0, ::7] = np.nan
    assert contact_sheet([made], marks=[[Mark(duration_s, label="end")]]).width == 1400
