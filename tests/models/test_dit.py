"""The transformer's promises: towers at step 0, one clock, exact masks, honest levels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from avgen.models.architecture import BridgeConfig, ModelConfig, TextConfig, TowerConfig
from avgen.models.blocks import PARTNER
from avgen.models.compilation import uncompiled
from avgen.models.dit import AVTransformer, Perturbation
from avgen.models.text import bytes_of
from avgen.tasks import I2AV, T2AV, T2V, V2A, assign
from avgen.types import Batch, Stream, Text, stack_batches

from .factory import AUDIO, VIDEO, at, batch, config, model

COUPLINGS = ["cross", "joint", "none"]
TOLD = [{}, {"anchored": True}, {"local": True}]


def difference(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True) if a is not None)


def shifted(stream: Stream, by_s: float) -> Stream:
    return replace(stream, time=stream.time + by_s)


@torch.no_grad()
def test_a_closed_bridge_leaves_each_tower_alone_bit_for_bit():
    """Weights are those of trained towers; only the bridge's gates are as they are born."""
    joint = model("cross")
    for block in joint.blocks:
        if block.bridge is not None:
            for table in block.bridge.table.values():
                table[-1].zero_()
    for levels in joint.bridge_levels.values():
        levels.partner.weight.zero_(), levels.partner.bias.zero_()
        levels.own.weight.view(5, -1)[-1].zero_(), levels.own.bias.view(5, -1)[-1].zero_()
    both = batch()
    out = joint(both)
    assert torch.equal(out.video, joint(replace(both, audio=None)).video)
    assert torch.equal(out.audio, joint(replace(both, video=None)).audio)
    assert difference(out, model("cross")(both)) > 1e-3, "an open bridge must be heard"


@torch.no_grad()
def test_a_fresh_bridge_is_closed():
    fresh = AVTransformer.of(config("cross"))
    for block in fresh.blocks:
        if block.bridge is not None:
            assert all(torch.equal(t, torch.zeros_like(t)) for t in block.bridge.table.values())
    assert all(torch.equal(p, torch.zeros_like(p)) for p in fresh.bridge_levels.parameters())


def test_a_closed_bridge_still_learns():
    fresh = AVTransformer.of(config("cross"))
    torch.nn.init.normal_(fresh.towers["audio"].head.weight)
    fresh(batch()).audio.square().sum().backward()
    gates = [block.bridge.table["audio"].grad[-1] for block in fresh.blocks if block.bridge is not None]
    assert all(gate.abs().max() > 0 for gate in gates)


def sample(stream: Stream, i: int) -> Stream:
    return Stream(**{name: value[i : i + 1] for name, value in vars(stream).items() if value is not None})


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("by_s", [0.0625, 7.3, -2.0, 3600.0])
@torch.no_grad()
def test_shifting_both_streams_in_time_changes_nothing(coupling, by_s, told):
    net, both = model(coupling, **told), batch()
    moved = replace(both, video=shifted(both.video, by_s), audio=shifted(both.audio, by_s))
    assert difference(net(both), net(moved)) < 1e-4


@pytest.mark.parametrize("coupling", ["cross", "joint"])
@torch.no_grad()
def test_shifting_one_stream_alone_is_noticed(coupling):
    net, both = model(coupling), batch()
    assert difference(net(both), net(replace(both, audio=shifted(both.audio, 0.1)))) > 1e-3


@pytest.mark.parametrize("anchored", [False, True])
@torch.no_grad()
def test_alike_tokens_tell_early_from_late_only_if_anchored(anchored):
    """Attention by distance alone mixes values that are all the same: to the same, wherever it asks."""
    alike = batch()
    alike = replace(alike, **{m: replace(s, x=torch.ones_like(s.x)) for m, s in alike.streams.items()})
    for velocity in model(anchored=anchored)(alike):
        apart = (velocity - velocity[:, :1]).abs().amax()
        assert apart > 0.01 if anchored else apart < 1e-5


