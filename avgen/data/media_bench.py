"""`python -m avgen.data.media_bench`: what reading by timestamps costs beside PyAV's decoder alone, in the same run.

Raw is `container.decode()` of picture and sound with every frame made an RGB array and dropped; kept, written into the
one array that a reader has to return. All use one thread, take turns, and are timed in CPU seconds, so that neighbours
on the machine do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
from rich.console import Console

from avgen import command
from avgen.data.manifest import read_manifest
from avgen.data.media import read_clip, write_clip
from avgen.data.prepare_bench import moving
from avgen.data.windows import WindowShape


@dataclass(frozen=True)
class BenchConfig:
    """Which clips, how often."""

    clips: Path | None = None  # manifest or folder of clips; null: one of moving noise, 256 x 448, made in `out`
    out: Path = Path("runs/media_bench")  # folder of that clip
    size: tuple[int, int] | None = None  # (height, width) to read at; null: the clip's own
    repeats: int = 7  # turns, of which the median counts


def raw(path: Path, convert: bool, keep: int = 0) -> int:
    """Frames decoded by PyAV alone, in one thread; the first so many are kept."""
    frames = 0
    kept: np.ndarray | None = None
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for frame in container.decode(*container.streams):
            if isinstance(frame, av.VideoFrame):
                frames += 1
                if convert:
                    picture = frame.to_ndarray(format="rgb24")
                    if kept is None:
                        kept = np.empty((keep, *picture.shape), np.uint8)
                    if frames <= keep:
                        kept[frames - 1] = picture
            elif convert:
                frame.to_ndarray()
    return frames


def timed(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        BenchConfig,
        None,
        argv,
        "time reading clips beside PyAV's decoder",
        ["python -m avgen.data.media_bench", "python -m avgen.data.media_bench clips=folder size=[256,448]"],
        "python -m avgen.data.media_bench",
    )
    if config.clips is None:
        config.out.mkdir(parents=True, exist_ok=True)
        write_clip(config.out / "noise.mp4", moving(0, WindowShape(256, 448, 24.0, 10.0)))
        paths = [config.out / "noise.mp4"]
    else:
        paths = [record.path for record in read_manifest(config.clips)]
    console = Console(width=120)
    for path in paths:
        count = raw(path, True)
        ways: dict[str, Callable[[], Any]] = {
            "decode alone": partial(raw, path, False),
            "raw": partial(raw, path, True),
            "kept": partial(raw, path, True, count),
            "fast": partial(read_clip, path, size=config.size, chroma="fast", threads=1),
            "full": partial(read_clip, path, size=config.size, chroma="full", threads=1),
        }
        turns = [{name: timed(work) for name, work in ways.items()} for _ in range(config.repeats)]
        cost = {name: median(turn[name] for turn in turns) for name in ways}
        rates = [
            f"of {base}'s rate: "
            + ", ".join(f"{name} {median(turn[base] / turn[name] for turn in turns):.2f}" for name in ("fast", "full"))
            for base in ("raw", "kept")
        ]
        console.print(
            f"{path.name:<32} {count} frames: ms a frame "
            + ", ".join(f"{name} {1e3 * seconds / count:.3f}" for name, seconds in cost.items())
            + "; "
            + "; ".join(rates),
            highlight=False,
            soft_wrap=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
