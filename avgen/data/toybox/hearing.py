"""What sounds in a waveform: each moment explained as a mixture of the sounds that the toybox can make.

Every kind in every colour has a spectrum; a non-negative fit finds how much of each is present at any time, so an
overtone of one sound is not taken for the pitch of another. Acts are the rises of those amounts; their instants are
then sharpened on the filtered waveform.

Letters: A sounds of the dictionary, F bands, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage, signal, sparse

from avgen.data.toybox.scene import COLOURS, KINDS, LOUDNESS, PITCH_HZ, Actor, Colour, Kind, Scene
from avgen.data.toybox.sound import render_sound

WINDOW_S = 0.046  # tells neighbouring pitches apart
HOP_S = 0.006
BANDS = 112
LOWEST_HZ, HIGHEST_HZ = 250.0, 7800.0
NOISES = 4  # broad hiss bands, so that noise needs no toybox sound to explain it
ROUNDS = 40  # of the multiplicative fit
STEPS_AT_ONCE = 48  # of the decomposition
LEAST = 0.035  # amplitude of the faintest act; the world's quietest is 0.15
SLOW_S = 0.04  # a rise from 20 % to 60 % that takes longer is a hum swelling
EDGE_STEPS = 8  # peaks this near to the clip's ends are sounds cut off, not acts
CLEAR = 1.6  # how many times stronger than hiss a sound must be where its spectrum lies; noise alone reaches 1
DISTINCT = 0.45  # how much of its height a peak must rise above the valleys beside it: a wobble is no new act
HELD = 0.84  # a level kept for 0.09 s after the start is a beep


@dataclass(frozen=True)
class HeardEvent:
    """The start of a percussive sound, or the loudest instant of a hum."""

    instant_s: float
    kind: Kind
    colour: Colour
    pitch_hz: float
    loudness: float  # estimated peak amplitude
    confidence: float


def hear(audio: np.ndarray, sample_rate_hz: int) -> tuple[HeardEvent, ...]:
    """Events in (channels, samples); times count from the first sample."""
    wave = np.clip(np.nan_to_num(audio, posinf=0, neginf=0), -4, 4).astype(np.float64).mean(0) if audio.size else audio
    if len(wave) < WINDOW_S * sample_rate_hz or np.abs(wave).max() < LEAST / 4:
        return ()
    book = _dictionary(sample_rate_hz)
    spectrum = _spectrum(wave, sample_rate_hz)
    amounts = _explain(spectrum, book)  # (A, T)
    per_colour = amounts[: len(KINDS) * len(COLOURS)].reshape(len(COLOURS), len(KINDS), -1)
    hiss = book[:, len(KINDS) * len(COLOURS) :] @ amounts[len(KINDS) * len(COLOURS) :]  # (F, T)
    loudest = float(per_colour.sum(1).max())
    found: list[HeardEvent] = []
    for c, (colour, parts) in enumerate(zip(COLOURS, per_colour, strict=True)):
        total = _level(parts)
        sounds = book[:, c * len(KINDS) : (c + 1) * len(KINDS)]
        least = max(LEAST, 0.12 * loudest)
        tops, about = signal.find_peaks(np.concatenate([[0], total, [0]]), prominence=least)
        before = -1
        for top, prominence in zip(tops - 1, about["prominences"], strict=True):
            clarity = _clarity(sounds, parts, hiss, int(top))
            if prominence < DISTINCT * total[top] or clarity < CLEAR:
                continue
            event = _event(wave, sample_rate_hz, colour, parts, total, int(top), before, clarity)
            if event is not None:
                found.append(event)
            before = int(top)
    real = [event for event in found if not any(_is_shadow(event, other) for other in found)]
    return tuple(sorted(real, key=lambda event: event.instant_s))


def _clarity(sounds: np.ndarray, parts: np.ndarray, hiss: np.ndarray, top: int) -> float:
    """How many times stronger a colour's sounds are than hiss at a peak, over the bands that they occupy."""
    about = slice(max(0, top - 1), top + 2)
    where = sounds.mean(1)
    return float(where @ (sounds @ parts[:, about]).mean(1) / max(where @ hiss[:, about].mean(1), 1e-9))


def _level(parts: np.ndarray) -> np.ndarray:
    """(T,) how much of a colour there is, whatever its kind."""
    return ndimage.gaussian_filter1d(parts.sum(0), 2.0, mode="constant")


@lru_cache(maxsize=64)
def _peak_level(kind: Kind, sample_rate_hz: int) -> float:
    """What the level of a kind's middle size peaks at, per unit of amplitude."""
    actor = Actor(kind, "yellow", "medium", 0.5, 0.5, 0.5, 1.0, 1)
    wave = render_sound(Scene("single", (actor,)), sample_rate_hz, sample_rate_hz, 1)[0].astype(np.float64)
    amounts = _explain(_spectrum(wave, sample_rate_hz), _dictionary(sample_rate_hz))
    return float(_level(amounts[: len(KINDS) * len(COLOURS)]).max()) / LOUDNESS[actor.size]


