"""What files hold: prompts that people wrote; text, whole or as it was; JSON, one object a line, appended to by several
processes; a hash."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def prompts_text(path: Path) -> str:
    """What a file of prompts says, without the mark that some editors put before it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts={path} is not UTF-8: {error}; save it as UTF-8") from error


def finite(value: Any) -> Any:
    """Plain data with null for numbers that JSON cannot say: where there was nothing to count."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: Path, text: str) -> None:
    """A kill leaves what the file held before, or all of the text."""
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def read_whole(path: Path) -> Any:
    """JSON; None where there is no file, or one that a kill cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except json.JSONDecodeError:
        return None


def file_hash(path: Path) -> str:
    """sha256, in hexadecimal digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def relative(path: Path, folder: Path) -> str:
    """The way from the folder to the file, so that both can be moved together."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


@contextmanager
def locked(path: Path) -> Iterator[BinaryIO]:
    """The file, while nobody else appends to it or puts another in its place."""
    while True:
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # while this waited another may have taken the name: what is locked now is nobody's any more
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """One whole line, whatever others append at the same time; behind one that a kill cut short it begins anew."""
    with locked(path) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def standing_lines(path: Path) -> list[dict[str, Any]]:
    """Of a manifest, each clip's last line, which speaks of the file that is there, unless it was taken back."""
    found: dict[Any, dict[str, Any]] = {}
    for line in whole_lines(path):
        which = line.get("name") or line.get("file") or line.get("path"), line.get("seed")
        if line.get("replaced"):
            found.pop(which, None)
        else:
            found[which] = line
    return list(found.values())


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """None where there is no file; a line that a kill cut short is not there."""
    found = []
    for text in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found
