"""The event reader: what happens in a clip, from its pixels and waveform alone, and how right that is.

It is a judge of generated clips, so it knows the toybox's laws but nothing of the scene, and says little of clips that
are not of this world. docs/toybox.md has its figures and what it can't see.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from avgen.data.toybox.hearing import HeardEvent, hear
from avgen.data.toybox.scene import LOUDNESS, SIZES, ActorFacts, Event, SceneFacts
from avgen.data.toybox.seeing import SeenActor, SeenEvent, see
from avgen.types import Clip

__all__ = ["CaptionScore", "HeardEvent", "Reading", "Score", "SeenActor", "SeenEvent", "Tally", "read_events", "score"]

Sense = Literal["seen", "heard"]
READER_VERSION = 1  # raise it whenever a clip is read otherwise: figures belong to one version


@dataclass(frozen=True)
class Reading:
    """What was seen and heard. Times are seconds on the clip's clock."""

    seen: tuple[SeenEvent, ...]
    heard: tuple[HeardEvent, ...]
    actors: tuple[SeenActor, ...]
    frame_s: float | None  # None without a picture

    def pairs(self, tolerance_s: float | None = None) -> tuple[tuple[SeenEvent, HeardEvent], ...]:
        """Events seen and heard of one source (same kind and colour) within the tolerance, one to one."""
        matched = match(self.seen, self.heard, self._tolerance(tolerance_s), same_source=True)
        return tuple((self.seen[i], self.heard[j]) for i, j in matched)

    def agreement(self, tolerance_s: float | None = None) -> Tally:
        """How far picture and sound agree with each other, without any truth: seen events that are heard and back."""
        return Tally(len(self.pairs(tolerance_s)), found=len(self.heard), true=len(self.seen))

    def _tolerance(self, tolerance_s: float | None) -> float:
        if tolerance_s is not None:
            return tolerance_s
        return self.frame_s if self.frame_s is not None else 0.05


@dataclass(frozen=True)
class Tally:
    """Counts that add up over clips; ratios are nan where there is nothing to divide by."""

    matched: int = 0
    found: int = 0
    true: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.matched + other.matched, self.found + other.found, self.true + other.true)

    @property
    def precision(self) -> float:
        return self.matched / self.found if self.found else math.nan

    @property
    def recall(self) -> float:
        return self.matched / self.true if self.true else math.nan

    @property
    def f1(self) -> float:
        return 2 * self.matched / (self.found + self.true) if self.found + self.true else math.nan


@dataclass(frozen=True)
class Score:
    """A reading against the truth. `found` counts what was read, `true` what happened.

    Sync: events that are both seen and heard, at the same time and from the same source, in the reading and in truth.
    The attributes are counted over events matched in time: matched = right ones, found = true = matched events.
    """

    seen: Tally = Tally()
    heard: Tally = Tally()
    sync: Tally = Tally()
    seen_kind: Tally = Tally()
    seen_colour: Tally = Tally()
    heard_kind: Tally = Tally()
    heard_colour: Tally = Tally()
    seen_error_s: tuple[float, ...] = ()  # read minus true, of matched events
    heard_error_s: tuple[float, ...] = ()

    def __add__(self, other: Score) -> Score:
        return Score(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


def read_events(clip: Clip) -> Reading:
    """Everything that can be seen or heard to happen; never raises for odd pixels or samples."""
    actors: tuple[SeenActor, ...] = ()
    seen: tuple[SeenEvent, ...] = ()
    heard: tuple[HeardEvent, ...] = ()
    if clip.video is not None and clip.fps is not None:
        actors, seen = see(clip.video, clip.fps)
    if clip.audio is not None and clip.sample_rate_hz is not None:
        heard = hear(clip.audio, clip.sample_rate_hz)
    return Reading(
        tuple(replace(e, instant_s=e.instant_s + clip.start_s) for e in seen),
        tuple(replace(e, instant_s=e.instant_s + clip.start_s) for e in heard),
        actors,
        1 / clip.fps if clip.fps else None,
    )


def score(reading: Reading, truth: Sequence[Event], tolerance_s: float | None = None) -> Score:
    """Compare with the true events, one to one within the tolerance (default: one frame)."""
    tolerance_s = reading._tolerance(tolerance_s)
    visible = [event for event in truth if event.visible]
    audible = [event for event in truth if event.audible]
    both = [event for event in truth if event.visible and event.audible]
    seen = match(reading.seen, visible, tolerance_s)
    heard = match(reading.heard, audible, tolerance_s)
    pairs = reading.pairs(tolerance_s)
    # a pair is as far off as the worse of its halves
    sync = match([a for a, _ in pairs], both, tolerance_s, same_source=True)
    sync = [(i, j) for i, j in sync if abs(pairs[i][1].instant_s - both[j].instant_s) <= tolerance_s]

    def right(matched: list[tuple[int, int]], read: Sequence[Any], true: Sequence[Event], name: str) -> Tally:
        number = sum(getattr(read[i], name) == getattr(true[j], name) for i, j in matched)
        return Tally(number, len(matched), len(matched))

    return Score(
        seen=Tally(len(seen), len(reading.seen), len(visible)),
        heard=Tally(len(heard), len(reading.heard), len(audible)),
        sync=Tally(len(sync), len(pairs), len(both)),
        seen_kind=right(seen, reading.seen, visible, "kind"),
        seen_colour=right(seen, reading.seen, visible, "colour"),
        heard_kind=right(heard, reading.heard, audible, "kind"),
        heard_colour=right(heard, reading.heard, audible, "colour"),
        seen_error_s=tuple(reading.seen[i].instant_s - visible[j].instant_s for i, j in seen),
        heard_error_s=tuple(reading.heard[i].instant_s - audible[j].instant_s for i, j in heard),
    )


def match(
    first: Sequence[Any], second: Sequence[Any], tolerance_s: float, same_source: bool = False
) -> list[tuple[int, int]]:
    """The most pairs of events at most `tolerance_s` apart, among those the nearest, each event once.

    Events of another kind or colour are matched only where none of the same is in reach, or never (same_source).
    """
    if not first or not second:
        return []
    times = (np.array([event.instant_s for event in events]) for events in (first, second))
    a, b = times
    distance = np.abs(a[:, None] - b)
    unlike = np.array([[(p.kind != q.kind) + (p.colour != q.colour) for q in second] for p in first], float)
    allowed = distance <= tolerance_s + 1e-9
    if same_source:
        allowed &= unlike == 0
    cost = np.where(allowed, distance / max(tolerance_s, 1e-9) + 2 * unlike - 1000, 0)
    return [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(cost), strict=True) if allowed[i, j]]


