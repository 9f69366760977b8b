"""The demo's stages: each adds figures to one table and files to one folder.

The embedded world and the event reader, the embedded codecs, a model trained from nothing, what it makes of held-out
items, and its score on toybench; at last the page.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from avgen import __version__
from avgen.config import ConfigError, fingerprint, to_plain
from avgen.data.contact_sheet import Mark, contact_sheet
from avgen.data.media import read_clip, write_clip
from avgen.data.toybox import Toybox, ToyClip
from avgen.data.toybox.reader import Score, read_events, score
from avgen.demo.benched import toybench
from avgen.demo.config import DemoConfig
from avgen.demo.figures import Figure, figure_table, reader_row, reader_table
from avgen.demo.learned import Answers, examine, held_against_bars, together, train
from avgen.demo.page import write_page
from avgen.demo.showing import enlarged, varied
from avgen.lines import finite, read_whole, write_whole
from avgen.models.codec_report import onset_errors_s, psnr_db, spectral_convergence
from avgen.models.codecs import AudioCodec, VideoCodec
from avgen.models.fit_codecs import fit_folder, load_or_fit
from avgen.sample.scores import Found
from avgen.sample.scores import plain as plain_scores
from avgen.sample.scores import table as scores_table
from avgen.train.config import TrainConfig
from avgen.types import Clip


@dataclass
class Workshop:
    """What the stages hand on to each other."""

    config: DemoConfig
    console: Console
    test: Sequence[ToyClip] = ()
    codecs: tuple[VideoCodec, AudioCodec] | None = None
    decoded: Sequence[Clip] = ()  # the test clips after encode and decode
    scores: dict[str, Score] = field(default_factory=dict)
    run: TrainConfig | None = None  # of the trained model
    answered: Sequence[Answers] = ()  # what it made of held-out items
    bench: Path | None = None  # the page of its clips for toybench

    def each(self, items: Sequence[Any], doing: str) -> Iterable[Any]:
        return track(items, doing, console=self.console, transient=True)


def run(config: DemoConfig, console: Console) -> list[Figure]:
    """All stages in order; writes clips, contact sheet and figures.json under config.out."""
    keep_full(config)
    config.out.mkdir(parents=True, exist_ok=True)
    shop = Workshop(config, console)
    figures: list[Figure] = []
    for stage in STAGES:
        figures += stage(shop)
    page = write_all(shop, figures)  # toybench takes long: what there is can be looked at meanwhile
    console.print(f"So far: [bold]{page}[/bold]")
    figures += bench_stage(shop)
    page = write_all(shop, figures)
    console.print(reader_table(shop.scores))
    console.print(scores_table(together(shop.answered)))
    console.print(figure_table(figures, shop.bench))
    console.print(
        f"Clips, contact sheet and figures.json are in [bold]{config.out}[/bold]; look at [bold]{page}[/bold]."
    )
    if config.quick:
        console.print("quick=true: too few clips for these figures to mean much.")
    return figures


def keep_full(config: DemoConfig) -> None:
    """What took an hour is not replaced by what means nothing."""
    before = read_whole(config.out / "figures.json")
    if config.quick and before is not None and not before["config"]["quick"]:
        raise ConfigError("out", f"{config.out} holds the figures of a full demo: give quick=true another out=")


def write_all(shop: Workshop, figures: Sequence[Figure]) -> Path:
    """figures.json and the page, which is returned."""
    config = shop.config
    write_figures(config, figures, shop.scores, together(shop.answered))
    model = f"recipe={config.recipe}, {shop.run.steps:,} steps, in {shop.run.out}" if shop.run else ""
    return write_page(config.out, figures, shop.answered, model, config.quick, shop.bench)


def world_stage(shop: Workshop) -> list[Figure]:
    """Render the unseen clips and read them back as they are."""
    config = shop.config
    train = Toybox(config.world, "train", config.seed)
    speed = rendering_speed(train)
    test = Toybox(config.world, "test", config.seed)
    shop.test = [test[i] for i in range(config.test_clips)]
    shop.scores["as rendered"] = read_all(shop, [item.clip for item in shop.test], "reading events")
    return [Figure("clips rendered per second and core", speed, "1/s", at_least=300)]


def media_stage(shop: Workshop) -> list[Figure]:
    """The same clips through H.264 and AAC."""
    through = []
    with TemporaryDirectory() as folder:  # not in config.out: a kill leaves it behind
        for i, item in enumerate(shop.each(shop.test, "writing and reading mp4")):
            path = Path(folder) / f"{i:04d}.mp4"
            write_clip(path, item.clip)
            through.append(read_back(path, item.clip))
    shop.scores["after H.264 + AAC"] = read_all(shop, through, "reading events")
    return []


def codec_stage(shop: Workshop) -> list[Figure]:
    """Fit the embedded codecs (or load the fit made before), decode what they encode, and show it."""
    video, audio, fit_s = fitted(shop.config, shop.console)
    shop.codecs = (video, audio)
    originals = [item.clip for item in shop.test]
    started = time.perf_counter()
    shop.decoded = through_codecs(originals, video, audio)
    each_ms = 1000 * (time.perf_counter() - started) / len(originals)
    shop.scores["after the codecs"] = read_all(shop, shop.decoded, "reading events")
    kept = shop.scores["after the codecs"].sync.f1 / shop.scores["as rendered"].sync.f1
    truths, made = waves_of(originals), waves_of(shop.decoded)
    psnr = [psnr_db(a, b) for a, b in zip(frames_of(originals), frames_of(shop.decoded), strict=True)]
    audible = [i for i, wave in enumerate(truths) if wave.any()]
    convergence = [spectral_convergence(truths[i], made[i]) for i in audible]
    onsets_s = np.concatenate([np.zeros(0), *(onset_errors_s(truths[i], made[i], shop.test[i]) for i in audible)])
    tokens = video.encode(frames_of(originals[:1])).mean[0, 0].numel()
    sounds = audio.encode(waves_of(originals[:1])).mean[0, 0].numel()
    show(shop)
    return [
        Figure("codecs: time to fit", fit_s, "s", at_most=60),
        Figure("codecs: video tokens per clip", tokens),
        Figure("codecs: audio tokens per clip", sounds),
        Figure("codecs: encode and decode, both streams, per clip", each_ms, "ms"),
        Figure("codecs: picture PSNR, mean over clips", float(np.mean(psnr)), "dB", at_least=28),
        Figure("codecs: sound, spectral convergence (0 = same)", float(np.mean(convergence))),
        Figure("codecs: sound, onset error, median", 1000 * float(np.median(np.abs(onsets_s))), "ms"),
        Figure("codecs: share of the events' sync F1 kept", kept, at_least=0.95),
    ]


def train_stage(shop: Workshop) -> list[Figure]:
    """Train the recipe's model, or go on, or take the one that was trained before with the same settings."""
    shop.run, seconds = train(shop.config, shop.console)
    return [Figure("model: time to train", seconds / 60, "min", at_most=MOST_MINUTES.get(shop.config.recipe))]


