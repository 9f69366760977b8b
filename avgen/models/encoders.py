"""Frozen text encoders of transformers: captions to features, by hub id or folder, tokenizer included.

Whatever the family, captions are padded on the right and the features at padding are zero, so a caption's
features do not depend on its neighbours in the batch. Which hidden states are the features is stated by
`layers`; the default is the last one, after the model's own final norm.

Shape letters: B captions, L tokens, D features.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from avgen.models.identity import chosen, fingerprint_of
from avgen.models.loading import in_one_line
from avgen.models.text_files import TextFiles
from avgen.types import Text

log = logging.getLogger(__name__)


class Family(NamedTuple):
    """Where a kind of checkpoint keeps its text model."""

    loader: str  # class of transformers whose from_pretrained reads the checkpoint
    body: str = ""  # the text model within it; "" = all of it


FAMILIES = {
    "t5": Family("T5EncoderModel"),
    "umt5": Family("UMT5EncoderModel"),
    "clap": Family("ClapTextModelWithProjection", "text_model"),
    "clap_text_model": Family("ClapTextModelWithProjection", "text_model"),
    "gemma": Family("AutoModel"),
    "gemma2": Family("AutoModel"),
    "gemma3_text": Family("AutoModel"),
    "gemma3": Family("AutoModel", "language_model"),
    "qwen2": Family("AutoModel"),
    "qwen3": Family("AutoModel"),
    "qwen2_5_vl": Family("AutoModel", "language_model"),
    "qwen3_vl": Family("AutoModel", "language_model"),
}


class TransformersText:
    """A `TextEncoder` over a text model of transformers; build it with `load`."""

    def __init__(
        self,
        body: nn.Module,
        tokenizer: Any,
        max_length: int,
        layers: Sequence[int] = (-1,),
        fixed_length: bool = False,
    ) -> None:
        self.body = body.eval().requires_grad_(False)
        self.config: Any = body.config
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.layers = tuple(self.hidden_state(layer) for layer in layers)
        self.fixed_length = fixed_length
        self.reported_cut = False
        if not layers:
            raise ValueError("layers=() leaves no features: name at least one, such as -1")
        if not 1 <= max_length <= tokenizer.model_max_length:
            raise ValueError(
                f"max_length={max_length} must lie between 1 and the tokenizer's {tokenizer.model_max_length}"
            )

    @classmethod
    def load(
        cls,
        path: str | Path,
        max_length: int = 256,
        layers: Sequence[int] = (-1,),
        fixed_length: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        subfolder: str = "",
        tokenizer_subfolder: str | None = None,
    ) -> TransformersText:
        """The encoder in a folder or at a hub id.

        layers: hidden states that make up the features, side by side: 0 are the embeddings, -1 the last layer
            after the model's own norm. All others are brought to unit RMS per token: a few of their channels can be
            hundreds of times larger than the rest.
        fixed_length: every caption becomes max_length tokens and the zeros at its end count as tokens: how Wan's
            towers were trained.
        subfolder: of a diffusers pipeline, "text_encoder", whose tokenizer is then looked for in "tokenizer", or
            "text_encoder_2" with "tokenizer_2", and so on.
        """
        with in_one_line(f"the text encoder in {path}"):
            kind = AutoConfig.from_pretrained(path, subfolder=subfolder).model_type
            if kind not in FAMILIES:
                raise ValueError(f"{path} holds a {kind!r}, which is no text encoder known here: {', '.join(FAMILIES)}")
            family = FAMILIES[kind]
            model, info = getattr(transformers, family.loader).from_pretrained(
                path, subfolder=subfolder, dtype=dtype, output_loading_info=True
            )
        # what is only warned of would be random; unexpected weights are a decoder's, a vision tower's, a head's
        wrong = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
        if wrong:
            raise ValueError(
                f"the weights in {path} do not fit its config.json; missing or misshapen: {', '.join(wrong)}"
            )
        if tokenizer_subfolder is None:
            tokenizer_subfolder = f"tokenizer{subfolder.partition('text_encoder')[2]}" if subfolder else ""
        tokenizer = tokenizer_in(path, tokenizer_subfolder)
        body = model.get_submodule(family.body)
        return cls(body.to(device), tokenizer, max_length, layers, fixed_length)

    @property
    def settings(self) -> dict[str, Any]:
        """What builds it again around its model and tokenizer."""
        return {"max_length": self.max_length, "layers": list(self.layers), "fixed_length": self.fixed_length}

    @property
    def width(self) -> int:
        return self.config.hidden_size * len(self.layers)

    @property
    def device(self) -> torch.device:
        return next(self.body.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.body.dtype  # type: ignore[return-value]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits: a hash of settings, tokenizer and weights. Read once: a second per gigabyte or so."""
        config = json.dumps(chosen(self.config), sort_keys=True, default=str)
        settings = (type(self.body).__name__, self.max_length, self.layers, self.fixed_length, config)
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        # a tokenizer's own files also hold how it was last called; what it makes of a sentence does not
        sample = self.tokenizer("Two lamps, 3 beeps: it's “évident”!", verbose=False)["input_ids"]
        return fingerprint_of(f"{settings} {vocabulary} {sample}", self.body.state_dict())

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Text:
        """(B, L, D) features of the captions; L is the longest one's length, or max_length with fixed_length."""
        if not captions:
            raise ValueError("there are no captions to encode")
        rows = [self.tokens(caption) for caption in captions]
        length, last = max(map(len, rows)), max(map(max, rows))
        if last >= (known := self.config.vocab_size):
            # the tokenizer may know more than it ever says of a caption: Gemma 3's has a token for pictures
            raise ValueError(f"the tokenizer says token {last}, the encoder knows {known}: it is another encoder's")
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=self.device)
        valid = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
        valid = valid.to(self.device)
        x = self.features(ids, valid).masked_fill(~valid[..., None], 0.0)
        if not self.fixed_length:
            return Text.of(x, valid)
        return Text.of(nn.functional.pad(x, (0, 0, 0, self.max_length - length)))

    def tokens(self, caption: str) -> list[int]:
        """Ids of a caption, at least one and at most max_length, special tokens kept when it is cut."""
        ids = self.tokenizer(caption, verbose=False)["input_ids"]
        if len(ids) > self.max_length:
            if not self.reported_cut:
                self.reported_cut = True
                log.warning(
                    "a caption of %d tokens is cut to max_length=%d: %.60s... (later cuts are not reported)",
                    *(len(ids), self.max_length, caption),
                )
            ids = self.tokenizer(caption, truncation=True, max_length=self.max_length)["input_ids"]
        if ids:
            return list(ids)
        # a tokenizer without special tokens makes nothing of an empty caption, but attention needs something
        for token in (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, self.tokenizer.pad_token_id):
            if token is not None:
                return [token]
        raise ValueError("the tokenizer has no special token to stand for an empty caption")

    def features(self, ids: Tensor, valid: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, D), the chosen hidden states side by side"""
        count = self.config.num_hidden_layers
        inner = any(layer != count for layer in self.layers)
        out = self.body(input_ids=ids, attention_mask=valid.long(), output_hidden_states=inner)
        parts = [out.last_hidden_state if i == count else unit_rms(out.hidden_states[i]) for i in self.layers]
        return torch.cat(parts, dim=-1).to(self.dtype)

    def hidden_state(self, layer: int) -> int:
        """Counted from the embeddings, 0."""
        count = self.config.num_hidden_layers
        if not -count - 1 <= layer <= count:
            raise ValueError(f"layers={layer}: hidden states go from 0 (embeddings) to {count}, or back from -1")
        return layer % (count + 1)


def open_text(files: TextFiles, device: torch.device | str = "cpu") -> TransformersText:
    return TransformersText.load(
        files.path,
        max_length=files.max_length,
        layers=files.layers,
        fixed_length=files.fixed_length,
        dtype=getattr(torch, files.dtype),
        device=device,
        subfolder=files.subfolder,
    )


def tokenizer_in(path: str | Path, subfolder: str) -> Any:
    """As tokenizer.json says; where there is only a sentencepiece model, transformers reads it by that library."""
    try:
        return AutoTokenizer.from_pretrained(path, subfolder=subfolder)
    except (ImportError, OSError, ValueError) as refused:
        reason = " ".join(str(refused).split())
        if find_spec("sentencepiece") is None:
            reason = "if it is a sentencepiece model alone, that library is missing: pip install -e '.[text]'"
        raise ValueError(f"the tokenizer in {Path(path) / subfolder} cannot be read: {reason}") from refused


def unit_rms(x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x.float(), x.shape[-1:], eps=1e-6).type_as(x)
