"""Saved and loaded: the same model, whole or not at all, with float32 kept where it must be."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from avgen.models.architecture import BridgeConfig, ModelConfig, TextConfig, TowerConfig
from avgen.models.blocks import Block
from avgen.models.dit import AVTransformer
from avgen.models.rope import Clock, Space
from avgen.types import Batch, Stream, Text
from tests.models import factory

WEIGHTS = "diffusion_pytorch_model.safetensors"


def same(a: AVTransformer, b: AVTransformer) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


SETTINGS = {
    "plain": factory.config(),
    "joint": factory.config("joint"),
    "uncoupled": factory.config("none", text=TextConfig("features", 12)),
    "no audio": factory.config(audio=None),
    "no video": factory.config(video=None),
    "some bridges": factory.config(bridge=BridgeConfig(2, 16, at=(2,), clock=Clock(units_per_s=40.0))),
    "no bridges": factory.config(bridge=BridgeConfig(2, 16, at=())),
    "grafted": factory.config(
        video=TowerConfig(6, 48, 2, 3, 5.5, Clock(4.0, "end", 1 / 16), Space("index", 8.0, 5000.0), text_norm=False),
        attention="math",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    """Weights all nonzero, so that whatever the constructor's initialisation overwrote would show."""
    model = factory.scatter(AVTransformer.of(SETTINGS[name]))
    model.save_pretrained(tmp_path)
    loaded = AVTransformer.from_pretrained(tmp_path)
    assert loaded.spec == SETTINGS[name]
    assert same(loaded, model)
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_config_file_is_plain_and_complete(tmp_path: Path) -> None:
    spec = SETTINGS["some bridges"]
    AVTransformer.of(spec).save_pretrained(tmp_path)
    assert ModelConfig.of(json.loads((tmp_path / "config.json").read_text())) == spec


def test_shards(tmp_path: Path) -> None:
    model = factory.model()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert same(AVTransformer.from_pretrained(tmp_path), model)
    next(iter(sorted(tmp_path.glob("*-00002-of-*")))).unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded: .*00002-of"):
        AVTransformer.from_pretrained(tmp_path)


def test_a_folder_that_is_not_there_is_an_error_of_one_line() -> None:
    with pytest.raises(ValueError, match=r"the model in /nowhere/at/all cannot be loaded: .*nowhere"):
        AVTransformer.from_pretrained("/nowhere/at/all")


def test_a_key_that_no_model_has_is_an_error_of_one_line(folder: Path) -> None:
    """As of a folder that a later version saved."""
    saved = json.loads((folder / "config.json").read_text())
    saved["video"]["shiny"] = 1
    (folder / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"the model in .* cannot be loaded: video\.shiny: no such key; [^\n]*$"):
        AVTransformer.from_pretrained(folder)


def test_another_kernel_is_said_everywhere(tmp_path: Path) -> None:
    model = factory.model()
    model.set_attention("math")
    model.save_pretrained(tmp_path)
    assert {model.spec.attention, AVTransformer.from_pretrained(tmp_path).spec.attention} == {"math"}


def test_a_kernel_of_half_precision_is_refused_for_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AVTransformer, "device", torch.device("cuda"))
    with pytest.raises(ValueError, match="attention=cudnn works in half precision alone"):
        factory.model().set_attention("cudnn", half=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    factory.model().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = {**load_file(folder / WEIGHTS), **changes}
    save_file({n: w for n, w in weights.items() if w is not None}, folder / WEIGHTS, {"format": "pt"})


def test_a_missing_weight_is_an_error(folder: Path) -> None:
    rewrite(folder, **{"blocks.1.towers.audio.table": None, "captions.null": None})
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.towers\.audio\.table, captions\.null$"):
        AVTransformer.from_pretrained(folder)


def test_an_unexpected_weight_is_an_error(folder: Path) -> None:
    rewrite(folder, **{"blocks.9.towers.audio.table": torch.zeros(6, 32)})
    with pytest.raises(ValueError, match=r"unexpected: blocks\.9\.towers\.audio\.table$"):
        AVTransformer.from_pretrained(folder)


def test_a_weight_of_another_shape_is_an_error(folder: Path) -> None:
    rewrite(folder, **{"captions.null": torch.zeros(17)})
    with pytest.raises(ValueError, match=r"captions\.null expected shape"):
        AVTransformer.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"mismatched: .*captions\.null"):
        AVTransformer.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_loading_info_is_still_to_be_had(folder: Path) -> None:
    model, info = AVTransformer.from_pretrained(folder, output_loading_info=True)
    assert same(model, factory.model())
    assert not info["missing_keys"]


