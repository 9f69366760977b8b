"""`python -m avgen.data.prepare_bench`: how fast `avgen prepare` is here, and how busy it keeps the cores.

Clips of noise that moves are written once, then prepared by codecs of the real classes at random weights: by one
process with every core, by one that has a single core, and by one process per core. Clips can be spoilt on purpose.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from rich.console import Console

from avgen import command
from avgen.data.manifest import Captions, Record, write_manifest
from avgen.data.media import write_clip
from avgen.data.prepare import REPORT, Place, PrepareConfig, prepare
from avgen.data.windows import WindowRule, WindowShape
from avgen.models.codec_files import CodecConfig, CodecFiles
from avgen.ranks import cores
from avgen.types import Clip

LATE = ("lance.file", "lance.fragment", "av.video.reformatter", "scipy.signal", "avgen.models.opening")


@dataclass(frozen=True)
class BenchConfig:
    """Which clips, through which codecs."""

    out: Path = Path("runs/prepare_bench")  # folder of the clips, the codecs and the stores
    clips: int = 16  # files
    spoilt: int = 0  # so many of them cannot be read: the last ones
    height: int = 128  # pixels, of files and windows
    width: int = 224  # pixels
    fps: float = 16.0  # frames per second
    duration_s: float = 1.0  # seconds
    # wan: Wan 2.1's and Stable Audio's layers at an eighth of their width; patches: the embedded codecs, cheap ones
    kind: Literal["wan", "patches"] = "wan"
    readers: int = 2  # threads per process that decode media
    shard_clips: int = 2  # clips per shard

    def __post_init__(self) -> None:
        if not 0 <= self.spoilt < self.clips:
            raise ValueError(f"spoilt={self.spoilt} must be at least 0 and fewer than clips={self.clips}")

    @property
    def shape(self) -> WindowShape:
        return WindowShape(self.height, self.width, self.fps, self.duration_s)


@dataclass(frozen=True)
class Way:
    """How many processes share the work, and whether each has a core to itself."""

    name: str
    processes: int
    pinned: bool


def ways() -> tuple[Way, ...]:
    count = cores()
    several = (Way(f"{count} processes, a core each", count, True),) if count > 1 else ()
    return Way("1 process, every core", 1, False), Way("1 process, one core", 1, True), *several


def clips_in(folder: Path, config: BenchConfig) -> Path:
    """The manifest of the bench's clips, written where they are not there yet."""
    shape = config.shape
    about = json.dumps([config.clips, config.spoilt, shape.height, shape.width, shape.fps, shape.duration_s])
    made = folder / "made.json"
    if not made.exists() or made.read_text() != about:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number in range(config.clips):
            path = folder / f"{number:05d}.mp4"
            if number < config.clips - config.spoilt:
                write_clip(path, moving(number, shape))
            else:
                path.write_bytes(b"nothing that plays")
        records = [Record(path, captions=Captions(("noise that moves",))) for path in sorted(folder.glob("*.mp4"))]
        write_manifest(folder / "clips.jsonl", records)
        made.write_text(about)
    return folder / "clips.jsonl"


def moving(number: int, shape: WindowShape) -> Clip:
    """A field of soft noise that is shifted frame by frame, with noise to hear: hard enough for a decoder."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (shape.height // 8 + 8, shape.width // 8 + 8, 3), np.uint8)
    field_ = coarse.repeat(8, 0).repeat(8, 1)
    count = round(shape.fps * shape.duration_s)
    frames = np.stack([field_[i % 60 : i % 60 + shape.height, i % 56 : i % 56 + shape.width] for i in range(count)])
    wave = 0.1 * rng.standard_normal((2, round(44100 * shape.duration_s)))
    return Clip(frames, wave.astype(np.float32), shape.fps, 44100)


def codecs_in(folder: Path, kind: str) -> CodecConfig:
    """Codecs at random weights, saved as a user's would be."""
    torch.manual_seed(0)
    made: tuple[Any, Any]
    if kind == "wan":
        from diffusers import AutoencoderKLWan, AutoencoderOobleck

        made = AutoencoderKLWan(base_dim=12), AutoencoderOobleck(16, decoder_channels=16, decoder_input_channels=8)
    else:
        from avgen.models.embedded_audio import SpectralAudioCodec
        from avgen.models.embedded_video import PatchVideoCodec

        made = PatchVideoCodec(24), SpectralAudioCodec(32)
        for codec in made:
            codec.components.basis.normal_().mul_(0.05)
    for name, network in zip(("video", "audio"), made, strict=True):
        network.save_pretrained(folder / kind / name)
    return CodecConfig(*(CodecFiles(str(folder / kind / name)) for name in ("video", "audio")))


