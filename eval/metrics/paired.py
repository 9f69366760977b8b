"""Against the real clip of the same prompt: of a sound made for a given picture, or a picture made for a given sound.

They judge reproduction. A different but equally good sound scores badly, which is why they come with the ceiling of no
suite and should be read beside sync and set-level figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy import ndimage, signal

from avgen.data.media.sound import resample
from eval.metric import Definition, Measure, Metric, Needs, NotApplicable, Result, Setup, Take
from eval.metrics.curves import PARAMETERS, matched, onsets, sounding
from eval.take import Sound

SOUND = Needs(sound=True, reference=True)
PICTURE = Needs(picture=True, reference=True)
RESOLUTIONS = (512, 1024, 2048)  # samples of a window at RATE_HZ
RATE_HZ = 16000  # both sounds are brought to it
TOLERANCE_S = 0.05
SSIM_SIGMA, SSIM_REACH = 1.5, 3.5
LARGEST_DB = 60.0  # so that an exact copy can be averaged


def metrics(setup: Setup) -> Sequence[Metric]:
    swapped = ("swapped",)
    return (
        Measure(
            Definition(
                "paired.si_sdr_db",
                "Scale-invariant signal-to-distortion ratio of the mono mixes at 16 kHz, within -60 to 60.",
                "dB",
                "higher",
                needs=SOUND,
                nulls=swapped,  # type: ignore[arg-type]
            ),
            si_sdr,
        ),
        Measure(
            Definition(
                "paired.stft_distance",
                "Spectral convergence plus mean |difference| of log magnitude, mean over windows of 512, 1024 and 2048"
                " samples at 16 kHz.",
                "",
                "lower",
                needs=SOUND,
                parameters={"windows": RESOLUTIONS},
                nulls=swapped,  # type: ignore[arg-type]
            ),
            stft_distance,
        ),
        Measure(
            Definition(
                "paired.onset_f1",
                "Onsets of the sound (as in sync) matched one to one within 50 ms with those of the real sound.",
                "",
                "higher",
                needs=SOUND,
                parameters={**PARAMETERS, "tolerance_s": TOLERANCE_S},
                nulls=swapped,  # type: ignore[arg-type]
            ),
            onset_f1,
        ),
        Measure(
            Definition(
                "paired.psnr_db",
                "Peak signal-to-noise ratio of RGB, mean over frames, each at most 60; frames are taken by time.",
                "dB",
                "higher",
                needs=PICTURE,
            ),
            psnr,
        ),
        Measure(
            Definition(
                "paired.ssim",
                "Structural similarity of luma (Wang 2004: Gaussian window of 1.5 pixels), mean over frames.",
                "",
                "higher",
                needs=PICTURE,
            ),
            ssim,
        ),
    )


def mono(sound: Sound) -> np.ndarray:
    wave = sound.wave.mean(0, keepdims=True)
    count = round(wave.shape[1] * RATE_HZ / sound.rate_hz)
    return np.asarray(resample(wave, Fraction(0), count, sound.rate_hz, RATE_HZ)[0], np.float64)


def waves(take: Take) -> tuple[np.ndarray, np.ndarray]:
    """(made, real), cut to the shorter."""
    made, real = take.sound.once(mono), take.reference.sound.once(mono)
    count = min(len(made), len(real))
    if count < RESOLUTIONS[-1]:
        raise NotApplicable("shorter than the longest window")
    if np.abs(real[:count]).max() < 1e-4:
        raise NotApplicable("the real sound is silent")
    return made[:count], real[:count]


def si_sdr(take: Take) -> float:
    made, real = waves(take)
    made, real = made - made.mean(), real - real.mean()
    wanted = real * float(made @ real) / max(float(real @ real), 1e-20)
    ratio = np.square(wanted).sum() / max(float(np.square(made - wanted).sum()), 1e-20)
    return float(np.clip(10 * np.log10(max(ratio, 1e-20)), -LARGEST_DB, LARGEST_DB))


def stft_distance(take: Take) -> float:
    made, real = waves(take)
    total = 0.0
    for length in RESOLUTIONS:
        a, b = (
            np.abs(signal.stft(w, nperseg=length, noverlap=length * 3 // 4, boundary=None)[2]) for w in (made, real)
        )
        convergence = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-12)
        total += convergence + float(np.abs(np.log(a + 1e-5) - np.log(b + 1e-5)).mean())
    return total / len(RESOLUTIONS)


def onset_f1(take: Take) -> Result:
    made, real = (onsets(t.sound.once(sounding)) for t in (take, take.reference))
    total = len(made) + len(real)
    if not len(real):
        raise NotApplicable("nothing begins in the real sound")
    return Result(2 * matched(made, real, TOLERANCE_S) / total, weight=total)


def frames(take: Take) -> tuple[np.ndarray, np.ndarray]:
    """(made, real): the real frame on screen in the middle of each made one."""
    made, real = take.picture, take.reference.picture
    if made.frames.shape[1:] != real.frames.shape[1:]:
        sizes = " and ".join("x".join(map(str, p.frames.shape[1:3])) for p in (made, real))
        raise NotApplicable(f"made and real picture differ in size ({sizes})")
    places = ((np.arange(len(made.frames)) + 0.5) / made.fps * real.fps).astype(int)
    inside = places < len(real.frames)
    return made.frames[inside], real.frames[places[inside]]


def psnr(take: Take) -> float:
    values = []
    for one, other in zip(*frames(take), strict=True):
        error = np.square(one.astype(np.float32) - other).mean()
        values.append(min(LARGEST_DB, 10 * float(np.log10(255**2 / max(float(error), 1e-9)))))
    return float(np.mean(values))


def ssim(take: Take) -> float:
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return float(np.mean([ssim_of(a @ weights, b @ weights) for a, b in zip(*frames(take), strict=True)]))


def ssim_of(one: np.ndarray, other: np.ndarray) -> float:
    """Of two images of 0 to 255."""

    def smooth(image: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.gaussian_filter(image.astype(np.float64), SSIM_SIGMA, truncate=SSIM_REACH))

    a, b = smooth(one), smooth(other)
    spread_a, spread_b = smooth(one * one) - a * a, smooth(other * other) - b * b
    both = smooth(one * other) - a * b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = (2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (spread_a + spread_b + c2))
    return float(found.mean())
