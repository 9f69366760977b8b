"""The demonstration of preference training: what is compared with what, and that nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from avgen.compose import load
from avgen.config import to_plain
from avgen.data import contact_sheet
from avgen.data.media import read_clip, read_image, write_clip
from avgen.data.toybox import Toybox, ToyboxConfig, parse
from avgen.data.toybox.reader import read_events
from avgen.prefer import trial
from avgen.prefer.config import Group, PreferConfig
from avgen.prefer.demo import ABLATIONS, DemoConfig, ablated, drawn, found, main, pictured, show, trained
from avgen.prefer.trial import FIGURES, VARIETY, Ledger, gains, run_to_end, write_prompts
from avgen.train.config import TrainConfig

SINGLE = ToyboxConfig(scenes=("single",))


def values(level: float, prompts: int = 12) -> trial.Values:
    """Prompts differ much, arms little: what only a comparison by prompt can see."""
    return {name: {f"p{i}": 10.0 * (i % 5) + level for i in range(prompts)} for name in (*FIGURES, VARIETY)}


def test_arms_are_compared_by_prompt():
    found = gains([values(1.0), values(1.0)], [values(0.8), values(0.7)])["toybox.sync"]
    assert found["value"] == pytest.approx(0.25)
    assert 0.2 <= found["low"] < 0.25 < found["high"] <= 0.3
    assert found["clips"] == 24


def test_prompts_that_one_side_lacks_are_left_out():
    ours, theirs = values(1.0), values(0.5)
    del theirs["toybox.sync"]["p3"]
    ours["toybox.sync"]["p3"] = 1000.0
    assert gains([ours], [theirs])["toybox.sync"]["value"] == pytest.approx(0.5)


def test_a_stage_runs_once_and_again_only_if_it_failed_or_is_asked_otherwise(tmp_path, monkeypatch):
    asked, codes = [], [3, 0, 0]

    def run(words, environment):
        asked.append(words[3:])
        return codes[len(asked) - 1]

    monkeypatch.setattr(trial, "run_to_end", run)
    ledger = Ledger(tmp_path / "deep" / "seconds.json")
    with pytest.raises(ValueError, match="avgen eval ended with exit code 3"):
        ledger.run(["eval", "a=1"])
    spent = [ledger.run(["eval", "a=1"]), ledger.run(["eval", "a=1"]), ledger.run(["eval", "a=2"])]
    assert asked == [["eval", "a=1"], ["eval", "a=1"], ["eval", "a=2"]]
    assert spent[0] == spent[1]


CHILD = """
import os, signal, sys, time
from pathlib import Path

def save(*_):
    time.sleep(float(sys.argv[1]))
    Path("saved").touch()
    sys.exit(0)

signal.signal(signal.SIGINT, save)
Path("begun.part").write_text(str(os.getpid()))
Path("begun.part").rename("begun")
time.sleep(60)
"""


@pytest.mark.parametrize("presses", [1, 2])
def test_a_stage_that_is_interrupted_may_save_what_it_has(tmp_path, monkeypatch, presses):
    """Ctrl-C reaches this process and the stage's; the second time nobody waits."""
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press():
        while not Path("begun").exists():
            time.sleep(0.1)
        os.kill(int(Path("begun").read_text()), signal.SIGINT)
        for _ in range(presses):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.5)  # longer than subprocess waits of itself

    hand = threading.Thread(target=press)
    hand.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_to_end([sys.executable, "-c", CHILD, "1" if presses == 1 else "60"], os.environ)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        hand.join()
        signal.signal(signal.SIGINT, before)
    assert Path("saved").exists() == (presses == 1)


