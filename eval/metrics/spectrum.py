"""What frequencies a sound is made of: whether its upper half is missing, whether it is noise, whether it hums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import signal

from eval.metric import Definition, Measure, Metric, Needs, NotApplicable, Setup, Take
from eval.take import Sound

SOUND = Needs(sound=True)
WINDOW_S = 0.046
FLOOR_DB = -70.0  # below the strongest band: codecs and dither leave something everywhere
HUM_HZ, HARMONICS, HUM_WINDOW_S = (50.0, 60.0), 5, 1.0
SILENT = 1e-3


def metrics(setup: Setup) -> Sequence[Metric]:
    return (
        Measure(
            Definition(
                "spectrum.bandwidth_hz",
                "Highest frequency whose mean power (in 100 equal bands up to half the sample rate) lies within 70 dB"
                " of the strongest band's: a sound made at 16 kHz and stored at 48 kHz ends at 8000.",
                "Hz",
                "higher",
                needs=SOUND,
                parameters={"floor_db": FLOOR_DB, "window_s": WINDOW_S},
            ),
            bandwidth,
        ),
        Measure(
            Definition(
                "spectrum.centroid_hz",
                "Mean frequency, weighted by power.",
                "Hz",
                needs=SOUND,
                parameters={"window_s": WINDOW_S},
            ),
            centroid,
        ),
        Measure(
            Definition(
                "spectrum.flatness",
                "Geometric over arithmetic mean of the power spectrum, median over windows that sound: 0 a tone, about"
                " 0.56 white noise.",
                needs=SOUND,
                parameters={"window_s": WINDOW_S, "silent": SILENT},
            ),
            flatness,
        ),
        Measure(
            Definition(
                "spectrum.hum_db",
                "Power within 1.5 Hz of the first five harmonics of 50 or 60 Hz (the worse) over that 4 to 10 Hz beside"
                " them, in the quietest tenth of 1 s windows.",
                "dB",
                "lower",
                needs=SOUND,
                parameters={"hum_hz": HUM_HZ, "harmonics": HARMONICS, "window_s": HUM_WINDOW_S},
                version=2,
            ),
            hum,
        ),
    )


def powers(sound: Sound) -> tuple[np.ndarray, np.ndarray, float]:
    """(hertz, (F, T) power, window's peak amplitude in each) of the mono mix."""
    wave = sound.wave.mean(0).astype(np.float64)
    if np.abs(wave).max(initial=0) < SILENT:
        raise NotApplicable("the sound is silent")
    length = min(len(wave), round(WINDOW_S * sound.rate_hz))
    hertz, _, found = signal.stft(wave, sound.rate_hz, nperseg=length, boundary=None, padded=False)
    power = np.abs(found) ** 2
    return hertz, power, float(power.sum(0).max())


def bandwidth(take: Take) -> float:
    hertz, power, _ = take.sound.once(powers)
    top = take.sound.rate_hz / 2
    band = np.minimum((hertz / top * 100).astype(int), 99)
    mean = np.bincount(band, power.mean(1), 100) / np.maximum(np.bincount(band, minlength=100), 1)
    strong = np.flatnonzero(10 * np.log10(np.maximum(mean, 1e-30) / mean.max()) > FLOOR_DB)
    return float((strong[-1] + 1) / 100 * top)


def centroid(take: Take) -> float:
    hertz, power, _ = take.sound.once(powers)
    mean = power.mean(1)
    return float(hertz @ mean / mean.sum())


def flatness(take: Take) -> float:
    _, power, loudest = take.sound.once(powers)
    sounding = power[1:, power.sum(0) > 1e-4 * loudest] + 1e-20
    return float(np.median(np.exp(np.log(sounding).mean(0)) / sounding.mean(0)))


def hum(take: Take) -> float:
    sound = take.sound
    if sound.duration_s < HUM_WINDOW_S:
        raise NotApplicable("shorter than the second that telling hum takes")
    wave = sound.wave.mean(0).astype(np.float64)
    length = round(HUM_WINDOW_S * sound.rate_hz)
    whole = {"boundary": None, "padded": False}  # a window filled up with zeros would be the quietest
    hertz, _, found = signal.stft(wave, sound.rate_hz, nperseg=length, noverlap=length // 2, **whole)
    power = np.abs(found) ** 2
    quiet = power[:, np.argsort(power.sum(0))[: max(1, power.shape[1] // 10)]].mean(1)
    if quiet.sum() < 1e-14:
        raise NotApplicable("the quietest part is digital silence")
    worst = -np.inf
    for base in HUM_HZ:
        away = np.abs(hertz[:, None] - base * np.arange(1, HARMONICS + 1))
        inside, beside = (away < 1.5).any(1), ((away > 4) & (away < 10)).any(1)
        worst = max(worst, 10 * np.log10((quiet[inside].mean() + 1e-20) / (quiet[beside].mean() + 1e-20)))
    return float(worst)
