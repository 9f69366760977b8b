"""`python -m avgen.models.fit_codecs out=DIR`: fit the embedded codecs to a toybox world."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import torch

from avgen import __version__
from avgen.command import configure, run
from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.models.embedded_audio import SpectralAudioCodec, fit_audio
from avgen.models.embedded_video import PatchVideoCodec, fit_video

FIT_VERSION = 3  # raise it whenever the same clips would be fitted differently: older fits are then left alone
# Components are settled by a few hundred clips; what a decoder makes of latents that are slightly wrong, as generated
# ones are, gets better with many more clips and steps (docs/codecs.md).
DECODED = 4  # times as many clips for the decoders
DECODED_AT_MOST = 2000
STEPS = {"video": (600, 3.0, 1500), "audio": (800, 6.0, 2500)}  # of a decoder: least, per clip analysed, most
ABOUT = "fit the embedded codecs to the toybox; writes DIR/video and DIR/audio"


@dataclass(frozen=True)
class FitConfig:
    """Which clips to fit to, and how many numbers a token has."""

    out: Path  # folder of the pair; an older pair in it is replaced
    n_clips: int = (
        512  # first training clips of the world that components are fitted to; decoders see four times as many
    )
    seed: int = 0  # of the world, and of the decoders' training
    video_latents: int = 24  # numbers per video token (2 frames x 8 x 8 pixels)
    audio_latents: int = 32  # numbers per audio token (50 ms)
    world: ToyboxConfig = field(default_factory=ToyboxConfig)

    def __post_init__(self) -> None:
        if self.n_clips < 8:
            raise ValueError(f"n_clips={self.n_clips} is too few to fit codecs to: at least 8, better 500")


def fit_embedded(
    world_config: ToyboxConfig, n_clips: int = 512, seed: int = 0, video_latents: int = 24, audio_latents: int = 32
) -> tuple[PatchVideoCodec, SpectralAudioCodec]:
    """Both codecs, fitted to the first training clips of the world: components to `n_clips`, decoders to more; the same
    for the same arguments.

    The same means: to the last bit on one machine with one number of threads, within rounding elsewhere.
    """
    world = Toybox(world_config, split="train", seed=seed)
    clips = [world[i].clip for i in range(max(n_clips, min(DECODED * n_clips, DECODED_AT_MOST)))]
    frames = torch.stack([torch.from_numpy(c.video) for c in clips if c.video is not None])
    waves = torch.stack([torch.from_numpy(c.audio) for c in clips if c.audio is not None])
    video = PatchVideoCodec(video_latents)
    audio = SpectralAudioCodec.at_rate(world_config.sample_rate_hz, audio_latents, world_config.audio_channels)
    with torch.enable_grad():
        fit_video(video, frames, decoder_steps("video", n_clips), seed=seed, analysed=n_clips)
        fit_audio(audio, waves, decoder_steps("audio", n_clips), seed=seed, analysed=n_clips)
    return video.eval().requires_grad_(False), audio.eval().requires_grad_(False)


def decoder_steps(modality: str, n_clips: int) -> int:
    least, each, most = STEPS[modality]
    return round(min(max(least, each * n_clips), most))


def load_or_fit(
    cache: Path, world_config: ToyboxConfig, n_clips: int = 512, seed: int = 0
) -> tuple[PatchVideoCodec, SpectralAudioCodec]:
    """The pair for these clips: from an earlier fit in the folder `cache`, else fitted and put there.

    Each choice of clips has a folder of its own, which takes its name when it is whole: processes may race.
    """
    folder = fit_folder(cache, world_config, n_clips, seed)
    if not folder.exists():
        began = time.perf_counter()
        video, audio = fit_embedded(world_config, n_clips, seed)
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")  # machines that share it may share numbers
        try:
            video.save_pretrained(partial / "video")
            audio.save_pretrained(partial / "audio")
            (partial / "fit.json").write_text(json.dumps({"seconds": time.perf_counter() - began}))
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first: both use its fit
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # nothing is left once it has its name
    return open_fit(folder)


def open_fit(folder: Path) -> tuple[PatchVideoCodec, SpectralAudioCodec]:
    """The pair in a folder that `load_or_fit` has made."""
    pair = PatchVideoCodec.from_pretrained(folder / "video"), SpectralAudioCodec.from_pretrained(folder / "audio")
    return pair[0].eval().requires_grad_(False), pair[1].eval().requires_grad_(False)


def fit_folder(cache: Path, world_config: ToyboxConfig, n_clips: int, seed: int = 0) -> Path:
    """Where `load_or_fit` keeps its pair; fit.json in it says how long the fit took."""
    return (
        cache / f"{Toybox(world_config, split='train', seed=seed).fingerprint}-{n_clips}-v{__version__}.{FIT_VERSION}"
    )


def main(argv: list[str] | None = None) -> int:
    config = configure(
        FitConfig, None, argv, ABOUT, ["python -m avgen.models.fit_codecs out=runs/codecs"], "fit_codecs"
    )
    began = time.perf_counter()
    settings = (config.n_clips, config.seed, config.video_latents, config.audio_latents)
    pair = fit_embedded(config.world, *settings)
    for name, codec in zip(("video", "audio"), pair, strict=True):
        codec.save_pretrained(config.out / name)
        print(f"{config.out / name}  {type(codec).__name__}  fingerprint {codec.fingerprint}")
    print(f"fitted to {config.n_clips} clips in {time.perf_counter() - began:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