def test_what_is_made_otherwise_lies_elsewhere(tmp_path):
    """Stages are known by their words, and these name folders: another size must not find the first one's clips."""
    size = DemoConfig().size
    (tmp_path / "model" / "model").mkdir(parents=True)
    arm = trial.ARMS["pairs"]

    def places(**changes):
        one = trial.Trial(tmp_path / "model", tmp_path, 0, replace(size, **changes), 1)
        return one.candidates, one.mined("pairs", arm)

    candidates, pairs = places()
    assert places() == (candidates, pairs)
    for changes in ({"prompts": 7}, {"candidates": 3}, {"candidate_steps": 5}):
        assert not set(places(**changes)) & {candidates, pairs}
    for changes in (
        {"mode": "all"},
        {"steps": 9},
        {"per_prompt": 1},
        {"train": ("preference.anchor=2",)},
        {"mine": ("margin=1",)},
    ):
        again, others = places(**changes)
        assert again == candidates  # the same candidates serve
        assert others != pairs


def test_how_held_out_clips_are_made_does_not_make_candidates_anew(tmp_path):
    (tmp_path / "model" / "model").mkdir(parents=True)
    few, many = (
        trial.Trial(tmp_path / "model", tmp_path, 0, replace(DemoConfig().size, candidate_steps=6, solver_steps=n), 1)
        for n in (12, 24)
    )
    assert few.candidates == many.candidates
    assert few.held_out("before", few.model) != many.held_out("before", many.model)
    assert few.own("pairs", trial.ARMS["pairs"]) != many.own("pairs", trial.ARMS["pairs"])


def trained_with(monkeypatch, one, name, arm):
    """The configuration of an arm's training, of which no stage is run."""
    asked = []
    monkeypatch.setattr(Ledger, "run", lambda self, words, processes=1: asked.append(words) or 10.0)
    run = one.own("pairs", trial.ARMS["pairs"]) / "run_1"
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps({"steps_per_s": s}) + "\n" for s in (0.1, 2.0, 2.0)))
    one.improved(name, arm)
    return load(TrainConfig, "train", asked[-1][1:])


def test_an_ablation_holds_against_keys_of_the_users(tmp_path, monkeypatch):
    train = ("preference.anchor=5", "preference.beta_video=0.8")
    a_run(tmp_path / "model")
    one = trial.Trial(tmp_path / "model", tmp_path, 0, replace(DemoConfig().size, rounds=1, train=train), 1)
    assert trained_with(monkeypatch, one, "pairs", trial.ARMS["pairs"]).preference.anchor == 5
    assert trained_with(monkeypatch, one, "no_anchor", ablated("no_anchor", train)).preference.anchor == 0
    assert trained_with(monkeypatch, one, "weak", ablated("weak", train)).preference.beta_video == 0.2


def test_clips_are_those_the_model_knows_the_kind_of_and_take_as_long(tmp_path, monkeypatch):
    learned = load(TrainConfig, "train", ["recipe=toybox", "data.late_share=0.5", "data.world.scenes=[single,turn]"])
    (tmp_path / "model" / "model").mkdir(parents=True)
    (tmp_path / "model" / "run.json").write_text(json.dumps({"config": to_plain(learned)}))
    size = replace(DemoConfig().size, rounds=1, steps=60, train=("lora=null", "optimizer.lr=3e-5", "compile=true"))
    one = trial.Trial(tmp_path / "model", tmp_path, 2, size, 1)
    clips = trained_with(monkeypatch, one, "clips", trial.ARMS["clips"])
    assert clips.data == learned.data
    assert clips.flow == one.taught(trial.ARMS["pairs"]).flow  # at the levels that pairs are trained at
    assert (clips.lora, clips.optimizer.lr, clips.compile, clips.tasks) == (None, 3e-5, True, {"t2av": 1})
    assert clips.seed != learned.seed
    assert one.known.world.scenes == ("single", "turn")  # captions are of the world that the model knows
    # three stages of 10 s and 60 steps of 0.5 s; a step on clips takes three quarters of one on pairs
    assert clips.steps == round((30 + 60 * 0.5) / (0.5 * 0.75))


def test_a_task_that_is_given_something_is_given_a_clip_of_its_prompt(tmp_path):
    write_prompts(tmp_path / "prompts.jsonl", SINGLE, "test", 0, 3, "v2a")
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert len({line["video"] for line in lines}) == 3
    for line in lines:
        seen = read_events(read_clip(line["video"]).clip).seen
        assert {event.kind for event in seen} == {parse(line["prompt"]).actors[0].kind}


