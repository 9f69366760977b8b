"""The cache of captions: the encoder's own features, each asked for once, whoever asks and whoever is killed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from avgen.models.caption_cache import CachedText
from avgen.models.text import TextEncoder
from avgen.types import Text


class Letters:
    """One token a letter, its features drawn from the letter; counts what it is asked for."""

    device, width = torch.device("cpu"), 4

    def __init__(self, dtype: torch.dtype = torch.float32, fixed: int = 0, fingerprint: str = "letters") -> None:
        self.dtype, self.fixed, self.fingerprint = dtype, fixed, fingerprint
        self.asked: list[str] = []

    def encode(self, captions: Sequence[str]) -> Text:
        self.asked += captions
        longest = self.fixed or max(1, *map(len, captions))
        x = torch.zeros(len(captions), longest, 4, dtype=self.dtype)
        for row, caption in zip(x, captions, strict=True):
            for i, letter in enumerate(caption or "\0"):
                row[i] = torch.randn(4, generator=torch.Generator().manual_seed(ord(letter)))
        lengths = torch.tensor([max(1, len(caption)) for caption in captions])
        return Text.of(x, None if self.fixed else torch.arange(longest) < lengths[:, None])


CAPTIONS = ["a red ball", "", "lamp", "ünïcode \U0001f514", "lamp"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fixed", [0, 24])
def test_features_are_the_encoders_and_asked_for_once(dtype, fixed, tmp_path):
    encoder = Letters(dtype, fixed)
    cached = CachedText(encoder, tmp_path, batch=2)
    assert isinstance(cached, TextEncoder)
    plain = Letters(dtype, fixed).encode(CAPTIONS)
    for _ in range(2):
        text = cached.encode(CAPTIONS)
        assert torch.equal(text.x, plain.x)
        assert text.x.dtype == dtype
        assert torch.equal(text.valid, plain.valid)
        assert not text.dropped.any()
    assert sorted(encoder.asked) == sorted(set(CAPTIONS))
    another = Letters(dtype, fixed)
    assert torch.equal(CachedText(another, tmp_path).encode(CAPTIONS[::-1]).x, plain.x.flip(0))
    assert another.asked == []


def test_another_encoder_never_reads_them(tmp_path):
    CachedText(Letters(), tmp_path).encode(CAPTIONS)
    other = Letters(fingerprint="other")
    CachedText(other, tmp_path).encode(["lamp"])
    assert other.asked == ["lamp"]


def test_fixed_lengths_keep_no_zeros_on_disk(tmp_path):
    short, long = CachedText(Letters(), tmp_path / "a"), CachedText(Letters(fixed=512), tmp_path / "b")
    short.encode(["lamp"])
    assert long.encode(["lamp"]).x.shape == (1, 512, 4)
    assert long.path("lamp").stat().st_size == short.path("lamp").stat().st_size


def test_a_file_cut_short_is_made_again_and_a_part_is_never_read(tmp_path):
    cached = CachedText(Letters(), tmp_path)
    plain = cached.encode(["lamp"]).x
    path = cached.path("lamp")
    whole = path.read_bytes()
    path.with_name(f".{path.name}.killed").write_bytes(b"half")
    for length in (0, 7, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert torch.equal(cached.encode(["lamp"]).x, plain)
        assert path.read_bytes() == whole


def test_many_may_write_one_folder_at_once(tmp_path):
    captions = [f"caption {i}" for i in range(40)]
    plain = Letters().encode(captions).x
    results: list[bool] = []

    def work(seed: int) -> None:
        order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
        cached = CachedText(Letters(), tmp_path, batch=3)
        results.append(torch.equal(cached.encode([captions[i] for i in order]).x, plain[order]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4
    names = [path.name for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert sorted(names) == sorted(f"{hashlib.sha256(c.encode()).hexdigest()}.safetensors" for c in captions)


def test_the_cache_draws_nothing_from_the_global_generator(tmp_path):
    before = torch.get_rng_state()
    CachedText(Letters(), tmp_path).encode(CAPTIONS)
    assert torch.equal(torch.get_rng_state(), before)
