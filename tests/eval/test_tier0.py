"""Figures without weights against signals whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from avgen.types import Clip
from eval.metric import Result, Take, measure
from eval.metrics.loudness import lufs
from eval.metrics.paired import ssim_of
from eval.registry import chosen

METRICS = {metric.definition.name: metric for metric in chosen(["tier0"])}
RATE_HZ = 48000


def sine(hertz: float, amplitude: float, seconds: float = 2.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return (amplitude * np.sin(2 * np.pi * hertz * time_s)).astype(np.float32)


def noise(seconds: float = 2.0, seed: int = 0, channels: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(0, 0.1, (channels, round(seconds * RATE_HZ))).astype(np.float32)


def heard(name: str, wave: np.ndarray, rate_hz: int = RATE_HZ) -> Result:
    return measure(METRICS[name], Take.of(Clip(None, np.atleast_2d(wave), None, rate_hz)))  # type: ignore[arg-type]


def moving(frames: int = 24, size: int = 64) -> np.ndarray:
    """A texture that slides sideways by 2 pixels a frame."""
    texture = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(size, size + 2 * frames)), 1.5)
    texture = np.clip(128 + 300 * texture, 0, 255)
    return np.stack([np.repeat(texture[:, 2 * i : 2 * i + size, None], 3, 2) for i in range(frames)]).astype(np.uint8)


def seen(name: str, video: np.ndarray, fps: float = 24.0) -> Result:
    return measure(METRICS[name], Take.of(Clip(video, None, fps, None)))  # type: ignore[arg-type]


@pytest.mark.parametrize("rate_hz", [16000, 44100, 48000])
@pytest.mark.parametrize("level_db", [-23.0, -33.0])
def test_a_stereo_tone_of_1_khz_reads_its_level_in_lufs(rate_hz: int, level_db: float) -> None:
    """EBU Tech 3341, cases 1 and 2: within 0.1 LU."""
    tone = sine(1000, 10 ** (level_db / 20), 4.0, rate_hz)
    assert lufs(np.stack([tone, tone]), rate_hz) == pytest.approx(level_db, abs=0.1)


def test_quiet_passages_are_gated_out_of_loudness() -> None:
    """EBU Tech 3341, case 3: the tone at -36 lies 13 LU below and does not count."""
    parts = [sine(1000, 10 ** (db / 20), seconds) for db, seconds in ((-36.0, 2.0), (-23.0, 20.0), (-36.0, 2.0))]
    wave = np.concatenate(parts)
    assert lufs(np.stack([wave, wave]), RATE_HZ) == pytest.approx(-23.0, abs=0.15)


def test_true_peak_sees_between_the_samples() -> None:
    """A tone at a quarter of the rate, caught 45 degrees off its crests: samples at 0.707, the wave at 1."""
    wave = np.sin(np.pi / 2 * np.arange(RATE_HZ) + np.pi / 4).astype(np.float32)
    assert np.abs(wave).max() < 0.71
    assert heard("loudness.true_peak_dbtp", wave).value == pytest.approx(0, abs=0.3)


def test_clipping_is_runs_at_full_scale_and_not_a_loud_wave() -> None:
    loud = sine(500, 0.97)
    assert heard("loudness.clipped_share", loud).value == 0
    hard = np.clip(sine(501.3, 2.0), -1, 1)
    share = 1 - 2 * np.arcsin(0.98 / 2) / np.pi
    assert heard("loudness.clipped_share", hard).value == pytest.approx(share, abs=0.01)


def test_clicks_are_counted_and_music_has_none() -> None:
    wave = sine(440, 0.3) + noise()[0] * 0.05
    assert heard("loudness.clicks_per_s", wave).value == 0
    for at in (10_000, 40_000, 70_000):
        wave[at] += 0.9
    assert heard("loudness.clicks_per_s", wave).value == pytest.approx(3 / 2)


def test_silence_is_measured_in_time() -> None:
    wave = np.concatenate([sine(440, 0.3, 1.0), np.zeros(RATE_HZ, np.float32)])
    assert heard("loudness.silent_share", wave).value == pytest.approx(0.5, abs=0.03)
    for name in ("loudness.integrated_lufs", "loudness.true_peak_dbtp", "spectrum.bandwidth_hz", "spectrum.flatness"):
        assert heard(name, np.zeros(RATE_HZ, np.float32)).status == "not_applicable"


@pytest.mark.parametrize("edge_hz", [4000.0, 8000.0, 16000.0])
def test_bandwidth_is_where_a_low_pass_cuts(edge_hz: float) -> None:
    whole = np.fft.rfft(noise()[0])
    whole[np.fft.rfftfreq(2 * RATE_HZ, 1 / RATE_HZ) > edge_hz] = 0
    cut = np.fft.irfft(whole).astype(np.float32)
    assert heard("spectrum.bandwidth_hz", cut).value == pytest.approx(edge_hz, abs=RATE_HZ / 2 * 0.02)
    assert heard("spectrum.bandwidth_hz", noise()).value == pytest.approx(RATE_HZ / 2, rel=0.02)


def test_flatness_tells_noise_from_a_tone() -> None:
    """Of a periodogram of white noise: exp(-Euler's constant) = 0.561."""
    assert heard("spectrum.flatness", noise()).value == pytest.approx(np.exp(-np.euler_gamma), abs=0.03)
    assert heard("spectrum.flatness", sine(440, 0.5)).value < 0.01  # type: ignore[operator]


@pytest.mark.parametrize("mains_hz", [50.0, 60.0])
def test_hum_is_heard_under_noise(mains_hz: float) -> None:
    quiet = 0.05 * noise(4.0)
    assert heard("spectrum.hum_db", quiet).value < 6  # type: ignore[operator]
    assert heard("spectrum.hum_db", quiet + sine(mains_hz, 0.02, 4.0)).value > 15  # type: ignore[operator]
    # whatever is left behind the last whole window is not its quietest
    assert heard("spectrum.hum_db", 0.05 * noise(4.1) + sine(mains_hz, 0.02, 4.1)).value > 15  # type: ignore[operator]


def test_stereo_figures_of_mono_wide_and_opposed_channels() -> None:
    one, other = noise(seed=1)[0], noise(seed=2)[0]
    mono, wide, opposed = np.stack([one, one]), np.stack([one, other]), np.stack([one, -one])
    assert heard("stereo.correlation", mono).value == pytest.approx(1)
    assert heard("stereo.correlation", wide).value == pytest.approx(0, abs=0.02)
    assert heard("stereo.correlation", opposed).value == pytest.approx(-1)
    assert heard("stereo.mono_loss_db", mono).value == pytest.approx(0, abs=1e-6)
    assert heard("stereo.mono_loss_db", wide).value == pytest.approx(3, abs=0.1)
    assert heard("stereo.side_db", mono).value == -120
    assert heard("stereo.balance_db", np.stack([2 * one, one])).value == pytest.approx(6.02, abs=0.01)
    assert heard("stereo.correlation", one).status == "not_applicable"


def test_blur_lowers_sharpness_and_blocks_raise_blockiness() -> None:
    video = moving()
    soft = ndimage.gaussian_filter(video, (0, 1.5, 1.5, 0))
    assert seen("picture.sharpness", soft).value < 0.7 * seen("picture.sharpness", video).value  # type: ignore[operator]
    blocks = video.reshape(24, 8, 8, 8, 8, 3).mean((2, 4), keepdims=True)
    coarse = (0.5 * video + 0.5 * np.broadcast_to(blocks, (24, 8, 8, 8, 8, 3)).reshape(video.shape)).astype(np.uint8)
    assert seen("picture.blockiness", video).value == pytest.approx(1, abs=0.1)
    assert seen("picture.blockiness", coarse).value > 1.3  # type: ignore[operator]


def test_flicker_is_brightness_to_and_fro_and_not_motion_or_a_fade() -> None:
    video = moving()
    fade = np.linspace(0.6, 1.0, 24)[:, None, None, None]
    beat = np.where(np.arange(24) % 2, 0.9, 1.0)[:, None, None, None]
    still, faded, beaten = (seen("picture.flicker", (video * f).astype(np.uint8)).value for f in (1.0, fade, beat))
    assert beaten > 10 * max(still, faded)  # type: ignore[type-var, operator]


def repeat_each(video: np.ndarray) -> np.ndarray:
    return np.repeat(video[::2], 2, axis=0)


def stop_half_way(video: np.ndarray) -> np.ndarray:
    return np.concatenate([video[:12], np.repeat(video[11:12], 12, axis=0)])


@pytest.mark.parametrize(
    ("spoil", "frozen", "repeated"),
    [(lambda v: v, 0.0, 0.0), (repeat_each, 0.0, 12 / 23), (stop_half_way, 12 / 23, 0.0)],
)
def test_frames_that_stand_are_frozen_and_frames_made_twice_are_repeated(
    spoil: Callable[[np.ndarray], np.ndarray], frozen: float, repeated: float
) -> None:
    video = spoil(moving())
    assert seen("picture.frozen_share", video).value == pytest.approx(frozen)
    assert seen("picture.repeated_share", video).value == pytest.approx(repeated)


def test_black_frames_and_cuts_are_found() -> None:
    video = moving()
    dark = video.copy()
    dark[6:12] = 3
    assert seen("picture.black_share", video).value == 0
    assert seen("picture.black_share", dark).value == pytest.approx(6 / 24)
    calm = ndimage.gaussian_filter(video, (0, 4, 4, 0)) // 2
    cut = np.concatenate([calm[:12], 255 - calm[12:]])
    assert seen("picture.cuts_per_s", video).value == 0
    assert seen("picture.cuts_per_s", cut).value == pytest.approx(1)


def paired(name: str, made: Clip, real: Clip) -> Result:
    return measure(METRICS[name], Take.of(made, reference=real))  # type: ignore[arg-type]


def test_si_sdr_is_the_ratio_that_was_mixed_whatever_the_gain() -> None:
    one, other = noise(seed=1), noise(seed=2)
    real = Clip(None, one, None, RATE_HZ)
    for wanted_db in (0.0, 20.0):
        made = Clip(None, 0.3 * (one + 10 ** (-wanted_db / 20) * other), None, RATE_HZ)
        assert paired("paired.si_sdr_db", made, real).value == pytest.approx(wanted_db, abs=0.3)
    assert paired("paired.si_sdr_db", real, real).value == 60


def test_distances_grow_with_noise_and_vanish_on_a_copy() -> None:
    tone = np.atleast_2d(sine(440, 0.3))
    real = Clip(None, tone, None, RATE_HZ)
    made = [replace(real, audio=tone + level * noise(seed=3)) for level in (0.0, 0.1, 1.0)]
    found = [paired("paired.stft_distance", clip, real).value for clip in made]
    assert found[0] == 0
    assert found[0] < found[1] < found[2]  # type: ignore[operator]


def test_psnr_and_ssim_of_copies_and_of_noise_of_known_size() -> None:
    video = moving(6)
    real = Clip(video, None, 24.0, None)
    spoilt = np.clip(video + np.random.default_rng(2).normal(0, 8, video.shape), 0, 255).astype(np.uint8)
    made = replace(real, video=spoilt)
    assert paired("paired.psnr_db", real, real).value == 60
    assert paired("paired.ssim", real, real).value == pytest.approx(1)
    assert paired("paired.psnr_db", made, real).value == pytest.approx(20 * np.log10(255 / 8), abs=0.3)
    worse = replace(
        real, video=np.clip(video + np.random.default_rng(2).normal(0, 80, video.shape), 0, 255).astype(np.uint8)
    )
    assert 0 < paired("paired.ssim", worse, real).value < paired("paired.ssim", made, real).value < 1  # type: ignore[operator]
    other = paired("paired.psnr_db", replace(real, video=video[:, :32]), real)
    assert other.status == "not_applicable"
    assert "differ in size" in other.reason


def test_ssim_of_a_flat_change_of_light_is_its_formula() -> None:
    """Of constant images only the first factor is not 1: (2ab + c) / (a^2 + b^2 + c)."""
    a, b, c = 100.0, 150.0, (0.01 * 255) ** 2
    found = ssim_of(np.full((20, 20), a), np.full((20, 20), b))
    assert found == pytest.approx((2 * a * b + c) / (a * a + b * b + c))


def test_a_frame_of_another_rate_is_compared_by_time() -> None:
    video = moving(24)
    real, made = Clip(video, None, 24.0, None), Clip(video[1::2], None, 12.0, None)
    assert paired("paired.psnr_db", made, real).value == 60
