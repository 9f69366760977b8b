"""AV-DPO: its loss against one written down again in float64, and training on pairs."""

from __future__ import annotations

import json
import math
import weakref
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from avgen.data.stream import Share
from avgen.flow import FlowConfig
from avgen.models.dit import AVTransformer
from avgen.prefer.pairs import Pair, Side
from avgen.sample.inputs import Form
from avgen.train.config import LoraConfig, OptimizerConfig, PreferenceConfig
from avgen.train.data_config import ToyboxData
from avgen.train.loop import accumulate, optimise, train
from avgen.train.preference import Errors, Preference, frozen_copy, preference_loss
from avgen.train.run import prepare, save
from avgen.train.step import Whole, draw
from avgen.train.validate import told_apart
from avgen.types import Velocity
from tests.models.factory import scatter
from tests.train.factory import quiet
from tests.train.pairs import NEVER, Pairs, config, order

SIDE = Side("clip.mp4", 0, "", "", {})
PAIR = Pair("0", "", "t2av", Form(1.0, 8.0, 16, 16), SIDE, SIDE, ("video", "audio"), "metrics")
CHOICES = [
    PreferenceConfig(),
    PreferenceConfig(margin="per_modality"),
    PreferenceConfig(beta_video=40.0, beta_audio=7.0, anchor=0.0, label_smoothing=0.2),
    PreferenceConfig(margin="per_modality", kind="ipo", beta_video=5.0, beta_audio=3.0, anchor=0.5),
    PreferenceConfig(kind="ipo", beta_video=5.0, beta_audio=0.0),
]
MIXTURES = [
    PreferenceConfig(kind="nft", beta_video=0.5, beta_audio=0.2, anchor=0.0),
    PreferenceConfig(kind="nft", beta_video=1.0, beta_audio=0.0, anchor=0.3),
]


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def by_hand(outputs, expected, drawn, config, flow):
    """The loss of a batch and its derivative by every output, number by number, in Python's floats."""
    betas = {"video": config.beta_video, "audio": config.beta_audio}
    anchors = {"video": config.anchor * flow.video_weight, "audio": config.anchor * flow.audio_weight}
    pairs = drawn.clean.size // 2
    gradients = {m: torch.zeros(outputs[m].shape, dtype=torch.float64) for m in outputs}
    loss = 0.0
    for k in range(pairs):
        errors, margins, counts = {}, {}, {}
        for m in outputs:
            clean, noise = getattr(drawn.clean, m), getattr(drawn.noise, m)
            for row, (what, made) in product((2 * k, 2 * k + 1), (("now", outputs), ("before", expected))):
                weight = clean.weight[row].tolist()
                total, channels = 0.0, clean.x.shape[2]
                for n, w in enumerate(weight):
                    for c in range(channels):
                        if w:
                            target = float(noise[row, n, c]) - float(clean.x[row, n, c])
                            total += w * (float(made[m][row, n, c]) - target) ** 2 / channels
                counts[m, row] = sum(weight)
                errors[m, row, what] = total / sum(weight) if sum(weight) else 0.0
            if counts[m, 2 * k] and counts[m, 2 * k + 1]:
                rose = [errors[m, row, "now"] - errors[m, row, "before"] for row in (2 * k, 2 * k + 1)]
                margins[m] = betas[m] * (rose[1] - rose[0]) / 2
        groups = [list(margins)] if config.margin == "joint" else [[m] for m in margins]
        slopes = {}  # of the loss by the margin of each modality
        for names in groups:
            margin = sum(margins[m] for m in names)
            if config.kind == "ipo":
                loss += (margin - 0.5) ** 2 / pairs
                slope = 2 * (margin - 0.5)
            else:
                wrong = config.label_smoothing
                loss += ((1 - wrong) * math.log1p(math.exp(-margin)) + wrong * math.log1p(math.exp(margin))) / pairs
                slope = -(1 - wrong) * sigmoid(-margin) + wrong * sigmoid(margin)
            slopes |= dict.fromkeys(names, slope)
        for m in outputs:
            loss += anchors[m] * errors[m, 2 * k, "now"] / pairs
            clean, noise = getattr(drawn.clean, m), getattr(drawn.noise, m)
            for row, sign in ((2 * k, -1), (2 * k + 1, 1)):
                by_error = slopes.get(m, 0.0) * betas[m] * sign / 2 + (anchors[m] if sign < 0 else 0.0)
                if counts[m, row]:
                    error = outputs[m][row].double() - (noise[row].double() - clean.x[row].double())
                    share = clean.weight[row].double()[:, None] / counts[m, row] / clean.x.shape[2]
                    gradients[m][row] = by_error * 2 * error * share / pairs
    return loss, gradients