@torch.no_grad()
def test_relabelled_frame_rate_moves_the_alignment_as_the_clock_says():
    """8 fps video called 16 fps looks to the sound like video squeezed to half its time, and like nothing else."""
    net = model("cross")
    slow, fast = batch(fps=8.0), batch(fps=16.0)
    squeezed = replace(slow, video=replace(slow.video, time=slow.video.time / 2))
    assert difference(net(fast), net(squeezed)) < 1e-5
    assert difference(net(fast), net(slow)) > 1e-3


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("coupling", COUPLINGS)
@torch.no_grad()
def test_neighbours_and_padding_change_nothing(coupling, told):
    """A clip among longer, larger, faster ones and ones without a modality is treated as if alone."""
    net = model(coupling, **told)
    short = batch(("short",))
    crowd = [
        short,
        batch(("a much longer neighbour with words",), fps=12.0, frames=5, rows=3, columns=4, audio_steps=13, seed=2),
        replace(batch(("silent",), seed=3), audio=None),
        replace(batch(("unseen",), seed=4), video=None),
    ]
    together = net(stack_batches(crowd))
    for i, alone in enumerate(crowd):
        out = net(alone)
        for m in ("video", "audio"):
            stream = getattr(alone, m)
            if stream is not None:
                part = getattr(together, m)[i : i + 1, : stream.x.shape[1]]
                torch.testing.assert_close(part, getattr(out, m), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_padding_gets_no_gradient(coupling, told):
    net = model(coupling, **told)
    crowd = stack_batches([batch(("one",)), batch(("two",), frames=5, audio_steps=11, seed=2)])
    video = replace(crowd.video, x=crowd.video.x.clone().requires_grad_())
    audio = replace(crowd.audio, x=crowd.audio.x.clone().requires_grad_())
    out = net(replace(crowd, video=video, audio=audio))
    loss = (out.video.square().mean(-1) * video.weight).sum() + (out.audio.square().mean(-1) * audio.weight).sum()
    loss.backward()
    for stream in (video, audio):
        assert torch.equal(stream.x.grad[~stream.valid], torch.zeros_like(stream.x.grad[~stream.valid]))
        assert stream.x.grad[stream.valid].abs().amax(-1).min() > 0


@torch.no_grad()
def test_an_absent_modality_is_the_other_tower_alone():
    both = batch()
    joint = model("cross")
    lone = AVTransformer.of(replace(config("cross"), audio=None)).eval()
    lone.load_state_dict({k: v for k, v in joint.state_dict().items() if k in lone.state_dict()})
    assert torch.equal(joint(replace(both, audio=None)).video, lone(replace(both, audio=None)).video)
    nobody = replace(both.audio, valid=torch.zeros_like(both.audio.mask()))
    torch.testing.assert_close(joint(replace(both, audio=nobody)).video, lone(replace(both, audio=None)).video)


@torch.no_grad()
def test_the_two_directions_read_the_state_before_either_update(monkeypatch):
    net, both = model("cross"), batch()
    expected = net(both)
    monkeypatch.setattr("avgen.models.blocks.PARTNER", dict(reversed(PARTNER.items())))
    assert difference(expected, net(both)) == 0.0


@pytest.mark.parametrize("coupling", COUPLINGS)
@torch.no_grad()
def test_the_level_of_given_tokens_matters(coupling):
    net = model(coupling)
    given = assign(batch(), [I2AV, I2AV])
    noisy = replace(given, video=replace(given.video, levels=given.video.levels + torch.tensor([[0.2, 0.0]])))
    assert difference(net(given), net(noisy)) > 1e-3


@torch.no_grad()
def test_the_partner_level_changes_the_gate():
    """With its own stream and the partner's tokens unchanged, only the gate can carry the partner's level."""
    net = model("cross")
    gates = []
    for level in (0.1, 0.9):
        streams = {"video": batch().video, "audio": at(batch().audio, level)}
        levels = {m: net.towers[m].levels(s.levels) for m, s in streams.items()}
        texts = net.read_captions(batch())
        context = net.contexts(streams, streams, levels, texts, None)
        gates.append(context["video"].bridge.modulation.values[:, :, 4])
        assert torch.equal(
            context["video"].bridge.modulation.values[:, :, :4],
            net.bridge_levels["video"](levels["video"], levels["audio"][:, 0])[:, :, :4],
        )
    assert (gates[0] - gates[1]).abs().max() > 1e-3


def test_given_tokens_take_no_part_in_the_loss():
    net = model("cross")
    both = assign(batch(), [V2A, I2AV])
    out = net(both)
    out.video.retain_grad()
    (out.video.square().mean(-1) * both.video.weight).sum().backward()
    given = both.video.level == 0
    assert given[0].all()
    assert given[1].any()
    assert torch.equal(out.video.grad[given], torch.zeros_like(out.video.grad[given]))
    assert out.video.grad[~given].abs().min() > 0


@pytest.mark.parametrize("count", [2, 3, 6])
@torch.no_grad()
def test_levels_are_the_same_however_they_are_stored(count):
    """One level per token spelled out N times equals the few distinct levels with slots, both code paths."""
    net, both = model("cross"), batch()
    tokens = both.video.x.shape[1]
    levels = torch.linspace(0, 1, count).expand(2, -1)
    slot = torch.arange(tokens).remainder(count).expand(2, -1)
    few = replace(both.video, levels=levels, slot=slot)
    spelled = replace(both.video, levels=levels.gather(1, slot), slot=torch.arange(tokens).expand(2, -1))
    assert torch.equal(few.level, spelled.level)
    assert difference(net(replace(both, video=few)), net(replace(both, video=spelled))) < 1e-5


@torch.no_grad()
def test_tasks_of_different_samples_do_not_mix():
    net, both = model("cross"), batch(("a", "b", "c"))
    tasks = [T2AV, V2A, T2V]
    together = net(assign(both, tasks))
    for i, task in enumerate(tasks):
        text = bytes_of(["abc"[i]], 64)
        one = Batch(sample(both.video, i), sample(both.audio, i), text, text)
        alone = net(assign(one, [task]))
        torch.testing.assert_close(together.video[i : i + 1], alone.video, atol=1e-5, rtol=1e-5)
        if alone.audio is not None:
            torch.testing.assert_close(together.audio[i : i + 1], alone.audio, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_dropped_caption_is_the_null_whatever_it_said():
    net = model("cross")
    first, second = batch(("a red ball",)), batch(("something else",))
    dropped = torch.ones(1, dtype=torch.bool)
    outs = [net(replace(b, video_text=replace(b.video_text, dropped=dropped),
                        audio_text=replace(b.audio_text, dropped=dropped))) for b in (first, second)]  # fmt: skip
    assert difference(outs[0], outs[1]) < 1e-6
    assert difference(outs[0], net(first)) > 1e-3


@torch.no_grad()
def test_each_modality_may_have_its_own_caption():
    net, both = model("none"), batch()
    other = replace(both, audio_text=bytes_of(["quite", "different"], 64))
    assert torch.equal(net(both).video, net(other).video)
    assert (net(both).audio - net(other).audio).abs().max() > 1e-3


@pytest.mark.parametrize("coupling", ["cross", "joint"])
@torch.no_grad()
def test_guidance_passes_are_data(coupling):
    """Turning the bridge off in one sample of the batch gives that sample its towers alone and leaves the other."""
    net, both = model(coupling), batch()
    plain = net(both)
    out = net(both, Perturbation(bridge_on=torch.tensor([0.0, 1.0])))
    alone = net(replace(both, audio=None)).video[:1]
    torch.testing.assert_close(out.video[:1], alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out.video[1:], plain.video[1:], atol=1e-6, rtol=1e-5)
    layers = torch.zeros(2, 3, dtype=torch.bool)
    nothing = net(both, Perturbation(video=layers))
    assert difference(nothing, plain) == 0.0
    layers[0, 1] = True
    perturbed = net(both, Perturbation(video=layers))
    assert (perturbed.video[0] - plain.video[0]).abs().max() > 1e-3
    torch.testing.assert_close(perturbed.video[1], plain.video[1])


def test_every_parameter_gets_a_gradient():
    for coupling in COUPLINGS:
        net = model(coupling, anchored=True, local=True)
        mixed = replace(batch(), video_text=replace(batch().video_text, dropped=torch.tensor([True, False])))
        out = net(replace(mixed, video=at(mixed.video, 0.4)))
        (out.video.square().sum() + out.audio.square().sum()).backward()
        silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        # a key bias shifts all logits of a query alike, so softmax cannot see it before the norm; none is left out here
        assert silent == []


def test_without_a_bridge_nothing_of_it_is_left_to_wait_for_a_gradient():
    """DDP stops at the second step where a parameter had no gradient in the first."""
    net = model("cross", bridge=BridgeConfig(2, 16, at=()))
    mixed = replace(batch(), video_text=replace(batch().video_text, dropped=torch.tensor([True, False])))
    out = net(mixed)
    (out.video.square().sum() + out.audio.square().sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("coupling", "local"), [*((c, False) for c in COUPLINGS), ("cross", True), ("joint", True)])
@pytest.mark.parametrize("mode", ["full", "keep_attention"])
def test_checkpointing_reproduces_outputs_and_gradients_exactly(coupling, local, mode):
    results = []
    for checkpointing in ("none", mode):
        net = model(coupling, local=local)
        net.set_checkpointing(checkpointing)
        out = net(stack_batches([batch(("one",)), batch(("two",), frames=4, seed=2)]))
        (out.video.square().sum() + out.audio.square().sum()).backward()
        results.append([*out, *(p.grad for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(results[0][:2], results[1][:2], strict=True))
    for kept, again in zip(*results, strict=True):
        # the same terms, but those of tensors shared by all blocks are summed in another order
        assert (kept - again).abs().max() <= 2e-6 * kept.abs().max()


def test_a_way_to_checkpoint_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="checkpointing='ful' must be one of none, full, keep_attention"):
        model("none").set_checkpointing("ful")


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["cross", "joint"])
@pytest.mark.parametrize("mode", ["none", "keep_attention"])
def test_compiled_blocks_reproduce_outputs_and_gradients(coupling, mode):
    """Per-block compilation without graph breaks; float32 sums in another order: 2e-5 of the largest value."""
    torch.compiler.reset()
    results = []
    for compiled in (False, True):
        net = model(coupling)
        net.set_checkpointing(mode)
        if compiled:
            net.compile_blocks(max_shapes=2)
        out = net(batch())
        (out.video.square().sum() + out.audio.square().sum()).backward()
        results.append([*out, *(p.grad for p in net.parameters())])
    for eager, fast in zip(*results, strict=True):
        assert (eager - fast).abs().max() <= 2e-5 * eager.abs().max()


@pytest.mark.slow
def test_equal_blocks_share_one_compilation():
    found = []
    for count in (3, 1):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        net = model("none", audio=None)
        net.blocks = net.blocks[:count]
        net.compile_blocks()
        for seed in (1, 2):
            net(replace(batch(seed=seed), audio=None))
        assert len(net.blocks) == count
        found.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert found[0] == found[1] > 0


@pytest.mark.slow
def test_compilation_refuses_more_shapes_than_it_was_told():
    torch.compiler.reset()
    net = model("none", audio=None)
    net.compile_blocks(max_shapes=2)
    for frames in (2, 3):
        net(replace(batch(frames=frames), audio=None))
    with uncompiled():  # as in validation, which compiles nothing
        for frames in (4, 5):
            net(replace(batch(frames=frames), audio=None))
    with pytest.raises(ValueError, match="max_shapes"):
        net(replace(batch(frames=4), audio=None))


def test_a_machine_without_a_compiler_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"no no-such-compiler: install them .*compile=false"):
        model().compile_blocks()


def noting(function, seen):
    def call(x, *args, **kwargs):
        seen.append(x.dtype)
        return function(x, *args, **kwargs)

    return call


def test_positions_norms_modulation_and_levels_stay_float32_under_autocast(monkeypatch):
    from avgen.models import blocks

    seen: list[torch.dtype] = []

    def spy(x, by):
        seen.extend([by.cos.dtype, by.sin.dtype])
        return rotate(x, by)

    rotate = blocks.rotate
    monkeypatch.setattr(blocks, "rotate", spy)
    under = blocks.Modulation.under

    def spy_under(self, table, *asked):
        parts = under(self, table, *asked)
        seen.extend(part.dtype for part in parts)
        return parts

    monkeypatch.setattr(blocks.Modulation, "under", spy_under)
    for name in ("rms_norm", "layer_norm"):
        monkeypatch.setattr(blocks.F, name, noting(getattr(blocks.F, name), seen))
    with torch.autocast("cpu", torch.bfloat16):
        out = model("cross")(batch())
    assert set(seen) == {torch.float32}
    assert out.video.dtype == torch.bfloat16


def test_autocast_stays_close_to_float32():
    net, both = model("cross", local=True), batch()
    with torch.no_grad():
        exact = net(both)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(both)
    for a, b in zip(exact, rough, strict=True):
        assert (a - b).norm() <= 0.02 * a.norm()


def test_text_of_the_wrong_kind_is_refused():
    net = model("cross")
    features = Text.of(torch.randn(2, 4, 16))
    with pytest.raises(ValueError, match="bytes"):
        net(replace(batch(), video_text=features, audio_text=features))
    frozen = model("cross", text=TextConfig(kind="features", width=16))
    frozen(replace(batch(), video_text=features, audio_text=features))
    wide = Text.of(torch.randn(2, 4, 17))
    with pytest.raises(ValueError, match=r"17 wide.*width=16"):
        frozen(replace(batch(), video_text=wide, audio_text=wide))


def test_impossible_architectures_are_refused_by_key():
    tower = TowerConfig(channels=4, width=32, heads=2, depth=2)
    with pytest.raises(ValueError, match="multiple of heads"):
        TowerConfig(channels=4, width=32, heads=3, depth=2)
    with pytest.raises(ValueError, match="coupling=joint"):
        ModelConfig(tower, replace(tower, heads=4), coupling="joint")
    with pytest.raises(ValueError, match=r"bridge.at=\[5\]"):
        ModelConfig(tower, tower, bridge=BridgeConfig(at=(5,)))
    with pytest.raises(ValueError, match="video tower"):
        ModelConfig(None, None)
    with pytest.raises(ValueError, match="coupling='crss'"):
        ModelConfig(tower, tower, coupling="crss")
    for change in ({"heads": 0}, {"depth": 0}, {"channels": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}=0 must be at least 1"):
            replace(tower, **change)
    with pytest.raises(ValueError, match="width=32 of the byte encoder must be a multiple of heads=3"):
        TextConfig(width=32, heads=3)
    assert TextConfig("features", width=32, heads=3).width == 32
    with pytest.raises(ValueError, match="heads=0 must be at least 1"):
        BridgeConfig(heads=0)


def test_a_shallower_tower_is_spread_evenly():
    spec = config("cross", audio=TowerConfig(channels=5, width=32, heads=2, depth=2))
    deep = replace(spec, video=TowerConfig(channels=6, width=48, heads=2, depth=6))
    stages = [deep.layers(i) for i in range(deep.stages)]
    assert [s.get("video") for s in stages] == list(range(6))
    assert [i for i, s in enumerate(stages) if "audio" in s] == [2, 5]
    assert [deep.bridged(i) for i in range(6)] == [False, False, True, False, False, True]
    assert not replace(deep, bridge=BridgeConfig(2, 16, at=(5,))).bridged(2)


def test_no_forward_or_backward_waits_for_the_device():
    """Reading a value on the host would go through aten::_local_scalar_dense or nonzero; neither may happen."""
    net = model("cross", anchored=True, local=True)
    crowd = stack_batches([assign(batch(("one",)), [V2A]), replace(batch(("two",), frames=4, seed=2), audio=None)])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = net(crowd)
        (out.video.square().sum() + out.audio.square().sum()).backward()
    ops = {event.key for event in profile.key_averages()}
    assert ops.isdisjoint({"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero"})


def test_geometry_and_model_agree_on_shapes():
    both = batch(frames=4, rows=2, columns=2)
    out = model("cross")(both)
    assert VIDEO.latents(out.video, 2, 2).shape == (2, 6, 4, 2, 2)
    assert AUDIO.latents(out.audio).shape == (2, 5, 7)
