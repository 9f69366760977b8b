"""Writing a store: shards that are whole or not there, and one commit that makes them a dataset.

A shard holds the rows of a fixed range of clips, so what it contains does not depend on who writes it or how often
they were killed: a data file is written beside its place and renamed, then its record is, and a shard whose record
stands is done. The store exists for readers when the commit does, which takes all shards at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from avgen.config import build
from avgen.data.store import DATA_VERSION, HEADER, SHARD, Header, StoreError, Totals, schema

if TYPE_CHECKING:
    import pyarrow as pa

BEGUN = "store.json"  # the header, from the first moment on
SHARDS = "shards"  # folder of the shards' records
DATA = "data"  # where Lance looks for data files
VERSIONS = "_versions"  # where Lance says that there is a dataset
LEFT_S = 3600  # a draft that nobody has touched for so long was left by a process that died, on whatever machine


@dataclass(frozen=True)
class Lost:
    """A clip, or one window of it, that is not in the store, and why."""

    clip: int
    path: str
    reason: str
    start_s: float | None = None  # of the window; None: nothing of the clip could be read


@dataclass(frozen=True)
class ShardRecord:
    """What a finished shard holds."""

    shard: int
    store: str  # fingerprint of the store's header
    rows: int
    content: str  # hash of its rows
    clips: int = 0  # of the manifest, those without a row among them
    file: str = ""  # in data/; empty when no row came of its clips
    bytes: int = 0
    lost: tuple[Lost, ...] = ()  # what could not be read
    unused: tuple[Lost, ...] = ()  # what no window fits


@dataclass(frozen=True)
class StoreWriter:
    """A store in the making. Any number of processes may write, each its own shards."""

    folder: Path
    header: Header
    shards: int

    @classmethod
    def begin(cls, folder: Path, header: Header, shards: int, shard_clips: int | None = None) -> StoreWriter:
        """Begin, or go on with what was begun for the same header and shards; anything else is refused."""
        for name in (SHARDS, DATA):
            (folder / name).mkdir(parents=True, exist_ok=True)
        about = folder / BEGUN
        if about.exists():
            found = json.loads(about.read_text())
            before = Header.from_json(json.dumps(found["header"]), str(folder))
            if before.fingerprint != header.fingerprint:
                raise StoreError(
                    f"{folder} was begun with other settings: {'; '.join(before.differs(header))} changed. One "
                    "store holds what was prepared in one way: give another out=, or delete it"
                )
            if found["shards"] != shards:
                raise StoreError(f"{folder} was begun with {found['shards']} shards, not {shards}: keep shard_clips")
            clips = found.get("shard_clips")  # earlier versions did not keep it
            if shards > 1 and None not in (clips, shard_clips) and clips != shard_clips:
                raise StoreError(
                    f"{folder} was begun with shard_clips={clips}, not {shard_clips}: it would lack clips or hold "
                    "some twice. Keep shard_clips, or give another out="
                )
        else:
            with whole_file(about) as part:
                told = {"header": json.loads(header.to_json()), "shards": shards, "shard_clips": shard_clips}
                part.write_text(json.dumps(told, indent=2))
        writer = cls(folder, header, shards)
        writer._sweep()
        return writer

    def record(self, shard: int) -> ShardRecord | None:
        """Of a shard that is whole."""
        path = self.folder / SHARDS / f"{shard:06d}.json"
        if not path.exists():
            return None
        found = build(ShardRecord, json.loads(path.read_text()))
        if found.store != self.header.fingerprint:
            raise StoreError(f"{path} is of another store ({found.store}): {self.folder} is mixed, delete that file")
        if found.file and (
            not (self.folder / DATA / found.file).exists()
            or (self.folder / DATA / found.file).stat().st_size != found.bytes
        ):
            raise StoreError(
                f"{self.folder / DATA / found.file} is not as {path} says: delete both to prepare it again"
            )
        return found

    def made_at(self, shard: int) -> int:
        """When the shard was recorded, in nanoseconds of the disk's clock."""
        return (self.folder / SHARDS / f"{shard:06d}.json").stat().st_mtime_ns

    def missing(self) -> list[int]:
        return [shard for shard in range(self.shards) if self.record(shard) is None]

    def forget(self, shard: int) -> None:
        """Let a shard be prepared again."""
        (self.folder / SHARDS / f"{shard:06d}.json").unlink()

    def reopen(self, shards: Sequence[int]) -> None:
        """Let these shards be prepared again; until then the store is not finished."""
        for shard in shards:
            shutil.rmtree(self.folder / VERSIONS, ignore_errors=True)
            self.forget(shard)

    def write(self, shard: int, batches: Iterable[pa.RecordBatch], notes: Notes) -> ShardRecord:
        """The shard's rows, streamed; `notes` fill while they are made. Of two that write one, the first's stays."""
        from lance.file import LanceFileWriter

        kind = schema(self.header)
        digest, rows = Digest(), 0
        path = self.folder / DATA / f"shard_{shard:06d}.lance"
        with _scratch(path) as part:
            writer = LanceFileWriter(str(part), kind, version=DATA_VERSION)
            for batch in batches:
                digest.add(batch)
                with self._room(shard):
                    writer.write_batch(batch)
                    os.utime(part.parent)  # Lance keeps rows back: the file itself may lie still for long
                rows += batch.num_rows
            with self._room(shard):
                writer.close()
                # on a full disk Lance may close a file that was cut short without a word
                if content_in(part) != digest.hex:
                    raise OSError("what was written does not read back")
                size = part.stat().st_size
                _flush(part)
                if (found := self.record(shard)) is not None:
                    return found
                part.rename(path)
        if not rows:
            path.unlink()
        file = path.name if rows else ""
        notes.lost.sort(key=lambda entry: (entry.clip, entry.start_s or 0.0))
        told = notes.clips, file, size if rows else 0, tuple(notes.lost), tuple(notes.unused)
        made = ShardRecord(shard, self.header.fingerprint, rows, digest.hex, *told)
        with self._room(shard), whole_file(self.folder / SHARDS / f"{shard:06d}.json") as part:
            part.write_text(json.dumps(asdict(made)))
        return made

    @contextmanager
    def _room(self, shard: int) -> Iterator[None]:
        """A disk that is full, or gone, said so; what Lance raises is an OSError without a file's name."""
        try:
            yield
        except OSError as error:
            done = self.shards - len(self.missing())
            reason = os.strerror(error.errno) if error.errno else str(error).split(", ")[0]
            raise StoreError(
                f"shard {shard} cannot be written to {self.folder}: {reason}. {done} of {self.shards} shards are whole "
                "and stay: make room and run the same command again, it goes on from there"
            ) from error

    def _sweep(self) -> None:
        """What killed writers left. Others may be at work on any shard: theirs must stay."""
        for folder in (".", DATA, SHARDS):
            for left in (self.folder / folder).glob(".*.part"):
                if not _alive(left):
                    shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    def commit(self) -> Totals:
        """Make the shards a dataset. All must be whole; doing it twice makes the same dataset again."""
        import lance
        from lance.file import LanceFileReader
        from lance.fragment import DataFile, FragmentMetadata

        records = [self.record(shard) for shard in range(self.shards)]
        whole = [record for record in records if record is not None]
        assert len(whole) == self.shards, "every shard must be whole"
        totals = Totals(sum(record.rows for record in whole), content_of(record.content for record in whole))
        if not totals.rows:
            raise StoreError(f"{self.folder} would be empty: no clip has a window; `report.json` in it says why")
        kind = schema(self.header)
        fields = list(range(len(kind)))
        major, minor = map(int, DATA_VERSION.split("."))
        fragments: list[FragmentMetadata] = []
        for record in whole:
            if not record.file:
                continue
            found = LanceFileReader(str(self.folder / DATA / record.file)).metadata().schema.metadata or {}
            if found.get(SHARD, b"").decode() != self.header.fingerprint:
                raise StoreError(
                    f"{self.folder} is mixed: data/{record.file} is of another store; delete it and its record"
                )
            file = DataFile(record.file, fields, fields, major, minor, file_size_bytes=record.bytes)
            fragments.append(FragmentMetadata(len(fragments), [file], record.rows))
        about = json.dumps({"header": json.loads(self.header.to_json()), "totals": totals._asdict()}).encode()
        operation = lance.LanceOperation.Overwrite(kind.with_metadata({HEADER: about}), fragments)
        try:
            lance.LanceDataset.commit(str(self.folder), operation)
        except OSError:  # of two processes that finish together one comes second
            if not self._finished_as(about):
                raise
        self._sweep()
        return totals

    def _finished_as(self, about: bytes) -> bool:
        """Whether the store is there by now, as it is to be."""
        import lance

        try:
            said = lance.dataset(str(self.folder)).schema.metadata or {}
        except (OSError, ValueError):
            return False
        return said.get(HEADER) == about


