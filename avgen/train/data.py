"""What a run reads, from its configuration: the source, the order of its clips, and the clips it is judged by."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from avgen.config import ConfigError, build, fingerprint
from avgen.data.buckets import Schedule, grouped, uniform_of
from avgen.data.store import Store, StoreError
from avgen.data.store_source import Part, Rows, StoreSource, check_alike, cut_captions, mixed
from avgen.data.stream import Order, Source
from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.data.toybox_source import Gaps, ToyboxSource, mixture
from avgen.models.codec_files import CodecConfig
from avgen.models.codecs import AudioCodec, VideoCodec
from avgen.models.embedded_audio import SpectralAudioCodec
from avgen.models.embedded_video import PatchVideoCodec
from avgen.models.fit_codecs import fit_folder, load_or_fit, open_fit
from avgen.models.identity import folder_mark
from avgen.prefer.pairs import read_pairs
from avgen.train.checkpoint import checkpoints
from avgen.train.config import TrainConfig
from avgen.train.data_config import PairsData, StoreData, ToyboxData

if TYPE_CHECKING:
    from avgen.prefer.source import PairSource

Item = TypeVar("Item")

VERSION = re.compile("-v[^-]*$")  # of a fit's name, what says how it was made rather than of what
READ = "reads.json"  # in a run's folder: fingerprints of what it reads


@dataclass(frozen=True)
class Reading:
    """A run's data."""

    source: Source
    order: Order
    held_out: Source
    codecs: tuple[VideoCodec, AudioCodec] | None  # of the latents, where samples are to be made
    judges: PairSource | None = None  # held-out pairs, where a run learns from pairs
    said: tuple[str, ...] = ()  # what a person should know of it


def reading(config: TrainConfig) -> Reading:
    if isinstance(config.data, StoreData):
        return of_stores(config, config.data)
    if isinstance(config.data, PairsData):
        return of_pairs(config, config.data)
    return of_toybox(config, config.data)


def of_toybox(config: TrainConfig, data: ToyboxData) -> Reading:
    video, audio = fitted(data, config.out, begins=config)
    worlds = worlds_of(config, data, video, audio)
    source, order = mixture(worlds, config.batch, data.step_tokens, data.mixed_fps, config.seed)
    return Reading(source, order, unseen(config, data, video, audio), (video, audio))


def unseen(config: TrainConfig, data: ToyboxData, video: VideoCodec, audio: AudioCodec) -> ToyboxSource:
    """What a run on the toybox is judged by."""
    world = Toybox(data.worlds[0], "test", config.seed)
    return ToyboxSource(world, video, audio, max_caption_bytes=config.model.text.max_length)


def fitted(
    data: ToyboxData, out: Path, begins: TrainConfig | None = None, beside: Path | None = None
) -> tuple[PatchVideoCodec, SpectralAudioCodec]:
    """The codecs of the run in `out`: those it was begun with, whatever this version would fit to the same clips.

    They are fitted for a run that begins. For one that has learned they are found, in `beside` or in data.codecs:
    fitted on another machine they would be others, within rounding.
    """
    now = fit_folder(data.codecs, data.fitted_world, data.fit_clips)
    then = now
    if (out / READ).is_file():
        [named], _ = read_by(out)
        if begins is None or VERSION.sub("", named) == VERSION.sub("", now.name):
            then = now.with_name(named)
    if begins is not None:
        go_on_with(begins, "data", "latents of the codecs", [then.name], "")
        if then == now:
            return load_or_fit(data.codecs, data.fitted_world, data.fit_clips)
    if beside is not None and (beside / then.name).is_dir():
        then = beside / then.name
    if not then.is_dir():
        fits = "" if then.name == now.name else f", and this version fits {now.name}"
        raise ConfigError(
            "data.codecs",
            f"the model in {out} learned latents of {then.absolute()}, which is not there{fits}: put that "
            "folder back, or train again with another out=",
        )
    return open_fit(then)


def worlds_of(config: TrainConfig, data: ToyboxData, video: VideoCodec, audio: AudioCodec) -> list[ToyboxSource]:
    """What training reads, per shape."""
    gaps = Gaps(data.mute_share, data.blind_share, data.short_audio_share, config.seed, data.late_share)

    def drawn(world: ToyboxConfig) -> Toybox:
        return Toybox(world, "train", config.seed)

    return [
        ToyboxSource(
            drawn(world),
            video,
            audio,
            gaps,
            config.model.text.max_length,
            tuple((s.until * config.steps, drawn(replace(world, scene_weights=s.weights))) for s in data.scene_stages),
        )
        for world in data.worlds
    ]


