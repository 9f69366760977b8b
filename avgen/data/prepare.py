"""`avgen prepare clips.csv codec=... out=latents`, `accelerate launch -m avgen.data.prepare ...`: clips to a store.

Each process takes its own shards, a fixed range of clips each, and the last one to finish makes the store whole; they
need not talk to each other, so they may start late, die and come back on any machine that sees the folder.

Exit code 0: every clip is in the store. 3: some could not be read (report.json names them). 2: the call was wrong.
Behind torchrun and accelerate it is theirs: 1 for either of these.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch

from avgen import __version__, command
from avgen.config import ConfigError, at_least_one, fingerprint, to_plain
from avgen.data.encode import Encoders, Media, NotFinite, looked_at, read_media
from avgen.data.manifest import BadRow, Record, manifest_file, scan_manifest
from avgen.data.media import MediaError
from avgen.data.store import Header, Store, StoreError, check_installed
from avgen.data.store_write import Lost, Notes, ShardRecord, StoreWriter, row_batch, whole_file
from avgen.data.tables import encodable, legible
from avgen.data.windows import Cut, WindowRule
from avgen.models.codec_files import CodecConfig
from avgen.models.text_files import TextFiles

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
R = TypeVar("R")

REPORT = "report.json"
CAPTIONS = "captions"  # in the store's folder until it is finished
CLIP_TROUBLE = (MediaError, OSError, NotFinite)  # of one clip alone; a shard without one good clip ends the command
EXAMPLES = (
    "avgen prepare clips.csv out=latents 'windows.shapes=[{height: 32, width: 32, fps: 8, duration_s: 2}]'",
    "avgen prepare clips.csv codec=wan21 text.path=google/umt5-xxl out=latents verify=true ...",
    "torchrun --nproc_per_node 8 -m avgen.data.prepare clips.csv codec=wan21 out=latents ...",
)


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare, and how."""

    manifest: Path  # csv, tsv, jsonl, parquet or a folder of clips; `avgen prepare clips.csv` names it too
    out: Path  # folder of the store
    windows: WindowRule
    codec: CodecConfig
    text: TextFiles | None = None  # encoder of captions; null: captions are kept as text, for models that read bytes
    shard_clips: int = 64  # clips per shard: what a kill can cost, and what one process takes at a time
    readers: int = 2  # threads per process that decode media ahead of the codecs
    retry: bool = False  # prepare shards anew in which clips could not be read
    verify: bool = False  # decode some windows back and write verify/index.html to look at
    verify_windows: int = 6  # so many, spread over the store

    def __post_init__(self) -> None:
        at_least_one(self, "shard_clips", "readers", "verify_windows")
        if self.codec.video is None and self.codec.audio is None:
            raise ValueError("codec.video and codec.audio are both null: give at least one codec")