@dataclass(frozen=True)
class CaptionScore:
    """Of the actors that a caption names: how many there are, and how many have the right ... (each implies the actor
    was found)."""

    actors: int = 0
    kind: int = 0
    colour: int = 0
    size: int = 0
    count: int = 0
    extra: int = 0  # actors that the caption doesn't name

    def __add__(self, other: CaptionScore) -> CaptionScore:
        return CaptionScore(**{n: getattr(self, n) + getattr(other, n) for n in self.__dataclass_fields__})


@dataclass(frozen=True)
class _Source:
    """An actor as far as it was seen or heard."""

    kind: str | None
    colour: str
    size: str
    count: int


def score_caption(reading: Reading, facts: SceneFacts) -> CaptionScore:
    """Whether the clip shows what its caption says: seen actors for visible ones, heard ones for the others."""
    total = CaptionScore()
    seen = [_Source(actor.kind, actor.colour, actor.size, actor.count) for actor in reading.actors]
    shown = [actor for actor in facts.actors if actor.visible]
    total += _compare(seen, shown)
    hidden = [actor for actor in facts.actors if not actor.visible]
    if hidden:
        known = {(actor.kind, actor.colour) for actor in shown}
        unseen = [source for source in heard_sources(reading) if (source.kind, source.colour) not in known]
        total += _compare(unseen, hidden)
    return total


def heard_sources(reading: Reading) -> list[_Source]:
    """Sounds grouped by kind and colour, their size told by their loudness."""
    groups: dict[tuple[str, str], list[float]] = {}
    for event in reading.heard:
        groups.setdefault((event.kind, event.colour), []).append(event.loudness)
    return [
        _Source(kind, colour, min(SIZES, key=lambda s: abs(math.log(np.median(loud) / LOUDNESS[s]))), len(loud))
        for (kind, colour), loud in groups.items()
    ]


def _compare(sources: Sequence[_Source], wanted: Sequence[ActorFacts]) -> CaptionScore:
    names = ("colour", "kind", "count", "size")
    if not sources or not wanted:
        return CaptionScore(actors=len(wanted), extra=len(sources))
    table = np.array([[[getattr(s, n) == getattr(w, n) for n in names] for w in wanted] for s in sources], int)
    rows, columns = linear_sum_assignment(-(table @ np.array([8, 4, 2, 1])))
    right = dict(zip(names, table[rows, columns].sum(0).tolist(), strict=True))
    return CaptionScore(actors=len(wanted), extra=max(0, len(sources) - len(wanted)), **right)


def shows(reading: Reading, facts: SceneFacts, sense: Sense) -> bool:
    """Whether the actors that are to be seen (heard) are, by kind and colour, and none besides; in turn if so said.

    So what is to be silent must be, and what is off-screen must not be seen.
    """
    if sense == "seen":
        wanted = [(a.kind, a.colour) for a in facts.actors if a.visible]
        found = Counter((a.kind, a.colour) for a in reading.actors)
        instants = [(e.instant_s, (e.kind, e.colour)) for e in reading.seen]
    else:
        wanted = [(a.kind, a.colour) for a in facts.actors if a.audible]
        found = Counter({(e.kind, e.colour) for e in reading.heard})
        instants = [(e.instant_s, (e.kind, e.colour)) for e in reading.heard]
    if found != Counter(wanted):
        return False
    if facts.type != "turn" or len(wanted) < 2:
        return True
    first, second = ([time for time, source in instants if source == actor] for actor in wanted)
    return bool(first) and bool(second) and max(first) < min(second)
