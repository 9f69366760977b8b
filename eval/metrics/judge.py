"""A judge that hears and sees, asked yes-or-no questions; its score is how much likelier "yes" is than "no".

Such models lean towards yes, and towards the answer named last. So every question is asked both ways round (is it
matched, is it mismatched) and with both orders of the answers; the score is the mean, and the confidence is lost where
the four disagree. At one frame a second no judge resolves sub-second synchrony: that is what the sync metrics are for.
"""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from eval.hosted import Source, mono, spread_frames
from eval.metric import Definition, Measure, Metric, Needs, NotApplicable, Result, Setup, Skipped, Take
from eval.take import Picture

FRAMES_A_SECOND, MOST_FRAMES = 1.0, 16
RATE_HZ = 16_000
ORDERS = ("Answer with Yes or No.", "Answer with No or Yes.")
KEY = "AVGEN_JUDGE_KEY"  # environment variable with an endpoint's key, where it wants one
ASKED = {
    "audio_video": (
        "Do the sound and the picture of this video belong together?",
        "Do the sound and the picture of this video contradict each other?",
    ),
    "audio_text": ('Does the sound match this description: "{}"?', 'Does the sound contradict this description: "{}"?'),
    "video_text": (
        'Does the picture match this description: "{}"?',
        'Does the picture contradict this description: "{}"?',
    ),
}


class Judge(Protocol):
    """Asked about a picture and a wave (S,) at RATE_HZ, either of which may be absent."""

    def yes(self, question: str, picture: Picture | None, wave: np.ndarray | None) -> float: ...  # P(yes | yes or no)


def metrics(setup: Setup) -> Sequence[Metric]:
    place = setup.weights.get("judge", "")
    said = {
        "orders": list(ORDERS),
        "frames_a_second": FRAMES_A_SECOND,
        "most_frames": MOST_FRAMES,
        "pace": "told",
        "judge": place,
    }
    source = Source.of(setup, "judge", place)
    if source.digest:
        said["judge"] = f"sha256:{source.digest}"
    jury = Jury(source)

    def one(name: str, says: str, of: Callable[[Take], Result], **needed: bool) -> Measure:
        needs = replace(Needs(licence="that of the judge"), **needed)  # type: ignore[arg-type]
        return Measure(Definition(f"judge.{name}", says, "", "higher", needs=needs, parameters=said), of)

    return (
        one(
            "audio_video",
            f"Mean over both polarities and answer orders of P(right answer) to: {ASKED['audio_video'][0]}",
            jury.audio_video,
            picture=True,
            sound=True,
        ),
        one(
            "audio_text",
            f"Likewise, of the sound alone: {ASKED['audio_text'][0]}",
            jury.audio_text,
            sound=True,
            text=True,
        ),
        one(
            "video_text",
            f"Likewise, of the picture alone: {ASKED['video_text'][0]}",
            jury.video_text,
            picture=True,
            text=True,
        ),
        one(
            "checklist",
            "Mean over the prompt's checklist of P(right answer), both orders of the answers.",
            jury.checklist,
        ),
    )


@dataclass(frozen=True)
class Jury:
    source: Source

    @property
    def judge(self) -> Judge:
        place = self.source.place
        if not place:
            raise Skipped("no judge: give weights.judge=FOLDER_OR_ID, or 'weights.judge=\"http://HOST/v1#MODEL\"'")
        if place.startswith(("http://", "https://")):
            address, _, model = place.partition("#")
            return Endpoint(address.rstrip("/"), model)
        return Local(self.source)

    def audio_video(self, take: Take) -> Result:
        return self.both_ways(ASKED["audio_video"], glimpses(take), mono(take.sound, RATE_HZ))

    def audio_text(self, take: Take) -> Result:
        text = take.prompt.audio_text or take.prompt.text
        return self.both_ways([q.format(text) for q in ASKED["audio_text"]], None, mono(take.sound, RATE_HZ))

    def video_text(self, take: Take) -> Result:
        text = take.prompt.video_text or take.prompt.text
        return self.both_ways([q.format(text) for q in ASKED["video_text"]], glimpses(take), None)

    def both_ways(self, asked: Sequence[str], picture: Picture | None, wave: np.ndarray | None) -> Result:
        judge = self.judge
        right, wrong = ([judge.yes(f"{question} {order}", picture, wave) for order in ORDERS] for question in asked)
        votes = [*right, *(1 - p for p in wrong)]
        said = {"yes": right, "yes_to_opposite": wrong, "leaning": float(np.mean(right) + np.mean(wrong) - 1)}
        return Result(float(np.mean(votes)), confidence=round(1 - float(np.ptp(votes)), 3), extras=said)

    def checklist(self, take: Take) -> Result:
        if not take.prompt.checklist:
            raise NotApplicable("the prompt has no checklist")
        clip = take.clip
        picture = None if clip.video is None else glimpses(take)
        wave = None if clip.audio is None else mono(take.sound, RATE_HZ)
        judge = self.judge
        answers = []
        for check in take.prompt.checklist:
            yes = float(np.mean([judge.yes(f"{check.question} {order}", picture, wave) for order in ORDERS]))
            answers.append(yes if check.answer == "yes" else 1 - yes)
        return Result(float(np.mean(answers)), weight=len(answers), extras={"answers": answers})


