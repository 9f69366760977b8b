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
        shape, side = picture.geometry.time, picture.geometry.space_stride
        table.add_row(
            type(picture).__name__,
            str(picture.geometry.channels),
            f"{shape.stride} frames of {side} x {side} pixels",
            f"{shape.first} frames",
            sight(picture, 1.0, "frames"),
            picture.fingerprint,
        )
    if config.codec.audio is not None:
        sound = open_audio_codec(config.codec.audio)
        shape, rate = sound.geometry.time, sound.geometry.sample_rate_hz
        table.add_row(
            type(sound).__name__,
            str(sound.geometry.channels),
            f"{shape.stride / rate * 1e3:.1f} ms of {sound.geometry.audio_channels} channels at {rate} Hz",
            f"{shape.first / rate * 1e3:.1f} ms",
            sight(sound, 1e3 / rate, "ms"),
            sound.fingerprint,
        )
    Console(width=140).print(table)
    return 0


def sight(codec: VideoCodec | AudioCodec, unit: float, name: str) -> str:
    """How far a latent sees past its own interval."""
    reach = codec.encode_reach
    return "the whole clip" if reach is None else f"{reach.before * unit:.0f} / {reach.after * unit:.0f} {name}"


if __name__ == "__main__":
    raise SystemExit(command.run(main))
