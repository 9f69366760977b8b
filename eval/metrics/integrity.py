"""What a file is before anyone looks or listens: lengths, starts and rates of its streams."""

from __future__ import annotations

from collections.abc import Sequence

from avgen.data.media import AudioInfo, VideoInfo
from eval.metric import Definition, Measure, Metric, Needs, NotApplicable, Setup, Take

BOTH = Needs(picture=True, sound=True)


def metrics(setup: Setup) -> Sequence[Metric]:
    return (
        Measure(
            Definition(
                "file.duration_gap_s", "length of the picture minus length of the sound", "s", "zero", needs=BOTH
            ),
            duration_gap,
        ),
        Measure(
            Definition(
                "file.start_gap_s", "when the picture starts minus when the sound starts", "s", "zero", needs=BOTH
            ),
            start_gap,
        ),
        Measure(
            Definition(
                "file.variable_rate", "1 where frame intervals differ by more than rounding, else 0", "", "lower"
            ),
            lambda take: float(video_of(take).variable),
        ),
        Measure(
            Definition("file.fps", "average frames per second", "Hz", needs=Needs(picture=True)),
            lambda take: take.picture.fps,
        ),
        Measure(
            Definition("file.sample_rate_hz", "samples per second", "Hz", needs=Needs(sound=True)),
            lambda take: take.sound.rate_hz,
        ),
        Measure(
            Definition(
                "file.megapixels", "width times height of the picture as shown", "Mpx", needs=Needs(picture=True)
            ),
            lambda take: take.picture.frames.shape[1] * take.picture.frames.shape[2] / 1e6,
        ),
    )


def duration_gap(take: Take) -> float:
    picture, sound = streams(take)
    if picture.duration_s is None or sound.duration_s is None:
        raise NotApplicable("the container does not say how long its streams are")
    return picture.duration_s - sound.duration_s


def start_gap(take: Take) -> float:
    picture, sound = streams(take)
    return picture.start_s - sound.start_s


def streams(take: Take) -> tuple[VideoInfo, AudioInfo]:
    if take.info.audio is None:
        raise NotApplicable("the clip has no sound")
    return video_of(take), take.info.audio


def video_of(take: Take) -> VideoInfo:
    if take.info.video is None:
        raise NotApplicable("the clip has no picture")
    return take.info.video
