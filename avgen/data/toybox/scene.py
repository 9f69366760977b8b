"""What is in a toybox scene, when things happen in it, and how scenes are drawn.

Lengths are fractions of the shorter picture side, positions fractions of width and height with y pointing down, times
are seconds. Nothing here knows a frame rate or a sample rate: a scene can be rendered at any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import numpy as np

Kind = Literal["ball", "lamp", "bar", "disc"]
Colour = Literal["red", "yellow", "green", "cyan", "blue", "magenta", "white"]
Size = Literal["small", "medium", "large"]
SceneType = Literal["single", "turn", "pair", "offscreen", "silent"]

KINDS: tuple[Kind, ...] = get_args(Kind)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SIZES: tuple[Size, ...] = get_args(Size)
SCENE_TYPES: tuple[SceneType, ...] = get_args(SceneType)

# Ratio 1.36 puts the overtones of every timbre (2, 2.76, 3, 5) well away from other colours' pitches, and the seven of
# them between 380 and 2404 Hz: a mel codec keeps them apart and they survive a rate of 8 kHz.
PITCH_HZ: dict[Colour, float] = {colour: 380.0 * 1.36**i for i, colour in enumerate(COLOURS)}
RGB: dict[Colour, tuple[float, float, float]] = {
    "red": (0.95, 0.16, 0.14),
    "yellow": (0.95, 0.82, 0.12),
    "green": (0.14, 0.80, 0.20),
    "cyan": (0.12, 0.82, 0.90),
    "blue": (0.22, 0.34, 1.00),
    "magenta": (0.92, 0.22, 0.88),
    "white": (0.95, 0.95, 0.95),
}
LOUDNESS: dict[Size, float] = {"small": 0.15, "medium": 0.25, "large": 0.40}  # peak amplitude

FLOOR_Y = 0.88
GRAVITY = 4.0  # picture heights per second squared
PERIOD_S = (0.45, 1.05)  # a longer fall would leave the picture
EDGE_S = 0.15  # no event so near a clip's start or end: neither half would show it
TURN_GAP_S = 0.4
APART_S = 0.08  # between the events of two actors, so that each is heard


@dataclass(frozen=True)
class Actor:
    """One thing that acts at `first_s`, `first_s + period_s`, ...: `count` times, or for ever when None.

    Before its first move it waits, after its last it rests.
    """

    kind: Kind
    colour: Colour
    size: Size
    x: float  # of the ball's, lamp's, disc's centre and the bar's pivot
    y: float  # likewise; for the ball, of its resting place on the floor
    first_s: float
    period_s: float
    count: int | None = None
    side: int = 1  # the bar swings out to the right (1) or to the left (-1)
    visible: bool = True
    audible: bool = True

    def instants_s(self, duration_s: float) -> np.ndarray:
        """When it acts within [0, duration_s): floor contact, flash, strike or the crest of a pulse."""
        ahead = math.ceil((duration_s - self.first_s) / self.period_s)
        number = max(0, ahead if self.count is None else min(ahead, self.count))
        return self.first_s + self.period_s * np.arange(number)

    def until_s(self) -> float:
        """The last instant it ever acts at."""
        return math.inf if self.count is None else self.first_s + self.period_s * (self.count - 1)


@dataclass(frozen=True)
class Scene:
    """Everything a rendering needs. `wording` picks the caption's paraphrase."""

    type: SceneType
    actors: tuple[Actor, ...]
    wall: float = 0.12
    floor: float = 0.24
    wording: int = 0


@dataclass(frozen=True)
class Event:
    """One act of one actor.

    `instant_s` is where picture and sound must agree: contact, flash, strike, or the crest of a pulse (largest and
    loudest). Percussive sounds start there; a hum rises before it.
    """

    source: int  # index of the actor in its scene
    kind: Kind
    colour: Colour
    size: Size
    instant_s: float
    start_s: float
    end_s: float
    pitch_hz: float
    loudness: float  # peak amplitude, before panning
    position: tuple[float, float]  # (x, y) of the actor at that instant
    visible: bool
    audible: bool


