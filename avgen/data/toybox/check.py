"""How well the event reader reads: a table by kind and by scene, on clips as rendered or after what spoils them."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import ndimage

from avgen.data.toybox.reader import CaptionScore, Score, Tally, read_events, score, score_caption
from avgen.data.toybox.scene import KINDS
from avgen.data.toybox.world import Split, Toybox, ToyboxConfig
from avgen.types import Clip

if TYPE_CHECKING:
    from rich.table import Table

Through = Literal["nothing", "mp4", "blur"]


@dataclass(frozen=True)
class CheckConfig:
    """What to read."""

    n: int = 500  # how many clips
    first: int = 0  # index of the first
    split: Split = "test"
    seed: int = 30001  # clips that the reader was not made on
    through: Through = "nothing"  # read them as rendered, after H.264 + AAC, or blurred with noise
    world: ToyboxConfig = field(default_factory=ToyboxConfig)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n={self.n} must be at least 1")
        if self.first < 0:
            raise ValueError(f"first={self.first} must not be negative")


@dataclass(frozen=True)
class Figures:
    """Scores added up over clips: of all, and by kind of event or type of scene."""

    by: dict[str, Score]
    captions: CaptionScore
    read_s: float  # processor time per clip


def check(config: CheckConfig) -> Figures:
    world = Toybox(config.world, config.split, config.seed)
    by: dict[str, Score] = defaultdict(Score)
    captions, spent_s = CaptionScore(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for i in range(config.first, config.first + config.n):
            item = world[i]
            clip = SPOILERS[config.through](item.clip, i, Path(folder))
            begin = time.process_time()
            reading = read_events(clip)
            spent_s += time.process_time() - begin
            captions += score_caption(reading, item.facts)
            scored = score(reading, item.events)
            by["all"] += scored
            by[f"scene {item.scene.type}"] += scored
            for kind in KINDS:
                seen = tuple(e for e in reading.seen if e.kind == kind)
                heard = tuple(e for e in reading.heard if e.kind == kind)
                of_kind = [e for e in item.events if e.kind == kind]
                by[f"kind {kind}"] += score(replace(reading, seen=seen, heard=heard), of_kind)
    return Figures(by, captions, spent_s / config.n)


def table(figures: Figures) -> Table:
    """Precision / recall, and the spread of the timing error."""
    from rich.table import Table

    shown = Table()
    shown.add_column("")
    for name in ("seen", "heard", "sync", "seen kind, colour", "heard kind, colour", "seen ms", "heard ms"):
        shown.add_column(name, justify="right")
    for name in sorted(figures.by):
        s = figures.by[name]
        shown.add_row(
            name,
            _both(s.seen),
            _both(s.heard),
            _both(s.sync),
            f"{s.seen_kind.precision:.3f} {s.seen_colour.precision:.3f}",
            f"{s.heard_kind.precision:.3f} {s.heard_colour.precision:.3f}",
            _error(s.seen_error_s),
            _error(s.heard_error_s),
        )
    return shown


def _both(tally: Tally) -> str:
    return f"{tally.precision:.3f}/{tally.recall:.3f} ({tally.true})"


def _error(errors_s: tuple[float, ...]) -> str:
    """Mean and 95th percentile of the size, in milliseconds."""
    if not errors_s:
        return "-"
    milliseconds = 1000 * np.array(errors_s)
    return f"{milliseconds.mean():+.1f}, {np.quantile(np.abs(milliseconds), 0.95):.1f}"


def _through_mp4(clip: Clip, index: int, folder: Path) -> Clip:
    from avgen.data.media import read_clip, write_clip

    path = folder / "clip.mp4"
    write_clip(path, clip)
    return read_clip(path, 0.0, clip.video_duration_s, fps=clip.fps, sample_rate_hz=clip.sample_rate_hz).clip


def blurred(clip: Clip, index: int, folder: Path | None = None) -> Clip:
    """A picture at about 25 dB and a sound without its finest detail: what a poor model might make."""
    rng = np.random.default_rng(index)
    assert clip.video is not None
    assert clip.audio is not None
    video = ndimage.gaussian_filter(clip.video.astype(float), (0, 0.8, 0.8, 0)) + rng.normal(0, 7, clip.video.shape)
    audio = ndimage.gaussian_filter1d(clip.audio, 0.8) + rng.normal(0, 0.01, clip.audio.shape)
    return replace(clip, video=np.clip(video, 0, 255).astype(np.uint8), audio=audio.astype(np.float32))


SPOILERS: dict[Through, Callable[[Clip, int, Path], Clip]] = {
    "nothing": lambda clip, index, folder: clip,
    "mp4": _through_mp4,
    "blur": blurred,
}
