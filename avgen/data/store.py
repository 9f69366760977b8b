"""Prepared clips on disk: a Lance dataset of latents, read at random by row. docs/store.md is the format.

A store is one folder (or URL). Its rows are windows of clips in the order of the manifest; each has a bucket, the
posterior of either stream as numbers in a row, and captions. What made it stands in the dataset's own metadata, so it
cannot be lost or exchanged, and a reader needs nothing but the dataset.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from avgen.config import build, fingerprint, to_plain
from avgen.data.buckets import Shape
from avgen.data.media import unit_count
from avgen.data.media.source import exact_fps
from avgen.types import AudioGeometry, VideoGeometry

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1  # of the columns and of the header: raise it when an older reader would misread a store
PREPARED = 1  # raise it whenever the same clip would be prepared differently: what older code prepared is then stale
HEADER = b"avgen.store"  # key of the header in the schema's metadata
SHARD = b"avgen.shard"  # key of the fingerprint in the metadata of a single data file
DATA_VERSION = "2.1"  # of Lance's file format: a large value costs one look-up and one read, not a page
NUMBERS = np.dtype("<f2")  # latents have about unit variance: their codec's own error is far above a half's
# Lance keeps what it learnt about its files; beyond this it forgets what was used longest ago
CACHE_BYTES = 64 << 20
READ = ("bucket", "captions", "video_mean", "video_std", "audio_mean", "audio_std", "real", "text", "text_tokens")


MAKERS = {"video": "video codec", "audio": "audio codec", "text": "text encoder"}  # of made_by, in words


class StoreError(ValueError):
    """A store that cannot be read or gone on with; the message says why and what to do."""


def check_installed() -> None:
    """Training on the embedded world needs neither package: they are an extra."""
    if absent := [name for name in ("lance", "pyarrow") if importlib.util.find_spec(name) is None]:
        raise StoreError(f"a store needs {' and '.join(absent)}, not installed: pip install -e '.[data]'")


@dataclass(frozen=True)
class Header:
    """What a store holds and what made it."""

    made_by: Mapping[str, str]  # fingerprints: video and audio codec, text encoder, windows, clips
    shapes: tuple[Shape, ...]  # bucket i holds windows of shape i
    video: VideoGeometry | None = None  # of the latents; None without pictures
    audio: AudioGeometry | None = None
    text_width: int | None = None  # of caption features; None: captions alone are kept
    codec: Mapping[str, Any] = field(default_factory=dict)  # how the codecs are built again, to decode
    text: Mapping[str, Any] | None = None  # how the captions' encoder is built again, to sample; None without one
    format: int = FORMAT
    prepared: int = PREPARED

    @cached_property
    def fingerprint(self) -> str:
        """Of everything that decides what is in the store."""
        return fingerprint(self)

    def frames(self, shape: Shape) -> int:
        assert shape.fps is not None
        return unit_count(0, shape.duration_s, exact_fps(shape.fps))

    def video_shape(self, shape: Shape) -> tuple[int, ...]:
        """(C, T, H, W) of the shape's latents."""
        assert self.video is not None
        assert shape.height is not None
        assert shape.width is not None
        side = self.video.space_stride
        steps = self.video.time.steps(self.frames(shape))
        return self.video.channels, steps, shape.height // side, shape.width // side

    def audio_shape(self, shape: Shape) -> tuple[int, ...]:
        """(C, N) of the shape's latents."""
        assert self.audio is not None
        return self.audio.channels, self.audio.time.steps(self.samples(shape))

    def samples(self, shape: Shape) -> int:
        assert self.audio is not None
        return unit_count(0, shape.duration_s, self.audio.sample_rate_hz)

    def tokens(self, shape: Shape) -> int:
        """Of one window, picture and sound together."""
        count = 0
        if shape.height is not None:
            assert self.video is not None
            _, steps, rows, columns = self.video_shape(shape)
            count += steps * rows * columns // self.video.patch**2
        return count + (self.audio_shape(shape)[1] if shape.audio else 0)

    def check(self, where: str) -> None:
        """Refuse what this code would misread, or would have prepared differently."""
        if self.format != FORMAT:
            raise StoreError(f"{where} has format {self.format}, this avgen reads format {FORMAT}: prepare it again")
        if self.prepared != PREPARED:
            raise StoreError(
                f"{where} is stale: rule {self.prepared} prepared it, this avgen prepares by rule {PREPARED} "
                "(CHANGELOG.md says what changed): prepare it again, or train with the version that made it"
            )

    def differs(self, other: Header) -> list[str]:
        """What was not the same, in words."""
        before, now = self._told(), other._told()
        found = [
            f"{name} ({before.get(name, 'none')}, now {now.get(name, 'none')})"
            for name in sorted({*before, *now})
            if before.get(name, "none") != now.get(name, "none")
        ]
        if self.format != other.format or self.prepared != other.prepared:
            found.append(f"avgen's way to prepare ({self.format}.{self.prepared}, now {other.format}.{other.prepared})")
        return found or ["the header"]

    def _told(self) -> dict[str, Any]:
        return {**self.made_by, **_leaves("codec", self.codec), **_leaves("text", self.text or {})}

    def to_json(self) -> str:
        return json.dumps(to_plain(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> Header:
        plain = json.loads(text)
        if plain.get("format") != FORMAT:  # a later format may have other fields
            raise StoreError(
                f"{where} has format {plain.get('format')}, this avgen reads format {FORMAT}: prepare it again"
            )
        return build(cls, plain)


def _leaves(name: str, value: Any) -> dict[str, Any]:
    """Plain data as keys with dots: {"codec.video.path": ...}."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {key: leaf for part, inner in value.items() for key, leaf in _leaves(f"{name}.{part}", inner).items()}


class Totals(NamedTuple):
    """Of a finished store."""

    rows: int
    content: str  # hash of all rows in order


def schema(header: Header) -> pa.Schema:
    """The columns of a row. No column is nested, so that Lance's fields are the columns, one by one."""
    import pyarrow as pa

    columns = [
        pa.field("clip", pa.int64()),  # number of the clip in the manifest
        pa.field("path", pa.string()),
        pa.field("start_s", pa.float64()),  # of the window, on the file's clock
        pa.field("bucket", pa.int16()),
        pa.field("captions", pa.string()),  # JSON list: each is true of what the row holds
        pa.field("tags", pa.string()),  # JSON list
        pa.field("video_mean", pa.large_binary()),  # (C, T, H, W) little-endian float16; null without a picture
        pa.field("video_std", pa.large_binary()),  # likewise; null where the codec has no distribution
        pa.field("audio_mean", pa.large_binary()),  # (C, N)
        pa.field("audio_std", pa.large_binary()),
        pa.field("real", pa.string()),  # JSON {stream: [[from_s, to_s], ...]}; null: the window is whole
        pa.field("text", pa.large_binary()),  # (tokens of all captions, D) float16; null without an encoder
        pa.field("text_tokens", pa.string()),  # JSON list: tokens of each caption
    ]
    return pa.schema(columns, metadata={SHARD: header.fingerprint.encode()})


@dataclass(frozen=True)
class Store:
    """A finished store, open for reading. It pickles as its address: each process opens it for itself."""

    path: str  # a folder, or a URL that Lance knows
    header: Header
    totals: Totals

    @classmethod
    def open(cls, path: object) -> Store:
        where = str(path)
        check_installed()
        metadata, rows = _opened(where)
        if HEADER not in metadata:
            raise StoreError(f"{where} is a Lance dataset, but not a store of avgen: `avgen prepare` makes one")
        found = json.loads(metadata[HEADER])
        header = Header.from_json(json.dumps(found["header"]), where)
        header.check(where)
        totals = Totals(**found["totals"])
        if rows != totals.rows:
            raise StoreError(
                f"{where} is mixed: it has {rows} rows, but was finished with {totals.rows}; other rows were added or "
                "deleted. Prepare it again, and mix stores by data.mix"
            )
        return cls(where, header, totals)

    def refuse_unless_made_by(self, name: str, found: str, where: str) -> None:
        """StoreError where what is opened again to go with the rows (`name` of made_by) is not what made them."""
        if found != self.header.made_by[name]:
            raise StoreError(
                f"{self.path} was prepared with another {MAKERS[name]} ({self.header.made_by[name]}) than now lies in "
                f"{where} ({found}): put it back, or prepare again"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "header": self.header, "totals": self.totals}

    @cached_property
    def dataset(self) -> Any:
        return _dataset(self.path)

    @property
    def fingerprint(self) -> str:
        return f"{self.header.fingerprint}-{self.totals.content[:16]}"

    @property
    def forms(self) -> tuple[Shape, ...]:
        """The shapes there are windows of, that of the most first."""
        return tuple(self.counted)

    @property
    def counted(self) -> dict[Shape, int]:
        """How many windows there are of each shape, that of the most first."""
        buckets, counts = np.unique(self.column("bucket"), return_counts=True)
        return {self.header.shapes[buckets[i]]: int(counts[i]) for i in np.argsort(-counts, kind="stable")}

    def column(self, name: str) -> np.ndarray:
        """One of the number columns, whole: 2 to 8 bytes a row."""
        return self.dataset.to_table(columns=[name])[name].to_numpy()

    def files(self) -> tuple[list[str], np.ndarray]:
        """The files whose windows the rows are, each once; and which of them each row is of."""
        numbers: dict[str, int] = {}
        batches = self.dataset.to_batches(columns=["path"], scan_in_order=True)
        rows = [numbers.setdefault(path, len(numbers)) for batch in batches for path in batch["path"].to_pylist()]
        return list(numbers), np.array(rows, np.int64)

    def take(self, rows: Sequence[int], columns: Sequence[str] = READ) -> pa.Table:
        """These rows in this order; a row may come twice."""
        return self.dataset.take(list(rows), columns=list(columns))

    def all(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Every row, in order."""
        yield from self.dataset.to_batches(columns=list(columns), batch_size=64, scan_in_order=True)


def _opened(where: str) -> tuple[dict[bytes, bytes], int]:
    try:
        dataset = _dataset(where)
    except (ValueError, OSError) as error:
        raise StoreError(f"{where} cannot be opened as a store: {_why_not(where, error)}") from error
    return dataset.schema.metadata or {}, dataset.count_rows()


def _why_not(where: str, error: Exception) -> str:
    from avgen.data.store_write import begun

    scheme, separator, _ = where.partition("://")
    if separator and scheme not in LANCE_SCHEMES:
        return f"{scheme}:// is none of {', '.join(sorted(LANCE_SCHEMES))}: copy it to one of them"
    if not separator and (found := begun(where)):
        return f"it is not finished ({found}): run the `avgen prepare` that began it again, it goes on"
    if not separator and "not found" in str(error):
        return "there is none; `avgen prepare clips.csv out=...` makes one"
    return str(error).splitlines()[0]


LANCE_SCHEMES = {"file", "s3", "gs", "az", "abfss", "oss", "memory"}  # how fsspec calls them too


def _dataset(where: str) -> Any:
    import lance

    return lance.dataset(where, index_cache_size_bytes=1 << 20, metadata_cache_size_bytes=CACHE_BYTES)