@dataclass(frozen=True)
class Place:
    """This process among those that prepare one store."""

    rank: int = 0
    ranks: int = 1
    local: int = 0  # among those of its machine

    @classmethod
    def here(cls) -> Place:
        """As torchrun and accelerate say, else srun; no process group is needed.

        SLURM_STEP_NUM_TASKS is srun's alone: in an sbatch script one process would prepare 1/SLURM_NTASKS of the clips.
        """
        for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")):
            if all(name in os.environ for name in names):
                return cls(*(int(os.environ[name]) for name in names))
        return cls()

    @property
    def device(self) -> torch.device:
        """Its GPU, of those that it sees: all of the machine's, or under `srun --gpus-per-task=1` its own alone."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local % torch.cuda.device_count())


@dataclass
class Pace:
    """What the work costs, as it goes."""

    began: float = field(default_factory=time.perf_counter)
    windows: int = 0
    media_s: float = 0.0  # seconds of clips prepared
    waited_s: float = 0.0  # that the codecs waited for media
    cpu_before: float = field(default_factory=lambda: sum(psutil.Process().cpu_times()[:2]))

    def said(self) -> str:
        wall = max(time.perf_counter() - self.began, 1e-9)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        busy = (sum(psutil.Process().cpu_times()[:2]) - self.cpu_before) / wall
        return (
            f"{self.windows / wall:.2f} windows/s, {self.media_s / wall:.2f} s of clips per second; the codecs waited "
            f"{self.waited_s / wall:.0%} of the time; {busy:.2f} of {cores} cores busy"
        )


def main(argv: list[str] | None = None) -> int:
    from rich.console import Console

    words = sys.argv[1:] if argv is None else argv
    # `avgen prepare clips.csv`: what is no key=value and no option is the manifest
    named = [w if "=" in w or w.startswith("-") or w == "help" else f"manifest={w}" for w in words]
    config = command.configure(
        PrepareConfig, "prepare", named, "encode clips once, into a store that training reads", EXAMPLES
    )
    return prepare(config, Console(stderr=True), Place.here())


def prepare(config: PrepareConfig, console: Console, place: Place) -> int:
    """This process's share of the store, and the whole of it if nothing else is missing."""
    check_installed()  # before codecs are fetched and opened
    # a file is known by its path: one spelling of it, wherever the command was given
    config = replace(config, manifest=Path(os.path.normpath(config.manifest.absolute())))
    listed = looked_through(config.manifest, config.shard_clips)
    if place.rank == 0 and listed.odd:
        console.print(f"{config.manifest}: {listed.odd}", highlight=False, markup=False, soft_wrap=True)
    encoders = opened(config, place.device)
    made_by = {"windows": fingerprint(config.windows), "clips": listed.fingerprint}
    text = None if config.text is None else replace(config.text, cache=None)
    header = encoders.header(config.windows, made_by, to_plain(config.codec), to_plain(text))
    check_shapes(config, header)
    writer = StoreWriter.begin(config.out, header, len(listed.marks), config.shard_clips)
    mine = range(place.rank, writer.shards, place.ranks)
    if config.retry:
        writer.reopen([shard for shard in mine if (found := writer.record(shard)) and found.lost])
    todo = [shard for shard in mine if writer.record(shard) is None]
    pace = Pace()
    with ThreadPoolExecutor(config.readers) as pool, progress(console) as bar:
        task = bar.add_task(
            "preparing", total=len(mine) * config.shard_clips, completed=(len(mine) - len(todo)) * config.shard_clips
        )
        try:
            for shard, records in shards(config, listed, todo):
                if writer.record(shard) is not None:  # by a process that was started for the same shards elsewhere
                    bar.advance(task, config.shard_clips)
                    continue
                made = write_shard(writer, encoders, config, pool, pace, shard, records, lambda: bar.advance(task))
                bar.advance(task, config.shard_clips - len(records))
                if not console.is_terminal:
                    console.print(
                        f"shard {shard + 1} of {writer.shards}: {made.rows} windows; {pace.said()}", soft_wrap=True
                    )
        finally:
            pool.shutdown(cancel_futures=True)
    if todo:
        console.print(pace.said(), highlight=False, soft_wrap=True)
    if missing := to_retry(writer) if config.retry else writer.missing():
        console.print(
            f"{config.out}: process {place.rank} of {place.ranks} is done; {writer.shards - len(missing)} of "
            f"{writer.shards} shards are there, other processes are at work",
            soft_wrap=True,
        )
        return 0
    return finish(writer, config, encoders, listed, pace, console)


def to_retry(writer: StoreWriter) -> list[int]:
    """Shards that are missing, or lost clips and were not prepared again since the store was finished.

    Those of another process too: to finish without them would end with code 3, at which torchrun stops that process.
    """
    report = writer.folder / REPORT
    finished_at = report.stat().st_mtime_ns if report.exists() else 0

    def waits(shard: int) -> bool:
        try:
            found = writer.record(shard)
            return found is None or (bool(found.lost) and writer.made_at(shard) <= finished_at)
        except FileNotFoundError:  # its process has just begun
            return True

    return [shard for shard in range(writer.shards) if waits(shard)]


def finish(
    writer: StoreWriter, config: PrepareConfig, encoders: Encoders, listed: Listed, pace: Pace, console: Console
) -> int:
    """The commit, the report, and a look at the result if wanted."""
    records = [record for shard in range(writer.shards) if (record := writer.record(shard)) is not None]
    if (clips := sum(record.clips for record in records)) != listed.rows:  # begun before store.json told shard_clips
        raise StoreError(
            f"{config.out} holds {clips} clips of {listed.rows} in the list: its shards were prepared with different "
            "shard_clips. Delete it, or give another out="
        )
    lost = [entry for record in records for entry in record.lost]
    report = {
        "clips": clips,
        "windows": sum(record.rows for record in records),
        "bytes": sum(record.bytes for record in records),
        "lost": [asdict(entry) for entry in lost],
        "unused": [asdict(entry) for record in records for entry in record.unused],
        "avgen": __version__,
        "config": to_plain(config),
        "pace": pace.said(),
    }
    with whole_file(config.out / REPORT) as part:
        part.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    writer.commit()
    shutil.rmtree(config.out / CAPTIONS, ignore_errors=True)  # the features are in the rows
    store = Store.open(config.out)
    console.print(told(store, report), highlight=False, markup=False, soft_wrap=True)
    for entry in lost[:10]:
        at = "" if entry.start_s is None else f" at {entry.start_s:g} s"
        console.print(f"not prepared: {entry.path}{at}: {entry.reason}", highlight=False, soft_wrap=True, markup=False)
    if len(lost) > 10:
        console.print(f"... and {len(lost) - 10} more: {config.out / REPORT} names them all")
    if config.verify:
        from avgen.data.verify import verify

        page = verify(store, encoders, config.manifest, config.verify_windows, config.out / "verify")
        console.print(f"look at {page}", soft_wrap=True)
    return command.INCOMPLETE if lost else 0


