"""`python -m avgen.models.codec_report codecs=DIR`: what a pair of embedded codecs keeps of unseen clips.

A row per noise level: gaussian noise of so many standard deviations of each channel is added to the latents first,
which stands for what a generator gets slightly wrong.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avgen.command import configure, run
from avgen.config import at_least_one
from avgen.data.toybox import Toybox, ToyboxConfig, ToyClip
from avgen.data.toybox.reader import Score, read_events, score
from avgen.models.codec_files import CodecFiles
from avgen.models.codecs import AudioCodec, VideoCodec
from avgen.models.opening import open_audio_codec, open_video_codec

ONSET_SPAN_S = 0.03


@dataclass(frozen=True)
class ReportConfig:
    """Which pair, and what to try it on."""

    codecs: Path  # folder of the pair: video and audio
    n_clips: int = 120  # of the test split
    seed: int = 11  # of the world and of the noise
    noise: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4)  # standard deviations of the latents
    world: ToyboxConfig = field(default_factory=ToyboxConfig)  # its rate and channels are the sound's codec's

    def __post_init__(self) -> None:
        at_least_one(self, "n_clips")


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    about = "what a pair of embedded codecs keeps of unseen toybox clips"
    config = configure(
        ReportConfig,
        None,
        argv,
        about,
        ["python -m avgen.models.codec_report codecs=runs/codecs"],
        "python -m avgen.models.codec_report",
    )
    video = open_video_codec(CodecFiles(str(config.codecs / "video")))
    audio = open_audio_codec(CodecFiles(str(config.codecs / "audio")))
    sound = audio.geometry
    form = replace(config.world, sample_rate_hz=sound.sample_rate_hz, audio_channels=sound.audio_channels)
    world = Toybox(form, "test", config.seed)
    items = [world[i] for i in range(config.n_clips)]
    frames = torch.stack([torch.from_numpy(i.clip.video) for i in items])
    waves = torch.stack([torch.from_numpy(i.clip.audio) for i in items])
    pictures, sounds = video.encode(frames).mean, audio.encode(waves).mean
    draw = torch.Generator().manual_seed(config.seed)
    print(f"{'noise':>5} {'PSNR dB':>8} {'SC':>6} {'onset ms':>14} {'level dB':>8}   F1: seen heard  sync")
    print(f"{'input':>5} {'':>8} {'':>6} {'':>14} {'':>8}   {_f1(_read(items, frames, waves))}")
    for level in config.noise:
        decoded = video.decode(_noised(pictures, level, draw))[:, : frames.shape[1]]
        heard = audio.decode(_noised(sounds, level, draw))[..., : waves.shape[-1]]
        both = [(a, b, i) for a, b, i in zip(waves, heard, items, strict=True) if a.any()]
        psnr = float(np.mean([psnr_db(a, b) for a, b in zip(frames, decoded, strict=True)]))
        f1 = _f1(_read(items, decoded, heard))
        print(f"{level:5.2f} {psnr:8.2f} {_sound(both)}   {f1}")
    print(f"decoding one clip, one try in ten, best: video {_best_ms(video, pictures[:1]):.1f} ms,", end=" ")
    print(f"audio {_best_ms(audio, sounds[:1]):.1f} ms on {torch.get_num_threads()} thread(s)")
    return 0


def _sound(both: list[tuple[Tensor, Tensor, ToyClip]]) -> str:
    """Convergence, onsets and level of made sounds beside true ones; dashes where none is heard, or struck."""
    if not both:
        return f"{'-':>6} {'-':>14} {'-':>8}"
    convergence = np.mean([spectral_convergence(a, b) for a, b, _ in both])
    onsets = np.abs(np.concatenate([onset_errors_s(a, b, i) for a, b, i in both])) * 1e3
    onset = f"{np.median(onsets):.1f} (p90 {np.percentile(onsets, 90):.1f})" if onsets.size else "-"
    loud = np.median([10 * torch.log10(b.square().sum() / a.square().sum()) for a, b, _ in both])
    return f"{convergence:6.3f} {onset:>14} {loud:+8.2f}"


def psnr_db(true: Tensor, made: Tensor) -> float:
    return float(-10 * torch.log10((true.float() - made.float()).div(255).square().mean().clamp_min(1e-9)))


def spectral_convergence(true: Tensor, made: Tensor) -> float:
    """Norm of the magnitudes' error over their norm, windows of 1024 samples: 0 is the same, 1 as bad as silence."""
    window = torch.hann_window(1024)
    a, b = (torch.stft(x, 1024, 256, window=window, return_complex=True).abs() for x in (true, made))
    return float((a - b).norm() / a.norm())


def onset_errors_s(true: Tensor, made: Tensor, item: ToyClip) -> np.ndarray:
    """Made minus true onset of every struck sound with no other within 0.1 s, by one detector on both waves."""
    rate_hz = item.clip.sample_rate_hz
    assert rate_hz is not None
    struck = [e.instant_s for e in item.events if e.audible and e.kind != "disc"]
    last_s = true.shape[-1] / rate_hz - 0.1
    alone = [t for t in struck if 0.04 < t < last_s and sum(abs(t - u) < 0.1 for u in struck) == 1]
    return np.array([_onset_s(made, t, rate_hz) - _onset_s(true, t, rate_hz) for t in alone])


def _onset_s(wave: Tensor, near_s: float, rate_hz: int) -> float:
    """When the power around an instant first passes a quarter of its rise."""
    taper = np.hanning(max(round(0.002 * rate_hz), 3))
    first = round((near_s - ONSET_SPAN_S) * rate_hz)
    power = np.convolve(wave[0].numpy() ** 2, taper, "same")[first : first + round(2 * ONSET_SPAN_S * rate_hz)]
    before = power[: round(0.6 * ONSET_SPAN_S * rate_hz)].mean()
    return (first + int(np.argmax(power > before + 0.25 * (power.max() - before)))) / rate_hz


def _noised(latents: Tensor, level: float, draw: torch.Generator) -> Tensor:
    spread = latents.std(dim=[0, *range(2, latents.ndim)], keepdim=True)
    return latents + level * spread * torch.randn(latents.shape, generator=draw)


def _read(items: list[ToyClip], frames: Tensor, waves: Tensor) -> Score:
    total = Score()
    for item, picture, sound in zip(items, frames.numpy(), waves.numpy(), strict=True):
        total += score(read_events(replace(item.clip, video=picture, audio=sound)), item.events)
    return total


def _f1(total: Score) -> str:
    return "".join(f"{getattr(total, name).f1:6.3f}" for name in ("seen", "heard", "sync"))


def _best_ms(codec: VideoCodec | AudioCodec, latents: Tensor) -> float:
    spent = []
    for _ in range(10):
        began = time.process_time()
        codec.decode(latents)
        spent.append(time.process_time() - began)
    return min(spent) * 1e3


if __name__ == "__main__":
    raise SystemExit(run(main))