def mixed_by_hand(outputs, expected, drawn, config, flow):
    """The same of kind=nft."""
    betas = {"video": config.beta_video, "audio": config.beta_audio}
    weights = {"video": flow.video_weight, "audio": flow.audio_weight}
    pairs = drawn.clean.size // 2
    gradients = {m: torch.zeros(outputs[m].shape, dtype=torch.float64) for m in outputs}
    loss = 0.0
    for m, row in product(outputs, range(2 * pairs)):
        clean, noise = getattr(drawn.clean, m), getattr(drawn.noise, m)
        weight, other = clean.weight[row].double(), clean.weight[row ^ 1]
        target = noise[row].double() - clean.x[row].double()
        now, before = outputs[m][row].double(), expected[m][row].double()
        share = weights[m] * weight[:, None] / max(float(weight.sum()), 1.0) / clean.x.shape[2] / pairs
        if betas[m] and weight.sum() and other.sum():
            beta = -betas[m] if row % 2 else betas[m]
            mixed = (1 - beta) * before + beta * now
            loss += float((share * (mixed - target) ** 2).sum()) / betas[m]
            gradients[m][row] += 2 * share * (mixed - target) * (-1 if row % 2 else 1)
        if row % 2 == 0:
            loss += config.anchor * float((share * (now - target) ** 2).sum())
            gradients[m][row] += config.anchor * 2 * share * (now - target)
    return loss, gradients


def drawn_pairs(tmp_path, pairs=6, **changes):
    settings = config(tmp_path, **changes)
    return draw(Pairs().batch(range(2 * pairs)), settings, 3, range(2 * pairs))


