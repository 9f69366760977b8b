"""toybench: 400 prompts of the toybox world, tagged on JavisBench's five axes and scored exactly by the event reader.

`python -m eval.suites.toybench` writes toybench.jsonl anew, as it was made: every caption fits in a clip of two seconds
or more, of any size and rate.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from avgen.data.toybox import SceneFacts, ToyboxConfig, caption, parse, render_facts
from avgen.data.toybox.scene import HELD_OUT, SEEN, ActorFacts, SceneType, draw_facts
from avgen.data.toybox.world import WORLD_VERSION
from avgen.types import Clip
from eval.record import Prompt
from eval.suites import Suite, digest_of, plain

FILE = Path(__file__).with_name("toybench.jsonl")
SEED = 20_000
DURATION_S = 2.0
# scene type -> how many prompts; every fourth shows combinations that no training clip has
COUNTS: dict[SceneType, int] = {"single": 160, "turn": 60, "pair": 60, "offscreen": 60, "silent": 60}
HELD_OUT_EVERY = 4
AXES = {
    "scenario": ("bounce", "flash", "strike", "pulse", "several", "unseen"),
    "style": ("warm", "cold", "pale", "mixed"),
    "sound": ("bell", "beep", "knock", "hum", "several", "silence"),
    "temporal": ("once", "repeated", "in turn", "at once"),
    "spatial": ("one", "two", "off screen"),
    "novelty": ("seen", "held out"),
}
SCENARIO = {"ball": "bounce", "lamp": "flash", "bar": "strike", "disc": "pulse"}
SOUND = {"ball": "bell", "lamp": "beep", "bar": "knock", "disc": "hum"}
STYLE = {
    "red": "warm",
    "yellow": "warm",
    "green": "cold",
    "cyan": "cold",
    "blue": "cold",
    "magenta": "pale",
    "white": "pale",
}
TIMES = {"turn": "in turn", "pair": "at once"}


def suite() -> Suite:
    mark = f"{WORLD_VERSION} {SEED} {DURATION_S}"
    return Suite("toybench", tuple(plain.read(FILE)), digest_of(FILE), ("toybox",), ideal, mark, AXES)


def ideal(prompt: Prompt, like: Clip) -> Clip:
    """A clip of the world that does what the prompt says, in the form of `like`: what a perfect model makes."""
    missing = ToyboxConfig()
    height, width = (missing.height, missing.width) if like.video is None else like.video.shape[1:3]
    config = ToyboxConfig(
        height=height,
        width=width,
        fps=like.fps or missing.fps,
        duration_s=max(DURATION_S, like.video_duration_s, like.audio_duration_s),
        sample_rate_hz=like.sample_rate_hz or missing.sample_rate_hz,
    )
    return render_facts(parse(prompt.text), config, SEED, int(prompt.id.rsplit("_", 1)[-1])).clip


def tags_of(facts: SceneFacts) -> dict[str, str]:
    seen = [actor for actor in facts.actors if actor.visible]
    heard = [actor for actor in facts.actors if actor.audible]
    times = sum(actor.count for actor in facts.actors)
    held_out = all((actor.kind, actor.colour, actor.size) in HELD_OUT for actor in facts.actors)
    return {
        "scenario": one_of(seen, lambda a: SCENARIO[a.kind], "unseen", "several"),
        "style": one_of(list(facts.actors), lambda a: STYLE[a.colour], "mixed", "mixed"),
        "sound": one_of(heard, lambda a: SOUND[a.kind], "silence", "several"),
        "temporal": TIMES.get(facts.type)
        or ("at once" if len(facts.actors) > 1 else "once" if times == 1 else "repeated"),
        "spatial": "off screen" if len(seen) < len(facts.actors) else "one" if len(seen) == 1 else "two",
        "novelty": "held out" if held_out else "seen",
    }


def one_of(actors: list[ActorFacts], category: object, none: str, several: str) -> str:
    found = {category(actor) for actor in actors}  # type: ignore[operator]
    return none if not found else found.pop() if len(found) == 1 else several


def made() -> list[dict[str, object]]:
    """The file's lines: distinct captions, in an order that is shuffled so that any first part is a fair sample."""
    random = np.random.Generator(np.random.Philox(SEED))
    lines: list[dict[str, object]] = []
    said: set[str] = set()
    for type, count in COUNTS.items():
        for i in range(count):
            combinations = tuple(sorted(HELD_OUT)) if i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else SEEN
            text = ""
            while not text or text in said:
                facts = draw_facts(random, type, combinations, DURATION_S)
                wording = int(random.integers(2**62))
                text = caption(facts, wording)
            said.add(text)
            views = {"video_text": caption(facts, wording, "picture"), "audio_text": caption(facts, wording, "sound")}
            lines.append({"text": text, **views, "tags": tags_of(facts)})
    order = random.permutation(len(lines))
    return [{"id": f"toy_{i:04d}", **lines[place]} for i, place in enumerate(order)]


def main() -> None:
    FILE.write_text("".join(json.dumps(line) + "\n" for line in made()), encoding="utf-8")
    print(f"{FILE}: {sum(COUNTS.values())} prompts of world version {WORLD_VERSION}")


if __name__ == "__main__":
    main()