BALL_RADIUS: dict[Size, float] = {"small": 0.075, "medium": 0.11, "large": 0.15}
LAMP_HALF_SIDE: dict[Size, float] = {"small": 0.075, "medium": 0.115, "large": 0.16}
LAMP_LIT_S: dict[Size, float] = {"small": 0.14, "medium": 0.20, "large": 0.28}
BAR_LENGTH: dict[Size, float] = {"small": 0.26, "medium": 0.33, "large": 0.40}
BAR_RADIUS: dict[Size, float] = {"small": 0.036, "medium": 0.050, "large": 0.066}
BAR_SWING = math.radians(58)
DISC_REST: dict[Size, float] = {"small": 0.07, "medium": 0.08, "large": 0.10}
DISC_CREST: dict[Size, float] = {"small": 0.14, "medium": 0.185, "large": 0.24}
BALL_DECAY_S: dict[Size, float] = {"small": 0.06, "medium": 0.10, "large": 0.16}
BAR_DECAY_S: dict[Size, float] = {"small": 0.03, "medium": 0.05, "large": 0.08}


def ball_height(actor: Actor, time_s: np.ndarray) -> np.ndarray:
    """Height of the ball's underside above the floor, in picture heights, by gravity and perfect bounces."""
    half = actor.period_s / 2
    phase = np.mod(time_s - actor.first_s, actor.period_s) - half  # zero at the top
    height = 0.5 * GRAVITY * (half**2 - phase**2)
    height = np.where(time_s < actor.first_s - half, 0.5 * GRAVITY * half**2, height)
    return np.where(time_s >= actor.until_s(), 0.0, height)


def lamp_light(actor: Actor, starts_s: np.ndarray, exposure_s: float) -> np.ndarray:
    """Share of each exposure [start, start + exposure_s) during which the lamp is lit."""
    lit_s = LAMP_LIT_S[actor.size]
    light = np.zeros(len(starts_s))
    for instant in actor.instants_s(float(starts_s[-1]) + exposure_s):
        overlap = np.minimum(starts_s + exposure_s, instant + lit_s) - np.maximum(starts_s, instant)
        light += np.maximum(overlap, 0) / exposure_s
    return light


def bar_angle(actor: Actor, time_s: np.ndarray) -> np.ndarray:
    """Radians from hanging straight down: half of a pendulum's swing, thrown back by the post at its lowest point."""
    angle = BAR_SWING * np.abs(np.sin(np.pi * (time_s - actor.first_s) / actor.period_s))
    angle = np.where(time_s < actor.first_s - actor.period_s / 2, BAR_SWING, angle)
    return np.where(time_s >= actor.until_s(), 0.0, angle)


def disc_swell(actor: Actor, time_s: np.ndarray) -> np.ndarray:
    """0 at rest, 1 at the crest of a pulse; both the disc's radius and its hum follow it."""
    swell = np.cos(np.pi * (time_s - actor.first_s) / actor.period_s) ** 2
    half = actor.period_s / 2
    return np.where((time_s < actor.first_s - half) | (time_s > actor.until_s() + half), 0.0, swell)


def sound_length_s(kind: Kind, size: Size) -> float:
    """How long one percussive sound lasts; a disc's pulse lasts its period instead."""
    if kind == "lamp":
        return LAMP_LIT_S[size]
    return 6 * (BALL_DECAY_S if kind == "ball" else BAR_DECAY_S)[size]


def events(scene: Scene, duration_s: float) -> tuple[Event, ...]:
    """All events with an instant in [0, duration_s), in order of time."""
    found = []
    for source, actor in enumerate(scene.actors):
        for instant in actor.instants_s(duration_s):
            if actor.kind == "disc":
                start, end = instant - actor.period_s / 2, instant + actor.period_s / 2
            else:
                start, end = instant, instant + sound_length_s(actor.kind, actor.size)
            found.append(
                Event(
                    source=source,
                    kind=actor.kind,
                    colour=actor.colour,
                    size=actor.size,
                    instant_s=float(instant),
                    start_s=max(0.0, float(start)),
                    end_s=min(duration_s, float(end)),
                    pitch_hz=PITCH_HZ[actor.colour],
                    loudness=LOUDNESS[actor.size] if actor.audible else 0.0,
                    position=(actor.x, actor.y),
                    visible=actor.visible,
                    audible=actor.audible,
                )
            )
    return tuple(sorted(found, key=lambda event: event.instant_s))


@dataclass(frozen=True)
class ActorFacts:
    """What a caption says of one actor."""

    kind: Kind
    colour: Colour
    size: Size
    count: int
    visible: bool = True
    audible: bool = True


