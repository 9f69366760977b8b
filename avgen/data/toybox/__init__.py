"""A procedural world in which every sound has a visible cause at a known instant."""

from avgen.data.toybox.captions import caption, parse
from avgen.data.toybox.scene import Actor, ActorFacts, Event, Scene, SceneFacts, events, facts_of
from avgen.data.toybox.world import Toybox, ToyboxConfig, ToyClip, render, render_facts

__all__ = [
    "Actor",
    "ActorFacts",
    "Event",
    "Scene",
    "SceneFacts",
    "ToyClip",
    "Toybox",
    "ToyboxConfig",
    "caption",
    "events",
    "facts_of",
    "parse",
    "render",
    "render_facts",
]