def sample_stage(shop: Workshop) -> list[Figure]:
    """Text, first frame, picture or sound of held-out items to clips, and what the reader makes of them."""
    assert shop.run is not None
    shop.answered, seconds = examine(shop.config, shop.run, shop.console)
    speed = Figure("model: clips made and read per minute", 60 / seconds, "1/min")
    return [speed, *held_against_bars(shop.config.recipe, together(shop.answered))]


def bench_stage(shop: Workshop) -> list[Figure]:
    """The same model on eval's suite for this world: every metric with its error bars, on a page of its own."""
    assert shop.run is not None
    found = toybench(shop.config, shop.run, shop.console)
    shop.bench = found.page
    return list(found.figures)


STAGES: tuple[Callable[[Workshop], list[Figure]], ...] = (
    world_stage,
    media_stage,
    codec_stage,
    train_stage,
    sample_stage,
)
MOST_MINUTES = {"toybox": 10.0, "toybox_long": 60.0}  # of training, on two cores


def rendering_speed(world: Toybox, clips: int = 100, repeats: int = 3) -> float:
    """Whole items per second of one core's own time, the best of a few tries: neighbours slow the others."""
    world[0]
    spent = []
    for repeat in range(repeats):
        started = time.process_time()
        for i in range(clips):
            world[repeat * clips + i]
        spent.append(time.process_time() - started)
    return clips / min(spent)


