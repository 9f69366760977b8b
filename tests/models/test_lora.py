"""Adapters: only where asked, off means the base to the last bit, saved and folded without loss."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from avgen.models.dit import AVTransformer
from avgen.models.lora import PARTS, add_lora, fold_lora, load_lora, lora_off, save_lora
from tests.models import factory


def trained(parts: tuple[str, ...] = ("video", "audio", "bridge"), seed: int = 0, **options) -> AVTransformer:
    """A model whose adapters answer: their second matrices start at zero."""
    model = factory.model(seed=seed)
    add_lora(model, parts, rank=2, **options)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapters(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def adapters(model: AVTransformer) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def answer(model: AVTransformer) -> torch.Tensor:
    with torch.no_grad():
        velocity = model(factory.batch())
    return torch.cat([velocity.video.flatten(), velocity.audio.flatten()])


def layers_of(parts: set[str]) -> set[str]:
    """Written out from the architecture: 3 video layers, 2 audio layers in stages 1 and 2, a bridge where both are."""
    wanted = set()
    for stage in range(3):
        towers = ["video"] + ["audio"] * (stage > 0)
        for tower in set(towers) & parts:
            linear = [f"{a}.to_{x}" for a in ("attn", "text_attn") for x in ("q", "k", "v", "out")] + ["mlp.0", "mlp.2"]
            wanted |= {f"blocks.{stage}.towers.{tower}.{name}" for name in linear}
        if "bridge" in parts and len(towers) == 2:
            names = [f"{m}.to_{x}" for m in ("video", "audio") for x in ("q", "k", "v", "out")]
            wanted |= {f"blocks.{stage}.bridge.attn.{name}" for name in names}
    return wanted


@pytest.mark.parametrize(
    "parts", [("video",), ("audio",), ("bridge",), ("audio", "bridge"), ("video", "audio", "bridge")]
)
def test_only_named_parts_are_adapted(parts: tuple[str, ...]) -> None:
    model = factory.model()
    found = add_lora(model, parts, rank=2)
    assert set(found) == layers_of(set(parts))
    assert len(found) == len(set(found))


def test_targets_take_the_place_of_parts() -> None:
    model = factory.model()
    found = add_lora(model, targets=r"blocks\.2\.towers\.video\.mlp\.\d|towers\.audio\.embed", rank=2)
    assert set(found) == {"blocks.2.towers.video.mlp.0", "blocks.2.towers.video.mlp.2", "towers.audio.embed"}
    answer(model)


def test_a_fresh_adapter_changes_nothing() -> None:
    base = answer(factory.model())
    model = factory.model()
    add_lora(model, rank=2)
    assert torch.equal(answer(model), base)


def test_gradients_only_in_adapters() -> None:
    model = trained().train()
    velocity = model(factory.batch())
    (velocity.video.square().mean() + velocity.audio.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name
        assert parameter.grad is None or parameter.grad.any(), name


def test_off_is_the_base_to_the_last_bit() -> None:
    base = answer(factory.model())
    model = trained()
    assert (answer(model) - base).abs().max() > 1e-2
    with lora_off(model):
        assert torch.equal(answer(model), base)
    assert (answer(model) - base).abs().max() > 1e-2


def test_off_leaves_the_adapters_as_they_were() -> None:
    model = trained()
    frozen = next(iter(adapters(model).values())).requires_grad_(False)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert sum(wanted.values()) == len(adapters(model)) - 1
    with pytest.raises(RuntimeError, match="inside"), lora_off(model):
        raise RuntimeError("inside")
    assert wanted == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert not frozen.requires_grad
    assert not any(layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer))


def test_off_inside_off_stays_off() -> None:
    base, model = answer(factory.model()), trained()
    with lora_off(model):
        with lora_off(model):
            pass
        assert torch.equal(answer(model), base)


def test_saved_and_loaded(tmp_path: Path) -> None:
    """With an alpha other than the rank, which a file without settings would lose."""
    model = trained(("audio", "bridge"), alpha=7)
    save_lora(model, tmp_path)
    other = factory.model()
    found = load_lora(other, tmp_path)
    assert set(found) == layers_of({"audio", "bridge"})
    assert torch.equal(answer(other), answer(model))
    assert not any(parameter.requires_grad for parameter in other.parameters())
    with lora_off(other):
        assert torch.equal(answer(other), answer(factory.model()))


def test_loaded_to_train_on(tmp_path: Path) -> None:
    save_lora(trained(("audio",)), tmp_path)
    model = factory.model()
    load_lora(model, tmp_path, trainable=True)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(adapters(model))


def test_two_adapters_by_name(tmp_path: Path) -> None:
    first = trained(("audio",))
    save_lora(first, tmp_path)
    second = trained(("video",), name="other")
    load_lora(second, tmp_path, name="default")
    assert torch.equal(answer(second), answer(first))


def test_an_adapter_that_is_off_is_not_folded_away(tmp_path: Path) -> None:
    save_lora(trained(("audio",)), tmp_path)
    model = trained(("video",), name="other")
    load_lora(model, tmp_path)
    with pytest.raises(ValueError, match=r"turned off \(other\)"):
        fold_lora(model)
    model.set_adapter(["default", "other"])
    wanted = answer(model)
    torch.testing.assert_close(answer(fold_lora(model)), wanted, atol=1e-5, rtol=1e-5)


def test_a_second_adapter_is_not_put_on_the_first() -> None:
    model = trained(("audio",))
    wanted = answer(model)
    with pytest.raises(ValueError, match="fold it in with fold_lora first"):
        add_lora(model, ("video",), rank=2, name="other")
    assert torch.equal(answer(model), wanted)
    assert add_lora(fold_lora(model), ("video",), rank=2, name="other")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_lora(trained(("audio", "bridge")), tmp_path)
    other = factory.model(coupling="none")
    with pytest.raises(ValueError, match=r"does not fit.*bridge"):
        load_lora(other, tmp_path)
    assert torch.equal(answer(other), answer(factory.model(coupling="none")))
    assert other.state_dict().keys() == factory.model(coupling="none").state_dict().keys()


def test_fused_and_unfused() -> None:
    model = trained()
    wanted, base = answer(model), answer(factory.model())
    model.fuse_lora()
    with pytest.raises(ValueError, match="fused"), lora_off(model):
        pass
    torch.testing.assert_close(answer(model), wanted, atol=1e-5, rtol=1e-5)
    model.unfuse_lora()
    torch.testing.assert_close(answer(model), wanted, atol=1e-5, rtol=1e-5)
    with lora_off(model):
        torch.testing.assert_close(answer(model), base, atol=1e-5, rtol=1e-5)


def test_folded_is_a_plain_model(tmp_path: Path) -> None:
    model = trained()
    wanted = answer(model)
    with pytest.raises(ValueError, match="fold them in with fold_lora"):
        model.save_pretrained(tmp_path)
    fold_lora(model)
    assert model.state_dict().keys() == factory.model().state_dict().keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(answer(model), wanted, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(answer(AVTransformer.from_pretrained(tmp_path)), answer(model))
    add_lora(model, rank=2)
    assert torch.equal(answer(model), answer(AVTransformer.from_pretrained(tmp_path)))


def test_adapters_on_a_bfloat16_base_are_float32(tmp_path: Path) -> None:
    factory.model().save_pretrained(tmp_path / "base")
    save_lora(trained(), tmp_path / "adapter")
    for way in (lambda m: add_lora(m, rank=2), lambda m: load_lora(m, tmp_path / "adapter")):
        model = AVTransformer.from_pretrained(tmp_path / "base", torch_dtype=torch.bfloat16)
        base = answer(model)
        way(model)
        assert {parameter.dtype for parameter in adapters(model).values()} == {torch.float32}
        assert answer(model).dtype == torch.bfloat16
        with lora_off(model):
            assert torch.equal(answer(model), base)


@pytest.mark.parametrize("part", ["video", "audio", "bridge"])
def test_a_fresh_part_is_refused(part: str) -> None:
    """There no gradient would ever reach the adapter."""
    model = AVTransformer.of(factory.config())
    with pytest.raises(ValueError, match=f"the {part} is fresh"):
        add_lora(model, (part,))
    if part == "bridge":
        table = model.blocks[1].bridge.table["audio"]
        with torch.no_grad():
            table[3] = 1.0  # not the gate
        with pytest.raises(ValueError, match="the bridge is fresh"):
            add_lora(model, (part,))
        with torch.no_grad():
            table[4, 0] = 1.0
        assert add_lora(model, (part,), rank=2)


def test_wrong_wishes_are_errors() -> None:
    model = factory.model(coupling="none")
    with pytest.raises(ValueError, match=r"parts=\['sound'\] are unknown: choose from video, audio, bridge"):
        add_lora(model, ("sound",))
    with pytest.raises(ValueError, match=re.escape(PARTS["bridge"])):
        add_lora(model, ("video", "bridge"))
    with pytest.raises(ValueError, match="rank=0"):
        add_lora(model, ("video",), rank=0)
    with pytest.raises(ValueError, match="no adapter"), lora_off(model):
        pass
    with pytest.raises(ValueError, match="no adapter"):
        fold_lora(model)
