"""Folders that hold a pipeline: saved whole, or put together from a training run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.utils import logging

from avgen.config import build
from avgen.models.codecs import AudioCodec, VideoCodec
from avgen.models.dit import AVTransformer
from avgen.models.lora import BENEATH, beneath, fold_lora, load_lora
from avgen.models.text_files import TextFiles
from avgen.sample.pipeline import AVPipeline
from avgen.train.config import TrainConfig
from avgen.train.data_config import PairsData, StoreData, ToyboxData

if TYPE_CHECKING:
    from avgen.data.store import Store
    from avgen.models.encoders import TransformersText


def open_for(device: torch.device, path: Path, attention: str | None) -> AVPipeline:
    """`open_pipeline`, on a device, with another attention kernel than the model's own if one is named."""
    pipeline = open_pipeline(path).to(device)
    if attention is not None:
        with torch.no_grad():  # some kernels only go forward
            pipeline.model.set_attention(attention)
    return pipeline


def open_pipeline(path: str | Path) -> AVPipeline:
    """The pipeline in a folder; or of a training run, given the run's folder or the model/ in it."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"model={path}: no such folder")
    if (path / "model_index.json").is_file():
        logging.disable_progress_bar()  # of three parts that load in an instant
        return AVPipeline.from_pretrained(path)
    for run, model in ((path, path / "model"), (path.parent, path)):
        if (model / "config.json").is_file() and (run / "run.json").is_file():
            return pipeline_for(config_of(run), run, AVTransformer.from_pretrained(model))
    for run, adapter in ((path, path / "lora"), (path.parent, path)):
        if (adapter / LORA_WEIGHT_NAME_SAFE).is_file() and (run / "run.json").is_file():
            config = config_of(run)
            assert config.start is not None, "adapters are trained on a model"
            adapted = AVTransformer.from_pretrained(config.start)
            load_lora(adapted, adapter)
            if (adapter / BENEATH).is_file() and (adapter / BENEATH).read_text() != beneath(adapted):
                raise ValueError(
                    f"model={path}: its adapters were trained on other weights than start={config.start} holds now: "
                    "put those back"
                )
            return pipeline_for(config, run, fold_lora(adapted).requires_grad_(False))
    raise ValueError(
        f"model={path} is neither a pipeline (model_index.json) nor a training run with an exported model"
        " (run.json and model/config.json, or lora/ of adapters)"
    )


def config_of(run: Path) -> TrainConfig:
    return build(TrainConfig, json.loads((run / "run.json").read_text())["config"])


def pipeline_for(config: TrainConfig, run: Path, model: AVTransformer) -> AVPipeline:
    """A trained model with what its run was made with; one trained on pairs, with all that made the pairs' clips."""
    model.eval()
    if isinstance(config.data, PairsData):
        made_by = open_pipeline(config.data.pipeline)
        made_by.register_modules(model=model)
        return made_by
    return pipeline_of(config, model, *parts_for(config, run))


def parts_for(config: TrainConfig, run: Path) -> tuple[VideoCodec, AudioCodec, TransformersText | None]:
    """The codecs of the latents that the run was trained on, and its captions' frozen encoder if they have one."""
    from avgen.train.data import codecs_of, fitted

    data = config.data
    if isinstance(data, StoreData):
        from avgen.data.store import Store

        store = Store.open(data.path)
        return *codecs_of(store), captions_of(store)
    assert isinstance(data, ToyboxData)
    # a run names its codecs by a path from where it was begun; the way to them from its own folder is the same in every
    # working directory, and where both were moved or copied
    known = data.codecs.is_absolute() == config.out.is_absolute()
    beside = run / os.path.relpath(data.codecs, config.out) if known else None
    return *fitted(data, run, beside=beside), None


def captions_of(store: Store) -> TransformersText | None:
    """The frozen encoder that a store's captions went through, the very same; None where models read their bytes."""
    from avgen.data.store import StoreError
    from avgen.models.encoders import open_text

    if store.header.text_width is None:
        return None
    if store.header.text is None:
        raise StoreError(
            f"{store.path} does not say which encoder its captions went through, since an earlier avgen prepared it: "
            "prepare it again, or build an AVPipeline with text_encoder and tokenizer"
        )
    files = build(TextFiles, store.header.text)
    encoder = open_text(files)
    store.refuse_unless_made_by("text", encoder.fingerprint, files.path)
    return encoder


def pipeline_of(
    config: TrainConfig,
    model: AVTransformer,
    video: VideoCodec,
    audio: AudioCodec,
    captions: TransformersText | None = None,
) -> AVPipeline:
    """The pipeline of a training run; `save_pretrained` writes its folder."""
    forms = [form for form in config.data.forms if form.height is not None]
    form = forms[0] if forms else None
    if form is None or form.height is None or form.width is None or form.fps is None:
        raise ValueError("the clips it was trained on have no picture: a pipeline makes picture and sound")
    return AVPipeline(
        model,
        video,  # type: ignore[arg-type]
        audio,  # type: ignore[arg-type]
        text_encoder=None if captions is None else captions.body,
        tokenizer=None if captions is None else captions.tokenizer,
        text=None if captions is None else captions.settings,
        height=form.height,
        width=form.width,
        fps=form.fps,
        duration_s=form.duration_s,
        longest_s=max(form.duration_s for form in forms),
        predict=config.flow.predict,
    )
