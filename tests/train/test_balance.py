"""Balanced losses: one scale for both modalities, off unless asked for, remembered by a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from avgen.data.stream import Share
from avgen.train.balance import Balance
from avgen.train.loop import accumulate, train
from avgen.train.run import prepare
from tests.models.factory import scatter
from tests.train.test_train import Clips, config, quiet, same, weights

CPU = torch.device("cpu")


def alone(shares):
    return shares


def after(losses, decay=0.5):
    balance = Balance(decay, CPU)
    for video, audio in losses:
        parts = {"video": video, "audio": audio}
        balance.update({m: torch.tensor(loss) for m, loss in parts.items() if loss is not None}, alone)
    return {m: float(factor) for m, factor in balance.factors().items()}


def test_scaled_losses_are_equal_and_their_product_is_kept():
    found = after([(8.0, 0.5)] * 7)
    assert 8.0 * found["video"] == pytest.approx(0.5 * found["audio"], rel=1e-5)
    assert found["video"] * found["audio"] == pytest.approx(1.0, rel=1e-5)


def test_the_first_step_counts_in_full_and_later_ones_replace_it():
    once = after([(4.0, 1.0)])
    assert once["video"] == pytest.approx(0.5, rel=1e-5)
    assert after([(4.0, 1.0)] + [(1.0, 1.0)] * 40)["video"] == pytest.approx(1.0, rel=1e-4)


def test_a_step_without_a_modality_says_nothing_about_it():
    assert after([(4.0, None), (4.0, None)]) == {"video": 1.0, "audio": 1.0}
    with_gap, without = after([(4.0, 1.0), (4.0, None)]), after([(4.0, 1.0), (4.0, 1.0)])
    assert with_gap == pytest.approx(without, rel=1e-5)


def test_ranks_agree_through_the_sum_of_their_shares():
    whole, part = Balance(0.9, CPU), Balance(0.9, CPU)
    whole.update({"video": torch.tensor(3.0), "audio": torch.tensor(0.3)}, alone)
    part.update({"video": torch.tensor(1.0), "audio": torch.tensor(0.1)}, lambda share: 3 * share)
    for name, value in whole.state.items():
        torch.testing.assert_close(value, part.state[name])


def test_the_factors_reach_the_gradient(tmp_path):
    """Known means of 4 and 1: the picture's gradient halves, the sound's doubles."""
    found = []
    for balance in (None, 0.5):
        run = prepare(config(tmp_path, balance=balance, tasks={"t2av": 1}, caption_dropout=0.0))
        scatter(run.model)
        run.balance.state["logs"].copy_(torch.tensor([4.0, 1.0]).log())
        run.balance.state["weights"].fill_(1.0)
        accumulate(run, [Clips().batch(range(4))], Share(4, 1))
        towers = run.model.towers
        found.append({m: towers[m].head.weight.grad.clone() for m in ("video", "audio")})
    torch.testing.assert_close(found[1]["video"], found[0]["video"] * 0.5)
    torch.testing.assert_close(found[1]["audio"], found[0]["audio"] * 2.0)


def test_a_run_cut_short_remembers_its_means(tmp_path):
    balanced = config(tmp_path / "whole", balance=0.9)
    whole = train(balanced, Clips(), Clips(), quiet())
    cut = replace(balanced, out=tmp_path / "cut")
    train(replace(cut, steps=4, optimizer=replace(cut.optimizer, schedule="constant")), Clips(), Clips(), quiet())
    state = prepare(cut).balance.state
    assert float(state["weights"].min()) > 0
    constant = replace(balanced, out=tmp_path / "again", optimizer=replace(cut.optimizer, schedule="constant"))
    expected = train(constant, Clips(), Clips(), quiet())
    resumed = train(replace(constant, out=tmp_path / "cut"), Clips(), Clips(), quiet())
    assert same(weights(expected), weights(resumed))
    assert not same(
        weights(whole), weights(train(replace(balanced, out=tmp_path / "off", balance=None), Clips(), Clips(), quiet()))
    )
