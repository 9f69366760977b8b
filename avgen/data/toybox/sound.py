"""The sound of a scene: decaying or steady partials that begin at exact instants, between samples if need be.

A percussive sound is the real part of a sum of complex exponentials, so one that begins a fraction of a sample
earlier is the same table times one complex number per partial: sub-sample timing for the price of a small product.

Letters: E events, K partials, N samples of one sound.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from avgen.data.toybox.scene import (
    BALL_DECAY_S,
    BAR_DECAY_S,
    COLOURS,
    LOUDNESS,
    PITCH_HZ,
    Actor,
    Colour,
    Kind,
    Scene,
    Size,
    disc_swell,
    sound_length_s,
)

ATTACK_S = 0.003  # long enough not to click, short against a frame
RELEASE_S = 0.02
# (ratio to the pitch, amplitude, decay relative to the fundamental's)
RING = ((1.0, 1.0, 1.0), (2.76, 0.55, 0.7), (5.4, 0.25, 0.4))  # a struck bell's inharmonic partials
BEEP = ((1.0, 1.0, 1.0), (3.0, 0.5, 1.0), (5.0, 0.3, 1.0))  # the odd partials of an electronic buzzer
HUM = ((1.0, 1.0), (2.0, 0.4))
NOISE_PARTIALS = 40


def render_sound(scene: Scene, sample_rate_hz: int, samples: int, channels: int) -> np.ndarray:
    """(channels, samples) float32; two channels place each actor by its x."""
    out = np.zeros((channels, samples), np.float32)
    for actor in scene.actors:
        if not actor.audible:
            continue
        wave = _hum(actor, sample_rate_hz, samples) if actor.kind == "disc" else _blows(actor, sample_rate_hz, samples)
        if channels == 1:
            out[0] += wave
        else:
            out[0] += wave * np.float32(np.cos(actor.x * np.pi / 2))
            out[1] += wave * np.float32(np.sin(actor.x * np.pi / 2))
    return out


class _Sound(NamedTuple):
    table: np.ndarray  # (2K, N) float32: real and negated imaginary parts of the partials after a start on a sample
    rate: np.ndarray  # (K,) complex: exponent per second
    weight: np.ndarray  # (K,) complex: amplitude and phase


def _partials(kind: Kind, colour: Colour, size: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(frequency in Hz, complex weight, decay per second) of each partial of a percussive sound."""
    pitch = PITCH_HZ[colour]
    if kind == "bar":
        # The same burst for every bar of a colour: a band around the pitch that carries most of the energy, and a
        # thinner one above it that makes it a knock rather than a tone.
        rng = np.random.Generator(np.random.Philox(7 + COLOURS.index(colour)))
        half = NOISE_PARTIALS // 2
        # Spread evenly with jitter, so that no colour draws a gap in its band.
        core = (np.arange(half) + rng.uniform(0, 1, half)) / half * 0.44 - 0.22
        upper = (np.arange(half) + rng.uniform(0, 1, half)) / half * 1.3 + 0.25
        frequency = pitch * np.exp(np.concatenate([core, upper]))
        amplitude = np.concatenate([np.full(half, 1.0), np.full(half, 0.55)])
        weight = amplitude * np.exp(2j * np.pi * rng.uniform(0, 1, NOISE_PARTIALS))
        return frequency, weight, np.full(NOISE_PARTIALS, 1 / BAR_DECAY_S[size])
    ratio, amplitude, decay = np.array(RING if kind == "ball" else BEEP).T
    fall = 1 / (BALL_DECAY_S[size] * decay) if kind == "ball" else np.zeros(len(ratio))
    return pitch * ratio, amplitude * np.exp(-0.5j * np.pi), fall


@lru_cache(maxsize=256)
def _sound(kind: Kind, colour: Colour, size: Size, sample_rate_hz: int) -> _Sound:
    frequency, weight, fall = _partials(kind, colour, size)
    heard = frequency < 0.45 * sample_rate_hz
    frequency, weight, fall = frequency[heard], weight[heard], fall[heard]
    rate = 2j * np.pi * frequency - fall
    time_s = np.arange(round(sound_length_s(kind, size) * sample_rate_hz) + 1) / sample_rate_hz
    waves = np.exp(rate[:, None] * time_s)
    peak = np.abs((weight[:, None] * waves).real.sum(0) * _edges(kind, size, time_s)).max()
    table = np.concatenate([waves.real, -waves.imag]).astype(np.float32)
    return _Sound(table, rate, weight / peak)


def _edges(kind: Kind, size: Size, time_s: np.ndarray) -> np.ndarray:
    """Smooth start and end of a sound, so that neither clicks."""
    attack = np.sin(0.5 * np.pi * np.clip(time_s / ATTACK_S, 0, 1)) ** 2
    release = np.sin(0.5 * np.pi * np.clip((sound_length_s(kind, size) - time_s) / RELEASE_S, 0, 1)) ** 2
    return attack * release


def _blows(actor: Actor, sample_rate_hz: int, samples: int) -> np.ndarray:
    """(samples,) float32: one sound per instant."""
    wave = np.zeros(samples, np.float32)
    instants = actor.instants_s(samples / sample_rate_hz)
    if not len(instants):
        return wave
    sound = _sound(actor.kind, actor.colour, actor.size, sample_rate_hz)
    length = sound.table.shape[1]
    first = np.ceil(instants * sample_rate_hz).astype(int)
    late_s = first / sample_rate_hz - instants  # (E,) how far into the sound its first sample lies
    weight = LOUDNESS[actor.size] * sound.weight * np.exp(sound.rate * late_s[:, None])  # (E, K)
    blows = np.concatenate([weight.real, weight.imag], axis=1).astype(np.float32) @ sound.table  # (E, N)
    ends = int(max(ATTACK_S, RELEASE_S) * sample_rate_hz) + 2  # only the edges need their envelope
    for part in (slice(0, ends), slice(length - ends, length)):
        time_s = np.arange(length)[part] / sample_rate_hz + late_s[:, None]
        blows[:, part] *= _edges(actor.kind, actor.size, time_s).astype(np.float32)
    for start, blow in zip(first, blows, strict=True):
        wave[start : start + length] += blow[: samples - start]
    return wave


@lru_cache(maxsize=32)
def _carrier(colour: Colour, sample_rate_hz: int, samples: int) -> np.ndarray:
    cycles = PITCH_HZ[colour] * np.arange(samples) / sample_rate_hz
    partials = [(ratio, a) for ratio, a in HUM if ratio * PITCH_HZ[colour] < 0.45 * sample_rate_hz]

    def tone(cycles: np.ndarray) -> np.ndarray:
        return np.array([a * np.sin(2 * np.pi * ratio * cycles) for ratio, a in partials]).sum(0)

    return (tone(cycles) / np.abs(tone(np.linspace(0, 1, 512))).max()).astype(np.float32)


def _hum(actor: Actor, sample_rate_hz: int, samples: int) -> np.ndarray:
    """(samples,) float32: a steady tone as loud as the disc is large."""
    time_s = np.arange(samples, dtype=np.float64) / sample_rate_hz
    swell = disc_swell(actor, time_s).astype(np.float32)
    return np.float32(LOUDNESS[actor.size]) * swell * _carrier(actor.colour, sample_rate_hz, samples)
