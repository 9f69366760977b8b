"""Measurements that outlive a run: one database file, so a stopped doctor goes on where it was."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

from avgen.config import build, to_plain
from avgen.data.doctor.measure import VERSION, Measures
from avgen.data.manifest import Record

COMMIT_S = 2.0


class Cache:
    """Measurements by file (path, size, time of change), window and the version of the measurements."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path)
        self._database.execute("CREATE TABLE IF NOT EXISTS measures (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        self._saved = time.monotonic()

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.commit()
        self._database.close()

    def get(self, record: Record) -> Measures | None:
        row = self._database.execute("SELECT value FROM measures WHERE key = ?", (_key(record),)).fetchone()
        return None if row is None else build(Measures, json.loads(row[0]))

    def put(self, record: Record, clip: Measures) -> None:
        self._database.execute("REPLACE INTO measures VALUES (?, ?)", (_key(record), json.dumps(to_plain(clip))))
        if time.monotonic() - self._saved > COMMIT_S:
            self._database.commit()
            self._saved = time.monotonic()


def _key(record: Record) -> str:
    stamps: list[object] = [VERSION, record.start_s, record.end_s]
    for path in (record.path, record.audio_path):
        if path is not None:
            try:
                state = path.stat()
                stamps += [str(path.absolute()), (state.st_size, state.st_mtime_ns)]
            except OSError:  # not there, too long a name, no permission: measuring it will say so
                stamps += [str(path.absolute()), None]
    return json.dumps(stamps)