def _is_shadow(event: HeardEvent, other: HeardEvent) -> bool:
    """Whether it is what a blurred spectrum leaves of a far louder sound in the colour next to it."""
    next_to = abs(COLOURS.index(event.colour) - COLOURS.index(other.colour)) == 1
    return next_to and abs(event.instant_s - other.instant_s) < 0.05 and event.loudness < 0.25 * other.loudness


def _event(
    wave: np.ndarray,
    sample_rate_hz: int,
    colour: Colour,
    parts: np.ndarray,
    total: np.ndarray,
    top: int,
    before: int,
    clarity: float,
) -> HeardEvent | None:
    """The act behind one peak of a colour's level; None for what begins before the clip or has hardly begun."""
    height = total[top]
    low = before + 1 + int(np.argmin(total[before + 1 : top + 1]))
    base = total[low]
    rise = total[low : top + 1]
    start = low + int(np.flatnonzero(rise >= base + 0.2 * (height - base))[0])
    full = low + int(np.flatnonzero(rise >= base + 0.6 * (height - base))[0])
    slow = (full - start) * HOP_S > SLOW_S
    if (
        start <= EDGE_STEPS
    ):  # a swell under way when the clip begins seems to start there; its crest is slow all the same
        slow = (low + int(np.argmax(rise >= base + 0.95 * (height - base))) - full) * HOP_S > SLOW_S
    later = total[full + round(0.05 / HOP_S) : full + round(0.09 / HOP_S)]
    # a spike on a level isn't what the level falls from
    lasting = min(height, 1.3 * float(np.median(total[full : full + round(0.09 / HOP_S)])))
    held = float(later.mean() / lasting) if len(later) else 0.0
    span = slice(max(0, start), min(len(total), start + round(0.12 / HOP_S)))
    share = dict(zip(KINDS, parts[:, span].sum(1) / max(parts[:, span].sum(), 1e-9), strict=True))
    kind = _kind(share, slow, held)
    pitch_hz = PITCH_HZ[colour]
    crest = kind == "disc"
    if not EDGE_STEPS < (top if crest else full) < len(total) - 1 - EDGE_STEPS:
        return None
    instant_s = _loudest_s(total, top, base) if crest else _start_s(wave, sample_rate_hz, kind, pitch_hz, full * HOP_S)
    if instant_s is None:
        return None
    confidence = min(1.0, clarity / (3 * CLEAR)) * min(1.0, float(height) / (2 * LEAST))
    loudness = float(height) / _peak_level(kind, sample_rate_hz)
    return HeardEvent(instant_s, kind, colour, pitch_hz, round(loudness, 4), round(confidence, 3))


def _kind(share: dict[Kind, float], slow: bool, held: float) -> Kind:
    """By how it begins, how it goes on and, between ring and knock, by its spectrum."""
    if slow:
        return "disc"
    if held + 0.15 * (share["lamp"] - share["ball"]) > HELD:
        return "lamp"
    struck: tuple[Kind, Kind] = ("ball", "bar")
    return max(struck, key=lambda kind: share[kind])


def _loudest_s(total: np.ndarray, top: int, base: float) -> float:
    """The middle of a swell: what lies above half its height, weighted."""
    half = base + 0.6 * (total[top] - base)
    left = top
    while left > 0 and total[left - 1] > half:
        left -= 1
    right = top
    while right < len(total) - 1 and total[right + 1] > half:
        right += 1
    steps = np.arange(left, right + 1)
    weight = total[left : right + 1] - half
    return float((steps * weight).sum() / max(weight.sum(), 1e-9)) * HOP_S


def _start_s(wave: np.ndarray, sample_rate_hz: int, kind: Kind, pitch_hz: float, near_s: float) -> float | None:
    """When the sound rises to half of what it reaches near a time."""
    begin = max(0, int((near_s - 0.12) * sample_rate_hz))
    end = min(len(wave), int((near_s + 0.10) * sample_rate_hz))
    part = wave[begin:end]
    if len(part) < 0.03 * sample_rate_hz:
        return None
    level = (
        _knock_level(part, sample_rate_hz, pitch_hz) if kind == "bar" else _tone_level(part, sample_rate_hz, pitch_hz)
    )
    first = max(0, int((near_s - 0.045) * sample_rate_hz) - begin)
    last = min(len(level), int((near_s + 0.03) * sample_rate_hz) - begin)
    if last - first < 2:
        return None
    top = first + int(np.argmax(level[first:last]))
    quiet = first + int(np.argmin(level[first : top + 1]))
    half = 0.5 * (level[quiet] + level[top])
    return (begin + quiet + int(np.argmax(level[quiet : top + 1] >= half))) / sample_rate_hz


