"""What the event reader makes of clips of the toybox: exact where the world is known, silent everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from avgen.data.toybox import SceneFacts, parse
from avgen.data.toybox.hearing import HeardEvent, hear
from avgen.data.toybox.reader import READER_VERSION, CaptionScore, Reading, score_caption, shows
from avgen.data.toybox.seeing import SeenActor, SeenEvent, see
from eval.metric import Definition, Measure, Metric, Needs, NotApplicable, Result, Setup, Take
from eval.take import Picture, Sound

BOTH = Needs(picture=True, sound=True, text=True)


def metrics(setup: Setup) -> Sequence[Metric]:
    parts = {
        "kind": "of the right kind, by what it does",
        "colour": "of the right colour, which is also its pitch",
        "size": "of the right size, which is also its loudness",
        "count": "that acts as often as was asked",
    }
    return (
        Measure(
            Definition(
                "toybox.sync",
                "Events seen and heard at most one frame apart, of one kind and colour, matched one to one: 2 * pairs /"
                " max(seen + heard, 2 * events asked for). Of prompts whose actors are all seen and heard.",
                direction="higher",
                needs=BOTH,
                parameters={"reader": READER_VERSION},
                nulls=("shifted",),
                ceiling=True,
            ),
            sync,
        ),
        *(
            Measure(
                Definition(
                    f"toybox.{name}",
                    f"Share of the actors in the prompt that the clip shows (or lets hear, off screen) {says}.",
                    direction="higher",
                    needs=BOTH,
                    parameters={"reader": READER_VERSION},
                    ceiling=True,
                ),
                share_of(name),
            )
            for name, says in parts.items()
        ),
        Measure(
            Definition(
                "toybox.silence",
                "1 where a prompt that asks for silence is followed by a clip in which no event is heard, else 0.",
                direction="higher",
                needs=BOTH,
                parameters={"reader": READER_VERSION},
                ceiling=True,
            ),
            silence,
        ),
        Measure(
            Definition(
                "toybox.right",
                "1 where exactly the prompt's actors are seen and heard, by kind and colour, and take turns if they are"
                " asked to, else 0: nothing sounds that is silent, nobody shows who is off screen.",
                direction="higher",
                needs=BOTH,
                parameters={"reader": READER_VERSION},
                nulls=("swapped",),
                ceiling=True,
            ),
            right,
        ),
    )


def seen(picture: Picture) -> tuple[tuple[SeenActor, ...], tuple[SeenEvent, ...]]:
    return see(picture.frames, picture.fps)


def heard(sound: Sound) -> tuple[HeardEvent, ...]:
    return hear(sound.wave, sound.rate_hz)


def reading(take: Take) -> Reading:
    actors, events = take.picture.once(seen)
    return Reading(events, take.sound.once(heard), actors, 1 / take.picture.fps)


def facts(take: Take) -> SceneFacts:
    try:
        return parse(take.prompt.text)
    except ValueError as error:
        raise NotApplicable("the prompt is no caption of the toybox") from error


def told(take: Take) -> CaptionScore:
    return score_caption(take.once(reading), take.once(facts))


def sync(take: Take) -> Result:
    asked = take.once(facts)
    if not all(actor.visible and actor.audible for actor in asked.actors):
        raise NotApplicable("the prompt asks for something unseen or unheard")
    read = take.once(reading)
    pairs = read.pairs()
    possible = max(len(read.seen) + len(read.heard), 2 * sum(actor.count for actor in asked.actors))
    extras = {
        "seen_s": [event.instant_s for event in read.seen],
        "heard_s": [event.instant_s for event in read.heard],
        "pairs_s": [(a.instant_s, b.instant_s) for a, b in pairs],
    }
    return Result(2 * len(pairs) / possible, weight=possible, extras=extras)


def share_of(name: str) -> Callable[[Take], Result]:
    def share(take: Take) -> Result:
        found = take.once(told)
        return Result(getattr(found, name) / found.actors, weight=found.actors)

    return share


def silence(take: Take) -> float:
    if any(actor.audible for actor in take.once(facts).actors):
        raise NotApplicable("the prompt asks for sound")
    return float(not take.once(reading).heard)


def right(take: Take) -> float:
    asked, read = take.once(facts), take.once(reading)
    return float(shows(read, asked, "seen") and shows(read, asked, "heard"))
