"""A folder of clips through the whole command: faults with their status, the same bytes after a kill, and ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avgen.__main__ import main
from avgen.data.media import write_clip
from avgen.data.toybox import ToyboxConfig, parse, render_facts
from avgen.types import Clip
from eval import registry, run
from eval.config import EvalConfig
from eval.metric import Result
from eval.pool import Died
from eval.record import Prompt
from eval.score import Scored, Scorer, plain
from eval.suites import read_suite
from eval.take import Take
from tests.conftest import ROOT

WITH_FAULTS = (*registry.GROUPS, registry.Group("faulty", "faulty", "tests.eval.faulty"))


class FaultyScorer(Scorer):
    """Brings the faulty metrics along to the processes of the workers."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        registry.GROUPS = WITH_FAULTS
        super().__setstate__(state)


def toy(text: str, index: int = 0) -> Clip:
    return render_facts(parse(text), ToyboxConfig(fps=16), 1, index).clip


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Perfect clips of toybench's first prompts."""
    folder = tmp_path_factory.mktemp("toys")
    for i, prompt in enumerate(read_suite("toybench").prompts[:8]):
        write_clip(folder / f"{prompt.id}.mp4", toy(prompt.text, i))
    return folder


def config(clips: Path, out: Path, **changes: Any) -> EvalConfig:
    return replace(EvalConfig(clips=clips, out=out, limit=8, workers=1, resamples=200, least=3), **changes)


