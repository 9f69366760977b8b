"""Every attention backend against one float64 reference."""

from __future__ import annotations

import pytest
import torch

from avgen.models.attention import BACKENDS, _announce, attend, choose
from avgen.models.blocks import Attention
from avgen.models.compilation import tune_inductor

# relative to the reference's largest value; half precision keeps 8 (bf16) or 11 (fp16) bits of every product
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
ON_CPU = ["sdpa", "math", "flash", pytest.param("flex", marks=pytest.mark.slow)]
ON_CUDA = ["sdpa", "math", "flash", "cudnn", "efficient", "xformers", "flex"]


def reference(q, k, v, keys):
    q, k, v = (t.double() for t in (q, k, v))
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    if keys is not None:
        logits = logits.masked_fill(~keys[:, None, None], -torch.inf)
    return torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1).nan_to_num(0.0), v)


def inputs(dtype, device="cpu", ragged=True, grad=True):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 33, 2, 32, generator=generator)
    k, v = torch.randn(2, 3, 50, 2, 32, generator=generator)
    keys = torch.arange(50)[None] < torch.tensor([50, 17, 0])[:, None]
    cast = [t.to(device, dtype).requires_grad_(grad) for t in (q, k, v)]
    return (*cast, keys.to(device) if ragged else None)


def check(backend, dtype, ragged, device, backward):
    q, k, v, keys = inputs(dtype, device, ragged, grad=backward)
    expected = reference(q, k, v, keys)
    out = attend(q, k, v, keys, backend)
    assert (out - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
    if not backward:
        return
    weights = torch.linspace(-1, 1, out.numel(), device=device).view(out.shape)
    ours = torch.autograd.grad((out * weights).sum(), (q, k, v))
    truth = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    for one, other in zip(ours, truth, strict=True):
        assert torch.isfinite(one).all()
        assert (one - other).abs().max() <= 4 * TOLERANCE[dtype] * other.abs().max()


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", ON_CPU)
def test_backend_agrees_with_float64(backend, dtype, ragged):
    if backend == "flex":
        if dtype == torch.float16:
            pytest.skip("flex attention has no half-precision kernel on the CPU")
        with torch.no_grad():
            check(backend, dtype, ragged, "cpu", backward=False)
    else:
        check(backend, dtype, ragged, "cpu", backward=True)


@pytest.mark.gpu
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ON_CUDA)
def test_backend_agrees_with_float64_on_cuda(backend, dtype, ragged):
    if ragged and backend == "flash":
        pytest.skip("the CUDA kernel takes no key mask: refused, see below")
    if backend == "xformers":
        try:
            choose(backend, torch.device("cuda"))
        except ValueError as refused:
            pytest.skip(str(refused))
    check(backend, dtype, ragged, "cuda", backward=True)


@pytest.mark.gpu
def test_a_kernel_without_masks_refuses_rather_than_falls_back():
    q, k, v, keys = inputs(torch.bfloat16, "cuda")
    with pytest.raises(ValueError, match="attention=flash takes no key mask"):
        attend(q, k, v, keys, "flash")


def test_a_sample_without_keys_gets_exactly_zero():
    q, k, v, keys = inputs(torch.float32)
    out = attend(q, k, v, keys)
    assert torch.equal(out[2], torch.zeros_like(out[2]))
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(torch.equal(g[2], torch.zeros_like(g[2])) for g in gradients)


@pytest.mark.parametrize("backend", ["cudnn", "efficient", "xformers"])
def test_cuda_backends_are_refused_on_the_cpu_by_name(backend):
    with pytest.raises(ValueError, match=f"attention={backend}.*CUDA"):
        choose(backend, torch.device("cpu"))


def test_kernels_are_refused_where_they_never_run():
    with pytest.raises(ValueError, match="attention=cudnn works in half precision alone: set precision=bf16"):
        choose("cudnn", torch.device("cuda"), half=False)
    with pytest.raises(ValueError, match="attention=flash takes no key mask, and captions always have one"):
        choose("flash", torch.device("cuda"))


def test_unknown_backend_lists_the_known_ones():
    with pytest.raises(ValueError, match="sdpa"):
        choose("sdap", torch.device("cpu"))


def test_the_choice_is_logged_once(caplog):
    _announce.cache_clear()  # tests before this one have made the choice too
    with caplog.at_level("INFO", logger="avgen.models.attention"):
        for _ in range(3):
            choose("math", torch.device("cpu"))
    assert [r.message for r in caplog.records] == ["attention: math on cpu"]
    assert set(ON_CUDA) == set(BACKENDS)


@pytest.mark.slow
def test_compiled_bfloat16_attention_to_captions_has_the_gradients_of_the_plain_one():
    """In this shape GCC 12 left a quarter of inductor's transposed bfloat16 tiles unwritten on Sapphire Rapids."""
    torch.compiler.reset()
    tune_inductor()
    torch.manual_seed(0)
    layer = Attention(96, 96, 2, 48, "math")
    x, captions = torch.randn(16, 40, 96), torch.randn(16, 96, 96).bfloat16()
    keys = torch.arange(96) < torch.randint(5, 97, (16, 1))
    found = []
    for run in (layer, torch.compile(layer, fullgraph=True, dynamic=False)):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = run(x, captions, keys)
        out.float().square().sum().backward()
        found.append([p.grad.clone() for p in layer.parameters()])
    for plain, compiled in zip(*found, strict=True):
        assert (plain - compiled).norm() <= 0.03 * plain.norm()  # bfloat16 has 8 bits; nan is never less