@dataclass(frozen=True)
class SceneFacts:
    """What a caption says: actors in order of time for `turn`, in no order for `pair`, the visible one first otherwise.

    A picture's or sound's own caption may have no actors (an empty room, silence).
    """

    type: SceneType
    actors: tuple[ActorFacts, ...]

    def same_as(self, other: SceneFacts) -> bool:
        mine, theirs = self.actors, other.actors
        if self.type == "pair":
            mine, theirs = (tuple(sorted(actors, key=repr)) for actors in (mine, theirs))
        return self.type == other.type and mine == theirs


def facts_of(scene: Scene, duration_s: float) -> SceneFacts:
    """What is true of the scene's first `duration_s` seconds."""
    actors = tuple(
        ActorFacts(a.kind, a.colour, a.size, len(a.instants_s(duration_s)), a.visible, a.audible) for a in scene.actors
    )
    return SceneFacts(scene.type, actors)


Combination = tuple[Kind, Colour, Size]


def _held_out() -> frozenset[Combination]:
    """Per kind, one colour at every size (a pair never seen) and one more colour at one size (a triple never seen)."""
    held: set[Combination] = set()
    for k, kind in enumerate(KINDS):
        held |= {(kind, COLOURS[(2 * k + 1) % len(COLOURS)], size) for size in SIZES}
        held.add((kind, COLOURS[(2 * k + 4) % len(COLOURS)], SIZES[k % len(SIZES)]))
    return frozenset(held)


HELD_OUT: frozenset[Combination] = _held_out()
SEEN: tuple[Combination, ...] = tuple(c for c in product(KINDS, COLOURS, SIZES) if c not in HELD_OUT)


def most_events(window_s: float) -> int:
    """How many events of one actor fit in a clip of `window_s` seconds, away from its edges; may be 0."""
    inner = window_s - 2 * EDGE_S
    return 0 if inner < 0 else 1 + math.floor(inner / PERIOD_S[0] + 1e-9)


def draw_facts(
    rng: np.random.Generator, type: SceneType, combinations: tuple[Combination, ...], duration_s: float
) -> SceneFacts:
    """A caption's worth of facts that fits in the duration."""
    two = type in ("turn", "pair") or (type == "offscreen" and rng.random() < 0.5)
    first = combinations[rng.integers(len(combinations))]
    if not two:
        count = int(rng.integers(1, most_events(duration_s) + 1))
        facts = ActorFacts(*first, count, visible=type != "offscreen", audible=type != "silent")
        return SceneFacts(type, (facts,))
    second = first
    while second[1] == first[1]:  # two actors never share a colour: it is what tells their sounds apart
        second = combinations[rng.integers(len(combinations))]
    if type == "turn":
        most = 1 + most_events(duration_s - TURN_GAP_S)  # of both together
        count = int(rng.integers(1, max(most - 1, 1) + 1))
        counts = [count, int(rng.integers(1, max(most - count, 1) + 1))]
        counts = counts if rng.random() < 0.5 else counts[::-1]
    else:
        counts = [int(n) for n in rng.integers(1, most_events(duration_s) + 1, size=2)]
    return SceneFacts(
        type, (ActorFacts(*first, counts[0]), ActorFacts(*second, counts[1], visible=type != "offscreen"))
    )


def scene_from_facts(rng: np.random.Generator, facts: SceneFacts, duration_s: float) -> Scene:
    """A scene of which these facts are true; places, tempo, tone of the room and wording are free."""
    lanes = _lanes(rng, sum(actor.visible for actor in facts.actors))
    spans = _spans(rng, facts, duration_s)
    actors: list[Actor] = []
    taken = np.empty(0)
    for i, (actor, (start, end)) in enumerate(zip(facts.actors, spans, strict=True)):
        endless_to = None
        if rng.random() < 0.5 and not (facts.type == "turn" and i == 0):
            endless_to = duration_s + EDGE_S
        first_s, period_s, endless = _tempo(rng, actor, start, end, endless_to, taken)
        lane = lanes.pop() if actor.visible else (0.5, 0.0)
        x, y, side = _place(rng, actor.kind, lane)
        made = Actor(
            actor.kind,
            actor.colour,
            actor.size,
            x,
            y,
            first_s,
            period_s,
            None if endless else actor.count,
            side,
            actor.visible,
            actor.audible,
        )
        taken = np.concatenate([taken, made.instants_s(duration_s)])
        actors.append(made)
    wall = float(rng.uniform(0.08, 0.16))
    return Scene(facts.type, tuple(actors), wall, wall + 0.12, int(rng.integers(2**62)))


