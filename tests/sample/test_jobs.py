"""Jobs of many clips: each once and whole, however often the job is killed and however many ranks share it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from avgen.__main__ import main
from avgen.data.media import read_clip, write_clip
from avgen.lines import append_line, whole_lines
from avgen.sample import jobs
from avgen.sample.config import SampleConfig
from avgen.sample.inputs import Request, read_requests
from avgen.sample.jobs import Job, read_manifest, requests_of, tidy
from avgen.sample.pipeline import sample_noise
from tests.conftest import ROOT
from tests.sample.factory import clip, files, pipeline

QUICK = ("solver=euler", "solver.steps=1", "guidance=none")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline(duration_s=0.5).save_pretrained(folder)
    return folder


def prompts(folder, count):
    path = folder / "prompts.txt"
    path.write_text("".join(f"ball number {i}\n" for i in range(count)))
    return path


def check_whole(out, count):
    lines = whole_lines(out / "manifest.jsonl")
    assert sorted(line["name"] for line in lines) == sorted({f"{i:05d}_s0" for i in range(count)})
    for line in lines:
        assert read_clip(out / line["file"]).clip.video.shape == (4, 16, 16, 3)
    # neither drafts nor clips that no line speaks of
    assert sorted(p.name for p in out.iterdir()) == sorted(["manifest.jsonl", *(line["file"] for line in lines)])


def test_a_job_says_of_each_clip_what_made_it_and_does_not_make_it_again(model, tmp_path, capsys):
    words = ["sample", f"model={model}", f"prompts={prompts(tmp_path, 3)}", f"out={tmp_path / 'out'}", *QUICK]
    assert main(words) == 0
    check_whole(tmp_path / "out", 3)
    line = read_manifest(tmp_path / "out")[1]
    assert (line["prompt"], line["seed"], line["task"]) == ("ball number 1", 0, "t2av")
    assert line["solver"]["kind"] == "euler"
    assert len(line["model"]) == 16
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.mp4")}
    (tmp_path / "out" / "00001_s0.mp4").unlink()
    (tmp_path / "out" / "00002_s0.mp4").write_bytes(b"cut short")
    assert main(words) == 0
    check_whole(tmp_path / "out", 3)
    kept = [p.name for p, at in times.items() if p.stat().st_mtime_ns == at]
    assert kept == ["00000_s0.mp4"]
    # another way of making them is another clip
    assert main([*words, "solver.steps=2"]) == 0
    assert {line["solver"]["steps"] for line in read_manifest(tmp_path / "out")} == {2}


def names(out):
    return {line["prompt"]: line["file"] for line in read_manifest(out)}


def test_another_prompt_is_another_clip_beside_the_first(model, tmp_path, capsys):
    words = ["sample", f"model={model}", f"out={tmp_path / 'out'}", *QUICK]
    for prompt in ("A", "B", "A"):
        assert main([*words, f"prompt={prompt}"]) == 0
    assert "1 of 1 clips are there already" in capsys.readouterr().out
    found = names(tmp_path / "out")
    assert set(found) == {"A", "B"}
    assert all((tmp_path / "out" / name).is_file() for name in found.values())
    # the clip made before is an input like any other: what goes on from it lies beside it
    files(tmp_path)
    for source in (tmp_path / "in.mp4", tmp_path / "out" / found["A"]):
        assert main([*words, "task=extend", f"video={source}", "duration_s=1.5"]) == 0
    assert len(list((tmp_path / "out").glob("extend_*_s0.mp4"))) == 2


def test_a_clip_is_not_made_over_its_own_input(model, tmp_path, capsys):
    files(tmp_path)
    (tmp_path / "in.mp4").rename(tmp_path / "a_s0.mp4")
    before = (tmp_path / "a_s0.mp4").read_bytes()
    (tmp_path / "p.csv").write_text("id,video\na,a_s0.mp4\n")
    words = ["sample", f"model={model}", f"prompts={tmp_path / 'p.csv'}", "task=extend", "duration_s=2", *QUICK]
    assert main([*words, f"out={tmp_path}"]) == 2
    assert "is what this command would write: give another out, or another id" in capsys.readouterr().err
    assert (tmp_path / "a_s0.mp4").read_bytes() == before


def test_rows_without_ids_do_not_replace_those_of_another_file(model, tmp_path, capsys):
    words = ["sample", f"model={model}", f"out={tmp_path / 'out'}", *QUICK]
    (tmp_path / "one.txt").write_text("A\nB\n")
    (tmp_path / "other.txt").write_text("A\nC\n")
    assert main([*words, f"prompts={tmp_path / 'one.txt'}"]) == 0
    assert main([*words, f"prompts={tmp_path / 'other.txt'}"]) == 2
    assert "holds 00001_s0.mp4, made for another row (t2av, 'B'): give another out" in capsys.readouterr().err
    assert set(names(tmp_path / "out")) == {"A", "B"}
    # more of the same file goes on
    (tmp_path / "one.txt").write_text("A\nB\nC\n")
    assert main([*words, f"prompts={tmp_path / 'one.txt'}"]) == 0
    assert "2 of 3 clips are there already" in capsys.readouterr().out


def test_an_id_names_its_clip_whatever_is_asked_of_it_and_that_is_said(model, tmp_path, capsys):
    words = ["sample", f"model={model}", f"out={tmp_path / 'out'}", f"prompts={tmp_path / 'p.csv'}", *QUICK]
    for prompt in ("A", "B"):
        (tmp_path / "p.csv").write_text(f"prompt,id\n{prompt},x\n")
        assert main(words) == 0
    assert "x_s0.mp4 was made for 'A' or other files, and is replaced" in capsys.readouterr().out
    assert names(tmp_path / "out") == {"B": "x_s0.mp4"}


def stopped(monkeypatch, words, after, name, when=lambda line: True):
    """The command, stopped in the call of jobs.`name` that follows `after` calls."""
    calls, real = [], getattr(jobs, name)

    def call(*args, **kwargs):
        if when(args[-1]):
            calls.append(name)
            if len(calls) > after:
                raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(jobs, name, call)
        assert main(words) == 130


def test_a_job_begun_with_other_settings_and_stopped_costs_the_clips_it_replaced(model, tmp_path, monkeypatch, capsys):
    words = ["sample", f"model={model}", f"prompts={prompts(tmp_path, 4)}", f"out={tmp_path / 'out'}", *QUICK]
    assert main(words) == 0
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.mp4")}
    stopped(monkeypatch, [*words, "solver.steps=2", "batch=1"], 1, "finish")
    assert "made by another model or with other settings, and made anew: 4" in capsys.readouterr().out
    assert sorted(line["solver"]["steps"] for line in read_manifest(tmp_path / "out")) == [1, 1, 1, 2]
    assert main(words) == 0
    assert "3 of 4 clips are there already" in capsys.readouterr().out
    check_whole(tmp_path / "out", 4)
    assert {line["solver"]["steps"] for line in read_manifest(tmp_path / "out")} == {1}
    assert [p.name for p, at in times.items() if p.stat().st_mtime_ns != at] == ["00000_s0.mp4"]


def test_a_clip_whose_place_another_took_is_not_taken_for_it(model, tmp_path, monkeypatch, capsys):
    """Killed between the file and its line: the line that is left is the old clip's, whose size may be the same."""
    words = ["sample", f"model={model}", f"prompts={prompts(tmp_path, 1)}", f"out={tmp_path / 'out'}", *QUICK]
    assert main(words) == 0
    file = tmp_path / "out" / "00000_s0.mp4"
    before = file.read_bytes()
    stopped(monkeypatch, [*words, "solver.steps=2"], 0, "append_line", when=lambda line: "file" in line)
    assert file.read_bytes() != before
    file.write_bytes(bytes(len(before)))
    assert read_manifest(tmp_path / "out") == []
    assert main(words) == 0
    check_whole(tmp_path / "out", 1)