def told(store: Store, report: dict[str, Any]) -> str:
    rows = Counter(store.column("bucket").tolist())
    lines = [f"{store.path}: {store.totals.rows} windows of {report['clips']} clips, {report['bytes'] / 2**20:.1f} MiB"]
    for bucket, count in sorted(rows.items()):
        shape = store.header.shapes[bucket]
        size = "sound alone" if shape.height is None else f"{shape.height} x {shape.width} at {shape.fps:g} fps"
        mute = "" if shape.audio else ", without sound"
        lines.append(f"  {count} of {size}, {shape.duration_s:g} s{mute}: {store.header.tokens(shape)} tokens each")
    if report["unused"]:
        lines.append(
            f"  {len(report['unused'])} clips have no window, such as {report['unused'][0]['path']}: "
            f"{report['unused'][0]['reason']}"
        )
    return "\n".join(lines)


def opened(config: PrepareConfig, device: torch.device) -> Encoders:
    from avgen.models.opening import open_audio_codec, open_video_codec

    video = open_video_codec(config.codec.video) if config.codec.video else None
    audio = open_audio_codec(config.codec.audio) if config.codec.audio else None
    text = None
    if config.text is not None:
        from avgen.models.caption_cache import CachedText
        from avgen.models.encoders import open_text

        text = CachedText(open_text(config.text, device), config.text.cache or config.out / CAPTIONS)
    for codec in (video, audio):
        if isinstance(codec, torch.nn.Module):
            codec.to(device)
    return Encoders(video, audio, text, device)


def check_shapes(config: PrepareConfig, header: Header) -> None:
    """Pictures must be whole tokens."""
    if header.video is None:
        return
    side = header.video.pixels_per_token
    for number, shape in enumerate(config.windows.shapes):
        if shape.height % side or shape.width % side:
            raise ConfigError(
                f"windows.shapes.{number}", f"{shape.height} x {shape.width} pixels: both must be multiples of {side}"
            )


@dataclass(frozen=True)
class Listed:
    """What a manifest lists."""

    rows: int
    marks: tuple[str, ...]  # per shard the hash of the list up to its end: where clips lie and what is said of them
    odd: str  # what a person should know of it: it may be a column by another name

    @property
    def fingerprint(self) -> str:
        return self.marks[-1]


def hashed(record: Record | BadRow) -> bytes:
    """What of a row decides what is prepared: not where in the list it stands, nor columns that nobody reads."""
    plain = replace(record, where="", extra={}) if isinstance(record, Record) else replace(record, where="")
    return f"{plain}\n".encode(errors="surrogateescape")


def looked_through(manifest: Path, shard_clips: int) -> Listed:
    """The list as a whole."""
    digest, rows, clips, untold = hashlib.sha256(), 0, 0, 0
    marks: list[str] = []
    unread: dict[str, None] = {}
    for record in scan_manifest(manifest):
        if rows and rows % shard_clips == 0:
            marks.append(digest.hexdigest()[:16])
        digest.update(hashed(record))
        rows += 1
        if isinstance(record, Record):
            clips += 1
            untold += not record.captions
            unread |= dict.fromkeys(record.extra)
    if not rows:
        raise ConfigError("manifest", f"{manifest_file(manifest)} lists no clips")
    odd = [f"{untold} of {clips} clips have no caption"] if untold else []
    odd += [f"columns not read: {', '.join(map(legible, unread))}"] if unread else []
    return Listed(rows, (*marks, digest.hexdigest()[:16]), "; ".join(odd))


