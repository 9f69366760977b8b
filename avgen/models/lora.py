"""Low-rank adapters on named parts of the model, through peft and diffusers' PeftAdapterMixin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from torch import nn

from avgen.models.dit import AVTransformer
from avgen.models.identity import glance

BENEATH = "beneath.txt"  # in an adapter's folder: fingerprint of the weights that it was trained on

# What `parts` may name, as patterns of whole module names.
_LAYER = r"blocks\.\d+\.towers\.{}\.((attn|text_attn)\.to_(q|k|v|out)|mlp\.(0|2))"
PARTS = {
    "video": _LAYER.format("video"),
    "audio": _LAYER.format("audio"),
    "bridge": r"blocks\.\d+\.bridge\.attn\.(video|audio)\.to_(q|k|v|out)",
}


def add_lora(
    model: AVTransformer,
    parts: Sequence[str] = ("video", "audio", "bridge"),
    rank: int = 32,
    alpha: int | None = None,
    dropout: float = 0.0,
    targets: str | None = None,
    name: str = "default",
) -> list[str]:
    """Put adapters on the named parts, freeze everything else, and return the adapted modules' names.

    `targets` is a pattern of whole module names that takes the place of `parts`, for choices that those do not
    cover. `alpha` is the rank unless given: the update is alpha / rank * B A. Adapters are float32 even on a
    bfloat16 base, whose steps are too coarse for an optimiser's.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1")
    if adapted(model):
        raise ValueError("the model has an adapter, which a second one would turn off: fold it in with fold_lora first")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"parts={unknown} are unknown: choose from {', '.join(PARTS)}, or give targets=")
    chosen: list[str] = []
    for pattern in [PARTS[part] for part in parts] if targets is None else [targets]:
        found = [layer for layer in linear_layers(model) if re.fullmatch(pattern, layer)]
        if not found:
            raise ValueError(f"no linear layer of the model has a name like {pattern}: leave that part out")
        chosen += found
    if targets is None:
        refuse_fresh(model, parts)
    alpha = rank if alpha is None else alpha
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen)
    model.add_adapter(config, adapter_name=name)
    cast_adapter_dtype(model, name)
    return adapted(model)


def linear_layers(model: AVTransformer) -> list[str]:
    kinds = (nn.Linear, BaseTunerLayer)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def adapted(model: AVTransformer) -> list[str]:
    """The names of all modules that have an adapter."""
    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def refuse_fresh(model: AVTransformer, parts: Sequence[str]) -> None:
    """An adapter behind a closed gate or a zero head, both frozen, would never see a gradient."""
    for part in parts:
        if part == "bridge":
            still = not any(gates.any() for gates in bridge_gates(model))
            why = "its gates are at zero"
        else:
            still = not model.towers[part].head.weight.any()
            why = "its head is at zero"
        if still:
            raise ValueError(
                f"the {part} is fresh ({why} and would be frozen there), so an adapter on it cannot learn: "
                "train that part in full first, or leave it out of parts"
            )


def bridge_gates(model: AVTransformer) -> Iterator[torch.Tensor]:
    """Everything that can open the gate of a bridge: its fifth modulation."""
    for levels in model.bridge_levels.values():
        gate = levels.own.out_features // 5 * 4
        yield from (levels.own.weight[gate:], levels.own.bias[gate:])
        yield from levels.partner.parameters()
    for block in model.blocks:
        if block.bridge is not None:
            yield from (table[4] for table in block.bridge.table.values())


@contextmanager
def lora_off(model: AVTransformer) -> Iterator[None]:
    """The base model to the last bit, as the reference of preference training; adapters are back on afterwards.

    peft's switch also turns the adapters' gradients off and on, whatever they were: they are put back as found.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:
        raise ValueError("the model has no adapter to turn off: call add_lora first")
    if any(layer.merged for layer in layers):
        raise ValueError("the adapters are fused into the weights: call model.unfuse_lora() first")
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    was_off = [layer.disable_adapters for layer in layers]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer, off in zip(layers, was_off, strict=True):
            layer.enable_adapters(not off)
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def save_lora(model: AVTransformer, folder: str | Path, name: str = "default") -> None:
    """One adapter and its settings, as safetensors that diffusers reads too."""
    model.save_lora_adapter(str(folder), adapter_name=name)


def load_lora(model: AVTransformer, folder: str | Path, name: str = "default", trainable: bool = False) -> list[str]:
    """Put a saved adapter on the model and make it the active one; returns the adapted modules' names.

    Every weight of the file must find its place, and every place a weight.
    """
    model.load_lora_adapter(str(folder), prefix=None, use_safetensors=True, adapter_name=name)
    with safe_open(Path(folder) / LORA_WEIGHT_NAME_SAFE, framework="pt") as file:
        found = set(file.keys())
    wanted = set(get_peft_model_state_dict(model, adapter_name=name))
    if found != wanted:
        missing, unexpected = sorted(wanted - found), sorted(found - wanted)
        model.delete_adapters(name)
        if not getattr(model, "peft_config", None):
            model.unload_lora()  # empty wrappers would stay behind
        raise ValueError(f"the adapter in {folder} does not fit the model: missing {missing}, unexpected {unexpected}")
    cast_adapter_dtype(model, name)
    model.set_adapter(name)
    for parameter_name, parameter in model.named_parameters():
        if f".{name}." in parameter_name and ".lora_" in parameter_name:
            parameter.requires_grad_(trainable)
    return adapted(model)


def beneath(model: AVTransformer) -> str:
    """A fingerprint of the weights that its adapters lie over."""
    return glance({name: p for name, p in model.named_parameters() if "lora_" not in name})


def fold_lora(model: AVTransformer) -> AVTransformer:
    """Add the adapters to the weights for good: a plain model again, to be saved or to get the next adapter.

    Every weight is trainable afterwards. Fold into float32 weights: bfloat16 would round the update away.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:
        raise ValueError("the model has no adapter to fold in")
    off = {*getattr(model, "peft_config", {})} - {name for layer in layers for name in layer.active_adapters}
    if off:
        raise ValueError(
            f"the model has adapters that are turned off ({', '.join(sorted(off))}) and would be lost: call "
            "model.delete_adapters to leave them out, or model.set_adapter to turn them on"
        )
    model.fuse_lora(safe_fusing=True)
    model.unload_lora()
    return model.requires_grad_(True)
