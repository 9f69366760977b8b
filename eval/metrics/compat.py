"""AV-Align as JavisBench's code computes it, for comparison with published tables and nothing else.

It is another quantity than sync.av_align: every local maximum of the flow is a peak, and one peak of the picture may
serve many onsets. Independent noise scores 0.08 to 0.26 by it, growing with the number of onsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from eval.metric import Definition, Measure, Needs, NotApplicable, Skipped, Take, versions
from eval.take import Picture, Sound

FARNEBACK = (0.5, 3, 15, 3, 5, 1.2, 0)
INSTALL = "pip install librosa 'opencv-python-headless<5'"


def intersection_over_union(onsets_s: Sequence[float], peaks_s: Sequence[float], fps: float) -> float:
    """Onsets with a peak of the picture within one frame, over (onsets + peaks - those)."""
    hits = sum(any(onset - 1 / fps < peak < onset + 1 / fps for peak in peaks_s) for onset in onsets_s)
    return hits / (len(onsets_s) + len(peaks_s) - hits + 1e-6)


def local_maxima(flow: Sequence[float] | np.ndarray, fps: float) -> list[float]:
    """Seconds of every value that is larger than both its neighbours."""
    return [i / fps for i in range(1, len(flow) - 1) if flow[i - 1] < flow[i] > flow[i + 1]]


def flow_of(picture: Picture) -> list[float]:
    """Mean length of Farneback's flow into each frame from the one before; the first frame borrows the second's."""
    import cv2

    if int(cv2.__version__.split(".")[0]) != 4:
        raise Skipped(f"OpenCV {cv2.__version__} computes another flow than 4: {INSTALL}")
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in picture.frames]
    found = []
    for before, after in pairwise(grey):
        flow = cv2.calcOpticalFlowFarneback(before, after, None, *FARNEBACK)
        found.append(float(np.linalg.norm(flow, axis=-1).mean()))
    return [*found[:1], *found]


def onsets_of(sound: Sound) -> list[float]:
    import librosa

    wave = librosa.resample(sound.wave.mean(0), orig_sr=sound.rate_hz, target_sr=22050)
    return [float(t) for t in librosa.onset.onset_detect(y=wave, sr=22050, units="time")]


def compat_av_align(take: Take) -> float:
    heard = take.sound.once(onsets_of)
    seen = local_maxima(take.picture.once(flow_of), take.picture.fps)
    if not heard and not seen:
        raise NotApplicable("neither an onset nor a peak of the flow")
    return intersection_over_union(heard, seen, take.picture.fps)


METRIC = Measure(
    Definition(
        "sync.compat_av_align_javisbench",
        "JavisBench's code: librosa onsets that have a local maximum of the mean Farneback flow within one frame, over"
        " (onsets + maxima - those); one maximum may serve many onsets.",
        direction="higher",
        needs=Needs(
            picture=True,
            sound=True,
            packages=("librosa", "cv2"),
            install=INSTALL,
        ),
        parameters={
            "farneback": FARNEBACK,
            "sample_rate_hz": 22050,
            **versions("librosa", "opencv-python-headless", "opencv-python"),
        },
        nulls=("shifted",),
        ceiling=True,
    ),
    compat_av_align,
)
