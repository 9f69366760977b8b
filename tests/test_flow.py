"""Flow matching: identities of the path, laws of the levels, the loss of what is supervised."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avgen.flow import FlowConfig, LevelLaw, losses, noised, stream_loss, velocity_of
from avgen.tasks import I2AV, V2A, assign
from avgen.types import Velocity, stack_batches
from tests.models.factory import batch

LAWS = [
    LevelLaw(),
    LevelLaw(mean=0.5, std=0.7, shift=3.0),
    LevelLaw(kind="uniform"),
    LevelLaw(kind="mode"),
    LevelLaw(kind="mode", mode_scale=-1.0),
    LevelLaw(kind="mode", mode_scale=1.75),
    LevelLaw(reference_tokens=64),
]
QUANTILES = torch.linspace(1e-4, 1 - 1e-4, 999)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_is_a_rising_map_of_the_unit_interval(law):
    t = law.quantile(QUANTILES, torch.full_like(QUANTILES, 100))
    assert (t.diff() >= 0).all()
    assert t.min() > 0
    assert t.max() <= 1
    tails = law.quantile(torch.tensor([1e-300, 1 - 1e-16], dtype=torch.float64), torch.full((2,), 100))
    assert tails.tolist() == pytest.approx([0, 1], abs=0.01)


def test_logit_normal_levels_have_the_stated_logits():
    logits = torch.logit(LevelLaw(mean=0.4, std=1.3).quantile(torch.linspace(0.0005, 0.9995, 1000).double()).double())
    assert logits.mean().item() == pytest.approx(0.4, abs=1e-3)
    assert logits.std().item() == pytest.approx(1.3, rel=0.01)


def test_mode_prefers_the_middle_and_its_inverse_the_ends():
    def middle(scale):
        t = LevelLaw(kind="mode", mode_scale=scale).quantile(QUANTILES)
        return ((t > 0.25) & (t < 0.75)).float().mean()

    assert middle(1.29) > middle(0.0) > middle(-1.0)
    assert middle(0.0) == pytest.approx(0.5, abs=0.01)


def test_more_tokens_move_levels_up():
    law = LevelLaw(reference_tokens=100)
    few, same, many = (law.quantile(torch.full((1,), 0.5), torch.tensor([n])) for n in (25, 100, 400))
    assert few < same < many
    torch.testing.assert_close(same, LevelLaw().quantile(torch.full((1,), 0.5)))


def test_couplings():
    u, one = torch.rand(3, 4000, generator=torch.Generator().manual_seed(0)), batch()
    crowd = stack_batches([one] * 2)
    shared = FlowConfig(coupling="shared").levels(u, crowd)
    assert torch.equal(*shared)
    video, audio = FlowConfig(coupling="independent").levels(u, crowd)
    assert abs(torch.corrcoef(torch.stack([video, audio]))[0, 1]) < 0.05
    video, audio = FlowConfig(coupling="mixed", shared_share=0.3).levels(u, crowd)
    assert (video == audio).float().mean().item() == pytest.approx(0.3, abs=0.03)


@given(level=st.floats(0.0, 1.0), seed=st.integers(0, 100))
def test_path_identities(level, seed):
    """x_t runs straight from data to noise, and either end comes back from x_t and the velocity."""
    stream = batch(seed=seed, level=1.0).video
    noise = torch.randn(stream.x.shape, generator=torch.Generator().manual_seed(seed))
    noisy = noised(stream, noise, torch.full((2,), level))
    v = noise - stream.x
    torch.testing.assert_close(noisy.x - level * v, stream.x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(noisy.x + (1 - level) * v, noise, atol=1e-5, rtol=1e-5)
    if level >= 0.02:
        torch.testing.assert_close(velocity_of(stream.x, noisy), v, atol=1e-4, rtol=1e-3)


def test_given_tokens_stay_bit_for_bit():
    both = assign(batch(level=1.0), [I2AV, V2A])
    noise = torch.full_like(both.video.x, torch.inf)
    noisy = noised(both.video, noise, torch.tensor([0.3, 0.9]))
    given_tokens = both.video.level == 0
    assert torch.equal(noisy.x[given_tokens], both.video.x[given_tokens])
    assert torch.equal(noisy.level[0, ~given_tokens[0]], torch.full_like(noisy.level[0, ~given_tokens[0]], 0.3))
    assert (noisy.level[1] == 0).all()


def test_the_loss_of_given_and_padded_tokens_is_cut_before_the_square():
    crowd = stack_batches([assign(batch(("a",), level=1.0), [V2A]), batch(("b",), frames=5, level=1.0, seed=2)])
    stream = crowd.video
    noise = torch.randn_like(stream.x)
    output = torch.where(stream.weight[..., None] > 0, noise - stream.x, torch.nan).requires_grad_()
    loss = stream_loss(output, stream, noised(stream, noise), noise, "velocity")
    loss.tokens.sum().backward()
    assert loss.tokens.sum() == 0
    assert torch.equal(output.grad, torch.zeros_like(output.grad))
    assert loss.weight == stream.weight.sum() == 5 * 6


def test_micro_batches_add_up_to_the_batch():
    one, two = batch(("a",), level=1.0), batch(("b",), frames=5, audio_steps=3, level=1.0, seed=2)
    whole = stack_batches([one, two])

    def total(part, rows, m):
        clean = getattr(part, m)
        generator = torch.Generator().manual_seed(7)
        noise = torch.randn(getattr(whole, m).x.shape, generator=generator)[rows, : clean.x.shape[1]]
        noisy = noised(clean, noise, torch.full((len(clean.x),), 0.5))
        fields = {m: noise * 0.3}
        found = losses(
            Velocity(**fields), _only(part, m), _only(_with(part, m, noisy), m), Velocity(**{m: noise}), "velocity"
        )
        return found[m]

    for m in ("video", "audio"):
        parts = [total(one, slice(0, 1), m), total(two, slice(1, 2), m)]
        together = total(whole, slice(0, 2), m)
        torch.testing.assert_close(sum(p.tokens.sum() for p in parts), together.tokens.sum())
        assert sum(p.weight for p in parts) == together.weight


def _with(whole, m, stream):
    return replace(whole, **{m: stream})


def _only(whole, m):
    return _with(whole, "audio" if m == "video" else "video", None)


def test_a_perfect_data_prediction_has_no_loss():
    stream = batch(level=1.0).audio
    noise = torch.randn_like(stream.x)
    noisy = noised(stream, noise, torch.tensor([0.4, 0.9]))
    assert stream_loss(stream.x, stream, noisy, noise, "data").tokens.max() < 1e-9
    assert stream_loss(noise - stream.x, stream, noisy, noise, "velocity").tokens.max() == 0


@pytest.mark.parametrize("wrong", [{"std": 0.0}, {"shift": -1.0}, {"mode_scale": 3.0}, {"reference_tokens": 0}])
def test_impossible_laws_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LevelLaw(**wrong)
