"""One space for text, picture and sound: PE-AV, with JavisScore's windows on its embeddings.

The parts are called as the model's own forward calls them: its getters for one modality are broken in transformers
5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from eval.hosted import Source, encoded, mono, pieces, spread_frames, token_limit, vectors
from eval.metric import Definition, Measure, Metric, Needs, Result, Setup, Take
from eval.metrics import windows

DEFAULT = "facebook/pe-av-large"
FRAMES = 16  # of a whole clip
RATE_HZ = 8.0  # frames a second that the windowed scores look at, one by one
INSTALL = "pip install timm"


def metrics(setup: Setup) -> Sequence[Metric]:
    model = PeAv(Source.of(setup, "pe_av", DEFAULT))

    def one(name: str, says: str, of: Callable[[Take], Result], **needed: bool) -> Measure:
        sided = needed.get("picture", False) and needed.get("sound", False)
        needs = Needs(packages=("timm",), licence="that of the weights", install=INSTALL, **needed)
        parameters = {"frames": FRAMES, "rate_hz": RATE_HZ, **model.source.parameters}
        return Measure(
            Definition(
                f"pe_av.{name}",
                says,
                "",
                "higher",
                needs=needs,
                parameters=parameters,
                nulls=("swapped",) if sided else (),
                ceiling=sided,
            ),
            of,
        )

    return (
        one(
            "text_video",
            "Cosine of text and picture in the model's text-video space.",
            model.text_video,
            picture=True,
            text=True,
        ),
        one(
            "text_audio",
            "Cosine of text and sound in the model's text-audio space.",
            model.text_audio,
            sound=True,
            text=True,
        ),
        one("audio_video", "Cosine of sound and picture.", model.audio_video, picture=True, sound=True),
        one(
            "javis_score",
            "Windows of 2 s every 0.5 s; in each the mean of the lowest 40 % of cosines between a frame and the"
            " window's sound; mean over windows. JavisBench's windowing on another model.",
            model.javis_score,
            picture=True,
            sound=True,
        ),
        one(
            "avh_score",
            "Mean over frames of the cosine between a frame and the whole sound.",
            model.avh_score,
            picture=True,
            sound=True,
        ),
    )


@dataclass(frozen=True)
class PeAv:
    source: Source

    def text_video(self, take: Take) -> Result:
        texts = self.texts(take.prompt.video_text or take.prompt.text, "video")
        return Result(float((texts @ self.seen(spread_frames(take.picture, FRAMES)[None])[0]).mean()))

    def text_audio(self, take: Take) -> Result:
        texts = self.texts(take.prompt.audio_text or take.prompt.text, "audio")
        return Result(float((texts @ self.hear(take)(0.0, take.sound.duration_s)).mean()))

    def audio_video(self, take: Take) -> Result:
        seen = self.seen(spread_frames(take.picture, FRAMES)[None])[0]
        return Result(float(seen @ self.hear(take)(0.0, take.sound.duration_s)))

    def javis_score(self, take: Take) -> Result:
        frames, rate = self.one_by_one(take)
        length = min(take.picture.duration_s, take.sound.duration_s)
        return Result(windows.javis_score(frames, rate, length, self.hear(take)))

    def avh_score(self, take: Take) -> Result:
        frames, _ = self.one_by_one(take)
        return Result(windows.avh_score(frames, take.sound.duration_s, self.hear(take)))

    def texts(self, text: str, space: str) -> np.ndarray:
        """(parts, D) in the space that text shares with "audio" or with "video"."""
        model, tokenizer = self.source.load("PeAudioVideoModel"), self.source.load("AutoTokenizer")
        limit = token_limit(tokenizer, model.config)
        batch = encoded(pieces(text, tokenizer, limit), tokenizer, limit, self.source.device)
        head = model.audio_model.text_audio_head if space == "audio" else model.video_model.text_video_head
        with torch.inference_mode():
            states = model.text_model(
                batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
            ).hidden_states
            return vectors(head(states[-1][:, 0]))

    def seen(self, clips: np.ndarray) -> np.ndarray:
        """(N, D) of (N, T, H, W, 3)."""
        model, processor = self.source.load("PeAudioVideoModel"), self.source.load("PeVideoVideoProcessor")
        batch = processor(videos=list(clips), return_tensors="pt", do_sample_frames=False).to(self.source.device)
        with torch.inference_mode():
            found = model.video_model.video_encoder(pixel_values_videos=batch["pixel_values_videos"])
            return vectors(model.video_model.video_head(found.pooler_output))

    def one_by_one(self, take: Take) -> tuple[np.ndarray, float]:
        """(T, D) of single frames, and how many of them there are in a second."""
        count = max(1, round(take.picture.duration_s * min(RATE_HZ, take.picture.fps)))
        frames = spread_frames(take.picture, count)
        return self.seen(frames[:, None]), len(frames) / take.picture.duration_s

    def hear(self, take: Take) -> windows.Hear:
        model, extractor = self.source.load("PeAudioVideoModel"), self.source.load("PeAudioFeatureExtractor")
        rate = extractor.sampling_rate
        wave = mono(take.sound, rate)

        def embed(start_s: float, stop_s: float) -> np.ndarray:
            part = wave[round(start_s * rate) : round(stop_s * rate)]
            batch = extractor([part], sampling_rate=rate, return_tensors="pt").to(self.source.device)
            with torch.inference_mode():
                found = model.audio_model.audio_encoder(input_values=batch["input_values"])
                return np.asarray(vectors(model.audio_model.audio_head(found.pooler_output))[0])

        return embed
