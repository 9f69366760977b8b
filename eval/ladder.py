"""Faults in known doses: what the self-test does to clips whose picture and sound belong together.

Each takes a clip, a dose and another clip, and gives the damaged clip; dose 0 would leave it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from scipy import signal

from avgen.types import Clip

Damage = Callable[[Clip, float, Clip], Clip]


@dataclass(frozen=True)
class Rung:
    """One fault and the doses of it, mildest first."""

    unit: str
    doses: tuple[float, ...]
    damage: Damage


def wave_of(clip: Clip) -> tuple[np.ndarray, int]:
    if clip.audio is None or clip.sample_rate_hz is None:
        raise ValueError("the self-test needs clips with sound")
    return clip.audio, clip.sample_rate_hz


def with_wave(clip: Clip, wave: np.ndarray) -> Clip:
    return replace(clip, audio=np.ascontiguousarray(wave, np.float32))


def shift(clip: Clip, ms: float, other: Clip) -> Clip:
    """The sound comes late; silence before it, and its end is lost."""
    wave, rate = wave_of(clip)
    late = min(round(ms / 1000 * rate), wave.shape[1])
    return with_wave(clip, np.pad(wave, ((0, 0), (late, 0)))[:, : wave.shape[1]])


def speed(clip: Clip, percent: float, other: Clip) -> Clip:
    """The sound runs faster, as a tape would, and ends in silence."""
    wave, _ = wave_of(clip)
    count = round(wave.shape[1] / (1 + percent / 100))
    fast = signal.resample_poly(wave, 100, round(100 + percent), axis=1)[:, :count]
    return with_wave(clip, np.pad(fast, ((0, 0), (0, wave.shape[1] - fast.shape[1]))))


def pitch(clip: Clip, semitones: float, other: Clip) -> Clip:
    """Higher, at the same times: stretched by a phase vocoder, then played faster."""
    import torch
    from torchaudio.functional import phase_vocoder

    wave, _ = wave_of(clip)
    higher = Fraction(2 ** (semitones / 12)).limit_denominator(50)  # torchaudio takes seconds over its finer ratio
    length, hop = 512, 128
    window = torch.hann_window(length)
    with torch.inference_mode():
        spectrum = torch.stft(torch.from_numpy(wave), length, hop, window=window, return_complex=True)
        advance = torch.linspace(0, torch.pi * hop, spectrum.shape[-2])[:, None]
        slow = phase_vocoder(spectrum, 1 / float(higher), advance)
        stretched = torch.istft(slow, length, hop, window=window, length=round(wave.shape[1] * higher)).numpy()
    made = signal.resample_poly(stretched, higher.denominator, higher.numerator, axis=1)[:, : wave.shape[1]]
    return with_wave(clip, np.pad(made, ((0, 0), (0, wave.shape[1] - made.shape[1]))))


def low_pass(clip: Clip, octaves: float, other: Clip) -> Clip:
    """Everything above 8 kHz / 2^octaves is gone."""
    wave, rate = wave_of(clip)
    cut = min(8000 / 2**octaves, 0.45 * rate)
    return with_wave(clip, signal.sosfiltfilt(signal.butter(6, cut, fs=rate, output="sos"), wave, axis=1))


def noise(clip: Clip, db: float, other: Clip) -> Clip:
    """White noise of this level, against a sound of -40 dB: a dose of 40 is as loud as the sound."""
    wave, _ = wave_of(clip)
    level = float(np.sqrt(np.square(wave).mean())) * 10 ** ((db - 40) / 20)
    return with_wave(clip, wave + np.random.default_rng(wave.shape[1]).normal(0, level, wave.shape))


def freeze(clip: Clip, share: float, other: Clip) -> Clip:
    """The picture stops, so that this share of its end stands still."""
    assert clip.video is not None
    last = max(0, round(len(clip.video) * (1 - share)) - 1)
    return replace(clip, video=clip.video[np.minimum(np.arange(len(clip.video)), last)])


def swap(clip: Clip, share: float, other: Clip) -> Clip:
    """This share of the sound's end is another clip's."""
    (wave, _), (theirs, _) = wave_of(clip), wave_of(other)
    first = round(wave.shape[1] * (1 - share))
    return with_wave(clip, np.concatenate([wave[:, :first], theirs[:, first : wave.shape[1]]], axis=1))


def mute(clip: Clip, share: float, other: Clip) -> Clip:
    """This share of the sound's end is silent."""
    wave, _ = wave_of(clip)
    first = round(wave.shape[1] * (1 - share))
    return with_wave(clip, np.where(np.arange(wave.shape[1]) < first, wave, 0))


def ladder(fps: float) -> Mapping[str, Rung]:
    """One dose of shift is a frame."""
    shifts = sorted({20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1000.0, round(1000 / fps, 1)})
    return {
        "shift": Rung("ms", tuple(shifts), shift),
        "speed": Rung("%", (5, 10, 25, 50), speed),
        "pitch": Rung("semitones", (1, 3, 7, 12), pitch),
        "low_pass": Rung("octaves below 8 kHz", (1, 2, 3, 4), low_pass),
        "noise": Rung("dB + 40", (10, 20, 30, 40), noise),
        "freeze": Rung("of the picture", (0.25, 0.5, 0.75, 1), freeze),
        "swap": Rung("of the sound", (0.25, 0.5, 0.75, 1), swap),
        "mute": Rung("of the sound", (0.25, 0.5, 0.75, 1), mute),
    }