def shards(config: PrepareConfig, listed: Listed, todo: Iterable[int]) -> Iterator[tuple[int, list[Record | BadRow]]]:
    """The clips of each shard, read from the manifest as a stream; a list that is no longer as it was is refused."""
    rows, digest, wanted = scan_manifest(config.manifest), hashlib.sha256(), set(todo)
    for shard in range(max(wanted, default=-1) + 1):
        found = list(islice(rows, config.shard_clips))
        for record in found:
            digest.update(hashed(record))
        if shard not in wanted:
            continue
        if digest.hexdigest()[:16] != listed.marks[shard]:
            raise StoreError(
                f"{config.manifest} has changed since this command began: put it back, or prepare the new list into "
                "another out=; what is prepared so far is of the old one"
            )
        yield shard, found


def write_shard(
    writer: StoreWriter,
    encoders: Encoders,
    config: PrepareConfig,
    pool: ThreadPoolExecutor,
    pace: Pace,
    shard: int,
    records: list[Record | BadRow],
    clip_done: Callable[[], None],
) -> ShardRecord:
    """One shard, window by window: media are decoded ahead by the pool, encoded here in order."""
    first, notes, header = shard * config.shard_clips, Notes(len(records)), writer.header

    def job_of(found: tuple[int, Record, Cut | None]) -> Media | Lost | None:
        number, record, cut = found
        return None if cut is None else read(number, record, cut, header)

    def rows() -> Iterator[Any]:
        looked = ahead(
            pool, lambda pair: look(*pair, config.windows, header), enumerate(records, first), config.readers
        )
        windows = (window for pair, outcome in looked for window in noted(notes, *pair, outcome))
        jobs = ahead(pool, job_of, windows, 2 * config.readers)
        while True:
            asked = time.perf_counter()
            if (found := next(jobs, None)) is None:
                return
            pace.waited_s += time.perf_counter() - asked
            (number, record, cut), media = found
            if cut is None:
                clip_done()
            elif isinstance(media, Lost):
                notes.lost.append(media)
            elif media is not None:
                shape = header.shapes[cut.bucket]
                try:
                    row = encoders.row(number, record, cut, shape, media)
                except NotFinite as error:
                    notes.lost.append(Lost(number, str(record.path), str(error), float(cut.start)))
                    continue
                pace.windows += 1
                pace.media_s += shape.duration_s
                yield row_batch(header, [row])

    made = writer.write(shard, rows(), notes)
    if made.lost and len({entry.clip for entry in made.lost if entry.start_s is None}) == len(records) > 1:
        writer.forget(shard)
        raise StoreError(
            f"none of the {len(records)} clips of shard {shard} can be read; the first: {made.lost[0].path}: "
            f"{made.lost[0].reason}. If all are like that, mend the manifest's paths; `avgen doctor` drops single ones"
        )
    return made


def noted(
    notes: Notes, number: int, record: Record | BadRow, outcome: list[Cut] | Lost
) -> Iterator[tuple[int, Record, Cut | None]]:
    """The windows of a clip and a mark of its end; what it has none for is noted."""
    if isinstance(outcome, Lost):
        notes.lost.append(outcome)
    elif not outcome:
        assert isinstance(record, Record)
        notes.unused.append(
            Lost(number, str(record.path), "no window fits: too short, too small, or no stream for a codec")
        )
    if isinstance(record, Record):
        yield from ((number, record, cut) for cut in (outcome if isinstance(outcome, list) else ()))
        yield number, record, None


def look(number: int, record: Record | BadRow, rule: WindowRule, header: Header) -> list[Cut] | Lost:
    if isinstance(record, BadRow):
        return Lost(number, record.where, record.reason)
    told = [text for _, text in record.captions]
    if not all(map(encodable, (str(record.path), str(record.audio_path or ""), *told, *record.tags))):
        where = legible(record.where)
        reason = f"{where}: holds bytes that are not UTF-8: rename the file, or save the text as UTF-8"
        return Lost(number, legible(str(record.path)), reason)
    try:
        seen, heard = looked_at(record)
        return rule.cuts(seen, heard, record.start_s, record.end_s, header.video is not None, header.audio is not None)
    except CLIP_TROUBLE as error:
        return Lost(number, str(record.path), str(error))


def read(number: int, record: Record, cut: Cut, header: Header) -> Media | Lost:
    try:
        return read_media(record, cut, header.shapes[cut.bucket], header)
    except CLIP_TROUBLE as error:
        return Lost(number, str(record.path), str(error), float(cut.start))


def ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[tuple[T, R]]:
    """Each item with what became of it, in order, `count` of them worked on ahead."""
    waiting: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) > count:
            done, future = waiting.popleft()
            yield done, future.result()
    while waiting:
        done, future = waiting.popleft()
        yield done, future.result()


def progress(console: Console) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("clips"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
