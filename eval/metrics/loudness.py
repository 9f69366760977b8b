"""How loud a sound is and what is wrong with its level: BS.1770 loudness, true peak, clipping, silence, clicks."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, tan

import numpy as np
from scipy import ndimage, signal

from eval.metric import Definition, Measure, Metric, Needs, NotApplicable, Setup, Take
from eval.take import Sound

SOUND = Needs(sound=True)
BLOCK_S, OVERLAP = 0.4, 0.75
ABSOLUTE_LUFS, RELATIVE_LU = -70.0, -10.0
SURROUND = (1.0, 1.0, 1.0, 0.0, 1.41, 1.41)  # FL FR FC LFE BL BR
CLIPPED, RUN = 0.98, 3  # level and length of a run of clipped samples
SILENT_DB, WINDOW_S = -60.0, 0.05
CLICK, NEAR_S, ITSELF_S = 12.0, 0.05, 0.001  # how much sharper than what is near


def metrics(setup: Setup) -> Sequence[Metric]:
    def one(name: str, says: str, unit: str, direction: object, of: object, **parameters: object) -> Measure:
        definition = Definition(f"loudness.{name}", says, unit, direction, needs=SOUND, parameters=parameters)  # type: ignore[arg-type]
        return Measure(definition, of)  # type: ignore[arg-type]

    return (
        one(
            "integrated_lufs",
            "ITU-R BS.1770-4 integrated loudness: K-weighted power of 400 ms blocks, gated at -70 LUFS and -10 LU.",
            "LUFS",
            "none",
            integrated,
        ),
        one("true_peak_dbtp", "Highest sample after four times oversampling.", "dBTP", "none", true_peak),
        one(
            "clipped_share",
            "Share of samples in runs of at least 3 at 0.98 of full scale or more.",
            "",
            "lower",
            lambda take: clipped(take.sound.wave),
            level=CLIPPED,
            run=RUN,
        ),
        one(
            "silent_share",
            "Share of 50 ms windows whose level lies below -60 dBFS.",
            "",
            "none",
            lambda take: float((levels_db(take.sound) < SILENT_DB).mean()),
            level_db=SILENT_DB,
            window_s=WINDOW_S,
        ),
        one(
            "clicks_per_s",
            "Instants whose second difference is more than 12 times any other within 50 ms (but 1 ms), per second.",
            "Hz",
            "lower",
            lambda take: clicks(take.sound) / take.sound.duration_s,
            factor=CLICK,
            near_s=NEAR_S,
            itself_s=ITSELF_S,
        ),
        one("dc_offset", "Size of the mean sample, largest of the channels.", "", "lower", dc),
    )


def dc(take: Take) -> float:
    return float(np.abs(take.sound.wave.mean(1, dtype=np.float64)).max())


def integrated(take: Take) -> float:
    value = lufs(take.sound.wave, take.sound.rate_hz)
    if value is None:
        raise NotApplicable("nothing lasts 0.4 s above -70 LUFS")
    return value


def lufs(wave: np.ndarray, rate_hz: int) -> float | None:
    weighted = k_weighted(wave.astype(np.float64), rate_hz)
    block, hop = round(BLOCK_S * rate_hz), round(BLOCK_S * (1 - OVERLAP) * rate_hz)
    if weighted.shape[1] < block:
        return None
    power = np.lib.stride_tricks.sliding_window_view(weighted**2, block, axis=1)[:, ::hop].mean(-1)  # (C, blocks)
    gains = np.array(SURROUND if len(wave) == 6 else [1.0] * len(wave))
    total = gains @ power
    loud = total[loudness(total) > ABSOLUTE_LUFS]
    if not len(loud):
        return None
    gate = loudness(loud.mean()) + RELATIVE_LU
    return float(loudness(loud[loudness(loud) > gate].mean()))


def loudness(power: np.ndarray) -> np.ndarray:
    return np.asarray(-0.691 + 10 * np.log10(np.maximum(power, 1e-20)))


def k_weighted(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """A shelf of +4 dB above 1.7 kHz (the head), then a high-pass at 38 Hz; the standard's filters at any rate."""
    for frequency, q, shelf_db in (
        (1681.974450955533, 0.7071752369554196, 3.999843853973347),
        (38.13547087602444, 0.5003270373238773, None),
    ):
        k = tan(pi * frequency / rate_hz)
        base = 1 + k / q + k * k
        below = [1.0, 2 * (k * k - 1) / base, (1 - k / q + k * k) / base]
        if shelf_db is None:
            above = [1.0, -2.0, 1.0]
        else:
            high = 10 ** (shelf_db / 20)
            band = high**0.4996667741545416
            above = [
                (high + band * k / q + k * k) / base,
                2 * (k * k - high) / base,
                (high - band * k / q + k * k) / base,
            ]
        wave = signal.lfilter(above, below, wave, axis=1)
    return wave


def true_peak(take: Take) -> float:
    peak = float(np.abs(signal.resample_poly(take.sound.wave.astype(np.float64), 4, 1, axis=1)).max())
    if peak < 1e-8:
        raise NotApplicable("the sound is digital silence")
    return 20 * float(np.log10(peak))


def clipped(wave: np.ndarray) -> float:
    """Opening by a run's length keeps only runs at least that long."""
    high = np.abs(wave) >= CLIPPED
    return float(ndimage.binary_opening(high, np.ones((1, RUN))).mean())


def levels_db(sound: Sound) -> np.ndarray:
    """RMS per window, mixed over channels."""
    length = max(1, round(WINDOW_S * sound.rate_hz))
    power = (sound.wave.astype(np.float64) ** 2).mean(0)
    count = max(1, len(power) // length)
    windows = power[: count * length].reshape(count, -1).mean(1)
    return np.asarray(10 * np.log10(np.maximum(windows, 1e-20)))


def clicks(sound: Sound) -> int:
    sharp = np.abs(np.diff(sound.wave.mean(0).astype(np.float64), 2))
    if len(sharp) < 3 or sharp.max() < 1e-4:
        return 0
    near, itself = round(NEAR_S * sound.rate_hz), max(1, round(ITSELF_S * sound.rate_hz))
    # the largest value from `itself` to `near` samples away, on both sides
    width = near - itself
    reach = ndimage.maximum_filter1d(sharp, width)
    middle = (near + itself) // 2
    before = np.concatenate([np.zeros(middle), reach[:-middle]]) if len(reach) > middle else np.zeros(len(reach))
    after = np.concatenate([reach[middle:], np.zeros(middle)]) if len(reach) > middle else np.zeros(len(reach))
    others = np.maximum(np.maximum(before, after), 1e-4)
    return int(ndimage.label(ndimage.binary_dilation(sharp > CLICK * others, iterations=itself))[1])
