"""AVPipeline: a model, its codecs and its captions' encoder as a diffusers pipeline, one call for every task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from avgen.config import to_plain
from avgen.data.media import MediaError
from avgen.models.attention import choose
from avgen.models.codecs import AudioCodec, VideoCodec
from avgen.models.dit import AVTransformer
from avgen.models.text import ByteText, TextEncoder
from avgen.rng import gaussian
from avgen.sample.inputs import FILE_KINDS, Form, GivenMedia, Request, length_of, read_given
from avgen.sample.method import DEFAULT, Method
from avgen.sample.restore import restored
from avgen.sample.windows import generate_long, windows
from avgen.tasks import SLACK, V2A, Task, assign
from avgen.types import Batch, Clip, Stream, Text


@dataclass(frozen=True)
class Made:
    """One clip, and what made it."""

    clip: Clip
    request: Request
    given: GivenMedia
    record: dict[str, Any]  # plain data: prompt, seed, settings, fingerprint of the model


class AVPipeline(DiffusionPipeline):
    """Picture and sound from whatever is given. Build it with `from_pretrained`, call it for clips."""

    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012
    model: AVTransformer
    video_codec: VideoCodec
    audio_codec: AudioCodec

    def __init__(
        self,
        model: AVTransformer,
        video_codec: nn.Module,
        audio_codec: nn.Module,
        text_encoder: nn.Module | None = None,
        tokenizer: Any = None,
        height: int = 32,
        width: int = 32,
        fps: float = 8.0,
        duration_s: float = 2.0,
        predict: str = "velocity",
        text: dict | None = None,
        longest_s: float | None = None,
    ) -> None:
        """The form is what the model was trained on; text holds a frozen encoder's max_length, layers, fixed_length.

        longest_s: of clips with a picture that it was trained on, where there were several forms; None: duration_s
        """
        super().__init__()
        self.register_modules(
            model=model,
            video_codec=video_codec,
            audio_codec=audio_codec,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(
            height=height,
            width=width,
            fps=fps,
            duration_s=duration_s,
            predict=predict,
            text=text or {},
            longest_s=longest_s,
        )
        self._fingerprint = ""

    @property
    def trained_form(self) -> Form:
        return Form(self.config.duration_s, self.config.fps, self.config.height, self.config.width)

    @property
    def window_s(self) -> float:
        """What the model makes at once."""
        return float(self.config.longest_s or self.config.duration_s)

    @property
    def captions(self) -> TextEncoder:
        spec = self.model.spec.text
        if spec.kind == "bytes":
            return ByteText(spec.max_length)
        if self.text_encoder is None:
            raise ValueError("the model reads a frozen encoder's features, but the pipeline has no text_encoder")
        from avgen.models.encoders import TransformersText

        return TransformersText(self.text_encoder, self.tokenizer, **self.config.text)

    @property
    def limits(self) -> list[str]:
        """For fingerprints, as one word: tiles and pieces of the codecs, which may give other numbers; or no word."""
        limits = [getattr(codec, "limits", {}) for codec in (self.video_codec, self.audio_codec)]
        return [json.dumps(limits)] if any(limits) else []

    @property
    def fingerprint(self) -> str:
        """16 hex digits: a hash of everything that decides what comes out."""
        if not self._fingerprint:
            # another kernel is not another model
            decides = [self.config.predict, asdict(replace(self.model.spec, attention="sdpa"))]
            if self.window_s != self.config.duration_s:  # so that pipelines of one duration stay what they were
                decides.append(self.window_s)
            digest = hashlib.sha256(json.dumps(decides, default=str).encode())
            for name, value in sorted(self.model.state_dict().items()):
                digest.update(
                    name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                )
            for part in (self.video_codec, self.audio_codec, self.captions):
                digest.update(part.fingerprint.encode())
            self._fingerprint = digest.hexdigest()[:16]
        if not self.limits:
            return self._fingerprint
        return hashlib.sha256(" ".join([self._fingerprint, *self.limits]).encode()).hexdigest()[:16]

    def __call__(
        self,
        task: str = "t2av",
        prompt: str | Sequence[str] = "",
        *,
        image: str | Path | None = None,
        video: str | Path | None = None,
        audio: str | Path | None = None,
        duration_s: float | None = None,
        fps: float | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        method: Method = DEFAULT,
    ) -> list[Made]:
        """One clip per prompt. The same (seed, prompt) makes the same clip in any company."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("prompt=[] names no clip: give one prompt or more")
        files: dict[str, Any] = {
            k: None if v is None else Path(v) for k, v in (("image", image), ("video", video), ("audio", audio))
        }
        requests = [Request(text, seed=seed, **files) for text in prompts]
        form = self.form_of(requests[0], task, duration_s, fps, height, width)
        return self.make(requests, task, form, method)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Self:
        """As in diffusers, which takes parts of imported modules alone: of avgen's, the ones that the folder names."""
        index = Path(path) / cls.config_name
        parts = json.loads(index.read_text()).values() if index.is_file() else ()
        for library in {part[0] for part in parts if isinstance(part, list)}:
            if str(library).startswith("avgen.models."):
                import_module(library)
        found: Self = super().from_pretrained(path, **options)
        return found

    def form_of(
        self,
        request: Request,
        task: str,
        duration_s: float | None = None,
        fps: float | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Form:
        """What was asked for; else as long as the given stream, else as in training."""
        request.check(task)
        asked_s = duration_s
        if duration_s is None:
            duration_s = length_of(request, task)
        asked: dict[str, Any] = {"duration_s": duration_s, "fps": fps, "height": height, "width": width}
        form = replace(self.trained_form, **{name: value for name, value in asked.items() if value is not None})
        cell = self.video_codec.geometry.pixels_per_token
        for name in ("height", "width"):
            value = getattr(form, name)
            if value < cell or value % cell:
                near = max(cell, round(value / cell) * cell)
                raise ValueError(f"{name}={value} must be a multiple of the model's {cell} pixels; try {near}")
        for name in ("duration_s", "fps"):
            if not 0 < getattr(form, name) < float("inf"):
                raise ValueError(f"{name}={getattr(form, name)} must be positive")
        if form.frames < 1:
            said = f"duration_s={form.duration_s} is less than a frame at fps={form.fps}: ask for more"
            raise ValueError(said) if asked_s is not None else MediaError(f"{request.video or request.audio}: {said}")
        return form

    def check(self, method: Method) -> None:
        """Refuse what the model does not have, before anything is made."""
        method.guidance.check({m: tower.depth for m, tower in self.model.spec.towers.items()})
        method.cache.check(len(self.model.blocks))

    @property
    def alone(self) -> str:
        """The tasks of a model of one tower."""
        return "t2a" if "audio" in self.model.spec.towers else "t2v or i2v"

    def make(
        self,
        requests: Sequence[Request],
        task: str,
        form: Form,
        method: Method = DEFAULT,
        after_step: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[Made]:
        """The requests' clips, in one batch; all of one task and form."""
        given = [self.read(request, task, form, method) for request in requests]
        return self.make_from(requests, given, form, method, after_step)

    def read(self, request: Request, task: str, form: Form, method: Method = DEFAULT) -> GivenMedia:
        """The request's files in the form; refused where they give the model nothing to go on from."""
        given = read_given(request, task, form, self.audio_codec.geometry, method.edit)
        if task == "extend":
            sound = self.audio_codec.geometry
            for what, media, real_s, grid, rate in (
                ("picture", given.frames, given.real_s[0], self.video_codec.geometry.time, form.fps),
                ("sound", given.wave, given.real_s[1], sound.time, sound.sample_rate_hz),
            ):
                first_s = (grid.first - grid.delay) / rate
                if media is not None and real_s < first_s - SLACK:
                    raise MediaError(
                        f"task=extend: the {what} given is {real_s:.3g} s long, and the model's first token holds"
                        f" {first_s:.3g} s of it: give that much, or a file without {what}"
                    )
        return replace(given, notes=given.notes + self.cut(request.prompt))

    @torch.no_grad()
    def make_from(
        self,
        requests: Sequence[Request],
        given: Sequence[GivenMedia],
        form: Form,
        method: Method = DEFAULT,
        after_step: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[Made]:
        """`make`, from media that have been read."""
        method = method.settled(self.model.device)
        self.check(method)
        for m in ("video", "audio"):
            if m not in self.model.spec.towers and any(getattr(g.task, m) is not None for g in given):
                raise ValueError(
                    f"task={given[0].task.name} has {m}, for which the model has no tower: try {self.alone}"
                )
        choose(self.model.spec.attention, self.model.device, method.precision == "bf16")
        batch = assign(self.batch(requests, given, form), [g.task for g in given]).to(self.model.device)
        noise = {
            m: sample_noise(stream.x, m, [(r.seed, r.prompt) for r in requests]) for m, stream in batch.streams.items()
        }
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=method.precision == "bf16"):
            tokens = generate_long(
                *(self.model, batch, noise, self.window_s, method.solver, method.guidance),
                predict=self.config.predict,
                cache=method.cache,
                after_step=after_step,
            )
        clips = [without(clip, g.task) for clip, g in zip(self.decode(tokens, form, len(requests)), given, strict=True)]
        cell = self.video_codec.geometry.pixels_per_token
        of = {"video": form.height // cell * (form.width // cell), "audio": 1}
        grids = {"video": self.video_codec.geometry.time, "audio": self.audio_codec.geometry.time}
        taken = {m: steps_given(stream, of[m]) for m, stream in batch.streams.items()}
        count = len(windows(batch, self.window_s))
        note = f"made in {count} windows of {self.window_s:g} s, the longest that the model was trained on"
        if count > 1:
            given = [replace(g, notes=(*g.notes, note)) for g in given]
        settings = {**asdict(form), **to_plain(method), "model": self.fingerprint}
        return [
            Made(
                restored(clip, g, {m: rows[i] for m, rows in taken.items()}, grids),
                r,
                g,
                described(r) | {"task": g.task.name} | settings,
            )
            for i, (clip, r, g) in enumerate(zip(clips, requests, given, strict=True))
        ]

    def batch(self, requests: Sequence[Request], given: Sequence[GivenMedia], form: Form) -> Batch:
        """Clean tokens of the whole clip; zeros where nothing is given."""
        codec, sound = self.video_codec, self.audio_codec
        height, width = (side // codec.geometry.space_stride for side in (form.height, form.width))
        steps = codec.geometry.time.steps(form.frames)
        blank = torch.zeros(1, codec.geometry.channels, steps, height, width)
        quiet = torch.zeros(
            1, sound.geometry.channels, sound.geometry.time.steps(form.samples(sound.geometry.sample_rate_hz))
        )
        # one by one, so that a sample's latents do not depend on its neighbours even in rounding
        pictures = [blank if g.frames is None else self.encoded(codec, g.frames) for g in given]
        sounds = [quiet if g.wave is None else self.encoded(sound, g.wave) for g in given]
        text = self.text([r.prompt for r in requests])
        return Batch(
            codec.geometry.stream(torch.cat(pictures), form.fps), sound.geometry.stream(torch.cat(sounds)), text, text
        )

    @torch.no_grad()
    def through_codecs(self, clip: Clip) -> Clip:
        """The clip encoded and decoded: the best that any model could make of it."""
        assert clip.video is not None
        assert clip.fps is not None
        form = Form(clip.video_duration_s, clip.fps, *clip.video.shape[1:3])
        batch = self.batch([Request()], [GivenMedia(V2A, clip.video, clip.audio)], form)
        return self.decode({m: s.x.to(self.model.device) for m, s in batch.streams.items()}, form, 1)[0]

    def encoded(self, codec: VideoCodec | AudioCodec, media: np.ndarray) -> Tensor:
        return codec.encode(torch.from_numpy(np.ascontiguousarray(media))[None].to(self.model.device)).mean.cpu()

    def text(self, prompts: Sequence[str]) -> Text:
        """Captions; an empty one is no caption, as the model learned it in training."""
        text = self.captions.encode(prompts)
        if text.x.is_floating_point():  # of an encoder that may work in another type; training reads float32
            text = replace(text, x=text.x.float())
        return text.said(prompts)

    def cut(self, prompt: str) -> tuple[str, ...]:
        """What to say of a prompt that the byte encoder does not read to its end; a frozen encoder says so itself."""
        spec = self.model.spec.text
        length, most = len(prompt.encode()), spec.max_length - 1
        if spec.kind != "bytes" or length <= most:
            return ()
        return (f"the prompt {prompt[:20]!r}... of {length} bytes is cut to the {most} that the model reads",)

    def decode(self, tokens: dict[str, Tensor], form: Form, count: int) -> list[Clip]:
        codec, sound = self.video_codec, self.audio_codec
        cell = codec.geometry.pixels_per_token
        pictures: list[np.ndarray | None] = [None] * count
        waves: list[np.ndarray | None] = [None] * count
        for i in range(count):
            if "video" in tokens:
                latents = codec.geometry.latents(tokens["video"][i : i + 1], form.height // cell, form.width // cell)
                pictures[i] = codec.decode(latents)[0, : form.frames].cpu().numpy()
            if "audio" in tokens:
                wave = sound.decode(sound.geometry.latents(tokens["audio"][i : i + 1]))[0]
                waves[i] = wave[:, : form.samples(sound.geometry.sample_rate_hz)].cpu().numpy()
        rate = sound.geometry.sample_rate_hz
        return [
            Clip(v, a, None if v is None else form.fps, None if a is None else rate)
            for v, a in zip(pictures, waves, strict=True)
        ]


def without(clip: Clip, task: Task) -> Clip:
    """The clip without the streams that its task does without: others of its batch may have them."""
    if task.video is None:
        clip = replace(clip, video=None, fps=None)
    return replace(clip, audio=None, sample_rate_hz=None) if task.audio is None else clip


def sample_noise(x: Tensor, modality: str, keys: Sequence[tuple[int, str]]) -> Tensor:
    """Noise of x's shape (B, N, C), each sample's from its seed and prompt alone, on the CPU on every device."""
    rows = [gaussian(x.shape[1:], seed, f"{modality} sample", prompt) for seed, prompt in keys]
    return torch.stack(rows).to(x.device, x.dtype)


def steps_given(stream: Stream, of: int) -> Tensor:
    """(B, steps) bool: latent steps of `of` tokens each that are given whole."""
    return (stream.level == 0).unflatten(1, (-1, of)).all(-1)


def described(request: Request) -> dict[str, Any]:
    # resolved: read again, the line must name the same file whatever folder that happens in
    files = {name: str(path.resolve()) for name in FILE_KINDS if (path := getattr(request, name)) is not None}
    return {"prompt": request.prompt, "id": request.id, "seed": request.seed, **files}