def test_what_a_kind_of_loss_has_no_use_for_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 is of kind=sigmoid"):
        PreferenceConfig(kind="ipo", label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 is of kind=sigmoid: nft"):
        PreferenceConfig(kind="nft", beta_video=0.5, beta_audio=0.5, label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"beta_video=3000\.0 .* at most 1"):
        PreferenceConfig(kind="nft")
    with pytest.raises(ValueError, match=r"margin=per_modality .* nft has no margin"):
        PreferenceConfig(kind="nft", beta_video=0.5, beta_audio=0.5, margin="per_modality")


@pytest.mark.parametrize("flow", [FlowConfig(), FlowConfig(video_weight=2.0)], ids=["alike", "picture twice"])
@pytest.mark.parametrize("choice", CHOICES + MIXTURES, ids=lambda c: f"{c.margin}-{c.kind}-{c.beta_audio}")
def test_loss_and_gradients_equal_the_equation_in_float64(tmp_path, choice, flow):
    """With pairs of which the picture, or the sound, is masked."""
    drawn = drawn_pairs(tmp_path)
    generator = torch.Generator().manual_seed(0)
    noise = drawn.noise._asdict()
    near = {m: noise[m] - getattr(drawn.clean, m).x for m in noise}

    def some(scale):
        return {m: near[m] + scale * torch.randn(near[m].shape, generator=generator) for m in near}

    expected, outputs = some(0.30), {m: v.requires_grad_() for m, v in some(0.31).items()}
    learn = Preference(choice, flow, frozen_copy(lambda noisy: Velocity(**expected)))
    learned = learn(lambda noisy: Velocity(**outputs), drawn, Whole({}, drawn.clean.size, {}))
    learned.loss.backward()
    reckoned = mixed_by_hand if choice.kind == "nft" else by_hand
    loss, gradients = reckoned({m: v.detach() for m, v in outputs.items()}, expected, drawn, choice, flow)
    assert learned.loss.item() == pytest.approx(loss, rel=1e-4)
    for m, gradient in gradients.items():
        assert gradient.abs().max() > 0 or choice.beta(m) == 0
        # the margins are differences of float32 errors multiplied by up to thousands
        torch.testing.assert_close(outputs[m].grad.double(), gradient, rtol=5e-3, atol=2e-4 * gradient.abs().max())


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: f"{c.margin}-{c.kind}-{c.label_smoothing}")
def test_margins_in_float64_are_exact(choice):
    """The same without float32 under it: errors to loss, and the loss's gradient by finite differences."""
    generator = torch.Generator().manual_seed(1)

    def errors(known):
        values = torch.rand(3, 2, dtype=torch.float64, generator=generator) / 100 * torch.tensor(known)[:, None]
        return Errors(values, torch.tensor(known))

    masks = {"video": [True, True, False], "audio": [True, False, True]}
    policy, reference = ({m: errors(known) for m, known in masks.items()} for _ in range(2))
    leaves = {m: e.clips.clone().requires_grad_() for m, e in policy.items()}

    def loss(video, audio):
        now = {"video": Errors(video, policy["video"].known), "audio": Errors(audio, policy["audio"].known)}
        return preference_loss(now, reference, choice, FlowConfig())[0].sum()

    assert torch.autograd.gradcheck(loss, (leaves["video"], leaves["audio"]), eps=1e-7, atol=1e-3)


def test_a_modality_without_supervised_tokens_changes_nothing(tmp_path):
    drawn = drawn_pairs(tmp_path)
    outputs = {m: torch.zeros_like(v, requires_grad=True) for m, v in drawn.noise._asdict().items()}
    before = {m: v.detach() for m, v in outputs.items()}  # where no sigmoid is flat
    learn = Preference(CHOICES[1], FlowConfig(), frozen_copy(lambda noisy: Velocity(**before)))
    learn(lambda noisy: Velocity(**outputs), drawn, Whole({}, drawn.clean.size, {})).loss.backward()
    for m, rows in (("video", (4, 5, 10, 11)), ("audio", (2, 3, 8, 9))):  # pairs that train the other alone
        silent = outputs[m].grad.abs().sum((1, 2)) == 0
        assert {i for i, s in enumerate(silent.tolist()) if s} == set(rows)


@pytest.mark.parametrize("margin", ["joint", "per_modality"])
@pytest.mark.parametrize("lora", [LoraConfig(rank=4), None], ids=["adapters", "copy"])
def test_at_step_0_every_sigmoid_is_log_2(tmp_path, margin, lora):
    settings = config(tmp_path, lora=lora, preference=PreferenceConfig(margin=margin, anchor=0.0, cheating=NEVER))
    run = prepare(settings)
    accumulate(run, [Pairs().batch(range(12))], Share(12, 1))
    noted = dict(zip(run.meter.notes, run.meter.noted.tolist(), strict=True))
    assert noted["preference/video/margin"] == noted["preference/audio/margin"] == [0.0, 4.0]
    sigmoids = 6 if margin == "joint" else 8  # a third of the pairs train both modalities, the others one each
    assert noted["preference/loss"][0] == pytest.approx(sigmoids * math.log(2), rel=1e-7)
    assert noted["preference/accuracy"] == [3.0, 6.0]
    assert noted["preference/video/drift"][0] == 0.0


