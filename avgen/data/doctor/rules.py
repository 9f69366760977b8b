"""What is wrong with a clip: one dataclass per rule, with its thresholds, what to do, and how it tells.

A rule sees measurements and the manifest's row, never the file; so rules can be changed and run again at once.
"""

from __future__ import annotations

import base64
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from avgen.data.doctor.measure import STEP, Measures
from avgen.data.manifest import Record

Action = Literal["drop", "flag", "off"]
STEP_S = float(STEP)


@dataclass(frozen=True)
class Finding:
    """One rule that one clip breaks."""

    rule: str
    action: Action
    reason: str  # with the value and the threshold


@dataclass(frozen=True)
class Rule:
    action: Action = "flag"  # drop = leave it out of the cleaned manifest, flag = only report it, off = do not look

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        """The reason, or None where the clip keeps the rule. Never asked of clips that could not be read."""
        raise NotImplementedError


@dataclass(frozen=True)
class Unreadable(Rule):
    """The window cannot be decoded from its first frame and sample to its last."""

    action: Action = "drop"  # drop, flag or off (off: trained on anyway, which will fail)

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        return clip.error or None


@dataclass(frozen=True)
class BeyondEnd(Rule):
    """The row's window reaches past the file."""

    at_most_s: float = 0.1  # seconds that the window may end after the file does

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        over = (record.end_s or 0.0) - clip.file_end_s
        if over <= self.at_most_s:
            return None
        return f"the window ends {over:.3f} s after the file, at {clip.file_end_s:.3f} s (at most {self.at_most_s:g})"


@dataclass(frozen=True)
class NoPicture(Rule):
    """There is sound alone."""

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        return "has no picture" if clip.picture is None else None


@dataclass(frozen=True)
class NoSound(Rule):
    """There is a picture alone."""

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        return "has no sound" if clip.sound is None else None


@dataclass(frozen=True)
class VariableRate(Rule):
    """Frames do not come at one rate. The reader copes; other tools that count frames lose sync."""

    off_beat: float = 0.02  # share of frame intervals that may differ from the usual one

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        if clip.picture is None or clip.picture.off_beat <= self.off_beat:
            return None
        share = f"{clip.picture.off_beat:.1%}"
        return f"{share} of the frame intervals differ from the usual one (at most {self.off_beat:.1%})"


@dataclass(frozen=True)
class StartOffset(Rule):
    """Picture and sound do not begin together."""

    at_most_s: float = 0.1  # seconds between their starts

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        if clip.picture is None or clip.sound is None:
            return None
        late = clip.sound.start_s - clip.picture.start_s
        if abs(late) <= self.at_most_s:
            return None
        which = "later" if late > 0 else "earlier"
        return f"the sound starts {abs(late):.3f} s {which} than the picture (at most {self.at_most_s:g})"


@dataclass(frozen=True)
class EndGap(Rule):
    """One stream goes on after the other has ended."""

    at_most_s: float = 0.3  # seconds between their ends

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        if clip.picture is None or clip.sound is None:
            return None
        longer = clip.sound.end_s - clip.picture.end_s
        if abs(longer) <= self.at_most_s:
            return None
        which = "after" if longer > 0 else "before"
        return f"the sound ends {abs(longer):.3f} s {which} the picture (at most {self.at_most_s:g})"


@dataclass(frozen=True)
class Silent(Rule):
    """Nothing can be heard from first to last."""

    below_dbfs: float = -60.0  # RMS over 0.1 s that counts as silence

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        if clip.sound is None or not clip.sound.level or max(clip.sound.level) >= self.below_dbfs:
            return None
        return f"silent throughout: never above {max(clip.sound.level)} dBFS (silence is below {self.below_dbfs:g})"


@dataclass(frozen=True)
class SilentPart(Rule):
    """A long pause, or a sound that is mostly pauses, in a clip that is not silent throughout."""

    below_dbfs: float = -60.0  # RMS over 0.1 s that counts as silence
    longest_s: float = 2.0  # seconds of silence in one piece
    share: float = 0.9  # of the clip

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        if clip.sound is None or not clip.sound.level or max(clip.sound.level) < self.below_dbfs:
            return None
        quiet = np.array(clip.sound.level) < self.below_dbfs
        begin, length = _longest(quiet)
        if length * STEP_S > self.longest_s:
            return (
                f"silent for {length * STEP_S:.1f} s from {clip.sound.start_s + begin * STEP_S:.1f} s on "
                f"(at most {self.longest_s:g})"
            )
        return f"silent for {quiet.mean():.0%} (at most {self.share:.0%})" if quiet.mean() > self.share else None