def test_a_damaged_file_costs_its_own_rows_alone(model, tmp_path, capsys):
    given = files(tmp_path)
    whole = given["video"].read_bytes()
    media = whole.index(b"mdat") + 4  # the header stands before it and stays
    (tmp_path / "damaged.mp4").write_bytes(whole[:media] + bytes(len(whole) - media))
    (tmp_path / "headless.mp4").write_bytes(b"no header")
    rows = {"a": "in.mp4", "b": "damaged.mp4", "c": "headless.mp4", "d": "mute.mp4"}
    (tmp_path / "p.csv").write_text("id,video\n" + "".join(f"{name},{file}\n" for name, file in rows.items()))
    words = ["sample", f"model={model}", f"prompts={tmp_path / 'p.csv'}", "task=v2a", f"out={tmp_path / 'out'}", *QUICK]
    for _ in range(2):  # a rerun passes the same rows
        assert main(words) == 3
        said = " ".join(capsys.readouterr().out.split())
        assert f"b_s0 is left out: {tmp_path}/damaged.mp4: " in said
        assert f"c_s0 is left out: {tmp_path}/headless.mp4: " in said
        assert "2 of 4 clips could not be made" in said
        assert [line["id"] for line in read_manifest(tmp_path / "out")] == ["a", "d"]
    # a request by itself has nothing to go on with
    for name in ("damaged", "headless"):
        assert main([*words[:2], *words[3:], f"video={tmp_path / name}.mp4"]) == 2