def read_all(shop: Workshop, clips: Sequence[Clip], doing: str) -> Score:
    """The reader's score over all test clips, each against its own truth."""
    total = Score()
    for item, clip in shop.each(list(zip(shop.test, clips, strict=True)), doing):
        total += score(read_events(clip), item.events)
    return total


def read_back(path: Path, like: Clip) -> Clip:
    """A file as a clip of the same form as the one that was written."""
    assert like.video is not None
    assert like.audio is not None
    return read_clip(
        path,
        0,
        like.video_duration_s,
        fps=like.fps,
        size=like.video.shape[1:3],
        sample_rate_hz=like.sample_rate_hz,
        channels=len(like.audio),
    ).clip


def fitted(config: DemoConfig, console: Console) -> tuple[VideoCodec, AudioCodec, float]:
    """Codecs for this world, and the seconds that fitting them took, now or before."""
    cache = config.out / "codecs"
    folder = fit_folder(cache, config.world, config.fit_clips, config.seed)
    if folder.exists() and config.refit:
        shutil.rmtree(folder)
    doing = f"loading {folder}" if folder.exists() else f"fitting the codecs to {config.fit_clips} clips"
    with console.status(doing):
        video, audio = load_or_fit(cache, config.world, config.fit_clips, config.seed)
    return video, audio, float(json.loads((folder / "fit.json").read_text())["seconds"])


def frames_of(clips: Sequence[Clip]) -> Tensor:
    return torch.from_numpy(np.stack([clip.video for clip in clips if clip.video is not None]))


def waves_of(clips: Sequence[Clip]) -> Tensor:
    return torch.from_numpy(np.stack([clip.audio for clip in clips if clip.audio is not None]))


@torch.inference_mode()
def through_codecs(clips: Sequence[Clip], video: VideoCodec, audio: AudioCodec, batch: int = 16) -> list[Clip]:
    """Each clip encoded and decoded, cut to its own length."""
    done = []
    for begin in range(0, len(clips), batch):
        part = clips[begin : begin + batch]
        frames = video.decode(video.encode(frames_of(part)).mean).numpy()
        waves = audio.decode(audio.encode(waves_of(part)).mean).numpy()
        for clip, picture, sound in zip(part, frames, waves, strict=True):
            assert clip.video is not None
            assert clip.audio is not None
            done.append(replace(clip, video=picture[: len(clip.video)], audio=sound[:, : clip.audio.shape[1]]))
    return done


def show(shop: Workshop) -> None:
    """A few unseen clips as files (left original, right decoded; in sound too) and as one picture."""
    config = shop.config
    clips: list[Clip] = []
    captions: list[str] = []
    marks: list[list[Mark]] = []
    for i in varied(shop.test, config.shown_clips):
        item, decoded = shop.test[i], shop.decoded[i]
        write_clip(config.out / f"clip_{i:02d}.mp4", side_by_side(item.clip, decoded))
        known = [Mark(event.instant_s) for event in item.events]
        read = [Mark(event.instant_s) for event in read_events(decoded).heard]
        clips += [item.clip, decoded]
        captions += [item.caption, "after encode and decode; marks are what the reader hears"]
        marks += [known, read]
    contact_sheet(clips, captions, marks).save(config.out / "contact_sheet.png", optimize=True)


def side_by_side(left: Clip, right: Clip) -> Clip:
    """Both pictures in one, enlarged; the left clip's sound on the left."""
    assert left.video is not None
    assert right.video is not None
    picture = np.concatenate([left.video, right.video], axis=2)
    sound = np.stack([waves_of([clip])[0].mean(0).numpy() for clip in (left, right)])
    return enlarged(replace(left, video=picture, audio=sound))


def write_figures(config: DemoConfig, figures: Sequence[Figure], scores: dict[str, Score], found: Found) -> None:
    """figures.json: every number of all tables, and what made them; null where there was nothing to count."""
    said = {
        "schema": 1,
        "avgen": __version__,
        "config": to_plain(config),
        "fingerprint": fingerprint(config),
        "figures": [{**finite(asdict(figure)), "met": figure.met} for figure in figures],
        "reader": finite({name: reader_row(read) for name, read in scores.items()}),
        "scores": plain_scores(found),
    }
    write_whole(config.out / "figures.json", json.dumps(said, indent=2, allow_nan=False) + "\n")
