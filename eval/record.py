"""The one form in which every suite's prompts reach the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Utterance:
    """Something a prompt wants said."""

    text: str
    speaker: str = ""
    description: str = ""  # of the voice


@dataclass(frozen=True)
class Check:
    """A question about a clip that a judge answers."""

    question: str
    answer: str = "yes"  # the right one
    group: str = ""  # what is asked about, in the suite's own words: "video/attribute"


@dataclass(frozen=True)
class Prompt:
    """What was asked for. Texts that a suite lacks are empty: `video_text or text` says what the picture shows."""

    id: str
    text: str
    video_text: str = ""
    audio_text: str = ""
    speech: tuple[Utterance, ...] = ()
    first_frame: Path | None = None
    reference: Path | None = None  # a real clip of this prompt: paired metrics and ceilings
    checklist: tuple[Check, ...] = ()
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # axis -> the prompt's categories on it
    extra: Mapping[str, str] = field(default_factory=dict)  # what only this suite's own metrics read