def test_an_image_that_cannot_be_read_costs_its_own_row_alone(model, tmp_path, capsys):
    files(tmp_path)
    (tmp_path / "broken.png").write_bytes((tmp_path / "in.png").read_bytes()[:60])
    (tmp_path / "p.csv").write_text("id,image\na,broken.png\nb,in.png\n")
    words = ["sample", f"model={model}", f"prompts={tmp_path / 'p.csv'}", f"out={tmp_path / 'out'}", *QUICK]
    assert main([*words, "task=i2av"]) == 3
    assert [line["id"] for line in read_manifest(tmp_path / "out")] == ["b"]


@pytest.mark.slow
def test_killed_at_random_instants_a_job_of_100_yields_each_clip_once_and_whole(model, tmp_path):
    # a process of its own for what is killed, this one's memory for what starts soon: fork costs no imports
    out, draw = tmp_path / "out", random.Random(0)
    words = ["sample", f"model={model}", f"prompts={prompts(tmp_path, 100)}", f"out={out}", "batch=5", *QUICK]
    kills = 0
    for _ in range(200):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                os.dup2(null, 2)
                code = main(words)
            finally:  # whatever happens: what went on from here would be a second run of the tests
                os._exit(code)
        deadline = time.monotonic() + 60
        before = len(read_manifest(out))
        # from the first new line on, at any instant: in a forward, a file, a rename or a line
        while len(read_manifest(out)) < min(before + draw.randint(1, 25), 100) and time.monotonic() < deadline:
            time.sleep(draw.uniform(0, 0.02))
        time.sleep(draw.uniform(0, 0.03))
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            assert os.waitstatus_to_exitcode(status) == 0
            break
        if before + 30 < 100:
            os.kill(child, signal.SIGKILL)
            kills += 1
        finished, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert kills >= 3
    check_whole(out, 100)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_two_processes_make_the_clips_of_one(model, tmp_path, launcher):
    path = prompts(tmp_path, 6)
    shared = [f"model={model}", f"prompts={path}", *QUICK]
    assert main(["sample", *shared, "batch=1", f"out={tmp_path / 'one'}"]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={port}"]
    if launcher == "torchrun":
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, "-m", "avgen.sample", *shared, "batch=8", f"out={tmp_path / 'two'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=170, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    check_whole(tmp_path / "two", 6)
    for i in range(6):
        ours, theirs = (read_clip(tmp_path / n / f"{i:05d}_s0.mp4").clip for n in ("one", "two"))
        error = np.square(ours.video.astype(float) - theirs.video).mean()
        assert error == 0 or 10 * np.log10(255**2 / error) >= 45


def test_noise_is_bitwise_a_matter_of_seed_and_prompt():
    keys = [(0, "a"), (0, "b"), (1, "a")]
    whole = sample_noise(torch.zeros(3, 7, 5), "video", keys)
    for i, key in enumerate(keys):
        assert torch.equal(whole[i : i + 1], sample_noise(torch.zeros(1, 7, 5), "video", [key]))
    assert len({float(row[0, 0]) for row in whole}) == 3
    assert not torch.equal(whole, sample_noise(torch.zeros(3, 7, 5), "audio", keys))
    # a longer clip begins with the same noise
    assert torch.equal(sample_noise(torch.zeros(3, 9, 5), "video", keys)[:, :7], whole)


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
def test_prompt_files_of_every_kind_say_the_same(tmp_path, kind):
    said = ["a ball, red", 'a "lamp"', "🔴 é", "one line,\u2028as JSON sees it"]
    path = tmp_path / f"p.{kind}"
    text = {
        "txt": "\n".join(said) + "\n\n",
        "csv": "prompt,seed\n" + "".join('"' + s.replace('"', '""') + '",7\n' for s in said),
        "jsonl": "".join(json.dumps({"prompt": s, "seed": 7}, ensure_ascii=False) + "\n" for s in said),
    }
    path.write_text(text[kind], encoding="utf-8")
    found = read_requests(path, Request(seed=7))
    assert [(r.prompt, r.seed) for r in found] == [(s, 7) for s in said]


def test_files_named_in_a_prompt_file_lie_beside_it(tmp_path):
    files(tmp_path)
    (tmp_path / "p.csv").write_text("prompt,id,video\nballs,first,in.mp4\n")
    config = SampleConfig(task="v2a", prompts=tmp_path / "p.csv", samples=2, seed=5)
    found = requests_of(config)
    assert [(r.id, r.seed, r.video) for r in found] == [("first", s, tmp_path / "in.mp4") for s in (5, 6)]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "\n\n", "holds no prompt"),
        ("p.md", "a", "must be a .txt"),
        ("p.csv", "promt\na\n", "no column 'promt'"),
        ("p.jsonl", "{not json\n", "line 1: not JSON"),
        ("p.jsonl", '["a"]\n', "line 1: a mapping"),
        ("p.csv", "prompt,seed\na,x\n", "seed='x'"),
        ("p.jsonl", '{"prompt": "a", "seed": 1.7}\n', "seed=1.7 is not a whole number"),
        ("p.jsonl", '{"prompt": "a", "seed": true}\n', "seed=True is not a whole number"),
        ("p.jsonl", '{"prompt": "a \\ud83d"}\n', "row 1: prompt='a \\ud83d' has half a character at place 2"),
        ("p.csv", "prompt\na ball, red\n", "row 1: has more cells than the header; put quotes around commas"),
        ("p.csv", "prompt\ncaf\xe9\n", "is not UTF-8"),
        ("p.csv", "prompt,id\na,../x\n", "is to be a file name"),
        ("p.csv", "prompt,id\na,x\nb,x\n", "several rows"),
        ("p.csv", "prompt,id\na,00001\nb,\n", "called by its number"),
        ("p.csv", "prompt,video\na,none.mp4\n", "none.mp4: no such file"),
    ],
)
def test_a_bad_prompt_file_ends_with_2_and_says_where(tmp_path, capsys, name, text, words):
    (tmp_path / name).write_text(text, encoding="latin-1")
    task = "v2a" if "video" in text else "t2av"
    assert main(["sample", f"prompts={tmp_path / name}", f"task={task}"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_bad_input_ends_with_2_and_one_line(model, tmp_path, capsys):
    given = files(tmp_path)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    wrong: list[tuple[list[str], str]] = [
        (["task=v2a", "video=nowhere.mp4"], "video=nowhere.mp4: no such file"),
        (["task=a2v", f"audio={given['mute']}"], "has no sound"),
        (["task=v2a", f"video={given['audio']}"], "has no picture"),
        (["task=v2a", f"video={tmp_path / 'empty.mp4'}"], "empty.mp4"),
        (["task=i2av", f"image={tmp_path / 'text.png'}"], "text.png"),
        (["task=v2t"], "task='v2t' is unknown"),
        (["task=t2av", f"image={given['image']}"], "task=t2av does not use image"),
        (["duration_s=0"], "duration_s=0.0 must be positive"),
        (["task=inpaint", f"video={given['video']}", "edit.hole_s=[5,7]"], "edit.hole_s=[5,7] lies outside the clip"),
        (["task=interpolate", f"video={given['video']}", "edit.key_frames_s=[0,99]"], "edit.key_frames_s=99 lies"),
        (["task=inpaint", "edit.remake=audio", "edit.box=[0,0,0.5,1]"], "edit.box is a part of the picture"),
        ([f"out={tmp_path / 'text.png'}"], "text.png"),
        (["model=" + str(tmp_path / "none")], "no such folder"),
        (["model=" + str(tmp_path)], "neither a pipeline"),
    ]
    for words, message in wrong:
        settings = [f"model={model}", f"out={tmp_path / 'out'}", *QUICK, *words]
        assert main(["sample", *settings]) == 2, words
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1


def test_what_a_kill_left_is_cleared_in_one_look_at_the_folder(tmp_path, monkeypatch):
    """A draft, and the draft of a stream to which another is then joined; other people's files stay."""
    wanted = [Job(Request("a"), None, f"{i:05d}_s0", "key") for i in range(200)]
    left = [
        ".00000_s0.7.partial.mp4",
        ".00001_s0.7.made.mp4",
        "..00002_s0.7.made.7.partial.mp4",
        ".00001_s0.7.joined.mp4",
    ]
    others = [".hidden.7.partial.mp4", "00003_s0.mp4", ".gitignore"]
    for name in (*left, *others):
        (tmp_path / name).touch()
    looks, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda *a: looks.append(a) or scandir(*a))
    monkeypatch.setattr(os, "listdir", lambda *a, listdir=os.listdir: looks.append(a) or listdir(*a))
    tidy(tmp_path, wanted)
    assert len(looks) <= 2
    assert {p.name for p in tmp_path.iterdir()} == {*others, "manifest.jsonl"}


def test_the_scripts_write_a_clip(model, tmp_path):
    given = files(tmp_path)
    for task, inputs in (("t2av", []), ("i2av", ["image"]), ("v2a", ["video"]), ("a2v", ["audio"])):
        script = __import__(f"avgen.sample.{task}", fromlist=["main"])
        out: Path = tmp_path / f"{task}.mp4"
        assert script.main([str(model), "a red ball", *(str(given[n]) for n in inputs), str(out)]) == 0
        assert read_clip(out, video=True, audio=True).clip.video is not None
        with pytest.raises(ValueError, match=rf"avgen\.sample\.{task} wants MODEL PROMPT"):
            script.main([str(model)])


def test_a_training_run_is_a_pipeline(tmp_path, monkeypatch):
    """From the run's folder or the model in it: the model with the codecs and the form it was trained with."""
    from avgen.sample.folder import open_pipeline
    from avgen.train.config import TrainConfig
    from avgen.train.data_config import ToyboxData
    from avgen.train.record import begin
    from avgen.train.run import export, prepare
    from tests.sample.factory import MODEL

    config = TrainConfig(model=MODEL, steps=1, batch=1, out=tmp_path / "run", data=ToyboxData(workers=0))
    run = prepare(config)
    begin(config, run.accelerator)
    made = export(run)
    parts = pipeline()
    monkeypatch.setattr("avgen.train.data.fitted", lambda *_, **__: (parts.video_codec, parts.audio_codec))
    one, other = open_pipeline(config.out), open_pipeline(made)
    assert one.fingerprint == other.fingerprint
    assert (one.trained_form.fps, one.trained_form.duration_s) == (config.data.world.fps, config.data.world.duration_s)
    assert one(prompt="a", height=16, width=16)[0].clip.video.shape == (16, 16, 16, 3)


def test_adapters_are_not_put_over_other_weights_than_they_were_trained_on(tmp_path, monkeypatch):
    from avgen.models.dit import AVTransformer
    from avgen.sample.folder import open_pipeline
    from avgen.train.config import LoraConfig, TrainConfig
    from avgen.train.data_config import ToyboxData
    from avgen.train.record import begin
    from avgen.train.run import export, prepare
    from tests.sample.factory import MODEL

    parts, start = pipeline(), tmp_path / "start"
    monkeypatch.setattr("avgen.train.data.fitted", lambda *_, **__: (parts.video_codec, parts.audio_codec))
    parts.model.save_pretrained(start)
    data, lora = ToyboxData(workers=0), LoraConfig(rank=2)
    config = TrainConfig(model=MODEL, steps=1, batch=1, out=tmp_path / "run", data=data, start=start, lora=lora)
    run = prepare(config)
    begin(config, run.accelerator)
    export(run)
    open_pipeline(config.out)
    other = AVTransformer.from_pretrained(start)
    other.towers["video"].head.weight.data.add_(0.01)
    other.save_pretrained(start)
    with pytest.raises(ValueError, match=r"adapters were trained on other weights than start=.* holds now"):
        open_pipeline(config.out)


def test_a_video_too_short_for_the_hole_costs_its_own_row_alone(model, tmp_path, capsys):
    files(tmp_path)
    write_clip(tmp_path / "short.mp4", clip(0.5))
    (tmp_path / "p.csv").write_text("id,video\na,short.mp4\nb,in.mp4\n")
    words = [f"model={model}", f"prompts={tmp_path / 'p.csv'}", "task=inpaint", "edit.hole_s=[0.6,0.9]"]
    assert main(["sample", *words, f"out={tmp_path / 'out'}", *QUICK]) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "short.mp4: edit.hole_s=[0.6,0.9] lies outside the clip, which lasts 0.5 s" in said
    assert [line["id"] for line in read_manifest(tmp_path / "out")] == ["b"]


def test_a_job_goes_on_from_another_folder(model, tmp_path, monkeypatch, capsys):
    """What the manifest says of files holds wherever it is read."""
    (tmp_path / "data").mkdir()
    files(tmp_path / "data")
    (tmp_path / "data" / "p.csv").write_text("video\nin.mp4\n")
    words = ["sample", f"model={model}", "task=v2a", f"out={tmp_path / 'out'}", *QUICK]
    monkeypatch.chdir(tmp_path)
    assert main([*words, "prompts=data/p.csv"]) == 0
    monkeypatch.chdir(tmp_path / "data")
    capsys.readouterr()
    assert main([*words, "prompts=p.csv"]) == 0
    assert "1 of 1 clips are there already" in capsys.readouterr().out


def test_a_line_that_another_command_adds_is_not_tidied_away(tmp_path):
    """It waits for the manifest, and then writes to the one that has its name."""
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    line = {"name": "a", "file": "a.mp4", "bytes": 0, "seed": 0}
    append_line(tmp_path / "manifest.jsonl", line)
    others = []

    def add_meanwhile(path, target, real=Path.replace):
        others.append(Thread(target=append_line, args=(target, {**line, "name": "b", "file": "b.mp4"})))
        others[-1].start()
        others[-1].join(0.2)
        return real(path, target)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "replace", add_meanwhile)
        tidy(tmp_path, [])
    others[0].join()
    assert [found["name"] for found in read_manifest(tmp_path)] == ["a", "b"]
