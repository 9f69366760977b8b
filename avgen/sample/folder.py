"""Folders that hold a pipeline: saved whole, or put together from a training run."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers.utils import logging

from avgen.config import build
from avgen.models.codecs import AudioCodec, VideoCodec
from avgen.models.dit import AVTransformer
from avgen.models.fit_codecs import load_or_fit
from avgen.sample.pipeline import AVPipeline
from avgen.train.config import StoreData, TrainConfig


def open_pipeline(path: Path) -> AVPipeline:
    """The pipeline in a folder; or of a training run, given the run's folder or the model/ in it."""
    if not path.is_dir():
        raise ValueError(f"model={path}: no such folder")
    if (path / "model_index.json").is_file():
        logging.disable_progress_bar()  # of three parts that load in an instant
        return AVPipeline.from_pretrained(path)
    for run, model in ((path, path / "model"), (path.parent, path)):
        if (model / "config.json").is_file() and (run / "run.json").is_file():
            config = build(TrainConfig, json.loads((run / "run.json").read_text())["config"])
            codecs = codecs_for(config)
            return pipeline_of(config, AVTransformer.from_pretrained(model).eval(), *codecs)
    raise ValueError(
        f"model={path} is neither a pipeline (model_index.json) nor a training run with an exported model"
        " (run.json and model/config.json)"
    )


def codecs_for(config: TrainConfig) -> tuple[VideoCodec, AudioCodec]:
    """Those of the latents that the run was trained on."""
    if isinstance(config.data, StoreData):
        from avgen.data.store import Store
        from avgen.train.data import codecs_of

        return codecs_of(Store.open(config.data.path))
    return load_or_fit(config.data.codecs, config.data.world, config.data.fit_clips)


def pipeline_of(config: TrainConfig, model: AVTransformer, video: VideoCodec, audio: AudioCodec) -> AVPipeline:
    """The pipeline of a training run; `save_pretrained` writes its folder."""
    form = next((form for form in config.data.forms if form.height is not None), None)
    if form is None or form.height is None or form.width is None or form.fps is None:
        raise ValueError("the clips it was trained on have no picture: a pipeline makes picture and sound")
    return AVPipeline(
        model,
        video,  # type: ignore[arg-type]
        audio,  # type: ignore[arg-type]
        height=form.height,
        width=form.width,
        fps=form.fps,
        duration_s=form.duration_s,
        predict=config.flow.predict,
    )
