"""Reading and writing media by timestamps: see docs/media.md for the clock and the rules."""

from avgen.data.media.read import Cost, Window, read_audio, read_clip, read_image, unit_count
from avgen.data.media.source import AudioInfo, MediaError, MediaInfo, VideoInfo, exact_fps, open_source, probe
from avgen.data.media.write import Film, write_clip, write_wav

__all__ = [
    "AudioInfo",
    "Cost",
    "Film",
    "MediaError",
    "MediaInfo",
    "VideoInfo",
    "Window",
    "exact_fps",
    "open_source",
    "probe",
    "read_audio",
    "read_clip",
    "read_image",
    "unit_count",
    "write_clip",
    "write_wav",
]
