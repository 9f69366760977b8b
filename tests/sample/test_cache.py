"""Foretold blocks: exact where the truth is a polynomial, absent where they are due, the same in any company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avgen.models.blocks import Block
from avgen.models.dit import Perturbation
from avgen.sample.cache import CacheConfig
from avgen.sample.guidance import Guidance, ModalityGuidance
from avgen.sample.method import Method
from avgen.sample.solvers import SolverConfig
from avgen.sample.windows import REMADE
from tests.sample.factory import files, pipeline
from tests.sample.test_pipeline import psnr, same

STEPS = 6
PLAIN = Method(SolverConfig("multistep", STEPS))
CACHED = replace(PLAIN, cache=CacheConfig(every=2))


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


class Adds:
    """A block that adds a polynomial in the level, another for each modality, to what it gets."""

    layers: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, coefficients, grids):
        self.coefficients, self.grids, self.point, self.ran = coefficients, grids, 0, []

    def __call__(self, x, context, perturbed):
        self.ran.append(self.point)
        levels = {m: self.grids[m][self.point] for m in x}
        return {m: x[m] + sum(c * levels[m] ** k for k, c in enumerate(self.coefficients[m])) for m in x}


def solved(config, order, data, steps=9):
    """What a cache makes of a polynomial of `order` at each point, and what is true."""
    floats = st.lists(st.floats(-2, 2), min_size=order + 1, max_size=order + 1)
    coefficients = {"video": data.draw(floats), "audio": data.draw(floats)}
    grids = {m: SolverConfig(steps=steps, video_shift=3.0).grid(m) for m in coefficients}
    first, second = Adds(coefficients, grids), Adds(coefficients, grids)
    cache = config.over(grids)
    for point in range(steps):
        first.point = second.point = point
        x = {m: torch.full((1, 2, 3), float(point)) for m in grids}
        found = cache.at(point, ["text"])([first, second], x, {}, Perturbation())
        yield found, second(first(x, {}, {}), {}, {})


@given(st.integers(1, 4), st.integers(0, 2), st.data())
def test_a_polynomial_of_the_order_is_foretold_exactly(every, order, data):
    config = CacheConfig(every, 1, order, warmup=order + 1)
    for found, truth in solved(config, order, data):
        for m in truth:
            torch.testing.assert_close(found[m], truth[m], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["euler", "heun", "multistep"])
def test_the_blocks_left_out_are_left_out_and_the_first_ones_and_the_last_point_are_not(pipe, monkeypatch, kind):
    ran = []
    forward = Block.forward

    def counted(self, *args):
        ran.append(list(pipe.model.blocks).index(self))
        return forward(self, *args)

    monkeypatch.setattr(Block, "forward", counted)
    pipe(prompt="a", method=Method(SolverConfig(kind, STEPS), cache=CacheConfig(every=2, warmup=1)))
    forwards = 2 * STEPS - 1 if kind == "heun" else STEPS
    assert ran.count(0) == forwards
    # points 0, 1, 3 and 5 of 0 ... 5; heun visits each but the first twice
    assert ran.count(1) == (7 if kind == "heun" else 4)
    assert ran[-1] == 1


@pytest.mark.parametrize("kind", ["euler", "heun", "multistep"])
def test_a_cache_that_is_always_due_changes_nothing(pipe, kind):
    method = Method(SolverConfig(kind, 3), Guidance(ModalityGuidance(text=2.0, cross=2.0), ModalityGuidance(text=3.0)))
    always = replace(method, cache=CacheConfig(every=2, warmup=3))
    assert same(*(pipe(prompt="a", method=m)[0].clip for m in (method, always)))
    some = replace(method, cache=CacheConfig(every=3, warmup=1))
    assert not same(*(pipe(prompt="a", method=m)[0].clip for m in (method, some)))


def test_other_guidance_passes_are_never_taken_for_one_another():
    grids = {"video": SolverConfig(steps=9).grid("video")}
    block = Adds({"video": [1.0]}, grids)
    cache = CacheConfig(every=4, fresh=0, warmup=0).over(grids)
    for point, terms in enumerate([["text"], ["text"], ["cross"], ["cross"], ["text", "cross"], ["text"]]):
        block.point = point
        x = {"video": torch.zeros(2 * (1 + len(terms)), 1, 1)}
        assert cache.at(point, terms)([block], x, {}, Perturbation())["video"].shape == x["video"].shape
    assert block.ran == [0, 2, 4, 5]


def test_a_cached_clip_is_the_same_in_any_company(pipe):
    prompts = ["a red ball", "a lamp that is far away and flashes", "x"]
    together = pipe(prompt=prompts, seed=3, method=CACHED)
    for prompt, made in zip(prompts, together, strict=True):
        assert psnr(pipe(prompt=prompt, seed=3, method=CACHED)[0].clip, made.clip) >= 45


def test_windows_and_calls_start_afresh(pipe, monkeypatch):
    tokens = []
    decode = pipe.decode
    monkeypatch.setattr(pipe, "decode", lambda x, *rest: tokens.append(x) or decode(x, *rest))
    for seconds in (1.0, 2.5, 1.0):
        pipe(prompt="a", duration_s=seconds, method=CACHED)
    for m in ("video", "audio"):
        short, long, again = (t[m] for t in tokens)
        stays = int((1 - REMADE) * short.shape[1])  # the rest of a window is made anew by the next
        assert torch.equal(short[:, :stays], long[:, :stays])
        assert torch.equal(short, again)


def test_what_is_given_stays_and_the_record_says_what_was_left_out(pipe, tmp_path):
    audio = files(tmp_path)["audio"]
    made, plain = (pipe(task="a2v", audio=audio, method=method)[0] for method in (CACHED, PLAIN))
    assert (made.clip.audio == plain.clip.audio).all()
    assert not (made.clip.video == plain.clip.video).all()
    assert made.record["cache"] == {"every": 2, "fresh": 1, "order": 1, "warmup": 2}


def test_a_model_with_nothing_to_leave_out_is_refused(pipe):
    with pytest.raises(ValueError, match=r"cache\.fresh=2 leaves none of the model's 2 blocks"):
        pipe(prompt="a", method=replace(PLAIN, cache=CacheConfig(every=2, fresh=2)))
    with pytest.raises(ValueError, match=r"cache\.every=0"):
        CacheConfig(every=0)