@dataclass(frozen=True)
class Clipping(Rule):
    """The sound was cut off at full scale."""

    share: float = 0.0005  # of the samples that may lie in runs of 3 or more at full scale

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        if clip.sound is None or clip.sound.clipped <= self.share:
            return None
        return f"{clip.sound.clipped:.2%} of the samples are cut off at full scale (at most {self.share:.2%})"


@dataclass(frozen=True)
class FalseStereo(Rule):
    """Two channels with one signal, with nothing in one of them, or one against the other."""

    side_db: float = -50.0  # below: their difference, against their sum, is none
    balance_db: float = 40.0  # above: one is empty beside the other

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        sound = clip.sound
        if sound is None or sound.channels != 2 or max(sound.level, default=-999) < -90:
            return None
        if abs(sound.balance_db) > self.balance_db:
            empty = "right" if sound.balance_db > 0 else "left"
            return (
                f"the {empty} channel is {abs(sound.balance_db):.0f} dB below the other (at most {self.balance_db:g})"
            )
        if sound.side_db < self.side_db:
            return f"stereo that is mono: the channels differ by {sound.side_db:.0f} dB (less than {self.side_db:g})"
        if sound.side_db > -self.side_db:
            return f"the channels cancel each other: their sum is {sound.side_db:.0f} dB below their difference"
        return None


@dataclass(frozen=True)
class Static(Rule):
    """The picture hardly ever changes."""

    change: float = 1.0  # grey levels of 255 in any block within 0.1 s that count as a change
    share: float = 0.95  # of the clip that may stand still

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        if clip.picture is None or len(clip.picture.motion) < 2:
            return "is one picture" if clip.picture is not None else None
        still = (np.array(clip.picture.motion[1:]) < self.change).mean()
        return None if still <= self.share else f"stands still for {still:.0%} of the time (at most {self.share:.0%})"


@dataclass(frozen=True)
class Frozen(Rule):
    """The picture stops for a while in a clip that otherwise moves."""

    change: float = 0.5  # grey levels of 255 in any block within 0.1 s: what encoders change in a still picture
    longest_s: float = 2.0  # seconds in one piece

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        if clip.picture is None or len(clip.picture.motion) < 2:
            return None
        begin, length = _longest(np.array(clip.picture.motion[1:]) < self.change)
        if length * STEP_S <= self.longest_s or length + 1 == len(clip.picture.motion):
            return None
        return (
            f"is frozen for {length * STEP_S:.1f} s from {clip.picture.start_s + begin * STEP_S:.1f} s on "
            f"(at most {self.longest_s:g})"
        )


@dataclass(frozen=True)
class Black(Rule):
    """There is nothing to see."""

    luma: int = 24  # of 255: darker, but for 1 % of the pixels, is black
    share: float = 0.1  # of the clip that may be black

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        if clip.picture is None:
            return None
        dark = (np.array(clip.picture.brightest) < self.luma).mean()
        return None if dark <= self.share else f"is black for {dark:.0%} of the time (at most {self.share:.0%})"


@dataclass(frozen=True)
class Untied(Rule):
    """No onsets tied to motion, as in music laid under a picture. Weak (docs/data.md): to sort by, not to drop by."""

    action: Action = "off"  # drop, flag or off
    deviations: float = 1.0  # by which onsets and motion must agree better than after shifting one against the other

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        if clip.tie is None or clip.tie >= self.deviations:
            return None
        return (
            f"onsets agree with motion {clip.tie:+.1f} deviations better than by chance (at least {self.deviations:g})"
        )


@dataclass(frozen=True)
class CaptionMissing(Rule):
    """Nothing is said of the clip."""

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        return None if any(text.strip() for _, text in record.captions) else "has no caption"


@dataclass(frozen=True)
class CaptionLong(Rule):
    """More than text encoders read: T5 and its like cut at 512 tokens, and a token is about four characters."""

    characters: int = 2000  # of one caption

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        for kind, text in record.captions:
            if len(text) > self.characters:
                return f"the {kind} caption has {len(text)} characters (at most {self.characters})"
        return None


@dataclass(frozen=True)
class CaptionTwice(Rule):
    """One clip is given the same caption twice: it would be drawn twice as often."""

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        twice = [pair for pair, count in Counter(record.captions).items() if count > 1]
        return f"the {twice[0][0]} caption {shorten(twice[0][1])!r} stands there twice" if twice else None