def work(config: PrepareConfig, place: Place, pinned: bool, start: Any, queue: Any) -> None:
    """One process's share, from when all are ready: when it began and ended, its CPU seconds and its exit code."""
    for module in LATE:  # what `prepare` imports when it first needs it is not what is timed
        import_module(module)
    if pinned:
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[place.rank % len(allowed)]})
    torch.set_num_threads(cores())
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        start.wait()
        before, began = sum(psutil.Process().cpu_times()[:2]), time.perf_counter()
        try:
            code = prepare(config, Console(file=nothing), place)
        except Exception as error:
            queue.put(error)
            raise
        queue.put((began, time.perf_counter(), sum(psutil.Process().cpu_times()[:2]) - before, code))


def measured(config: BenchConfig, way: Way, manifest: Path, codec: CodecConfig) -> dict[str, Any]:
    out = config.out / "latents"
    shutil.rmtree(out, ignore_errors=True)
    asked = PrepareConfig(
        manifest,
        out,
        WindowRule((config.shape,)),
        codec,
        shard_clips=config.shard_clips,
        readers=config.readers,
    )
    context = multiprocessing.get_context("spawn")
    start, queue = context.Barrier(way.processes), context.Queue()
    processes = [
        context.Process(target=work, args=(asked, Place(i, way.processes), way.pinned, start, queue))
        for i in range(way.processes)
    ]
    for process in processes:
        process.start()
    said = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    if failed := next((entry for entry in said if isinstance(entry, Exception)), None):
        raise failed
    began, ended, cpu, codes = zip(*said, strict=True)
    report = json.loads((out / REPORT).read_text())
    wall = max(ended) - min(began)
    owned = way.processes if way.pinned else cores()
    return {
        "windows/s": round(report["windows"] / wall, 2),
        "busy": round(sum(cpu) / (wall * owned), 3),
        "of cores": owned,
        "windows": report["windows"],
        "not readable": [entry["path"] for entry in report["lost"]],
        "exit codes": sorted(codes),
    }


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        BenchConfig,
        None,
        argv,
        "prepare clips of noise by one and several processes",
        [
            "python -m avgen.data.prepare_bench",
            "python -m avgen.data.prepare_bench kind=patches clips=1000 spoilt=1 shard_clips=64 height=64 width=64",
        ],
        "python -m avgen.data.prepare_bench",
    )
    console = Console()
    manifest, codec = clips_in(config.out / "clips", config), codecs_in(config.out / "codecs", config.kind)
    told = {way.name: measured(config, way, manifest, codec) for way in ways()}
    for name, found in told.items():
        about = ", ".join(Path(path).name for path in found["not readable"]) or "none"
        console.print(
            f"{name:<28} {found['windows/s']:>8} windows/s, {found['of cores']} cores {found['busy']:.0%} busy; "
            f"{found['windows']} windows, not readable: {about}, exit codes {found['exit codes']}",
            highlight=False,
            soft_wrap=True,
        )
    rates = [found["windows/s"] for found in told.values()]
    if len(rates) > 2:
        console.print(f"{cores()} processes are {rates[2] / rates[1]:.2f} times as fast as one", highlight=False)
    (config.out / "bench.json").write_text(json.dumps(told, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
