"""Two evaluations against each other: sameness is indistinguishable, harm is found, other definitions are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avgen.__main__ import main
from eval.compare import CompareConfig, compare

METRICS = {"sync.correlation": "higher", "sync.offset_s": "zero", "picture.flicker": "lower", "file.fps": "none"}


def scored(
    folder: Path, values: dict[str, Any], suite: str = "s1", version: str = "v1", without: str = "", sets: Any = ()
) -> Path:
    """What avgen eval writes, as far as a comparison reads it; None is a clip without a value."""
    folder.mkdir()
    names = {n: d for n, d in METRICS.items() if n != without}
    metrics = {n: {"definition": {"hash": f"{n}{version}", "direction": d}} for n, d in names.items()}
    far = {n: {"definition": {"hash": n, "direction": "lower"}, "references": 9} for n in sets}
    said = {"suite": {"name": suite, "digest": suite}, "metrics": metrics, "sets": far}
    (folder / "summary.json").write_text(json.dumps(said))
    lines = []
    for i in range(len(values["sync.correlation"])):
        results = {}
        for name in METRICS:
            value = values.get(name, values["sync.correlation"])[i]
            results[name] = {"value": value, "status": "failed" if value is None else "ok"}
        lines.append({"prompt": f"p{i}", "results": results})
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(size=60)


def test_a_run_compared_with_itself_is_indistinguishable(tmp_path: Path, noise: np.ndarray) -> None:
    one = scored(tmp_path / "a", {"sync.correlation": noise.tolist()})
    found = compare(CompareConfig(one, one))
    assert set(found.differences) == {"sync.correlation", "sync.offset_s", "picture.flicker"}
    assert {(d.verdict, d.value) for d in found.differences.values()} == {("indistinguishable", 0.0)}


def test_directions_decide_what_is_better(tmp_path: Path, noise: np.ndarray) -> None:
    a = scored(tmp_path / "a", {"sync.correlation": noise.tolist()})
    b = scored(
        tmp_path / "b",
        {
            "sync.correlation": (noise + 0.5).tolist(),
            # the mean of the offsets stays, each is twice as large
            "sync.offset_s": (2 * noise).tolist(),
            "picture.flicker": (noise + 0.5).tolist(),
        },
    )
    forth, back = compare(CompareConfig(a, b)), compare(CompareConfig(b, a))
    assert {n: d.verdict for n, d in forth.differences.items()} == {
        "sync.correlation": "better",
        "sync.offset_s": "worse",
        "picture.flicker": "worse",
    }
    assert back.differences["sync.correlation"].verdict == "worse"
    assert forth.differences["sync.correlation"].value == pytest.approx(0.5)
    before, after = forth.means["sync.offset_s"]
    assert after == pytest.approx(2 * before)


def test_only_prompts_with_a_value_in_both_count(tmp_path: Path, noise: np.ndarray) -> None:
    first, second = noise.tolist(), noise.tolist()
    first[:10] = second[5:15] = [None] * 10
    found = compare(
        CompareConfig(
            scored(tmp_path / "a", {"sync.correlation": first}), scored(tmp_path / "b", {"sync.correlation": second})
        )
    )
    assert found.differences["sync.correlation"].prompts == 45


def test_what_is_not_the_same_is_not_compared(tmp_path: Path, noise: np.ndarray) -> None:
    a = scored(tmp_path / "a", {"sync.correlation": noise.tolist()})
    other = scored(tmp_path / "b", {"sync.correlation": noise.tolist()}, version="v2")
    found = compare(CompareConfig(a, other))
    assert not found.differences
    assert "defined otherwise" in found.left_out["sync.correlation"]
    with pytest.raises(ValueError, match="compare one suite's"):
        compare(CompareConfig(a, scored(tmp_path / "c", {"sync.correlation": noise.tolist()}, suite="s2")))


def test_what_is_not_judged_says_why(tmp_path: Path, noise: np.ndarray) -> None:
    a = scored(tmp_path / "a", {"sync.correlation": noise.tolist()}, without="picture.flicker", sets=["clap.mmd"])
    b = scored(tmp_path / "b (=1)", {"sync.correlation": noise.tolist()}, sets=["clap.mmd"])
    assert compare(CompareConfig(a, b)).left_out == {
        "picture.flicker": "the baseline was not scored by it",
        "clap.mmd": "a distance between sets has no value for each prompt: see both summaries",
    }
    assert compare(CompareConfig(a, b, metrics=("file.fps",))).left_out == {"file.fps": "it has no better direction"}
    with pytest.raises(ValueError, match=r"metrics='clip': neither folder"):
        compare(CompareConfig(a, b, metrics=("clip",)))
    with pytest.raises(ValueError, match="resamples=1 must be at least 100"):
        CompareConfig(a, b, resamples=1)
    assert main(["eval", "compare", str(b), str(a)]) == 0  # whatever a folder is called
    assert main(["eval", "compare", str(b), f"baseline={a}"]) == 0


def test_the_command_prints_a_verdict_and_writes_its_figures(
    tmp_path: Path, noise: np.ndarray, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    a = scored(tmp_path / "a", {"sync.correlation": noise.tolist()})
    assert main(["eval", "compare", str(a), str(a), "metrics=[sync]", f"out={tmp_path / 'o.json'}"]) == 0
    assert "indistinguishable" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "o.json").read_text())["differences"]) == {"sync.correlation", "sync.offset_s"}
    for words, said in (
        (["compare", str(a)], "candidate"),
        (["compare", str(a), str(tmp_path)], "no summary.json"),
        (["compare", str(a), str(a), str(a)], "two folders are compared"),
    ):
        assert main(["eval", *words]) == 2
        assert said in capsys.readouterr().err