def features_model() -> AVTransformer:
    return factory.model(text=TextConfig("features", 12))


def features_batch(level: float = 0.6, start_s: float = 0.0) -> Batch:
    text = Text.of(torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2)))
    batch = factory.batch(level=level, start_s=start_s)
    return replace(batch, video=given(batch.video), video_text=text, audio_text=text)


def given(stream: Stream) -> Stream:
    """Two levels in one stream, so that their selection is seen too."""
    return stream.give(stream.time[..., 0] < stream.time[:, 3:4, 0])


@pytest.fixture
def half(tmp_path: Path) -> AVTransformer:
    features_model().save_pretrained(tmp_path)
    return AVTransformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)


def test_bfloat16_keeps_norms_levels_and_modulation_in_float32(half: AVTransformer) -> None:
    def delicate(name: str) -> bool:
        return any(part in name for part in ("level", "table", "norm"))

    exact = features_model().state_dict()
    for name, value in half.state_dict().items():
        assert value.dtype == (torch.float32 if delicate(name) else torch.bfloat16), name
        assert torch.equal(value, exact[name].to(value.dtype)), name
    assert half.dtype == torch.bfloat16


class Norms(TorchFunctionMode):
    """The dtypes that reach torch's norms."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (F.layer_norm, F.rms_norm):
            self.seen += [v.dtype for v in (*args, *(kwargs or {}).values()) if isinstance(v, torch.Tensor)]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_computes_them_in_float32(half: AVTransformer, autocast: bool) -> None:
    """Under autocast of a float32 model as well as in one loaded as bfloat16."""
    model = features_model() if autocast else half
    seen: dict[str, set[torch.dtype]] = {}

    def note(what: str, *values: torch.Tensor | None) -> None:
        seen.setdefault(what, set()).update(v.dtype for v in values if v is not None)

    def look(_: Any, inputs: tuple) -> None:
        x, contexts = inputs[:2]
        note("activations", *x.values())
        for c in contexts.values():
            note("rotation", *c.rotation, *c.bridge.rotation)
            note("modulation", c.modulation.values, c.bridge.modulation.values)

    for module in model.modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(look)
    for tower in model.towers.values():
        tower.level_embed.register_forward_hook(lambda _, inputs, out: note("levels", *inputs, out))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast), Norms() as norms:
        velocity = model(features_batch())
    assert seen.pop("activations") == {torch.bfloat16}
    assert seen == {what: {torch.float32} for what in ("rotation", "modulation", "levels")}
    # in each of the 5 layers two modulated norms, the caption's, two pairs of queries and keys; more in bridges, heads
    assert len(norms.seen) > 5 * 7
    assert set(norms.seen) == {torch.float32}
    assert velocity.video is not None
    assert velocity.video.dtype == torch.bfloat16


def test_bfloat16_answers_as_float32_does_even_late(half: AVTransformer) -> None:
    """An hour into a film a bfloat16 clock would tick every 16 s."""
    with torch.no_grad():
        wanted = features_model()(features_batch())
        for start_s in (0.0, 3600.0):
            found = half(features_batch(start_s=start_s))
            for a, b in zip(found, wanted, strict=True):
                assert (a - b).norm() / b.norm() < 0.02
        level = half(features_batch(level=0.601))
        assert not torch.equal(level.video, half(features_batch(level=0.6)).video)


def test_a_model_of_a_billion_weights_is_planned_at_once() -> None:
    """On the meta device no weight is drawn; as from_pretrained builds it before it reads the file."""
    video = TowerConfig(channels=64, width=1536, heads=12, depth=30, mlp_ratio=8960 / 1536)
    audio = TowerConfig(channels=64, width=768, heads=12, depth=30)
    start = time.process_time()
    with torch.device("meta"):
        model = AVTransformer.of(ModelConfig(video, audio, TextConfig("features", 4096)))
    assert time.process_time() - start < 10  # drawing 1.9 billion numbers alone takes longer
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) > 1.8e9