@dataclass(frozen=True)
class CaptionGarbled(Rule):
    """Bytes in another encoding than UTF-8, or text that was decoded with the wrong one."""

    def broken_by(self, record: Record, clip: Measures) -> str | None:
        for kind, text in record.captions:
            why = _garbled(text)
            if why:
                return f"the {kind} caption {shorten(text)!r} {why}"
        return None


@dataclass(frozen=True)
class CaptionCommon:
    """Many clips have one and the same caption: a template, or a failed captioner."""

    action: Action = "flag"  # drop, flag or off
    clips: int = 20  # that may share a caption


@dataclass(frozen=True)
class Duplicate:
    """A copy of another clip, also re-encoded or rescaled. One of them, the largest picture, is kept."""

    action: Action = "drop"  # drop, flag or off
    picture: float = 0.05  # 1 - correlation of the pictures below which they are the same; 0 finds exact copies
    sound_db: float = 3.0  # RMS difference in dB of the sounds' bands below which they are the same


@dataclass(frozen=True)
class Rules:
    """Every rule that is looked at, in the order of the report."""

    unreadable: Unreadable = Unreadable()
    beyond_end: BeyondEnd = BeyondEnd()
    no_picture: NoPicture = NoPicture()
    no_sound: NoSound = NoSound()
    variable_rate: VariableRate = VariableRate()
    start_offset: StartOffset = StartOffset()
    end_gap: EndGap = EndGap()
    silent: Silent = Silent()
    silent_part: SilentPart = SilentPart()
    clipping: Clipping = Clipping()
    false_stereo: FalseStereo = FalseStereo()
    static: Static = Static()
    frozen: Frozen = Frozen()
    black: Black = Black()
    untied: Untied = Untied()
    caption_missing: CaptionMissing = CaptionMissing()
    caption_long: CaptionLong = CaptionLong()
    caption_twice: CaptionTwice = CaptionTwice()
    caption_garbled: CaptionGarbled = CaptionGarbled()
    caption_common: CaptionCommon = CaptionCommon()
    duplicate: Duplicate = Duplicate()

    def alone(self) -> dict[str, Rule]:
        """The rules that need one clip only; the others compare clips."""
        return {
            "unreadable": self.unreadable,
            "beyond_end": self.beyond_end,
            "no_picture": self.no_picture,
            "no_sound": self.no_sound,
            "variable_rate": self.variable_rate,
            "start_offset": self.start_offset,
            "end_gap": self.end_gap,
            "silent": self.silent,
            "silent_part": self.silent_part,
            "clipping": self.clipping,
            "false_stereo": self.false_stereo,
            "static": self.static,
            "frozen": self.frozen,
            "black": self.black,
            "untied": self.untied,
            "caption_missing": self.caption_missing,
            "caption_long": self.caption_long,
            "caption_twice": self.caption_twice,
            "caption_garbled": self.caption_garbled,
        }

    def findings(self, record: Record, clip: Measures) -> Iterator[Finding]:
        """What is wrong with this clip, seen alone."""
        for name, rule in self.alone().items():
            if rule.action == "off":
                continue
            if clip.error and not isinstance(rule, (Unreadable, *CAPTION_RULES)):
                continue
            reason = rule.broken_by(record, clip)
            if reason is not None:
                yield Finding(name, rule.action, reason)


CAPTION_RULES = (CaptionMissing, CaptionLong, CaptionTwice, CaptionGarbled)


def shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def unpacked(fingerprint: str, dtype: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(fingerprint), dtype).astype(np.float32)


def _longest(flags: Sequence[bool] | np.ndarray) -> tuple[int, int]:
    """(begin, length) of the longest run."""
    edges = np.flatnonzero(np.diff(np.asarray(flags).astype(np.int8), prepend=0, append=0))
    if not len(edges):
        return 0, 0
    begins, lengths = edges[::2], edges[1::2] - edges[::2]
    best = int(lengths.argmax())
    return int(begins[best]), int(lengths[best])


def _garbled(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds bytes that are not UTF-8"
    if "\ufffd" in text:
        return "holds the mark of a character that was lost (U+FFFD)"
    if any(unicodedata.category(c) == "Cc" and c not in "\n\r\t" for c in text):
        return "holds control characters"
    for encoding in (
        "cp1252",
        "latin-1",
    ):  # UTF-8 read as Western turns back into valid UTF-8; real text hardly ever does
        try:
            meant = text.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
        if meant != text:
            return f"is UTF-8 that was read as {encoding}: {shorten(meant)!r} was meant"
    return None
