"""A small grammar of captions and its exact inverse.

A wording is an integer whose mixed-radix digits pick among paraphrases, so it takes no random state to say
something in a given way and every way can be enumerated. What the grammar can say it can parse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from avgen.data.toybox.scene import COLOURS, KINDS, SIZES, ActorFacts, Colour, Kind, SceneFacts, SceneType, Size

View = Literal["scene", "picture", "sound"]

SIZE_WORDS: dict[Size, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big"),
}
NOUNS: dict[Kind, tuple[str, ...]] = {
    "ball": ("ball",),
    "lamp": ("lamp", "light"),
    "bar": ("bar", "rod"),
    "disc": ("disc", "disk"),
}
VERBS: dict[Kind, tuple[str, ...]] = {
    "ball": ("bounces", "hits the floor", "drops and bounces"),
    "lamp": ("flashes", "blinks", "lights up"),
    "bar": ("strikes", "swings and strikes", "knocks"),
    "disc": ("pulses", "swells", "throbs"),
}
SOUND_VERBS: dict[Kind, tuple[str, ...]] = {
    "ball": ("rings", "chimes"),
    "lamp": ("beeps", "buzzes"),
    "bar": ("clacks", "cracks"),
    "disc": ("hums", "drones"),
}
COUNT_WORDS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

# {a} and {b} are noun phrases, {does a} and {does b} what they do and how often.
TEMPLATES: dict[tuple[View, SceneType, int], tuple[str, ...]] = {
    ("scene", "single", 1): (
        "{a} {does a}",
        "there is {a}; it {does a}",
        "{a} in a bare room {does a}",
        "we see and hear {a}: it {does a}",
    ),
    ("scene", "silent", 1): (
        "{a} {does a} in silence",
        "{a} {does a} without a sound",
        "silently, {a} {does a}",
    ),
    ("scene", "offscreen", 1): (
        "off screen, {a} {does a}",
        "{a} {does a} out of sight",
        "an empty room; somewhere off screen {a} {does a}",
    ),
    ("scene", "offscreen", 2): (
        "{a} {does a} while off screen {b} {does b}",
        "{a} {does a}; out of sight, {b} {does b}",
    ),
    ("scene", "turn", 2): (
        "{a} {does a}, then {b} {does b}",
        "first {a} {does a}, and after that {b} {does b}",
        "{b} {does b} after {a} {does a}",
        "{a} {does a} before {b} {does b}",
    ),
    ("scene", "pair", 2): (
        "{a} {does a} while {b} {does b}",
        "{a} {does a} and {b} {does b}",
        "at the same time {a} {does a} and {b} {does b}",
    ),
    ("picture", "single", 0): ("an empty room", "a bare room with nothing in it"),
    ("picture", "single", 1): ("{a} {does a}", "{a} in a bare room {does a}"),
    ("sound", "single", 0): ("silence", "nothing can be heard"),
    ("sound", "single", 1): ("{a} {does a}", "the sound of {a}: it {does a}"),
}
for _view in ("picture", "sound"):
    for _type in ("turn", "pair"):
        TEMPLATES[_view, _type, 2] = TEMPLATES["scene", _type, 2]


class _Wording:
    """Mixed-radix digits of an integer, one per choice."""

    def __init__(self, number: int) -> None:
        self.number = number

    def choose(self, options: Sequence[str]) -> str:
        self.number, digit = divmod(self.number, len(options))
        return options[digit]


def caption(facts: SceneFacts, wording: int = 0, view: View = "scene") -> str:
    """One sentence that says these facts, in the way that `wording` picks."""
    facts = seen_through(facts, view)
    digits = _Wording(wording)
    actors = facts.actors
    if facts.type == "pair" and digits.choose("ab") == "b":  # a pair has no order, so either may be named first
        actors = actors[::-1]
    text = digits.choose(TEMPLATES[view, facts.type, len(actors)])
    for name, actor in zip("ab", actors, strict=False):
        text = text.replace(f"{{{name}}}", _noun_phrase(actor, digits))
        text = text.replace(f"{{does {name}}}", _verb_phrase(actor, digits, view))
    return text[0].upper() + text[1:] + "."


def seen_through(facts: SceneFacts, view: View) -> SceneFacts:
    """What remains of the facts for one who only sees, or only hears."""
    if view == "scene":
        return facts
    there: Callable[[ActorFacts], bool] = (lambda a: a.visible) if view == "picture" else (lambda a: a.audible)
    actors = tuple(replace(actor, visible=True, audible=True) for actor in facts.actors if there(actor))
    if len(actors) == 2:
        return SceneFacts("turn" if facts.type == "turn" else "pair", actors)
    return SceneFacts("single", actors)


def wordings(facts: SceneFacts, view: View = "scene") -> int:
    """An upper bound on the different ways to say these facts: wordings 0 .. n-1 reach them all."""
    facts = seen_through(facts, view)
    number = len(TEMPLATES[view, facts.type, len(facts.actors)]) * (2 if facts.type == "pair" else 1)
    verbs = SOUND_VERBS if view == "sound" else VERBS
    for actor in facts.actors:
        number *= len(SIZE_WORDS[actor.size]) * len(NOUNS[actor.kind]) * len(verbs[actor.kind])
        number *= len(_counts(actor.count))
    return number


def _noun_phrase(actor: ActorFacts, digits: _Wording) -> str:
    return f"a {digits.choose(SIZE_WORDS[actor.size])} {actor.colour} {digits.choose(NOUNS[actor.kind])}"


def _verb_phrase(actor: ActorFacts, digits: _Wording, view: View) -> str:
    verbs = SOUND_VERBS if view == "sound" else VERBS
    return f"{digits.choose(verbs[actor.kind])} {digits.choose(_counts(actor.count))}"


def _counts(count: int) -> tuple[str, ...]:
    """All ways to say how often."""
    if count == 1:
        return ("once", "one time")
    if count == 2:
        return ("twice", "two times", "2 times")
    if count < len(COUNT_WORDS):
        return (f"{COUNT_WORDS[count]} times", f"{count} times")
    return (f"{count} times",)


def parse(text: str, view: View = "scene") -> SceneFacts:
    """The facts that a caption of the grammar states; the inverse of `caption`."""
    said = re.sub(r"\s+", " ", text.strip().rstrip(".").lower())
    for (its_view, type, number), patterns in _PATTERNS.items():
        if its_view != view:
            continue
        for pattern in patterns:
            found = pattern.fullmatch(said)
            if found:
                actors = tuple(_actor(found, name, type, i, view) for i, name in enumerate("ab"[:number]))
                if all(actor is not None for actor in actors):
                    return SceneFacts(type, actors)  # type: ignore[arg-type]
    examples = "; ".join(repr(t[0]) for (v, _, _), t in TEMPLATES.items() if v == view)
    raise ValueError(
        f"{text!r} is not a toybox {view} caption: it must follow one of the templates ({examples}, ...) with phrases"
        f" such as 'a small red ball' and 'bounces three times'; colours are {', '.join(COLOURS)}"
    )


def _pattern(template: str, verbs: dict[Kind, tuple[str, ...]]) -> re.Pattern[str]:
    sizes = "|".join(word for size in SIZES for word in SIZE_WORDS[size][::-1])
    nouns = "|".join(word for kind in KINDS for word in NOUNS[kind])
    does = "|".join(sorted((word for kind in KINDS for word in verbs[kind]), key=len, reverse=True))
    times = "|".join(COUNT_WORDS[1:])
    expression = re.escape(template).replace(r"\{", "{").replace(r"\}", "}").replace(r"\ ", " ")
    for name in "ab":
        noun = f"an? (?P<size_{name}>{sizes}) (?P<colour_{name}>{'|'.join(COLOURS)}) (?P<noun_{name}>{nouns})"
        verb = f"(?P<verb_{name}>{does}) (?P<count_{name}>once|twice|(?:{times}|[0-9]+) times?)"
        expression = expression.replace(f"{{{name}}}", noun).replace(f"{{does {name}}}", verb)
    return re.compile(expression)


_PATTERNS = {
    key: [_pattern(template, SOUND_VERBS if key[0] == "sound" else VERBS) for template in templates]
    for key, templates in TEMPLATES.items()
}
_SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in words}
_KIND_OF = {word: kind for kind, words in NOUNS.items() for word in words}


def _actor(found: re.Match[str], name: str, type: SceneType, place: int, view: View) -> ActorFacts | None:
    """The facts of actor a or b; None when a noun's verb belongs to another kind."""
    kind = _KIND_OF[found[f"noun_{name}"]]
    verbs = SOUND_VERBS if view == "sound" else VERBS
    if found[f"verb_{name}"] not in verbs[kind]:
        return None
    colour: Colour = found[f"colour_{name}"]  # type: ignore[assignment]
    hidden = type == "offscreen" and (place == 1 or "colour_b" not in found.re.groupindex)
    count = _count(found[f"count_{name}"])
    return ActorFacts(kind, colour, _SIZE_OF[found[f"size_{name}"]], count, not hidden, type != "silent")


def _count(said: str) -> int:
    if said in ("once", "twice"):
        return 1 if said == "once" else 2
    word = said.split()[0]
    return COUNT_WORDS.index(word) if word in COUNT_WORDS else int(word)