def glimpses(take: Take) -> Picture:
    """Few enough frames for a judge, and how fast they follow each other."""
    count = int(np.clip(round(take.picture.duration_s * FRAMES_A_SECOND), 2, MOST_FRAMES))
    frames = spread_frames(take.picture, count)
    return Picture(frames, len(frames) / take.picture.duration_s)


@dataclass(frozen=True)
class Local:
    """Qwen2.5-Omni's thinker, greedy, first token."""

    source: Source

    def yes(self, question: str, picture: Picture | None, wave: np.ndarray | None) -> float:
        model = self.source.load("Qwen2_5OmniThinkerForConditionalGeneration")
        processor = self.source.load("Qwen2_5OmniProcessor")
        content: list[dict[str, str]] = []
        media: dict[str, Any] = {}
        if picture is not None:
            content.append({"type": "video"})
            # without their rate two frames a second are assumed, and the picture is told at another pace than the sound
            frames = torch.from_numpy(np.ascontiguousarray(picture.frames)).permute(0, 3, 1, 2)
            media |= {"videos": [frames], "fps": picture.fps}
        if wave is not None:
            content.append({"type": "audio"})
            media |= {"audio": [wave]}
        turns = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        batch = processor(text=text, return_tensors="pt", **media).to(self.source.device)
        with torch.inference_mode():
            logits = model(**batch).logits[0, -1].float()
        words = [[first_token(processor.tokenizer, word) for word in (w, w.lower(), f" {w}")] for w in ("Yes", "No")]
        yes, no = (torch.logsumexp(logits[sorted(set(tokens))], 0) for tokens in words)
        return float(torch.sigmoid(yes - no))


def first_token(tokenizer: Any, word: str) -> int:
    return int(tokenizer(word, add_special_tokens=False)["input_ids"][0])


@dataclass(frozen=True)
class Endpoint:
    """Any OpenAI-compatible server that gives log probabilities: frames as images, sound as wav."""

    address: str  # http://host/v1
    model: str

    def yes(self, question: str, picture: Picture | None, wave: np.ndarray | None) -> float:
        content: list[dict[str, Any]] = []
        for frame in picture.frames if picture is not None else ():
            content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(frame)}"}})
        if wave is not None:
            content.append({"type": "input_audio", "input_audio": {"data": wav(wave), "format": "wav"}})
        content.append({"type": "text", "text": question})
        said = self.post(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": content}],
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": True,
                "top_logprobs": 20,
            }
        )
        try:
            tokens = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{self.address} gave no log probabilities: choose a server that does") from error
        chance = {"yes": 0.0, "no": 0.0}
        for token in tokens:
            word = token["token"].strip().lower()
            if word in chance:
                chance[word] += float(np.exp(token["logprob"]))
        if not sum(chance.values()):
            raise ValueError(f"{self.model} answered neither yes nor no: {[t['token'] for t in tokens[:5]]}")
        return chance["yes"] / sum(chance.values())

    def post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(f"{self.address}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ValueError(
                f"{self.address} refused: {error.code} {error.read(300).decode(errors='replace')}"
            ) from error
        except urllib.error.URLError as error:
            raise Skipped(f"{self.address} cannot be reached: {error.reason}") from error


def png(frame: np.ndarray) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(frame).save(out, "png")
    return base64.b64encode(out.getvalue()).decode()


def wav(wave: np.ndarray) -> str:
    from scipy.io import wavfile

    out = io.BytesIO()
    wavfile.write(out, RATE_HZ, np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16))
    return base64.b64encode(out.getvalue()).decode()