@pytest.fixture
def shades(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics of tests.eval.shades in place of all others, in this process alone."""
    monkeypatch.setattr(registry, "GROUPS", (registry.Group("shades", "shades", "tests.eval.shades"),))
    monkeypatch.setattr(run, "spread", lambda work, tasks, workers: ((i, work(*task)) for i, task in enumerate(tasks)))


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def without_cost(out: Path) -> dict[str, Any]:
    return {k: v for k, v in json.loads((out / "summary.json").read_text()).items() if k != "cost_s"}


@pytest.fixture(scope="module")
def whole(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toys scored in one go by one process."""
    out = tmp_path_factory.mktemp("scored") / "whole"
    run.evaluate(config(toys, out))
    return out


def test_perfect_toys_reach_their_ceiling_and_nulls_do_not(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    sync = summary["metrics"]["toybox.sync"]
    assert sync["mean"] == pytest.approx(1, abs=0.05)
    assert sync["ceiling"]["mean"] == pytest.approx(1, abs=0.05)
    assert sync["nulls"]["shifted"]["mean"] < 0.7
    assert sync["nulls"]["shifted"]["gap"]["low"] > 0
    assert summary["metrics"]["toybox.kind"]["coverage"] == 1
    right = summary["metrics"]["toybox.right"]
    assert right["mean"] == right["ceiling"]["mean"] == 1
    assert right["nulls"]["swapped"]["mean"] < 0.5
    assert summary["suite"] == {**summary["suite"], "clips": 8, "prompts": 8, "missing": 0}
    by = summary["metrics"]["toybox.kind"]["by"]
    assert set(by) == set(read_suite("toybench").axes)
    for cells in by.values():
        assert all(cell["shown"] == (cell["prompts"] >= 3) for cell in cells.values())
    assert all(name in summary["cost_s"] for name in ("feature:decoded", "sync.offset_s", "picture.sharpness"))
    assert summary["cost_s"]["feature:decoded"]["clips"] == 8
    for line in lines_of(whole):
        assert (whole / line["file"]).resolve().is_file()
        for result in line["results"].values():
            assert (result["value"] is not None) == (result["status"] == "ok")


def test_another_number_of_processes_gives_the_same_bytes(toys: Path, whole: Path, tmp_path: Path) -> None:
    run.evaluate(config(toys, tmp_path / "two", workers=2))
    assert (tmp_path / "two" / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()
    assert without_cost(tmp_path / "two") == without_cost(whole)


def test_a_second_run_measures_nothing_again_and_a_changed_metric_only_itself(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.evaluate(config(toys, tmp_path, metrics=("loudness",)))
    before = (tmp_path / "results.jsonl").read_bytes(), (tmp_path / "summary.json").read_bytes()
    asked: list[tuple[Any, ...]] = []
    spread = run.spread

    def counting(work: Any, tasks: Any, workers: int) -> Any:
        asked.extend(tasks)
        return spread(work, tasks, workers)

    monkeypatch.setattr(run, "spread", counting)
    run.evaluate(config(toys, tmp_path, metrics=("loudness",)))
    assert not asked
    assert before == ((tmp_path / "results.jsonl").read_bytes(), (tmp_path / "summary.json").read_bytes())
    run.evaluate(config(toys, tmp_path, metrics=("loudness", "stereo")))
    assert {len(cells) for _, cells in asked} == {4}


def faulty_folder(folder: Path) -> Path:
    """A suite of nine prompts whose clips go wrong in every way."""
    clips = folder / "clips"
    clips.mkdir()
    texts = ["fine", "missing", "corrupt", "silent", "raises", "no gpu", "memory", "not for it", "killed"]
    (folder / "suite.jsonl").write_text(
        "".join(json.dumps({"id": t.replace(" ", "_"), "text": t}) + "\n" for t in texts)
    )
    good = toy("A large red ball bounces twice.")
    for text in texts:
        path = clips / f"{text.replace(' ', '_')}.mp4"
        if text == "silent":
            write_clip(path, replace(good, audio=np.zeros_like(good.audio)))  # type: ignore[arg-type]
        elif text != "missing":
            write_clip(path, good)
    whole = (clips / "corrupt.mp4").read_bytes()
    (clips / "corrupt.mp4").write_bytes(whole[: len(whole) // 3])
    return folder


def test_every_fault_has_its_status_and_never_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = faulty_folder(tmp_path)
    monkeypatch.setattr(registry, "GROUPS", WITH_FAULTS)
    monkeypatch.setattr(run, "Scorer", FaultyScorer)
    summary = run.evaluate(
        config(
            folder / "clips",
            tmp_path / "out",
            suite="plain",
            prompts=folder / "suite.jsonl",
            metrics=("faulty", "loudness", "sync"),
            workers=2,
            limit=None,
        )
    )
    found = {line["prompt"]: line["results"] for line in lines_of(tmp_path / "out")}
    statuses = {name: results["faulty.one"]["status"] for name, results in found.items()}
    assert statuses == {
        "fine": "ok",
        "silent": "ok",
        "missing": "failed",
        "corrupt": "failed",
        "raises": "failed",
        "no_gpu": "failed",
        "memory": "failed",
        "killed": "failed",
        "not_for_it": "not_applicable",
    }
    words = {
        "missing": "no clip",
        "corrupt": "corrupt.mp4",
        "raises": "ArithmeticError: inside",
        "no_gpu": "No CUDA GPUs",
    }
    words |= {"memory": "out of memory", "killed": "killed"}
    for name, word in words.items():
        assert word in found[name]["faulty.one"]["reason"]
        assert found[name]["faulty.one"]["value"] is None
    one = summary["metrics"]["faulty.one"]
    assert one["n"] == {"ok": 2, "not_applicable": 1, "failed": 6, "skipped": 0}
    assert one["coverage"] == 2 / 8
    assert one["mean"] == 1
    # a fault inside one metric costs the others nothing, a silent track has no loudness and no offset
    assert found["raises"]["loudness.integrated_lufs"]["status"] == "ok"
    assert found["silent"]["loudness.integrated_lufs"]["status"] == "not_applicable"
    assert found["silent"]["sync.offset_s"]["status"] == "not_applicable"
    assert found["corrupt"]["loudness.integrated_lufs"]["status"] == "failed"
    compat = summary["metrics"]["sync.compat_av_align_javisbench"]
    assert compat["coverage"] is None or compat["coverage"] < 1


def test_a_wrong_frame_rate_is_reported_and_not_guessed(tmp_path: Path) -> None:
    """The picture of a clip written at half its rate lasts twice as long as its sound."""
    clip = toy("A large red ball bounces twice.")
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "toy_0000.mp4", replace(clip, fps=8.0))
    summary = run.evaluate(config(tmp_path / "clips", tmp_path / "out", metrics=("file",), limit=1))
    assert summary["metrics"]["file.fps"]["mean"] == 8
    assert summary["metrics"]["file.duration_gap_s"]["mean"] == pytest.approx(2, abs=0.1)


@pytest.mark.slow
def test_killed_and_started_again_it_writes_the_same_bytes(toys: Path, whole: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    words = [f"clips={toys}", f"out={cut}", "limit=8", "workers=2", "resamples=200", "least=3"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "avgen", "eval", *words],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 900
    while not list(cut.rglob("cache/*/*.json")) and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if killed.poll() is None:
        os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert killed.returncode == -signal.SIGKILL
    assert not (cut / "results.jsonl").exists()
    kept = {path: path.read_bytes() for path in cut.rglob("cache/*/*.json")}
    assert kept
    run.evaluate(config(toys, cut))
    assert all(path.read_bytes() == bytes_ for path, bytes_ in kept.items())  # what was measured stays
    assert (cut / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()
    assert without_cost(cut) == without_cost(whole)


def test_weights_of_no_group_are_refused(toys: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights.clpi: no group of metrics has that name; there are .*clip"):
        run.planned(config(toys, tmp_path / "out", weights={"clpi": "folder"}))


def test_ranks_share_the_clips(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank fills its part of the cache; what rank 0 then writes is what one process writes."""
    whole, parts = (
        config(toys, tmp_path / "whole", metrics=("loudness",)),
        config(toys, tmp_path / "parts", metrics=("loudness",)),
    )
    run.evaluate(whole)
    plan = run.planned(parts)
    assert len(run.fill(plan, range(1, 8, 2), 1, None)) == 4
    assert len(run.fill(plan, range(8), 1, None)) == 4
    run.evaluate(parts)
    assert (tmp_path / "whole" / "results.jsonl").read_bytes() == (tmp_path / "parts" / "results.jsonl").read_bytes()


def test_a_javisbench_file_and_its_numbered_clips_are_scored_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ("A large red ball bounces twice.", "A tiny blue lamp flashes once.", "A big green bar strikes twice.")
    rows = "".join(f'ref_{i}.mp4,{text},{text},"0,{i}",0,1,2,{i}\n' for i, text in enumerate(texts))
    (tmp_path / "bench.csv").write_text("path,text,audio_text,cat0_ind,cat1_ind,cat2_ind,cat3_ind,cat4_ind\n" + rows)
    (tmp_path / "clips").mkdir()
    for i, text in enumerate(texts):
        write_clip(tmp_path / "clips" / f"sample_{i:04d}.mp4", toy(text, i))
        write_clip(tmp_path / f"ref_{i}.mp4", toy(text, i))
    words = ["suite=javisbench", f"prompts={tmp_path / 'bench.csv'}", f"clips={tmp_path / 'clips'}", "workers=1"]
    assert main(["eval", *words, f"out={tmp_path / 'out'}", "resamples=200"]) == 0
    assert "javisbench: 3 clips of 3 prompts" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["metrics"]["sync.correlation"]["by"]) == {"scenario", "style", "sound", "temporal", "spatial"}
    # each clip is compared with its own reference, the same clip: nothing but the null differs from perfection
    assert summary["metrics"]["paired.si_sdr_db"]["mean"] == 60
    assert summary["metrics"]["paired.ssim"]["mean"] == pytest.approx(1)
    assert summary["metrics"]["paired.onset_f1"]["mean"] == 1
    assert summary["metrics"]["paired.si_sdr_db"]["nulls"]["swapped"]["mean"] < 10
    assert "toybox.sync" not in summary["metrics"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clips=/no/such/folder"], "clips=/no/such/folder: no such folder"),
        (["suite=javis"], "the nearest is javisbench"),
        (["limit=0"], "limit=0 must be at least 1"),
        (["seed=-1"], "seed=-1 must be at least 0"),
        (["metrics=[sync.ofset_s]"], "sync has"),
        (["metrics=[loudnes]"], "the nearest is loudness"),
    ],
)
def test_a_users_mistake_is_one_line(
    toys: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", f"clips={toys}", *words]) == 2
    assert said in capsys.readouterr().err


def test_set_metrics_see_the_clips_that_have_an_embedding(tmp_path: Path, shades: None) -> None:
    (tmp_path / "clips").mkdir()
    prompts = []
    for name, made, real in (("a", 10, 20), ("b", 30, 40), ("fails", 50, 60)):
        for path, shade in ((tmp_path / "clips" / f"{name}.mp4", made), (tmp_path / f"{name}_real.mp4", real)):
            write_clip(path, Clip(np.full((8, 32, 32, 3), shade, np.uint8), None, 8.0, None))
        prompts.append({"id": name, "text": name, "reference": f"{name}_real.mp4"})
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    asked = config(
        tmp_path / "clips", tmp_path / "out", suite="plain", prompts=tmp_path / "suite.jsonl", metrics=("shades",)
    )
    for _ in range(2):  # measured, then from the cache
        found = run.evaluate(asked)["sets"]["shades.gap"]
        assert found["n"] == {"ok": 2, "not_applicable": 0, "failed": 1, "skipped": 0}
        assert found["mean"] == pytest.approx(np.sqrt(3) * 10, abs=2)
        assert (found["prompts"], found["references"]) == (2, 2)
        assert "no shade" in next(iter(found["reasons"]))


@pytest.fixture
def shaded(tmp_path: Path, shades: None) -> EvalConfig:
    """Two prompts with a real clip each, and two clips made of each."""
    (tmp_path / "clips").mkdir()
    for i, name in enumerate(("clips/a_s0", "clips/a_s1", "clips/b_s0", "clips/b_s1", "a_real", "b_real")):
        write_clip(tmp_path / f"{name}.mp4", Clip(np.full((8, 32, 32, 3), 20 * i, np.uint8), None, 8.0, None))
    prompts = [{"id": name, "text": name, "reference": f"{name}_real.mp4"} for name in "ab"]
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return config(
        tmp_path / "clips", tmp_path / "out", suite="plain", prompts=tmp_path / "suite.jsonl", metrics=("shades",)
    )


def test_a_real_clip_stands_in_the_reference_once(shaded: EvalConfig) -> None:
    found = run.evaluate(shaded)["sets"]["shades.gap"]
    assert found["n"]["ok"] == 4
    assert found["references"] == 2


def test_a_real_clip_that_one_worker_lost_counts_where_another_has_it(
    shaded: EvalConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = run.spread

    def losing(work: Any, tasks: Any, workers: int) -> Any:
        for at, scored in spread(work, tasks, workers):
            job = tasks[at][0]
            yield at, Died("the process was killed") if (job.prompt.id, job.seed) == ("b", 1) else scored

    monkeypatch.setattr(run, "spread", losing)
    found = run.evaluate(shaded)["sets"]["shades.gap"]
    assert (found["n"]["ok"], found["n"]["failed"], found["references"]) == (3, 1, 2)


def test_a_set_tells_of_the_real_clips_that_it_lacks(shaded: EvalConfig, tmp_path: Path) -> None:
    (tmp_path / "b_real.mp4").unlink()
    found = run.evaluate(shaded)["sets"]["shades.gap"]
    assert (found["coverage"], found["references"], found["status"]) == (0.5, 1, "failed")
    assert "real clip" in found["reason"]
    assert "b_real.mp4" in next(iter(found["reasons"]))


def test_a_strict_licence_refuses_what_is_in_the_cache_too(shaded: EvalConfig) -> None:
    assert run.evaluate(shaded)["metrics"]["shades.closed"]["n"]["ok"] == 4
    strict = run.evaluate(replace(shaded, strict_licence=True))["metrics"]["shades.closed"]["n"]
    assert (strict["ok"], strict["skipped"]) == (0, 4)
    assert run.evaluate(shaded)["metrics"]["shades.closed"]["n"]["ok"] == 4


def test_a_ceiling_belongs_to_the_world_that_drew_it(toys: Path, tmp_path: Path) -> None:
    plan = run.planned(config(toys, tmp_path, metrics=("toybox",)))

    def ceilings(mark: str) -> set[str]:
        return {cell.key for cell in replace(plan.scorer, ideal_mark=mark).cells(plan.jobs[0]) if "ceiling" in cell.key}

    assert plan.suite.ideal_mark
    assert ceilings("1")
    assert not ceilings("1") & ceilings("2")


def test_no_confidence_at_all_is_said() -> None:
    assert plain(Result(0.5, confidence=0.0)) == {"value": 0.5, "status": "ok", "confidence": 0.0}
    assert plain(Result(0.5)) == {"value": 0.5, "status": "ok"}


def test_two_runs_that_share_a_cache_keep_each_others_results(tmp_path: Path) -> None:
    entry = tmp_path / "ab" / "abcd.json"
    ok = {"value": 1.0, "status": "ok", "reason": ""}
    run.write_entry(entry, Scored({"one": ok}, {"fps": 8}, {"one": 0.1}))
    run.write_entry(entry, Scored({"other": ok, "lost": {**ok, "status": "failed"}}, {}, {"other": 0.2}))
    assert run.read_entry(entry) == Scored({"one": ok, "other": ok}, {"fps": 8}, {"one": 0.1, "other": 0.2})
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["abcd.json"]


def test_ranks_take_a_gpu_each_and_share_the_cores(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.config.cores", lambda: 64)
    cpu, gpu = (config(toys, tmp_path, workers=0, device=device) for device in ("cpu", "cuda"))
    assert (cpu.processes, gpu.processes, gpu.setup.device) == (64, 1, "cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert (cpu.processes, gpu.processes, gpu.setup.device) == (8, 1, "cuda:1")
    assert config(toys, tmp_path, device="cuda:3").setup.device == "cuda:3"
    assert run.planned(gpu).scorer.setup.device == "cuda:1"


def test_what_a_shorter_stream_lacks_is_not_measured(tmp_path: Path) -> None:
    """Reading holds the last frame, or adds silence, up to the end of the longer stream: nobody made either."""
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (16, 32, 32, 3), np.uint8)
    sound = random.normal(0, 0.1, (1, 64000)).astype(np.float32)
    write_clip(tmp_path / "long_sound.mp4", Clip(frames, sound, 8.0, 16000))
    write_clip(tmp_path / "long_picture.mp4", Clip(frames, sound[:, :16000], 8.0, 16000))
    heard, seen = (Take(Prompt("a", "a"), tmp_path / f"long_{name}.mp4") for name in ("sound", "picture"))
    assert len(heard.picture.frames) == len(seen.picture.frames) == 16
    assert heard.sound.duration_s == pytest.approx(4, abs=0.1)
    assert seen.sound.duration_s == pytest.approx(1, abs=0.1)