class Notes:
    """What a shard's making has to say besides rows."""

    def __init__(self, clips: int = 0) -> None:
        self.clips = clips
        self.lost: list[Lost] = []
        self.unused: list[Lost] = []


class Digest:
    """A hash of rows that does not depend on how they came in batches."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, batch: pa.RecordBatch) -> None:
        self.add_rows(batch.to_pylist())

    def add_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            for name in sorted(row):
                value = row[name]
                raw = value if isinstance(value, bytes) else repr(value).encode()
                self._hash.update(f"{name} {len(raw)} ".encode())
                self._hash.update(raw)

    @property
    def hex(self) -> str:
        return self._hash.hexdigest()


def content_of(shards: Iterable[str]) -> str:
    """The hash of a store from those of its shards, in order."""
    return hashlib.sha256(" ".join(shards).encode()).hexdigest()


def content_in(path: Path) -> str:
    """The hash of a data file's rows, as they read back."""
    from lance.file import LanceFileReader

    digest = Digest()
    for batch in LanceFileReader(str(path)).read_all(batch_size=16).to_batches():
        digest.add(batch)
    return digest.hex


def row_batch(header: Header, rows: list[Mapping[str, Any]]) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.RecordBatch.from_pylist(rows, schema=schema(header))


def begun(folder: str) -> str:
    """How far the making of a store has come, in words; empty where none was begun."""
    about = Path(folder) / BEGUN
    if not about.is_file():
        return ""
    done = len(list((Path(folder) / SHARDS).glob("[0-9]*.json")))
    return f"{done} of {json.loads(about.read_text())['shards']} shards are there"


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A file of `path`'s name in a folder of its own, which goes whatever happens: Lance writes others beside it."""
    folder = _draft(path)
    folder.mkdir()
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write that takes its name when everything in it is on the disk."""
    part = _draft(path)
    try:
        yield part
        _flush(part)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    """A name beside `path` that no other process takes, on machines that share the folder and numbers either."""
    return path.with_name(f".{path.name}.{_here()}.{os.getpid()}.{uuid.uuid4().hex}.part")


def _here() -> str:
    """Where process numbers mean the same: a machine, or a container on it."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}-{space.stat().st_ino if space.exists() else 0}".replace(".", "-")


def _alive(draft: Path) -> bool:
    """Whether somebody may still be writing it."""
    match draft.name.removesuffix(".part").rsplit(".", 3):
        case _, where, process, _ if where == _here() and not psutil.pid_exists(int(process)):
            return False
    try:
        return max(path.stat().st_mtime for path in (draft, *draft.glob("*"))) > time.time() - LEFT_S
    except FileNotFoundError:  # its writer has just made a shard of it
        return True


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
