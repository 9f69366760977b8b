"""Clips read by the event reader and held against what they were to show.

Each figure stands beside its ceiling (the real clips through the codecs, read the same way) and its null (the
generated sound, or picture, exchanged for that of another clip of equal caption). Intervals are 95 % bootstraps over
clips, and over captions where two clips were made of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from avgen.bootstrap import interval, quotients
from avgen.data.toybox import ToyClip
from avgen.data.toybox.reader import Reading, Sense, Tally, read_events, score, score_caption, shows
from avgen.types import Clip

JUDGE_VERSION = 2  # raise it whenever the same readings would give other figures: kept ones are then left alone
LEVEL = 0.95  # of intervals
RESAMPLES = 1000
Counts = Sequence[tuple[float, float]]  # per clip: what is divided by what, once summed


@dataclass(frozen=True)
class Estimate:
    """What sums over clips make, with its 95 % interval; nan where there was nothing to count, or one clip alone."""

    value: float
    low: float
    high: float
    clips: int  # or captions, where two clips were made of each


@dataclass(frozen=True)
class Scored:
    """A figure between its null and its ceiling."""

    figure: Estimate
    ceiling: Estimate
    null: Estimate | None  # None where exchanging sounds or pictures would not change it
    share: Estimate  # of the ceiling
    above: Estimate | None  # the null

    @property
    def of_ceiling(self) -> float:
        return self.share.value


@dataclass(frozen=True)
class Counted:
    """What a figure is counted from, clip by clip."""

    made: Counts
    real: Counts
    null: Counts | None = None

    def by_twos(self) -> Counted:
        """Made clips two by two, as they were made of one caption: they are alike, so they are drawn together."""

        def summed(counts: Counts) -> Counts:
            pairs = [counts[i : i + 2] for i in range(0, len(counts), 2)]
            return [(sum(top for top, _ in pair), sum(bottom for _, bottom in pair)) for pair in pairs]

        return Counted(summed(self.made), self.real, None if self.null is None else summed(self.null))

    def scored(self, seed: int) -> Scored:
        """Ceiling and null are of the same items as the figure: what both find hard cancels out in share and gap."""
        figure, ceiling = estimate(self.made, seed), estimate(self.real, seed)
        share = share_of(self.made, self.real, seed)
        if self.null is None:
            return Scored(figure, ceiling, None, share, None)
        paired = self.made[: len(self.null)]  # a last clip without another of its caption has no null
        return Scored(figure, ceiling, estimate(self.null, seed), share, difference(paired, self.null, seed))


def estimate(counts: Counts, seed: int = 0) -> Estimate:
    """sum(tops) / sum(bottoms), bootstrapped over clips."""
    found = _bootstrapped([counts], seed, lambda ratios: ratios[..., 0])
    shares = [(top, bottom) for top, bottom in counts if bottom > 0]
    if len(shares) < 2 or found.value not in (0.0, 1.0) or not all(0 <= top <= bottom for top, bottom in shares):
        return found
    # what happens in so many clips could still be missed by as many as this: resamples of them know nothing of it
    missed = 1 - ((1 - LEVEL) / 2) ** (1 / len(shares))
    return replace(found, high=missed) if found.value == 0 else replace(found, low=1 - missed)


def difference(one: Counts, other: Counts, seed: int = 0) -> Estimate:
    """The first ratio less the second. Clips are drawn in pairs: what both find hard cancels out."""
    return _bootstrapped([one, other], seed, lambda ratios: ratios[..., 0] - ratios[..., 1])


def share_of(one: Counts, other: Counts, seed: int = 0) -> Estimate:
    """The first ratio as a share of the second, of clips drawn in pairs."""
    return _bootstrapped([one, other], seed, lambda ratios: quotients(ratios[..., 0], ratios[..., 1]))


def _bootstrapped(counts: Sequence[Counts], seed: int, of: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    assert len({len(one) for one in counts}) == 1
    rows = np.array(counts, float).reshape(len(counts), -1, 2).swapaxes(0, 1)  # (clips, ratios, 2)

    def value(sums: np.ndarray) -> np.ndarray:
        return of(quotients(sums[..., 0], sums[..., 1]))

    return Estimate(float(value(rows.sum(0))), *interval(rows, value, LEVEL, RESAMPLES, seed), len(rows))


def f1(tally: Tally) -> tuple[float, float]:
    return 2 * tally.matched, tally.found + tally.true


@dataclass(frozen=True)
class Read:
    """A clip and what is seen and heard in it."""

    clip: Clip
    reading: Reading

    @classmethod
    def of(cls, clip: Clip) -> Read:
        return cls(clip, read_events(clip))

    def with_sound_of(self, other: Read) -> Read:
        """As if one clip of this picture and that sound had been read: the reader's eye and ear know nothing of each
        other."""
        return Read(replace(self.clip, audio=other.clip.audio), replace(self.reading, heard=other.reading.heard))


@dataclass(frozen=True)
class Judge:
    """Made clips compared with what they were to show, one method a task."""

    items: Sequence[ToyClip]
    real: Sequence[Read]  # the items through the codecs
    twins: Sequence[Read]  # other clips of equal caption, likewise
    known: Sequence[Read] | None = None  # the items as they are; None: read when a task asks for them

    @cached_property
    def untouched(self) -> Sequence[Read]:
        """The items as they are."""
        return [Read.of(item.clip) for item in self.items] if self.known is None else self.known

    def figures(self, task: str, made: Sequence[Read]) -> dict[str, Counted]:
        found: dict[str, Counted] = getattr(self, task)(made)
        return found

    def of_scene(self, scene: str, task: str, made: Sequence[Read]) -> tuple[Judge, Sequence[Read]]:
        """The items of one type of scene, and the clips that were made for them."""
        each = 2 if task == "t2av" else 1
        used = self.items[: -(-len(made) // each)]
        places = [i for i, item in enumerate(used) if item.facts.type == scene]
        return self.only(places), [clip for i in places for clip in made[each * i : each * (i + 1)]]

    def only(self, places: Sequence[int]) -> Judge:
        known = vars(self).get("untouched", self.known)  # what was read is not read again, nor anything for nothing
        parts = (self.items, self.real, self.twins, known)
        return Judge(*(None if clips is None else [clips[i] for i in places] for clips in parts))  # type: ignore[arg-type]

    def t2av(self, made: Sequence[Read]) -> dict[str, Counted]:
        """When things happen is free: picture and sound are held against each other, and against the caption.

        Clips 2 i and 2 i + 1 were made of the caption of item i, so that their sounds can be exchanged.
        """
        asked = self.only(range(-(-len(made) // 2)))  # the ceiling is that of the captions clips were made of
        chosen = [asked.items[i // 2] for i in range(len(made))]
        swapped = [made[i].with_sound_of(made[i ^ 1]) for i in range(len(made) // 2 * 2)]
        found = {
            "sync": asked.agreement(made, swapped),
            **asked.caption(made, chosen),
            "right": asked.right(made, chosen, ("seen", "heard")),
        }
        return {name: counted.by_twos() for name, counted in found.items()}

    def i2av(self, made: Sequence[Read]) -> dict[str, Counted]:
        ours, best = (self.first_frames(clips) for clips in (made, self.real))
        swapped = [clip.with_sound_of(twin) for clip, twin in zip(made, self.twins, strict=True)]
        return {
            **{name: Counted(ours[name], best[name]) for name in ours},
            "sync": self.agreement(made, swapped),
            **self.caption(made, self.items),
            "right": self.right(made, self.items, ("seen", "heard")),
        }

    def v2a(self, made: Sequence[Read]) -> dict[str, Counted]:
        """The ceiling is as made clips are: what was given untouched, the rest through the codecs. So in a2v."""
        swapped = [clip.with_sound_of(twin) for clip, twin in zip(made, self.twins, strict=True)]
        best = [item.with_sound_of(real) for item, real in zip(self.untouched, self.real, strict=True)]
        return {**self.against_truth(made, best, swapped, "heard"), "right": self.right(made, self.items, ("heard",))}

    def a2v(self, made: Sequence[Read]) -> dict[str, Counted]:
        swapped = [twin.with_sound_of(clip) for clip, twin in zip(made, self.twins, strict=True)]
        best = [real.with_sound_of(item) for item, real in zip(self.untouched, self.real, strict=True)]
        return {
            **self.against_truth(made, best, swapped, "seen"),
            **self.caption(made, self.items),
            "right": self.right(made, self.items, ("seen",)),
        }

    def first_frames(self, clips: Sequence[Read]) -> dict[str, Counts]:
        psnr: list[float] = []
        for read, item in zip(clips, self.items, strict=True):
            assert read.clip.video is not None
            assert item.clip.video is not None
            psnr.append(psnr_db(read.clip.video[0], item.clip.video[0]))
        return {
            "first frame, dB": [(value, 1.0) for value in psnr],
            "first frame >= 30 dB": [(float(value >= 30), 1.0) for value in psnr],
        }

    def agreement(self, made: Sequence[Read], swapped: Sequence[Read]) -> Counted:
        """Event-sync F1: events seen and heard within a frame of each other, of one kind and colour."""

        def counts(clips: Sequence[Read]) -> Counts:
            return [f1(clip.reading.agreement()) for clip in clips]

        return Counted(counts(made), counts(self.real), counts(swapped))

    def against_truth(
        self, made: Sequence[Read], best: Sequence[Read], swapped: Sequence[Read], sense: Sense
    ) -> dict[str, Counted]:
        """F1 against the events that truly happen; and of those alone that what was given tells of."""

        tallies: dict[str, Callable[[Reading, ToyClip], Tally]] = {
            "onset": lambda reading, item: getattr(score(reading, item.events), sense),
            "sync": lambda reading, item: score(reading, item.events).sync,
            "onset told": lambda reading, item: told_onsets(reading, item, sense),
        }

        def counts(clips: Sequence[Read], tally: Callable[[Reading, ToyClip], Tally]) -> Counts:
            return [f1(tally(read.reading, item)) for read, item in zip(clips, self.items, strict=True)]

        return {
            name: Counted(counts(made, tally), counts(best, tally), counts(swapped, tally))
            for name, tally in tallies.items()
        }

    def caption(self, made: Sequence[Read], chosen: Sequence[ToyClip]) -> dict[str, Counted]:
        """Shares of the captions' actors shown with the right ..."""

        def counts(clips: Sequence[Read], items: Sequence[ToyClip]) -> dict[str, Counts]:
            told = [score_caption(read.reading, item.facts) for read, item in zip(clips, items, strict=True)]
            return {n: [(getattr(t, n), t.actors) for t in told] for n in ("kind", "colour", "count")}

        ours, best = counts(made, chosen), counts(self.real, self.items)
        return {f"caption {n}": Counted(ours[n], best[n]) for n in ours}

    def right(self, made: Sequence[Read], chosen: Sequence[ToyClip], senses: Sequence[Sense]) -> Counted:
        """Share of clips in which exactly the caption's actors are seen, and heard."""

        def counts(clips: Sequence[Read], items: Sequence[ToyClip]) -> Counts:
            pairs = zip(clips, items, strict=True)
            return [(float(all(shows(read.reading, item.facts, s) for s in senses)), 1.0) for read, item in pairs]

        return Counted(counts(made, chosen), counts(self.real, self.items))


def told_onsets(reading: Reading, item: ToyClip, sense: Sense) -> Tally:
    """Without those that have no part in the given stream: nobody can know from a picture when someone off screen will
    be heard, nor from a sound when someone silent will move. They are told by their colour, which no two actors share:
    whose kind is misread is left out too."""
    given = "visible" if sense == "heard" else "audible"
    hidden = {actor.colour for actor in item.facts.actors if not getattr(actor, given)}
    kept = tuple(event for event in getattr(reading, sense) if event.colour not in hidden)
    true = [event for event in item.events if getattr(event, given)]
    told: Tally = getattr(score(replace(reading, **{sense: kept}), true), sense)  # type: ignore[arg-type]
    return told


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    """At most 60, so that an exact copy can be averaged."""
    error = np.square(one.astype(np.float64) - other).mean()
    return float(min(60.0, 10 * np.log10(255**2 / max(error, 1e-9))))
