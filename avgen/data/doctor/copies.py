"""Copies among many clips: fingerprints of picture and sound, compared only where their hashes meet."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from avgen.data.doctor.measure import HEARINGS, LOOKS, Measures
from avgen.data.doctor.rules import Duplicate, unpacked
from avgen.data.manifest import Record

# Hash of a fingerprint: on which sides of random planes it lies. Copies (correlation 0.98) fall on the same side
# of one plane with 0.94, of a key's 24 with 0.2, in one of 24 keys with 0.995; strangers meet once in 700,000.
KEYS, PLANES = 24, 24
SLACK = 0.05  # of the duration, by which copies may differ
MOVING = 3.0  # grey levels: with less motion than this, motion says nothing
BATCH = 4096

_Key = tuple[str, int, int]
_Place = tuple[str, str, float, float | None]  # file, that of the sound if another, start, end


@dataclass(frozen=True)
class _Print:
    number: int
    name: str
    place: _Place
    pixels: int
    duration_s: float
    look: bytes  # (LOOKS, LOOK, LOOK) uint8
    hearing: bytes  # (HEARINGS, bands) int8, empty when silent


class Copies:
    """Collects about 2 KB per clip; then says which are copies of which."""

    def __init__(self, rule: Duplicate) -> None:
        self.rule = rule
        self._prints: list[_Print] = []

    def add(self, number: int, record: Record, clip: Measures) -> None:
        if self.rule.action == "off" or clip.error:
            return
        picture, sound = clip.picture, clip.sound
        spans = [(part.start_s, part.end_s) for part in (picture, sound) if part is not None]
        self._prints.append(
            _Print(
                number,
                record.name,
                (str(record.path), str(record.audio_path or ""), record.start_s, record.end_s),
                picture.width * picture.height if picture else 0,
                max(end for _, end in spans) - min(start for start, _ in spans),
                unpacked(picture.look, np.uint8).astype(np.uint8).tobytes() if picture else b"",
                unpacked(sound.hearing, np.int8).astype(np.int8).tobytes() if sound and sound.hearing else b"",
            )
        )

    def found(self) -> dict[int, str]:
        """Per copy, what it is a copy of. Of each set the largest picture stays, then the first in the list."""
        order = sorted(self._prints, key=lambda p: (-p.pixels, p.number))
        places: dict[_Place, _Print] = {}
        met: dict[_Key, list[_Print]] = defaultdict(list)
        copies: dict[int, str] = {}
        for begin in range(0, len(order), BATCH):
            batch = order[begin : begin + BATCH]
            for one, keys in zip(batch, self._keys(batch), strict=True):
                if one.place in places:
                    copies[one.number] = f"the same file and window as row {places[one.place].number + 1}"
                    continue
                places[one.place] = one
                others = {other.number: other for key in keys for other in met[key]}
                reason = next((r for other in others.values() if (r := self._same(one, other))), None)
                if reason is not None:
                    copies[one.number] = reason
                    continue
                for key in keys:
                    met[key].append(one)
        return copies

    def _keys(self, prints: list[_Print]) -> list[list[_Key]]:
        """Where each lies in the hash tables: by its picture, without one by its sound; nothing lies nowhere."""
        keys: list[list[_Key]] = [[] for _ in prints]
        for kind in ("look", "hearing"):
            rows = [i for i, p in enumerate(prints) if (p.look if kind == "look" else p.hearing and not p.look)]
            if not rows:
                continue
            vectors = np.stack([_vector(prints[i].look or prints[i].hearing, kind) for i in rows])
            planes = np.random.default_rng(0).standard_normal((vectors.shape[1], KEYS * PLANES), np.float32)
            sides = (vectors @ planes > 0).reshape(len(rows), KEYS, PLANES)
            words = sides @ (1 << np.arange(PLANES, dtype=np.int64))
            for i, row, vector in zip(rows, words.tolist(), vectors, strict=True):
                if vector.any():
                    keys[i] = [(kind, key, word) for key, word in enumerate(row)]
        return keys

    def _same(self, one: _Print, other: _Print) -> str | None:
        """Why `one` is a copy of `other`, or None."""
        if abs(one.duration_s - other.duration_s) > max(SLACK * other.duration_s, 0.2):
            return None
        parts = []
        if one.look:
            unlike = _unlike(one.look, other.look)
            if unlike > self.rule.picture:
                return None
            parts.append(f"pictures differ by {unlike:.3f} (a copy: at most {self.rule.picture:g})")
        if bool(one.hearing) != bool(other.hearing):
            return None
        if one.hearing:
            apart = _apart_db(one.hearing, other.hearing)
            if apart > self.rule.sound_db:
                return None
            parts.append(f"sounds by {apart:.1f} dB (at most {self.rule.sound_db:g})")
        return f"copy of {other.name}, row {other.number + 1}: {', '.join(parts)}"


def _vector(print_: bytes, kind: str) -> np.ndarray:
    """A fingerprint without its mean, of length 1; 0 where it holds next to nothing."""
    vector = np.frombuffer(print_, np.uint8 if kind == "look" else np.int8).astype(np.float32)
    vector -= vector.mean()
    return vector / np.linalg.norm(vector) if vector.std() > 1 else np.zeros_like(vector)


def _unlike(one: bytes, other: bytes) -> float:
    """1 - correlation; where both move, also of what moves: a fixed camera sees the same room at any time."""
    a, b = (np.frombuffer(p, np.uint8).astype(np.float32).reshape(LOOKS, -1) for p in (one, other))
    unlike = 1 - _correlation(a, b)
    moving_a, moving_b = a - a.mean(axis=0), b - b.mean(axis=0)
    if max(moving_a.std(), moving_b.std()) > MOVING:
        # a frame of delay between copies shows in the motion first
        unlike = max(unlike, (1 - _correlation(moving_a, moving_b)) / 4)
    return float(unlike)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / lengths if lengths else 0.0


def _apart_db(one: bytes, other: bytes) -> float:
    a, b = (np.frombuffer(p, np.int8).astype(np.float32).reshape(HEARINGS, -1) for p in (one, other))
    return float(np.sqrt(np.square(a - b).mean()))
