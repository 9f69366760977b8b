"""A model that reads a frozen encoder's features: clips to a store, a run, and clips made from the run's folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from avgen.data.prepare import Place, prepare
from avgen.data.store import Header, Store, StoreError
from avgen.models.architecture import TextConfig
from avgen.models.encoders import open_text
from avgen.models.text_files import TextFiles
from avgen.sample.folder import open_pipeline
from avgen.sample.method import Method
from avgen.sample.solvers import SolverConfig
from avgen.train.data import reading
from avgen.train.data_config import StoreData
from avgen.train.loop import train
from avgen.train.run import export
from tests.data.test_prepare import clips as clips  # a fixture
from tests.data.test_prepare import settings
from tests.models.test_encoders import WIDTH, save_tokenizer, t5
from tests.sample.factory import MODEL
from tests.train.factory import config as tiny
from tests.train.factory import quiet

QUICK = Method(SolverConfig("euler", 2))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    t5("T5").save_pretrained(folder)
    save_tokenizer(folder, ("", "</s>"))
    return folder


@pytest.fixture(scope="module")
def trained(clips, encoder, tmp_path_factory):
    """A run's folder, of two steps."""
    folder = tmp_path_factory.mktemp("featured")
    text = TextFiles(str(encoder), max_length=24, layers=(-1, -2), dtype="bfloat16")
    assert prepare(settings(clips, folder / "latents", text=text), quiet(), Place()) == 0
    spec = replace(
        MODEL,
        video=replace(MODEL.video, channels=6),
        audio=replace(MODEL.audio, channels=5),
        text=TextConfig(kind="features", width=2 * WIDTH),
    )
    (folder / "judge").mkdir()
    shutil.copy(clips / "0.mp4", folder / "judge")
    judge = settings(clips, folder / "held_out", text=text, manifest=folder / "judge")
    assert prepare(judge, quiet(), Place()) == 0
    data = StoreData(str(folder / "latents"), workers=0, held_out=str(folder / "held_out"))
    config = tiny(folder / "run", model=spec, data=data, steps=2, batch=2, validation_clips=2, tasks={"t2av": 1})
    read = reading(config)
    export(train(config, read.source, read.held_out, quiet(), read.order))
    return config


def test_a_runs_folder_makes_clips_with_the_encoder_of_its_store(trained, tmp_path):
    pipe = open_pipeline(trained.out)
    assert pipe.captions.fingerprint == Store.open(trained.data.path).header.made_by["text"]
    made = pipe(prompt="a red ball falls", method=QUICK)[0].clip
    form = pipe.trained_form
    assert made.video.shape == (round(form.fps * form.duration_s), form.height, form.width, 3)
    other = pipe(prompt="blue lamp", method=QUICK)[0].clip
    assert not np.array_equal(made.video, other.video)
    pipe.save_pretrained(tmp_path)
    again = open_pipeline(tmp_path)
    assert again.fingerprint == pipe.fingerprint
    assert np.array_equal(again(prompt="a red ball falls", method=QUICK)[0].clip.video, made.video)


def test_another_encoder_in_its_place_is_refused(trained, encoder, tmp_path):
    kept = tmp_path / "kept"
    shutil.copytree(encoder, kept)
    torch.manual_seed(1)
    t5("T5").save_pretrained(encoder)
    try:
        with pytest.raises(StoreError, match="prepared with another text encoder"):
            open_pipeline(trained.out)
    finally:
        shutil.copytree(kept, encoder, dirs_exist_ok=True)


def test_a_store_that_does_not_name_its_encoder_says_what_to_do(trained, monkeypatch):
    whole = Store.open(trained.data.path)
    silent = json.dumps({key: value for key, value in json.loads(whole.header.to_json()).items() if key != "text"})
    older = replace(whole, header=Header.from_json(silent, "latents"))
    monkeypatch.setattr(Store, "open", lambda path: older)
    with pytest.raises(StoreError, match="does not say which encoder"):
        open_pipeline(trained.out)


def test_the_cache_of_features_is_no_part_of_what_a_store_is(trained, encoder):
    named = Store.open(trained.data.path).header.text
    assert named["cache"] is None
    assert open_text(TextFiles(str(encoder), max_length=24, layers=(-1, -2))).settings == {
        "max_length": 24,
        "layers": [3, 2],
        "fixed_length": False,
    }
