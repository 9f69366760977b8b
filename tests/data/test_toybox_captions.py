"""The caption grammar and its inverse."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avgen.data.toybox import Toybox, ToyboxConfig, caption, parse, render_facts
from avgen.data.toybox.captions import (
    COUNT_WORDS,
    NOUNS,
    SIZE_WORDS,
    SOUND_VERBS,
    TEMPLATES,
    VERBS,
    seen_through,
    wordings,
)
from avgen.data.toybox.scene import COLOURS, KINDS, SIZES, ActorFacts, SceneFacts

VIEWS = ("scene", "picture", "sound")


@st.composite
def scene_facts(draw):
    type = draw(st.sampled_from(["single", "turn", "pair", "offscreen", "silent"]))
    two = type in ("turn", "pair") or (type == "offscreen" and draw(st.booleans()))
    actors = []
    for i in range(1 + two):
        actors.append(
            ActorFacts(
                draw(st.sampled_from(KINDS)),
                draw(st.sampled_from(COLOURS)),
                draw(st.sampled_from(SIZES)),
                draw(st.integers(1, 30)),
                visible=type != "offscreen" or (two and i == 0),
                audible=type != "silent",
            )
        )
    return SceneFacts(type, tuple(actors))


@settings(max_examples=400, deadline=None)
@given(facts=scene_facts(), wording=st.integers(0, 2**62), view=st.sampled_from(VIEWS))
def test_a_caption_parses_back_to_its_facts(facts, wording, view):
    said = caption(facts, wording, view)
    assert parse(said, view).same_as(seen_through(facts, view))
    assert said[0].isupper()
    assert said.endswith(".")


def test_items_captions_are_true_of_them():
    world = Toybox(ToyboxConfig(), "test")
    for i in range(100):
        item = world[i]
        assert parse(item.caption).same_as(item.facts)
        assert parse(item.video_caption, "picture").same_as(seen_through(item.facts, "picture"))
        assert parse(item.audio_caption, "sound").same_as(seen_through(item.facts, "sound"))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("type", "number"), [("single", 1), ("silent", 1), ("offscreen", 2), ("turn", 2), ("pair", 2)])
def test_every_paraphrase_is_reachable_and_different(view, type, number):
    one = ActorFacts("ball", "red", "large", 1, audible=type != "silent")
    other = ActorFacts("disc", "blue", "medium", 1, visible=type != "offscreen", audible=type != "silent")
    facts = SceneFacts(type, (one, other)[:number])
    total = wordings(facts, view)
    said = [caption(facts, n, view) for n in range(total)]
    assert len(set(said)) == total
    assert caption(facts, total, view) in said
    left = seen_through(facts, view)
    verbs = SOUND_VERBS if view == "sound" else VERBS
    for actor in left.actors:
        for word in (*SIZE_WORDS[actor.size], *NOUNS[actor.kind], *verbs[actor.kind]):
            assert any(word in text.lower() for text in said)
    for template in TEMPLATES[view, left.type, len(left.actors)]:
        literal = max(re.split(r"\{[^}]*\}", template), key=len)
        assert any(literal.strip(" ,;:") in text.lower() for text in said)


def test_counts_are_said_in_words_and_digits():
    for count in range(1, len(COUNT_WORDS) + 3):
        facts = SceneFacts("single", (ActorFacts("lamp", "cyan", "small", count),))
        said = {caption(facts, n) for n in range(wordings(facts))}
        assert all(parse(text) == facts for text in said)
        assert any(f"{count} times" in text for text in said) == (count > 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A dog barks.",
        "A small purple ball bounces once.",
        "A small red ball flashes once.",  # a lamp's verb
        "A red ball bounces once.",  # no size
        "A small red ball bounces.",  # no count
        "A small red ball bounces once, then",
        "Silence.",  # of a sound, not of a scene
        "🙂" * 50,
    ],
)
def test_what_the_grammar_cannot_say_is_refused(text):
    with pytest.raises(ValueError, match="not a toybox scene caption"):
        parse(text)


def test_spacing_and_case_do_not_matter():
    assert parse("  a LARGE Green lamp   flashes TWICE ") == SceneFacts(
        "single", (ActorFacts("lamp", "green", "large", 2),)
    )


def test_a_caption_can_be_rendered():
    config = ToyboxConfig()
    for text in (
        "A tiny blue ball bounces twice, then a big red lamp flashes once.",
        "Off screen, a large white rod strikes three times.",
        "A medium green disc pulses twice without a sound.",
        "A small cyan lamp flashes once while a large yellow ball bounces three times.",
    ):
        facts = parse(text)
        items = [render_facts(facts, config, seed=0, index=i) for i in range(3)]
        assert all(item.facts == facts for item in items)
        assert len({item.scene for item in items}) == 3