def test_an_image_is_the_first_frame_of_a_clip_of_its_prompt(tmp_path):
    write_prompts(tmp_path / "prompts.jsonl", SINGLE, "test", 0, 3, "i2av")
    world = Toybox(SINGLE, "test", 0)
    clips = {world[i].caption: world[i].clip for i in reversed(range(6))}
    for line in map(json.loads, (tmp_path / "prompts.jsonl").read_text().splitlines()):
        assert (read_image(Path(line["image"])) == clips[line["prompt"]].video[0]).all()


def test_captions_are_read_without_their_clips(tmp_path, monkeypatch):
    monkeypatch.setattr("avgen.data.toybox.world.render", lambda *_: pytest.fail("a clip was rendered"))
    write_prompts(tmp_path / "prompts.jsonl", SINGLE, "test", 0, 3)
    monkeypatch.undo()
    world = Toybox(SINGLE, "test", 0)
    texts = [json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert texts == list(dict.fromkeys(world[i].caption for i in range(6)))[:3]


def test_prompts_to_learn_from_and_to_judge_by_are_distinct_captions(tmp_path):
    for split in ("train", "test"):
        write_prompts(tmp_path / split, SINGLE, split, 0, 40)
        texts = [json.loads(line)["prompt"] for line in (tmp_path / split).read_text().splitlines()]
        assert len(set(texts)) == len(texts) == 40


def test_each_ablation_changes_one_thing():
    arms = {name: ablated(name, ["preference.beta_video=0.2", "preference.beta_audio=0.1"]) for name in ABLATIONS}
    assert arms["weak"].words == ("preference.beta_video=0.05", "preference.beta_audio=0.025")
    assert arms["strong"].words == ("preference.beta_video=0.8", "preference.beta_audio=0.4")
    assert arms["sum"] == trial.Arm(mode="sum")
    mined = load(
        PreferConfig, "prefer", ["clips=a", "results=b", "out=c", f"mode={arms['sound'].mode}", *arms["sound"].mine]
    )
    assert mined.groups == {"sync": Group({"toybox.sync": 1.0}, trains=("audio",))}
    assert all(arm.pairs for arm in arms.values())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ablations": ("modal",)}, "modality"),
        ({"seeds": (1, 1)}, "none twice"),
        ({"candidates": 1}, "a pair has two clips"),
    ],
)
def test_a_demonstration_that_cannot_be_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        DemoConfig(**wrong)


def a_run(root, recipe="toybox", exported="model", **changes):
    (root / exported).mkdir(parents=True)
    (root / exported / "config.json").write_text("{}")
    learned = to_plain(load(TrainConfig, "train", [f"recipe={recipe}"]))
    (root / "run.json").write_text(json.dumps({"config": learned | changes}))
    return root


NFT = 'train=["preference.kind=nft","preference.beta_video=0.5","preference.beta_audio=0.5"]'


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["mode=bogus"], "'bogus' is not one of all"),
        (['train=["optimizer.lrr=1"]'], r"optimizer\.lrr: no such key"),
        ([NFT, "ablations=[strong]"], r"beta_video=2\.0 .* at most 1"),
        (["model=other"], "was not trained on the toybox"),
        (["model=adapters"], "not one of adapters"),
        (["model=gone"], r"holds no run\.json"),
        (["model=long"], "is another model than recipe=toybox_dpo describes"),
    ],
)
def test_what_would_end_the_demonstration_later_is_refused_at_once(tmp_path, monkeypatch, wrong, says):
    monkeypatch.chdir(tmp_path)
    a_run(Path("usual"))
    a_run(Path("other"), data={"kind": "store", "path": "store"})
    a_run(Path("adapters"), exported="lora")
    a_run(Path("long"), recipe="toybox_long")
    monkeypatch.setattr(Ledger, "run", lambda *_: pytest.fail("a stage was run"))
    with pytest.raises(ValueError, match=says):
        main(["model=usual", "out=out", "processes=1", *wrong])
    assert not Path("out").exists()