def of_stores(config: TrainConfig, data: StoreData) -> Reading:
    share = 0.0 if data.held_out else data.held_out_share
    parts = [Part(Store.open(data.path), 1.0, share)]
    parts += [Part(Store.open(more.path), more.weight, share) for more in data.mix]
    judge = None if data.held_out is None else Store.open(data.held_out)
    check_model(config, parts[0].store)
    read = config.model.text.max_length
    without = frozenset(() if judge is None else judge.files()[0])
    source, order, away = mixed(parts, config.batch, data.step_tokens, data.mixed_fps, config.seed, read, without)
    said = [f"{len(away)} windows are not trained on: their files are in {data.held_out}"] if without and away else []
    cut, longest = cut_captions([part.store for part in parts], read)
    if cut:
        said.append(
            f"{cut} captions are cut to the {read - 1} bytes that model.text.max_length={read} reads: the longest has "
            f"{longest}"
        )
    away = [row for row in away if row < parts[0].store.totals.rows]  # a mix is judged by its first store
    if judge is not None:
        check_alike([parts[0].store, judge])
        held_out = Rows(StoreSource((judge,), max_caption_bytes=read), judged(judge, range(judge.totals.rows)))
        named = f"the store {data.held_out}"
    else:
        held_out = Rows(source, judged(parts[0].store, away))  # of the first store, whose rows are counted first
        named = f"held_out_share={data.held_out_share} of {data.path}"
    key, asked = most_shown(config)
    if len(held_out.indices) < asked:
        raise ConfigError(
            key,
            f"{asked} windows are asked for, but {named} holds {len(held_out.indices)}: lower {key}, or raise "
            "data.held_out_share",
        )
    # what is read decides, not where it lies: a store may be moved between two legs of a run
    kept_out = f"held_out_share={share}" if judge is None else f"held_out={judge.fingerprint}"
    known = go_on_with(config, "data.path", "the stores", [part.store.fingerprint for part in parts], kept_out)
    if not known and judge is None:
        said.append(
            f"the run in {config.out} was begun by an earlier version, which held out other clips: it may have learnt "
            "from some that judge it from now on"
        )
    codecs = codecs_of(parts[0].store) if config.samples.every else None
    return Reading(source, order, held_out, codecs, said=tuple(said))


