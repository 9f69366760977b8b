"""`avgen codecs codec=NAME`: what a pair of codecs makes of time, space and sound, by the weights themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from avgen import command
from avgen.models.codec_files import CodecConfig

if TYPE_CHECKING:
    from avgen.models.codecs import AudioCodec, VideoCodec

ABOUT = "look at a pair of codecs: what their latents mean"


@dataclass(frozen=True)
class CodecsConfig:
    """Which pair."""

    codec: CodecConfig = field(default_factory=CodecConfig)


def main(argv: list[str] | None = None) -> int:
    examples = ["avgen codecs codec=wan21", "avgen codecs codec.video.path=DIR codec.audio=null"]
    config = command.configure(CodecsConfig, "codecs", argv, ABOUT, examples)
    from rich.console import Console
    from rich.table import Table

    from avgen.models.opening import open_audio_codec, open_video_codec

    table = Table("codec", "channels", "a latent", "first latent", "sees before / after", "fingerprint")
    if config.codec.video is not None:
        picture = open_video_codec(config.codec.video)
        time, side = picture.geometry.time, picture.geometry.space_stride
        frames = f"{time.stride} frames of {side} x {side} pixels", f"{time.first} frames"
        table.add_row(*cells(picture, frames, 1.0, "frames"))
    if config.codec.audio is not None:
        sound = open_audio_codec(config.codec.audio)
        time, ms = sound.geometry.time, 1e3 / sound.geometry.sample_rate_hz
        about = f"{sound.geometry.audio_channels} channels at {sound.geometry.sample_rate_hz} Hz"
        samples = f"{time.stride * ms:.1f} ms of {about}", f"{time.first * ms:.1f} ms"
        table.add_row(*cells(sound, samples, ms, "ms"))
    Console(width=140).print(table)
    return 0


def cells(codec: VideoCodec | AudioCodec, covered: tuple[str, str], unit: float, name: str) -> tuple[str, ...]:
    """A codec's row: `covered` says what a latent and the first one cover, `unit` how many `name` a step is."""
    reach = codec.encode_reach
    seen = "the whole clip" if reach is None else f"{reach.before * unit:.0f} / {reach.after * unit:.0f} {name}"
    return type(codec).__name__, str(codec.geometry.channels), *covered, seen, codec.fingerprint


if __name__ == "__main__":
    raise SystemExit(command.run(main))
