"""What a model costs before it is built: parameters and floating-point operations of a step.

Everything follows from one list of the model's linear layers and one of its attentions: parameters are a
layer's weights, FLOPs are 2 x rows x weights (a multiply and an add), and what autocast copies to bf16 is
weights again (memory.py). Only matrix products are counted, as torch's own counter does.

Shape letters: B samples, N tokens of a stream, L caption tokens, K noise levels, D a tower's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from avgen.models.architecture import ModelConfig, TowerConfig
from avgen.models.blocks import PARTNER
from avgen.models.checkpointing import Checkpointing
from avgen.models.local import NEIGHBOURS
from avgen.models.rope import anchor_channels
from avgen.models.text import GRAM_ROWS, VOCABULARY
from avgen.types import AudioGeometry, Batch, Stream, VideoGeometry

Part = Literal["video", "audio", "bridge", "captions"]
PARTS: tuple[Part, ...] = ("video", "audio", "bridge", "captions")
TOWER: dict[str, Part] = {"video": "video", "audio": "audio"}  # a modality as the part that its tower is
What = Literal["self-attention", "attention to text", "attention across", "MLP", "ends", "levels", "captions"]
WHATS: tuple[What, ...] = (
    "self-attention",
    "attention to text",
    "attention across",
    "MLP",
    "ends",
    "levels",
    "captions",
)

REBUILT = ("math", "xformers")  # backends whose output `keep_attention` does not recognise, and computes again
LEVEL_CHANNELS = 256  # as in dit.py, which is not imported here: plans should not wait for diffusers


@dataclass(frozen=True)
class StreamShape:
    """One stream of a batch, as far as cost goes."""

    tokens: int  # per sample, padding included: padded tokens are computed like any other
    levels: int = 1  # distinct noise levels per sample: 2 once some tokens are given
    padded: bool = False  # some tokens are padding, so attention takes the masked path

    @classmethod
    def of(cls, stream: Stream) -> StreamShape:
        return cls(stream.x.shape[1], stream.levels.shape[1], stream.valid is not None)


@dataclass(frozen=True)
class BatchShape:
    """What one forward pass sees, as far as cost goes."""

    samples: int
    video: StreamShape | None
    audio: StreamShape | None
    text_tokens: int
    audio_text_tokens: int | None = None  # None = one caption serves both streams

    def __post_init__(self) -> None:
        if self.samples < 1 or self.text_tokens < 1:
            raise ValueError(f"samples={self.samples} and text_tokens={self.text_tokens} must be at least 1")
        if self.video is None and self.audio is None:
            raise ValueError("a batch needs a video stream, an audio stream or both")

    @classmethod
    def of(cls, batch: Batch) -> BatchShape:
        """The shape of a real batch."""
        video = None if batch.video is None else StreamShape.of(batch.video)
        audio = None if batch.audio is None else StreamShape.of(batch.audio)
        own = None if batch.audio_text is batch.video_text else batch.audio_text.x.shape[1]
        return cls(batch.size, video, audio, batch.video_text.x.shape[1], own)

    @property
    def streams(self) -> dict[str, StreamShape]:
        both = {"video": self.video, "audio": self.audio}
        return {m: s for m, s in both.items() if s is not None}

    def text_of(self, modality: str) -> int:
        own = self.audio_text_tokens if modality == "audio" else None
        return self.text_tokens if own is None else own


def video_tokens(codec: VideoGeometry, height: int, width: int, duration_s: float, fps: float) -> int:
    """Tokens of one clip."""
    side = codec.pixels_per_token
    for name, pixels in (("height", height), ("width", width)):
        if pixels < 1 or pixels % side:
            raise ValueError(f"{name}={pixels} must be a multiple of the {side} pixels of a token's side")
    return codec.time.steps(round(duration_s * fps)) * (height // side) * (width // side)


def audio_tokens(codec: AudioGeometry, duration_s: float) -> int:
    """Tokens of one clip."""
    return codec.time.steps(round(duration_s * codec.sample_rate_hz))


@dataclass(frozen=True)
class Linear:
    """A kind of linear layer, with bias, of which the model has `count`."""

    part: Part
    what: What
    source: int
    target: int
    rows: str  # what it runs over: see `rows_of`
    count: int = 1
    in_block: bool = True  # runs inside a block, so checkpointing runs it again
    input_grad: bool = True  # False where nothing before it learns: the backward pass needs the weight's gradient alone
    autocast: bool = True  # False where the model keeps to float32
    again: bool = False  # a second use of weights listed elsewhere

    @property
    def parameters(self) -> int:
        return 0 if self.again else self.count * (self.source + 1) * self.target


def tower_linears(m: Part, tower: TowerConfig, text_width: int) -> Iterator[Linear]:
    d, text = tower.width, f"{m} text"
    yield Linear(m, "ends", tower.channels, d, m, in_block=False, input_grad=False)
    yield Linear(m, "ends", d, tower.channels, m, in_block=False)
    if tower.anchored:
        yield Linear(m, "ends", anchor_channels(m), d, m, in_block=False, input_grad=False)
    yield Linear(m, "levels", LEVEL_CHANNELS, d, f"{m} levels", in_block=False, input_grad=False, autocast=False)
    yield Linear(m, "levels", d, 7 * d, f"{m} levels", in_block=False, autocast=False)  # d -> d and d -> 6 d
    yield Linear(m, "captions", text_width, d, f"{text} embed", in_block=False)
    yield Linear(m, "captions", d, d, f"{text} embed", in_block=False)
    yield Linear(m, "self-attention", d, d, m, 4 * tower.depth)  # q, k, v, out
    yield Linear(m, "attention to text", d, d, m, 2 * tower.depth)  # q, out
    yield Linear(m, "attention to text", d, d, text, 2 * tower.depth)  # k, v
    yield Linear(m, "MLP", d, tower.mlp_width, m, tower.depth)
    yield Linear(m, "MLP", tower.mlp_width, d, m, tower.depth)


def bridge_linears(config: ModelConfig) -> Iterator[Linear]:
    stages = config.bridges
    if not stages:
        return
    inner = config.bridge.heads * config.bridge.head_dim
    for m, tower in config.towers.items():
        partner, d = PARTNER[m], tower.width
        other = config.towers[partner].width
        levels = partial(Linear, "bridge", "levels", target=d, rows="samples", in_block=False, autocast=False)
        yield levels(source=d, target=5 * d, rows=f"{m} bridge levels")
        yield levels(source=other)
        # the mean level that the partner's gate sees passes through the two layers of the stream's own tower
        yield levels(source=LEVEL_CHANNELS, input_grad=False, again=True)
        yield levels(source=d, again=True)
        yield Linear("bridge", "attention across", d, inner, f"{m} bridged", stages)  # q
        yield Linear("bridge", "attention across", other, inner, f"{partner} bridged", 2 * stages)  # k, v
        yield Linear("bridge", "attention across", inner, d, f"{m} bridged", stages)  # out


def caption_linears(config: ModelConfig) -> Iterator[Linear]:
    if config.text.kind == "bytes":
        d, depth = config.text.width, config.text.depth
        yield Linear("captions", "captions", d, 4 * d, "captions", depth, in_block=False)  # q, k, v, out
        yield Linear("captions", "captions", d, 4 * d, "captions", depth, in_block=False)
        yield Linear("captions", "captions", 4 * d, d, "captions", depth, in_block=False)


def linears(config: ModelConfig) -> Iterator[Linear]:
    """Every linear layer of the model."""
    for m, tower in config.towers.items():
        yield from tower_linears(TOWER[m], tower, config.text.width)
    yield from bridge_linears(config)
    yield from caption_linears(config)


def joint_stages(config: ModelConfig) -> int:
    """Stages whose self-attention spans both modalities."""
    return config.stages if config.coupling == "joint" and len(config.towers) == 2 else 0


def other_parameters(config: ModelConfig) -> Iterator[tuple[Part, int]]:
    """Norms, tables, embeddings: everything that is not a linear layer."""
    for m, tower in config.towers.items():
        d = tower.width
        # norms of q and k in two attentions, the text norm's weight and bias, the modulation table
        layer = 4 * d + (2 * d if tower.text_norm else 0) + 6 * d
        layer += tower.local * 2 * (1 + NEIGHBOURS) * d  # before attention and before the MLP
        yield TOWER[m], tower.depth * layer + 2 * d
        if config.coupling == "cross":
            inner = config.bridge.heads * config.bridge.head_dim
            yield "bridge", config.bridges * (2 * inner + 5 * d)
    text = config.text
    encoder = VOCABULARY + GRAM_ROWS + 4 * text.depth + 2 if text.kind == "bytes" else 0
    yield "captions", text.width * (1 + encoder)  # 1: the learned null


@dataclass(frozen=True)
class Parameters:
    """Weights by module: `towers.M` and `blocks.*.towers.M`, `bridge_levels` and `blocks.*.bridge`, `captions`."""

    video: int
    audio: int
    bridge: int
    captions: int

    @property
    def total(self) -> int:
        return self.video + self.audio + self.bridge + self.captions


def parameters(config: ModelConfig) -> Parameters:
    """Exactly those of the built model."""
    counts = dict.fromkeys(PARTS, 0)
    for linear in linears(config):
        counts[linear.part] += linear.parameters
    for part, count in other_parameters(config):
        counts[part] += count
    return Parameters(**counts)


@dataclass(frozen=True)
class Work:
    """FLOPs of one kind of work in one training step."""

    part: Part
    what: What
    forward: int
    backward: int
    recompute: int = 0  # run a second time in the backward pass, because checkpointing kept no activations
    scores: bool = False  # products of queries with keys and of weights with values, rather than linear layers


@dataclass(frozen=True)
class StepCost:
    """FLOPs of a training step. `model` is what the mathematics asks for (the MFU's numerator), `executed` adds
    what checkpointing runs twice."""

    work: tuple[Work, ...]

    def only(self, part: Part | None = None, what: What | None = None, scores: bool | None = None) -> StepCost:
        wanted = (part, what, scores)
        return StepCost(
            tuple(
                w
                for w in self.work
                if all(want in (None, has) for want, has in zip(wanted, (w.part, w.what, w.scores), strict=True))
            )
        )

    @property
    def forward(self) -> int:
        return sum(w.forward for w in self.work)

    @property
    def backward(self) -> int:
        return sum(w.backward for w in self.work)

    @property
    def recompute(self) -> int:
        return sum(w.recompute for w in self.work)

    @property
    def model(self) -> int:
        return self.forward + self.backward

    @property
    def executed(self) -> int:
        return self.model + self.recompute


def rows_of(config: ModelConfig, batch: BatchShape) -> dict[str, tuple[int, int]]:
    """How many rows each kind of linear layer sees, forward and backward.

    A tower embeds its caption even when its stream is absent from the batch; no gradient comes back from there.
    """
    b = batch.samples
    both = b * (len(batch.streams.keys() & config.towers.keys()) == 2)
    rows = {"samples": (both, both)}
    for m in config.towers:
        stream = batch.streams.get(m)
        tokens, levels, text = (0, 0, 0) if stream is None else (stream.tokens, stream.levels, batch.text_of(m))
        for name, count in ((m, b * tokens), (f"{m} text", b * text), (f"{m} levels", b * levels)):
            rows[name] = (count, count)
        rows[f"{m} bridged"] = (both * tokens, both * tokens)
        rows[f"{m} bridge levels"] = (both * levels, both * levels)
        rows[f"{m} text embed"] = (b * batch.text_of(m), b * text)
    lengths = {"shared": batch.text_tokens}
    learnt = {"shared": batch.text_tokens}
    if batch.audio_text_tokens is not None:
        lengths = {"video": batch.text_tokens, "audio": batch.audio_text_tokens}
        learnt = {m: n for m, n in lengths.items() if m in batch.streams and m in config.towers}
    rows["captions"] = (b * sum(lengths.values()), b * sum(learnt.values()))
    return rows


def attentions(config: ModelConfig, batch: BatchShape) -> Iterator[tuple[Part, What, int, int, int]]:
    """Part, kind, pairs of query and key with a gradient, pairs without, and channels over all heads."""
    streams = {m: s for m, s in batch.streams.items() if m in config.towers}
    b, across = batch.samples, 0
    if len(streams) == 2:
        across = b * streams["video"].tokens * streams["audio"].tokens
    for m, s in streams.items():
        tower = config.towers[m]
        yield TOWER[m], "self-attention", tower.depth * b * s.tokens**2, 0, tower.width
        yield TOWER[m], "attention to text", tower.depth * b * s.tokens * batch.text_of(m), 0, tower.width
    if across:
        # two directions; joint attention's extra pairs are the same N x M rectangle twice
        inner = config.bridge.heads * config.bridge.head_dim
        yield "bridge", "attention across", 2 * config.bridges * across, 0, inner
        width = next(iter(config.towers.values())).width
        yield "bridge", "attention across", 2 * joint_stages(config) * across, 0, width
    if config.text.kind == "bytes":
        lengths = {"video": batch.text_tokens}
        if batch.audio_text_tokens is not None:
            lengths["audio"] = batch.audio_text_tokens
        for m, n in lengths.items():
            pairs = config.text.depth * b * n**2
            learnt = batch.audio_text_tokens is None or m in streams
            yield "captions", "captions", pairs if learnt else 0, 0 if learnt else pairs, config.text.width


def step_cost(config: ModelConfig, batch: BatchShape, checkpointing: Checkpointing = "none") -> StepCost:
    """FLOPs of forward and backward, by part and kind of work.

    A linear layer's backward is two products of the forward's size (for input and weight). Attention's are four against
    two; fused kernels run a fifth, because they compute the scores again instead of keeping them.
    """
    work = []
    rows = rows_of(config, batch)
    for x in linears(config):
        ahead, back = (2 * r * x.count * x.source * x.target for r in rows[x.rows])
        again = ahead if x.in_block and checkpointing != "none" else 0
        work.append(Work(x.part, x.what, ahead, back * (2 if x.input_grad else 1), again))
    for part, what, learnt, fixed, channels in attentions(config, batch):
        products = 4 if config.attention == "math" else 5
        one = 2 * channels
        kept = checkpointing == "none" or (checkpointing == "keep_attention" and config.attention not in REBUILT)
        again = 0 if kept or part == "captions" else 2 * one * learnt
        work.append(Work(part, what, 2 * one * (learnt + fixed), products * one * learnt, again, scores=True))
    return StepCost(tuple(w for w in work if w.forward))