def test_a_demonstration_that_can_be_goes_to_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_run(Path("usual"))
    asked = []
    monkeypatch.setattr(Ledger, "run", lambda self, words, processes=1: asked.append(words[0]) or 1 / 0)
    ablations = "ablations=[sum,modality,sound,weak,no_anchor]"
    for further in ([], [NFT, ablations]):
        with pytest.raises(ZeroDivisionError):
            main(["model=usual", "out=out", "processes=1", "held_out=2", *further])
    assert asked == ["sample", "sample"]


def test_figures_and_picture_of_two_seeds_and_an_ablation_of_one(tmp_path, capsys):
    config = DemoConfig(out=tmp_path, seeds=(0, 1), ablations=("sum",))
    each = {"before": [values(0.5)] * 2, "pairs": [values(0.6), values(0.7)], "clips": [values(0.5)] * 2}
    said = found(
        config, each | {"sum": [values(0.4)]}, {"pairs": [1.0, 2.0], "clips": [1.0, 2.0], "sum": [1.0]}, [9, 8]
    )
    said = json.loads(json.dumps(said))
    assert said["arms"]["pairs"]["over_clips"]["toybox.sync"]["value"] == pytest.approx(0.15)
    assert [g["toybox.sync"]["value"] for g in said["arms"]["pairs"]["gain_of_each_seed"]] == pytest.approx([0.1, 0.2])
    assert said["arms"]["sum"]["gain"]["toybox.sync"]["value"] == pytest.approx(-0.1)
    assert said["arms"]["clips"]["over_clips"] is None
    once = found(config, each | {"clips": [values(0.5)]}, {"pairs": [1.0, 2.0], "clips": [1.0]}, [9, 8])
    assert once["arms"]["pairs"]["over_clips"]["toybox.sync"]["value"] == pytest.approx(0.1)  # of the first alone
    assert once["arms"]["pairs"]["gain"]["toybox.sync"]["value"] == pytest.approx(0.15)
    show(said)
    assert "toybox.sync" in capsys.readouterr().out
    assert (tmp_path / drawn(said, tmp_path)).stat().st_size > 1000


def test_clips_of_every_model_are_pictured_prompt_by_prompt(tmp_path, monkeypatch):
    folders = {name: tmp_path / name for name in ("before", "pairs")}
    for folder in folders.values():
        write_prompts(folder / "prompts.jsonl", SINGLE, "test", 0, 3)
        (folder / "clips").mkdir()
        for name in ("test_0000_s7", "test_0001_s7", "test_0001_s8"):
            write_clip(folder / "clips" / f"{name}.mp4", Toybox(SINGLE, "test", 0)[0].clip)
    shown = []
    drawing = contact_sheet.contact_sheet
    monkeypatch.setattr(contact_sheet, "contact_sheet", lambda *a, **k: shown.extend(a[1]) or drawing(*a, **k))
    assert (tmp_path / pictured(folders, tmp_path)).stat().st_size > 1000
    texts = [json.loads(line)["prompt"] for line in (tmp_path / "before/prompts.jsonl").read_text().splitlines()]
    assert shown == [f"{name}: {text}" for text in texts[:2] for name in folders]  # the third has no clip


def test_the_model_is_the_last_that_make_demo_finished(tmp_path):
    with pytest.raises(ValueError, match="make demo"):
        trained(None, tmp_path)
    for age, (name, done) in enumerate((("old", True), ("new", True), ("begun", False))):
        record = tmp_path / "model" / name / "demo.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"seconds": 1.0, "done": done}))
        os.utime(record, (age, age))
    assert trained(None, tmp_path).name == "new"
    quick = tmp_path / "model" / "quick" / "demo.json"  # four steps of training: nothing to go on from
    quick.parent.mkdir()
    quick.write_text(json.dumps({"seconds": 1.0, "done": True, "quick": True}))
    assert trained(None, tmp_path).name == "new"
    assert trained(tmp_path / "own", tmp_path) == tmp_path / "own"
