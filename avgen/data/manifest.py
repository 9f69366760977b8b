"""Lists of clips: csv, tsv, jsonl, parquet, or a folder of media files; read as a stream, row by row.

A row says where a clip lies (path, start_s, end_s), what is said of it (captions of four kinds, several of each)
and how it is tagged. Other programs' column names are understood (COLUMNS); columns nobody knows are kept.
docs/data.md describes the format.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

from avgen.data.tables import SUFFIXES, ManifestError, Row, encodable, read_rows, shown, write_lines, write_rows

Kind = Literal["joint", "video", "audio", "speech"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PICTURE_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".mxf", ".ogv", ".gif"),
)
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".mka", ".aif", ".aiff", ".caf")
INSIDE = ("manifest.jsonl", "manifest.csv", "manifest.parquet", "metadata.jsonl", "metadata.csv")
MOST_S = 1e9  # 30 years: more is a date or counts microseconds, and FFmpeg cannot seek to it

# Per field its own name, then what others call it: JavisDiT, finetrainers, diffusion-pipe, Hugging Face folders.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "file", "file_path", "file_name", "video", "video_path", "media_path"),
    "audio_path": ("audio_path",),
    "start_s": ("start_s", "start", "start_time", "start_timestamp"),
    "end_s": ("end_s", "end", "end_time", "end_timestamp"),
    "joint": ("caption", "captions", "text", "prompt"),
    "video": ("video_caption", "video_captions", "video_text"),
    "audio": ("audio_caption", "audio_captions", "audio_text"),
    "speech": ("speech", "transcript", "speech_text"),
    "tags": ("tags",),
}
_MEANING = {name: part for part, names in COLUMNS.items() for name in names}


def _known(name: str) -> str | None:
    """The field that a column of this name is, however it is written: ` Caption` too."""
    return _MEANING.get(_plain(name))


def _plain(name: str) -> str:
    return name.strip().lower()


@dataclass(frozen=True)
class Captions:
    """What is said of a clip; of each kind there may be several, any of which is true of the whole clip."""

    joint: tuple[str, ...] = ()  # picture and sound
    video: tuple[str, ...] = ()  # the picture alone
    audio: tuple[str, ...] = ()  # the sound alone
    speech: tuple[str, ...] = ()  # the words that are spoken

    def __iter__(self) -> Iterator[tuple[Kind, str]]:
        return ((kind, text) for kind in KINDS for text in getattr(self, kind))

    def __bool__(self) -> bool:
        return any(getattr(self, kind) for kind in KINDS)


@dataclass(frozen=True)
class Record:
    """One clip: a window of a file on its presentation clock, and what is known about it."""

    path: Path
    start_s: float = 0.0
    end_s: float | None = None  # None: the file's end
    captions: Captions = Captions()
    tags: tuple[str, ...] = ()
    audio_path: Path | None = None  # the sound, where it lies in a file of its own
    extra: Mapping[str, Any] = field(default_factory=dict)  # columns that are not avgen's, as they were
    where: str = field(default="", compare=False)  # manifest and line, for messages

    @property
    def name(self) -> str:
        """The clip as a person refers to it."""
        if not self.start_s and self.end_s is None:
            return self.path.name
        return f"{self.path.name} [{self.start_s:g}, {'end' if self.end_s is None else f'{self.end_s:g}'})"


@dataclass(frozen=True)
class BadRow:
    """A row that is no clip, and why."""

    where: str
    reason: str


def read_manifest(source: str | Path) -> Iterator[Record]:
    """The clips of a manifest file or folder, one after the other; the first bad row is an error."""
    for record in scan_manifest(source):
        if isinstance(record, BadRow):
            raise ManifestError(f"{record.where}: {record.reason} (`avgen doctor` lists every such row)")
        for kind, text in record.captions:
            if not encodable(text):
                raise ManifestError(
                    f"{record.where}: the {kind} caption {shown(text)} holds bytes that are not UTF-8: save the file "
                    f"as UTF-8, or let `avgen doctor` drop such rows"
                )
        yield record


def scan_manifest(source: str | Path) -> Iterator[Record | BadRow]:
    """As read_manifest, but bad rows are named and passed over. Bytes that are not UTF-8 stay as surrogates."""
    source = manifest_file(source)
    if source.is_dir():
        yield from _folder(source)
        return
    meanings: dict[tuple[str, ...], dict[str, str]] = {}  # rows of one file have few different sets of columns
    for row in read_rows(source):
        if row.problem:
            yield BadRow(row.where, row.problem)
            continue
        names = tuple(row.values)
        try:
            if names not in meanings:
                meanings[names] = _meaning(names)
            yield _record(row, meanings[names], source.parent)
        except ManifestError as error:
            yield BadRow(row.where, str(error))


def manifest_file(source: str | Path) -> Path:
    """The file that `source` names: itself, or the manifest inside a folder; a folder without one is itself a list."""
    source = Path(source)
    if source.is_dir():
        return next((source / name for name in INSIDE if (source / name).is_file()), source)
    if not source.exists():
        raise ManifestError(f"{source} does not exist: give a folder of clips or a {', '.join(SUFFIXES)} file")
    if source.suffix.lower() not in SUFFIXES:
        raise ManifestError(f"{source} is no manifest: give a folder of clips or a {', '.join(SUFFIXES)} file")
    return source


def write_manifest(path: str | Path, records: Iterable[Record]) -> int:
    """Clips as csv, tsv or jsonl under avgen's own column names; the number written. Reads back equal.

    Paths inside the manifest's folder are written relative to it. In csv, extra columns become text.
    """
    path = Path(path)
    return write_rows(path, (_as_row(record, path) for record in records), _MEANING)


def copy_rows(source: str | Path, out: str | Path, keep: Callable[[int], bool]) -> int:
    """The rows of a manifest for whose number `keep` holds, as they are; returns how many.

    Columns, their order and their text stay (another program's csv stays readable to it); only relative paths change,
    when `out` lies in another folder. A folder of clips, or parquet, becomes rows of avgen's own columns or jsonl.
    """
    source, out = manifest_file(source), Path(out)
    if source.is_dir():
        clips = (_as_row(clip, out) for number, clip in enumerate(_folder(source)) if keep(number))
        return write_rows(out, clips, _MEANING)
    moved = source.resolve().parent != out.resolve().parent
    if source.suffix.lower() == ".jsonl" and out.suffix.lower() == ".jsonl" and not moved:
        lines = (row.text for number, row in enumerate(read_rows(source)) if keep(number))
        return write_lines(out, (line + "\n" for line in lines))
    rows = (row.values for number, row in enumerate(read_rows(source)) if keep(number))
    return write_rows(out, (_rebased(values, source.parent, out) for values in rows) if moved else rows, _MEANING)


def _record(row: Row, meaning: Mapping[str, str], folder: Path) -> Record:
    values: dict[str, list[tuple[str, Any]]] = {}
    extra: dict[str, Any] = {}
    for name, value in row.values.items():
        part = meaning.get(name)
        if part is None:
            extra[name] = value
        elif not _missing(value):
            values.setdefault(part, []).append((name, value))
    if "path" not in values:
        raise ManifestError(f"{_column(meaning, 'path')} is empty: every row needs a file")
    start = _seconds(values.get("start_s"), 0.0)
    end = _seconds(values.get("end_s"), None)
    if end is not None and end <= start:
        raise ManifestError(f"{_column(meaning, 'end_s')}={end:g} must be later than the start, {start:g}")
    path = _path(values["path"][0], folder)
    sound = _path(values["audio_path"][0], folder) if "audio_path" in values else None
    return Record(
        path=path,
        start_s=start,
        end_s=end,
        captions=Captions(**{kind: _texts(values.get(kind, ())) for kind in KINDS}),
        tags=_texts(values.get("tags", ()), split=True),
        audio_path=None if sound == path else sound,
        extra=extra,
        where=row.where,
    )


def _meaning(names: Sequence[str]) -> dict[str, str]:
    """What each known column is; a field that may have one value only must not have two columns."""
    meaning = {name: part for name in names if (part := _known(name)) is not None}
    for one, other in combinations(meaning, 2):
        if _plain(one) == _plain(other):
            raise ManifestError(f"the columns {one!r} and {other!r} are both {_plain(one)}: rename the wrong one")
    for part in ("path", "start_s", "end_s"):
        found = [name for name in names if meaning.get(name) == part]
        own = [name for name in found if _plain(name) == part]
        if own:  # our own name wins: JavisDiT's csv and others may hold both
            found = own
            meaning = {n: p for n, p in meaning.items() if p != part or n in own}
        if len(found) > 1:
            raise ManifestError(f"the columns {' and '.join(found)} both mean {part}: rename the right one to {part}")
    if "path" not in meaning.values():
        offered = COLUMNS["path"]
        near = next((n for n in names if difflib.get_close_matches(n.lower(), offered, n=1)), None)
        hint = f"; did you mean to name {near!r} so?" if near else "; is the header line missing?" if names else ""
        shown = ", ".join(names[:12]) or "none"
        raise ManifestError(f"no column says where the file is (one of {', '.join(offered)}); found: {shown}{hint}")
    return meaning


def _column(meaning: Mapping[str, str], part: str) -> str:
    return next(name for name, what in meaning.items() if what == part)


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _seconds(found: Sequence[tuple[str, Any]] | None, default: Any) -> Any:
    if not found:
        return default
    name, value = found[0]
    try:
        if isinstance(value, str) and value.count(":") in (1, 2):  # 00:01:02.5
            seconds = sum(float(part) * 60**k for k, part in enumerate(reversed(value.split(":"))))
        else:
            seconds = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < MOST_S:  # nor NaN
        raise ManifestError(f"{name}={value!r} must be seconds, a number of at least 0 and less than {MOST_S:g}")
    return seconds


def _path(found: tuple[str, Any], folder: Path) -> Path:
    name, value = found
    if not isinstance(value, str):
        raise ManifestError(f"{name}={value!r} must be a path, as text")
    if "\0" in value:
        raise ManifestError(f"{name}={value!r} holds a zero byte, which no file name can")
    if "://" in value:
        raise ManifestError(f"{name}={value!r} is a URL: the media layer reads files; fetch it and name the copy")
    return Path(os.path.normpath(folder / value))


def _texts(found: Iterable[tuple[str, Any]], split: bool = False) -> tuple[str, ...]:
    texts: list[str] = []
    for name, value in found:
        listed = _unpacked(value, split)
        if not all(isinstance(text, str) for text in listed):
            raise ManifestError(f"{name}={value!r} must be text or a list of texts")
        texts += [text for text in listed if text]
    return tuple(texts)


def _unpacked(value: Any, split: bool) -> list[Any]:
    """Several texts in one cell: a list, or its JSON form in csv (a caption may begin with a bracket itself)."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, str):
        if value.startswith("["):
            try:
                listed = json.loads(value)
            except ValueError:
                listed = None
            if isinstance(listed, list) and listed and all(isinstance(text, str) for text in listed):
                return listed
        if split:
            return [part.strip() for part in value.split(",")]
    return [value]


def _packed(texts: Sequence[str], split: bool = False) -> str | list[str] | None:
    """The plainest cell that _unpacked turns back into these texts."""
    if not texts:
        return None
    plain = ", ".join(texts) if split else texts[0]
    return plain if _unpacked(plain, split) == list(texts) else list(texts)


def _as_row(record: Record, manifest: Path) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": _relative(record.path, manifest),
        "start_s": record.start_s or None,
        "end_s": record.end_s,
        **{COLUMNS[kind][0]: _packed(getattr(record.captions, kind)) for kind in KINDS},
        "tags": _packed(record.tags, split=True),
        "audio_path": None if record.audio_path is None else _relative(record.audio_path, manifest),
    }
    clash = [name for name in record.extra if _known(name)]
    if clash:
        raise ManifestError(f"{record.name}: the extra column {clash[0]!r} has a meaning of its own: rename it")
    return {**row, **record.extra}


