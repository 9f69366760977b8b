"""What only a GPU can show: no hidden waits, the same results compiled and on every kernel, memory saved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from avgen.models.architecture import BridgeConfig, ModelConfig, TextConfig, TowerConfig
from avgen.models.dit import AVTransformer
from avgen.tasks import I2AV, V2A, assign
from avgen.types import stack_batches
from tests.models.factory import batch, scatter

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")


def model(**changes):
    torch.manual_seed(0)
    config = ModelConfig(
        TowerConfig(channels=6, width=256, heads=4, depth=4),
        TowerConfig(channels=5, width=128, heads=2, depth=4),
        TextConfig(width=64),
        BridgeConfig(2, 64),
    )
    return scatter(AVTransformer.of(replace(config, **changes))).to(GPU)


def crowd():
    return stack_batches([assign(batch(("one",)), [V2A]), replace(batch(("two",), frames=4, seed=2), audio=None)])


def step(net, data, dtype=None):
    with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
        out = net(data)
    (out.video.float().square().mean() + out.audio.float().square().mean()).backward()
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    return [*out, *gradients]


@pytest.mark.parametrize("data", [crowd(), assign(batch(), [I2AV, I2AV])])
@pytest.mark.parametrize("checkpointing", ["none", "full", "keep_attention"])
def test_nothing_waits_for_the_device(data, checkpointing):
    told = {"anchored": True, "local": True}
    towers = {"video": TowerConfig(6, 256, 4, 4, **told), "audio": TowerConfig(5, 128, 2, 4, **told)}
    net, data = model(**towers), data.to(GPU)
    net.set_checkpointing(checkpointing)
    step(net, data, torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(net, data, torch.bfloat16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", ["math", "efficient", "cudnn", "flex"])
def test_every_kernel_gives_the_same_model(backend):
    """bf16 kernels against torch's choice, through a whole training step of ragged clips."""
    net, data = model(), crowd().to(GPU)
    expected = step(net, data, torch.bfloat16)
    net.set_attention(backend)
    for one, other in zip(expected, step(net, data, torch.bfloat16), strict=True):
        assert (one.float() - other.float()).norm() <= 0.03 * one.float().norm() + 1e-6


def test_bf16_stays_close_to_float32():
    net, data = model(), batch().to(GPU)
    for one, other in zip(step(net, data)[:2], step(net, data, torch.bfloat16)[:2], strict=True):
        assert (one - other.float()).norm() <= 0.02 * one.norm()


@pytest.mark.parametrize("checkpointing", ["none", "keep_attention"])
def test_compiled_blocks_agree_in_float32(checkpointing):
    torch.compiler.reset()
    torch.backends.cuda.matmul.allow_tf32 = False
    net, data = model(), batch().to(GPU)
    expected = step(net, data)
    net.set_checkpointing(checkpointing)
    net.compile_blocks(max_shapes=1)
    for one, other in zip(expected, step(net, data), strict=True):
        assert (one - other).abs().max() <= 1e-4 * one.abs().max()


def test_checkpointing_saves_memory():
    data = batch(frames=40, rows=12, columns=12, audio_steps=200).to(GPU)
    peaks = {}
    for mode in ("none", "keep_attention", "full"):
        net = model()
        net.set_checkpointing(mode)
        step(net, data, torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        step(net, data, torch.bfloat16)
        peaks[mode] = torch.cuda.max_memory_allocated()
        del net
    assert peaks["full"] < peaks["keep_attention"] < peaks["none"]