def test_the_model_and_what_it_is_compared_with_are_compiled_alike(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(AVTransformer, "compile_blocks", lambda model, shapes: compiled.append(model))
    run = prepare(config(tmp_path, lora=None, compile=True))
    with run.objective.reference() as reference:
        assert [id(model) for model in compiled] == [id(run.model), id(reference)]


def test_the_two_clips_of_a_pair_are_drawn_alike_and_pairs_are_not(tmp_path):
    drawn = drawn_pairs(tmp_path, 8, caption_dropout=0.5)
    for m in ("video", "audio"):
        noise, levels = getattr(drawn.noise, m), getattr(drawn.noisy, m).levels
        assert torch.equal(noise[0::2], noise[1::2])
        assert torch.equal(levels[0::2], levels[1::2])
        assert len(levels[0::2].amax(1).unique()) == 8
        assert not torch.equal(getattr(drawn.clean, m).x[0::2], getattr(drawn.clean, m).x[1::2])
    dropped = drawn.clean.video_text.dropped
    assert torch.equal(dropped[0::2], dropped[1::2])
    assert 0 < dropped.sum() < 16


@pytest.mark.parametrize("lora", [LoraConfig(rank=4), None], ids=["adapters", "all weights"])
def test_training_learns_to_tell_winners_from_losers(tmp_path, lora):
    """The same six pairs at every step; what is compared with stays what it was."""
    optimizer = OptimizerConfig(kind="adamw", lr=2e-3 if lora else 3e-4, warmup_steps=2)
    settings = config(tmp_path, lora=lora, steps=200, optimizer=optimizer)

    class Same(Pairs):
        def batch(self, indices, at=None):
            return super().batch([i % 12 for i in indices])

    run = train(settings, Same(), Same(), quiet(), order(settings))
    lines = [json.loads(line) for line in (settings.out / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if "preference/accuracy" in line]
    last = told[-10:]
    assert told[0]["preference/accuracy"] == 0.5
    for name in ("preference/accuracy", "preference/video/accuracy", "preference/audio/accuracy"):
        assert sum(line[name] for line in last) / 10 > 0.75, name
    assert last[-1]["preference/video/drift"] > 0
    with run.objective.reference() as reference:
        held = {n.replace(".base_layer", ""): p for n, p in reference.state_dict().items() if "lora" not in n}
    begun = prepare(replace(settings, out=tmp_path / "other", lora=None)).model.state_dict()
    assert all(torch.equal(held[name], begun[name]) for name in begun)


def test_held_out_pairs_are_told_apart_as_training_pairs_are(tmp_path):
    """A model that learns one pair by heart tells that pair apart when it is held out too, and not the pairs of
    other clips."""

    class One(Pairs):
        pairs = (PAIR,)

        def batch(self, indices, at=None):
            return super().batch([i % 2 for i in indices])

    class Others(Pairs):
        pairs = (PAIR,) * 30

        def batch(self, indices, at=None):
            return super().batch([i + 6 for i in indices])

    settings = config(tmp_path, lora=None, steps=40, optimizer=OptimizerConfig(kind="adamw", lr=3e-4, warmup_steps=2))
    run = train(settings, One(), One(), quiet(), order(settings), judges=One())
    lines = [json.loads(line) for line in (settings.out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "held_out_pairs/accuracy" in line][-1]
    assert last["held_out_pairs/accuracy"] > 0.75
    assert last["held_out_pairs/video/margin"] > 0
    assert told_apart(run, Others())["held_out_pairs/accuracy"] < 0.7
    assert told_apart(run, One()) == told_apart(run, One())


def test_accumulation_equals_the_big_batch(tmp_path):
    gradients = []
    for micro_batches in (1, 3):
        run, share = prepare(config(tmp_path, accumulate=micro_batches)), Share(12, micro_batches)
        scatter(run.model)  # adapters that change something
        accumulate(run, [Pairs().batch(list(places)) for places in share.places()], share)
        gradients.append({name: p.grad for name, p in run.model.named_parameters() if p.grad is not None})
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=2e-3, atol=2e-3 * float(whole.abs().max()))


def test_a_run_on_pairs_cut_short_goes_on_exactly(tmp_path):
    whole = config(tmp_path, steps=5)
    ended = train(whole, Pairs(), Pairs(), quiet(), order(whole))
    cut = replace(whole, out=tmp_path / "cut")
    again = prepare(cut)
    for step in range(3):
        optimise(again, [Pairs().batch(order(cut).clips(step))], Share(12, 1))
    save(again)
    again.writer.wait()
    resumed = train(cut, Pairs(), Pairs(), quiet(), order(cut))
    one, other = (dict(run.model.named_parameters()) for run in (ended, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


class Held(TorchDispatchMode):
    """The most bytes in tensors that live at once, of those made inside: found by when their storages die."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.died, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def died(self, size):
        self.now -= size


def peak(run, batches, share):
    """Bytes of the weights, and the most that a step adds to them: activations, gradients, the optimiser's memory."""
    with Held() as held:
        optimise(run, batches, share)
    return held.most + sum(p.nbytes for p in run.model.parameters())


def test_the_reference_costs_no_memory(tmp_path):
    """Against flow matching of the same adapters on the same clips; a copy of the model would cost one."""
    settings = config(tmp_path)
    batches, share = [Pairs().batch(range(12))], Share(12, 1)
    with_pairs = peak(prepare(settings), batches, share)
    copied = peak(prepare(replace(settings, out=tmp_path / "copy", lora=None)), batches, share)
    plain = replace(settings, out=tmp_path / "plain", preference=None, data=ToyboxData(workers=0))
    on_clips = peak(prepare(plain), batches, share)
    ratio = with_pairs / on_clips
    print(f"peak on pairs {with_pairs:,} over peak on clips {on_clips:,}: {ratio:.3f} {copied:,}")
    assert ratio < 1.15


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="belong together"):
        config(tmp_path, preference=None)
    with pytest.raises(ValueError, match=r"batch=6 .* multiple of 2 x accumulate = 4"):
        config(tmp_path, batch=6, accumulate=2)
    with pytest.raises(ValueError, match="leave tasks"):
        config(tmp_path, tasks={"v2a": 1.0})
    pictures = replace(config(tmp_path).model, audio=None)
    for kind, beta in (("sigmoid", 100.0), ("nft", 0.5)):
        with pytest.raises(ValueError, match=r"preference\.beta_video=0 trains nothing"):
            config(tmp_path, model=pictures, preference=PreferenceConfig(kind=kind, beta_video=0.0, beta_audio=beta))


def test_mixtures_are_fitted_in_half_precision(tmp_path):
    choice = PreferenceConfig(kind="nft", beta_video=0.5, beta_audio=0.5, cheating=NEVER)
    run = prepare(config(tmp_path, preference=choice, precision="bf16"))
    losses = optimise(run, [Pairs().batch(range(12))], Share(12, 1))
    assert set(losses) == {"video", "audio"}
    assert all(loss.isfinite() for loss in losses.values())
    noted = dict(zip(run.meter.notes, run.meter.noted.tolist(), strict=True))
    assert noted["preference/loss"][0] > 0


def test_a_model_of_one_tower_learns_from_pairs_of_its_own_task(tmp_path):
    """Nobody has to say the pairs' task, nor may; what the model has no tower for trains nothing."""
    spec = replace(config(tmp_path).model, audio=None)
    scatter(AVTransformer.of(spec), 0).save_pretrained(tmp_path / "alone")
    lora = LoraConfig(rank=4, parts=("video",))
    run = prepare(config(tmp_path, model=spec, start=tmp_path / "alone", lora=lora))
    losses = optimise(run, [Pairs().batch(range(12))], Share(12, 1))
    assert list(losses) == ["video"]
    assert losses["video"].isfinite()