def _tone_level(part: np.ndarray, sample_rate_hz: int, pitch_hz: float) -> np.ndarray:
    """Envelope at a pitch: shifted to zero and smoothed, which leaves a step's half-way point where it was."""
    shifted = part * np.exp(-2j * np.pi * pitch_hz * np.arange(len(part)) / sample_rate_hz)
    width = max(0.004, 1.5 / pitch_hz) * sample_rate_hz
    return np.abs(ndimage.gaussian_filter1d(shifted.real, width) + 1j * ndimage.gaussian_filter1d(shifted.imag, width))


def _knock_level(part: np.ndarray, sample_rate_hz: int, pitch_hz: float) -> np.ndarray:
    """Envelope of the band around a pitch that carries a knock: narrower ones beat, wider ones hear the others."""
    hertz = np.fft.rfftfreq(len(part), 1 / sample_rate_hz)
    inside = (hertz > 0.78 * pitch_hz) & (hertz < 1.28 * pitch_hz)
    band = signal.hilbert(np.fft.irfft(np.fft.rfft(part) * inside, len(part)))
    return np.sqrt(ndimage.gaussian_filter1d(np.abs(band) ** 2, 0.0045 * sample_rate_hz))


def _spectrum(wave: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """(F, T) amplitude per band and step; step t is centred on t * HOP_S."""
    window, bank = _bank(sample_rate_hz)
    half = len(window) // 2
    steps = int(len(wave) / sample_rate_hz / HOP_S) + 1
    padded = np.pad(wave, (half, len(window)))
    starts = np.round(np.arange(steps) * HOP_S * sample_rate_hz).astype(int)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, len(window))[starts]
    power = np.abs(np.fft.rfft(pieces * window, 2 * len(window), axis=1)) ** 2
    return np.sqrt(bank @ power.T)


@lru_cache(maxsize=8)
def _bank(sample_rate_hz: int) -> tuple[np.ndarray, sparse.csr_array]:
    """Analysis window and (F, bins) triangular bands, evenly spaced in pitch; nearly all of it is zeros."""
    length = round(WINDOW_S * sample_rate_hz)
    window = np.hanning(length + 2)[1:-1]
    window /= window.sum() / 2  # a sine of amplitude a peaks at a
    hertz = np.fft.rfftfreq(2 * length, 1 / sample_rate_hz)
    # linear steps where a window can't tell finer ones apart, even steps in pitch above
    highest = min(HIGHEST_HZ, 0.48 * sample_rate_hz)
    low, high = np.arcsinh(LOWEST_HZ / 600), np.arcsinh(highest / 600)
    edges = 600 * np.sinh(np.linspace(low, high, BANDS + 2))
    rising = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    return window, sparse.csr_array(np.maximum(0, np.minimum(rising, falling)))


@lru_cache(maxsize=8)
def _dictionary(sample_rate_hz: int) -> np.ndarray:
    """(F, A): the spectrum of each colour's four sounds at amplitude 1, then hiss."""
    sounds = []
    for colour in COLOURS:
        for kind in KINDS:
            actor = Actor(kind, colour, "large", 0.5, 0.5, 0.5, 1.0, 1)
            wave = render_sound(Scene("single", (actor,)), sample_rate_hz, sample_rate_hz, 1)[0].astype(np.float64)
            part = slice(round(0.51 / HOP_S), round(0.60 / HOP_S))
            spectrum = _spectrum(wave, sample_rate_hz)[:, part]
            sounds.append(np.sqrt(np.mean(spectrum**2, axis=1)) / np.abs(wave[int(0.5 * sample_rate_hz) :]).max())
    _, bank = _bank(sample_rate_hz)
    hiss = np.sqrt(bank.sum(1))
    centres = np.linspace(0, BANDS - 1, NOISES)
    spread = BANDS / (NOISES - 1)
    bumps = np.maximum(0, 1 - np.abs(np.arange(BANDS)[:, None] - centres) / spread) * hiss[:, None]
    return np.concatenate([np.array(sounds).T, bumps], axis=1)


def _explain(spectrum: np.ndarray, book: np.ndarray) -> np.ndarray:
    """(A, T) non-negative amounts with book @ amounts close to the spectrum (Kullback-Leibler, multiplicative).

    Every step stands alone, so a few are done at a time: products this small stay on one BLAS thread. Whole, they
    wake the others a hundred times per clip, which on a busy machine took ninety times as long.
    """
    tiny = 1e-7
    book = book.astype(np.float32)
    weight = book.sum(0)[:, None] + tiny
    amounts = np.full((book.shape[1], spectrum.shape[1]), 0.01, np.float32)
    for begin in range(0, spectrum.shape[1], STEPS_AT_ONCE):
        part = slice(begin, begin + STEPS_AT_ONCE)
        seen = spectrum[:, part].astype(np.float32) + tiny
        few = amounts[:, part]
        for _ in range(ROUNDS):
            few *= book.T @ (seen / (book @ few + tiny)) / weight
    return amounts