def _lanes(rng: np.random.Generator, visible: int) -> list[tuple[float, float]]:
    """(centre, half width) per visible actor; two actors share the picture without ever touching."""
    if visible < 2:
        return [(0.5, 0.25)]
    lanes = [(0.25, 0.25), (0.75, 0.25)]
    return lanes if rng.random() < 0.5 else lanes[::-1]


def _place(rng: np.random.Generator, kind: Kind, lane: tuple[float, float]) -> tuple[float, float, int]:
    """(x, y, side) of an actor in its lane."""
    centre, half = lane
    side = 1 if rng.random() < 0.5 else -1
    if centre != 0.5:
        side = 1 if centre < 0.5 else -1  # a bar in half the picture swings inwards, from its outer edge
    if kind == "bar":
        return centre - side * (half * 0.66 + rng.uniform(-0.02, 0.02)), float(rng.uniform(0.16, 0.30)), side
    shift = 0.02 if centre != 0.5 else 0.2
    x = centre + float(rng.uniform(-shift, shift))
    return x, FLOOR_Y if kind == "ball" else float(rng.uniform(0.32, 0.58)), side


def _spans(rng: np.random.Generator, facts: SceneFacts, duration_s: float) -> list[tuple[float, float]]:
    """Where each actor's instants may lie."""
    for actor in facts.actors:
        if actor.count < 1 or actor.count > most_events(duration_s):
            raise ValueError(
                f"{actor.count} events of a {actor.kind} do not fit in {duration_s:g} s (1 to {most_events(duration_s)}"
                f" do): ask for another count or a duration_s of at least {_least_s(actor.count):g}"
            )
    if facts.type != "turn":
        return [(EDGE_S, duration_s - EDGE_S)] * len(facts.actors)
    least = [(actor.count - 1) * PERIOD_S[0] for actor in facts.actors]
    slack = duration_s - 2 * EDGE_S - TURN_GAP_S - sum(least)
    if slack < -1e-9:
        counts = " and ".join(str(actor.count) for actor in facts.actors)
        raise ValueError(
            f"{counts} events in turn do not fit in {duration_s:g} s: ask for fewer or a duration_s of at least"
            f" {duration_s - slack:g}"
        )
    middle = EDGE_S + least[0] + max(slack, 0) * float(rng.uniform(0.1, 0.9))
    return [(EDGE_S, middle), (middle + TURN_GAP_S, duration_s - EDGE_S)]


def _least_s(count: int) -> float:
    return 2 * EDGE_S + (count - 1) * PERIOD_S[0]


def _tempo(
    rng: np.random.Generator,
    actor: ActorFacts,
    start_s: float,
    end_s: float,
    endless_to_s: float | None,
    taken_s: np.ndarray,
) -> tuple[float, float, bool]:
    """(first_s, period_s, endless) with exactly `count` instants in [start_s, end_s].

    An endless actor's next one falls after endless_to_s; where that can't be met it becomes a finite one.
    """
    tries = 24
    steps = actor.count - 1
    longest = min(PERIOD_S[1], (end_s - start_s) / steps) if steps else PERIOD_S[1]
    period = rng.uniform(min(PERIOD_S[0], longest), longest, tries)
    latest = end_s - steps * period
    share = rng.random(tries)
    if endless_to_s is not None:
        earliest = np.maximum(start_s, endless_to_s - actor.count * period)
        choice = _choose(earliest, latest, share, period, actor.count, taken_s)
        if choice is not None:
            return *choice, True
    choice = _choose(np.full(tries, start_s), latest, share, period, actor.count, taken_s)
    assert choice is not None, "the span was checked to hold the count"
    return *choice, False


def _choose(
    earliest: np.ndarray, latest: np.ndarray, share: np.ndarray, period: np.ndarray, count: int, taken_s: np.ndarray
) -> tuple[float, float] | None:
    """The first candidate that keeps its distance from what was taken, else the one that keeps most."""
    possible = np.flatnonzero(latest >= earliest - 1e-9)
    if not len(possible):
        return None
    first = (earliest + share * np.maximum(latest - earliest, 0))[possible]
    period = period[possible]
    best = 0
    if len(taken_s):
        instants = first[:, None] + period[:, None] * np.arange(count)
        distance = np.abs(instants[:, :, None] - taken_s).min((1, 2))
        best = int(np.argmax(np.minimum(distance, APART_S)))
    return float(first[best]), float(period[best])


def retimed(scene: Scene, shift_s: float) -> Scene:
    """The same scene with everything happening `shift_s` later."""
    return replace(scene, actors=tuple(replace(a, first_s=a.first_s + shift_s) for a in scene.actors))
