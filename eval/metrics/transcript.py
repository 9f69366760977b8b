"""Whether what should be said is said: Whisper's transcript against the prompt's speech."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from eval.hosted import Source, chunks, mono
from eval.metric import Definition, Measure, Metric, Needs, NotApplicable, Result, Setup, Take, versions
from eval.metrics.speech import INSTALL, RATE_HZ, SPEAKING, speaking
from eval.take import Sound

DEFAULT = "openai/whisper-large-v3"
HEARS_S = 30.0  # at once
LEAST_S = 0.1  # of speech: Whisper makes words of silence


def metrics(setup: Setup) -> Sequence[Metric]:
    whisper = Whisper(Source.of(setup, "whisper", DEFAULT))
    needs = Needs(sound=True, packages=("silero_vad",), licence="that of the weights", install=INSTALL)

    def one(name: str, unit: str, units: Callable[[str], Sequence[str]]) -> Measure:
        says = (
            f"Edits that turn the transcript into the prompt's speech over the {unit}s of it, both in lower case"
            " without punctuation; may exceed 1. Where silero-vad hears no speech the transcript is empty."
        )
        made_of = {**whisper.source.parameters, **versions("silero-vad")}
        return Measure(
            Definition(f"whisper.{name}", says, "", "lower", 2, needs=needs, parameters=made_of), whisper.errors(units)
        )

    return one("wer", "word", str.split), one("cer", "character", lambda text: text.replace(" ", ""))


@dataclass(frozen=True)
class Whisper:
    source: Source

    def errors(self, units: Callable[[str], Sequence[str]]) -> Callable[[Take], Result]:
        def of(take: Take) -> Result:
            wanted = plain(" ".join(said.text for said in take.prompt.speech))
            if not wanted:
                raise NotApplicable("the prompt asks for no speech")
            heard = take.sound.once(self.transcript)
            whole = units(wanted)
            # weighted by length, so that the mean over clips is the rate over all of their words
            return Result(edits(units(plain(heard)), whole) / len(whole), weight=len(whole), extras={"heard": heard})

        return of

    def transcript(self, sound: Sound) -> str:
        if float((sound.once(speaking) >= SPEAKING).sum()) * 512 / RATE_HZ < LEAST_S:
            return ""
        model, processor = self.source.load("WhisperForConditionalGeneration"), self.source.load("WhisperProcessor")
        said = []
        for part in chunks(mono(sound, RATE_HZ), round(HEARS_S * RATE_HZ)):
            batch = processor.feature_extractor(
                part, sampling_rate=RATE_HZ, return_tensors="pt", return_attention_mask=True
            ).to(self.source.device)
            with torch.inference_mode():
                tokens = model.generate(**batch, do_sample=False, num_beams=1)
            said.append(processor.batch_decode(tokens, skip_special_tokens=True)[0].strip())
        return " ".join(said)


def plain(text: str) -> str:
    """Letters and digits of any script and apostrophes inside words, in lower case, one space between words."""
    text = re.sub("[\u2018\u2019\u02bc]", "'", text.lower())
    kept = "".join(c if unicodedata.category(c)[0] in "LNM" or c == "'" else " " for c in text)
    kept = re.sub(r"(?<!\w)'|'(?!\w)", " ", kept)
    return re.sub(r"\s+", " ", kept).strip()


def edits(first: Sequence[str], second: Sequence[str]) -> int:
    """Levenshtein distance."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]