def _relative(path: Path, manifest: Path) -> str:
    inside, folder = path.absolute(), manifest.absolute().parent
    return inside.relative_to(folder).as_posix() if inside.is_relative_to(folder) else str(inside)


def _rebased(values: Mapping[str, Any], folder: Path, out: Path) -> dict[str, Any]:
    """A row whose relative paths mean the same files seen from `out`."""
    moved = dict(values)
    for name in moved:
        value = moved[name]
        if _known(name) in ("path", "audio_path") and isinstance(value, str) and value:
            moved[name] = value if Path(value).is_absolute() else _relative(folder / value, out)
    return moved


def _folder(folder: Path) -> Iterator[Record]:
    """Every media file, in order of name; clip.txt beside clip.mp4 is its caption. Links to folders are followed, once.

    A sound file beside a picture of the same name is taken for the picture's own sound, written out once more.
    """
    empty, entered = True, set()
    for place, inner, names in os.walk(folder, onerror=_not_listed, followlinks=True):
        here = Path(place)
        real = here.resolve()
        if real in entered:  # a link to where we were: it may lead round in a circle
            inner.clear()
            continue
        entered.add(real)
        inner.sort()
        if "store.json" in names and "shards" in inner:  # a store: what `verify` wrote into it are no clips
            inner[:] = [name for name in inner if name != "verify"]
        pictured = {Path(name).stem for name in names if name.lower().endswith(PICTURE_SUFFIXES)}
        for name in sorted(names):
            path = here / name
            if name.startswith(".") or path.suffix.lower() not in PICTURE_SUFFIXES + SOUND_SUFFIXES:
                continue
            if path.suffix.lower() in SOUND_SUFFIXES and path.stem in pictured:
                continue
            text = path.with_suffix(".txt")
            said = text.read_text("utf-8-sig", errors="surrogateescape").strip() if text.is_file() else ""
            empty = False
            yield Record(path, captions=Captions((said,) if said else ()), where=str(path))
    if empty:
        raise ManifestError(f"{folder} holds no media files ({', '.join(PICTURE_SUFFIXES + SOUND_SUFFIXES)})")


def _not_listed(error: OSError) -> None:
    raise ManifestError(
        f"{error.filename} cannot be listed: {error.strerror}: its clips would be missing; make it readable, or move "
        "it away"
    ) from error