def of_pairs(config: TrainConfig, data: PairsData) -> Reading:
    """The pairs' clips through the codecs of what made them; whole prompts are held out."""
    from avgen.prefer.source import Couples, Latents, PairSource, Winners, encode, shape_of
    from avgen.sample.folder import open_pipeline

    pairs = read_pairs(data.pairs)
    folder = data.pairs if data.pairs.is_dir() else data.pairs.parent
    assert config.start is not None, "preference improves a trained model"
    if not (config.start / "config.json").is_file():
        raise ConfigError("start", f"{config.start} holds no model (config.json): give the model/ of a training run")
    pipeline = open_pipeline(data.pipeline)
    if (pipeline.config.predict, pipeline.model.spec.text) != (config.flow.predict, config.model.text):
        raise ConfigError(
            "data.pipeline", f"{data.pipeline} predicts or reads captions otherwise than model= and flow= say"
        )
    latents = Latents.of(pipeline, data.latents or folder / "latents")
    read_now = [fingerprint(pairs), folder_mark(config.start), latents.encoders]
    kept_out = f"held_out_share={data.held_out_share} of captions"
    # earlier versions did not note the codecs
    go_on_with(config, "data.pairs", "pairs, start weights and codecs", read_now, kept_out, unnoted=1)
    pipeline.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu")
    encode(pairs, folder, pipeline, latents, int(os.environ.get("RANK", 0)) / int(os.environ.get("WORLD_SIZE", 1)))
    # by what is said and what is shown: a caption may stand under several ids, a real clip beside several captions
    away = [pair for pair in pairs if uniform_of("held-out pairs", pair.text) < data.held_out_share]
    unseen = {side.sha256 for pair in away for side in (pair.winner, pair.loser)}
    captions = {pair.text for pair in away}
    read = tuple(p for p in pairs if p.text not in captions and not unseen & {p.winner.sha256, p.loser.sha256})
    judges = in_rounds(away, lambda pair: pair.text)
    key, asked = most_shown(config)
    found = f"held_out_share={data.held_out_share} of {data.pairs} leaves {len(judges)} pairs to judge by"
    if not judges or not read:
        raise ConfigError("data.held_out_share", f"{found} and {len(read)} to read: change it, or mine more")
    if len(judges) < asked:
        raise ConfigError(key, f"{asked} clips are asked for, but {found}: lower {key}, or mine more")
    # what is read together is of one shape; how many tokens that makes is of no concern without a budget
    buckets, _ = grouped([shape_of(pair) for pair in read], lambda shape: 1)
    order = Couples(Schedule(buckets, config.batch // 2, seed=config.seed))
    codecs = pipeline.video_codec.cpu(), pipeline.audio_codec.cpu()  # type: ignore[attr-defined]
    return Reading(PairSource(read, latents), order, Winners(judges, latents), codecs, PairSource(judges, latents))


def most_shown(config: TrainConfig) -> tuple[str, int]:
    """How many held-out clips are needed, and the key that says so."""
    wanted = {"validation_clips": config.validation_clips}
    if config.samples.every:
        wanted["samples.clips"] = config.samples.clips
    if config.preference is not None and config.preference.cheating.every:
        wanted["preference.cheating.prompts"] = config.preference.cheating.prompts
    return max(wanted.items(), key=lambda asked: asked[1])


def judged(store: Store, rows: Sequence[int]) -> tuple[int, ...]:
    """Held-out rows in the order in which they judge: a window of every file, then another, files as if shuffled.

    A store lists its sources one after another, and of a file several windows together: the first rows of it would be a
    few files of one source.
    """
    paths = store.take(rows, ["path"])["path"].to_pylist()
    items = list(zip(paths, rows, strict=True))
    items.sort(key=lambda item: (uniform_of("files to judge by", item[0]), uniform_of("windows to judge by", item[1])))
    return tuple(row for _, row in in_rounds(items, lambda item: item[0]))


def in_rounds(items: Sequence[Item], group: Callable[[Item], Hashable]) -> tuple[Item, ...]:
    """One of every group, then another of every group that has one, and so on: the first few are of many groups."""
    counted: Counter[Hashable] = Counter()
    rounds = []
    for item in items:
        rounds.append(counted[group(item)])
        counted[group(item)] += 1
    return tuple(items[i] for i in sorted(range(len(items)), key=rounds.__getitem__))


def codecs_of(store: Store) -> tuple[VideoCodec, AudioCodec]:
    """The codecs that a store was made with, the very same: its latents mean nothing to others."""
    from avgen.models.opening import open_audio_codec, open_video_codec

    files = build(CodecConfig, store.header.codec)
    if files.video is None or files.audio is None:
        raise StoreError(f"{store.path} holds one modality alone, and made clips have both: train with samples.every=0")
    video, audio = open_video_codec(files.video), open_audio_codec(files.audio)
    for name, codec in (("video", video), ("audio", audio)):
        store.refuse_unless_made_by(name, codec.fingerprint, getattr(files, name).path)
    return video, audio


def go_on_with(config: TrainConfig, key: str, what: str, read: Sequence[str], held_out: str, unnoted: int = 0) -> bool:
    """A run reads the same from its first step to its last, or its steps are not those it began with; and it is judged
    by what it never read. False where nobody can tell: earlier versions did not write down what they held out, nor the
    last `unnoted` of what they read."""
    path = config.out / READ
    begun = path.exists() and checkpoints(config.out / "checkpoints")
    if not begun:  # every process writes it, and each the same
        config.out.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        draft.write_text(json.dumps({"read": list(read), "held_out": held_out}))
        draft.replace(path)
        return True
    before, judged = read_by(config.out)
    if before not in (list(read), list(read)[: len(read) - unnoted]):
        raise ConfigError(
            key,
            f"the run in {config.out} has read {what} {', '.join(before)}, these are {', '.join(read)}: give those "
            "it began with, or another out= (start= goes on from its weights)",
        )
    if judged not in (None, held_out):
        raise ConfigError(
            f"data.{held_out.partition('=')[0]}",
            f"the run in {config.out} began with {judged}, now it is {held_out}: it would be judged by clips that it "
            "has learnt from. Give what it began with, or another out= (start= goes on from its weights)",
        )
    return judged is not None


def read_by(out: Path) -> tuple[list[str], str | None]:
    """Fingerprints of what the run in `out` reads, and what it holds out; None of runs that did not say so."""
    found = json.loads((out / READ).read_text())
    return (found, None) if isinstance(found, list) else (found["read"], found["held_out"])


def check_model(config: TrainConfig, store: Store) -> None:
    """The model must take the store's numbers."""
    video, audio = store.header.video, store.header.audio
    made = {"video": video and video.token_channels, "audio": audio and audio.channels}
    for m, tower in config.model.towers.items():
        if made[m] not in (None, tower.channels):
            raise ConfigError(
                f"model.{m}.channels",
                f"{tower.channels} is not what {store.path} holds: its {m} codec makes tokens of {made[m]} numbers",
            )
    width, text = store.header.text_width, config.model.text
    if width is None and text.kind == "features":
        raise ConfigError(
            "model.text.kind",
            f"features are asked for, but {store.path} was prepared without a text encoder: prepare it with text=..., "
            "or set model.text.kind=bytes",
        )
    if width is not None and text.kind == "bytes":
        raise ConfigError(
            "model.text.kind", f"bytes are asked for, but {store.path} holds features: set model.text.kind=features"
        )
    if width is not None and text.width != width:
        raise ConfigError("model.text.width", f"{text.width} is not the {width} of the features in {store.path}")
