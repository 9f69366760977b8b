"""The page: what it says, and that a browser really plays, sorts and filters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from avgen.data.media import write_clip
from avgen.data.toybox import ToyboxConfig, parse, render_facts
from eval.config import EvalConfig
from eval.report import ReportConfig, main, write_report
from eval.report import shown as page_figures
from eval.run import evaluate
from eval.suites import read_suite
from eval.summary import counted
from tests.browser import browser, page

CLIPS = 8
HOSTILE = "</script><script>document.title='broken'</script><b id=broken>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two scored folders of toybench: a good model, and one whose sound is late, absent, damaged or missing."""
    folder = tmp_path_factory.mktemp("report")
    world = ToyboxConfig(height=32, width=40)
    for name in ("good", "late"):
        (folder / name).mkdir()
        for i, prompt in enumerate(read_suite("toybench").prompts[:CLIPS]):
            clip = render_facts(parse(prompt.text), world, 0, i).clip
            path = folder / name / f"{prompt.id}.mp4"
            if name == "late":
                assert clip.audio is not None
                clip = replace(clip, audio=np.roll(clip.audio, 6400, axis=1))
            if name == "late" and i == 3:
                path.write_bytes(b"no clip")
            elif not (name == "late" and i == 4):
                write_clip(path, clip)
        evaluate(
            EvalConfig(
                clips=folder / name, out=folder / f"eval_{name}", limit=CLIPS, workers=1, metrics=("file",), least=3
            )
        )
    return folder / "eval_good", folder / "eval_late"


@pytest.fixture(scope="module")
def made(runs: tuple[Path, Path]) -> Path:
    return write_report(ReportConfig(runs=runs))


@pytest.fixture(scope="module")
def one_browser() -> Iterator[Any]:
    """Opened once: its start is most of what a page's test takes."""
    with browser() as opened:
        yield opened


def data_of(path: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_holds_what_the_files_say_and_loads_nothing(runs: tuple[Path, Path], made: Path) -> None:
    data = data_of(made)
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert data["runs"][0]["summary"]["toybox.sync"]["mean"] == summary["metrics"]["toybox.sync"]["mean"]
    assert {m["name"] for m in data["metrics"]} == set(summary["metrics"]) | set(summary["sets"])
    assert len(data["clips"]) == 2 * CLIPS
    text = made.read_text()
    assert not re.search(r"""(src|href)=["']?https?:""", text)
    assert "cdn" not in text


def test_a_missing_clip_stays_missing(made: Path) -> None:
    data = data_of(made)
    late = [clip for clip in data["clips"] if clip["run"] == "eval_late"]
    assert late[4]["missing"]
    assert "src" not in late[4]
    assert late[3]["faults"]["toybox.sync"][0] == "failed"
    assert "toybox.sync" not in late[3]["values"]


def test_comparisons_turn_round(runs: tuple[Path, Path], made: Path) -> None:
    pairs = {(p["candidate"], p["metric"]): p for p in data_of(made)["pairs"]}
    there, back = (pairs[name, "toybox.sync"] for name in ("eval_good", "eval_late"))
    assert there["value"] > 0
    assert (back["value"], back["low"], back["high"]) == (-there["value"], -there["high"], -there["low"])
    judged = {m["name"] for m in data_of(made)["metrics"] if m["direction"] != "none"}
    assert {metric for _, metric in pairs} <= judged  # the others would only widen the correction
    first = data_of(write_report(ReportConfig(runs=runs, baseline=runs[0], out=runs[0] / "turned.html")))
    assert [run["name"] for run in first["runs"]] == ["eval_late", "eval_good"]


def test_media_are_embedded_only_as_far_as_asked(runs: tuple[Path, Path]) -> None:
    out = runs[0] / "small.html"
    data = data_of(write_report(ReportConfig(runs=runs, embed_mb=0, out=out)))
    sources = [clip["src"] for clip in data["clips"] if "src" in clip]
    assert len(sources) == 2 * CLIPS - 1
    assert all((out.parent / unquote(src)).is_file() for src in sources)


def test_a_prompt_cannot_break_the_page(runs: tuple[Path, Path], tmp_path: Path, one_browser: Any) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "summary.json").write_text((runs[0] / "summary.json").read_text())
    lines = [json.loads(line) for line in (runs[0] / "results.jsonl").read_text().splitlines()]
    lines[0]["text"] = HOSTILE
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = write_report(ReportConfig(runs=(folder,), title=HOSTILE))
    with page(out) as shown:
        assert shown.inner_text("#title") == HOSTILE
        assert shown.locator("#broken").count() == 0


def test_wrong_input_names_the_key(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no summary\.json"):
        main([str(tmp_path)])
    with pytest.raises(ValueError, match=r"headline=\['sink'\]"):
        main([str(runs[0]), "headline=[sink]"])
    summary = json.loads((runs[1] / "summary.json").read_text())
    summary["suite"]["digest"] = "of other prompts"
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "results.jsonl").write_text((runs[1] / "results.jsonl").read_text())
    with pytest.raises(ValueError, match="different suites"):
        main([str(runs[0]), str(tmp_path)])
    summary["suite"] = json.loads((runs[0] / "summary.json").read_text())["suite"]
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "schema": 1}))
    with pytest.raises(ValueError, match=r"schemas \['1', '2'\]: their clips were read otherwise"):
        main([str(runs[0]), str(tmp_path)])
    with pytest.raises(ValueError, match="resamples=1 must be at least 100"):
        main([str(runs[0]), "resamples=1"])


def test_a_folder_may_be_called_anything(runs: tuple[Path, Path], tmp_path: Path) -> None:
    named = tmp_path / "1500 (a=b), c"
    named.symlink_to(runs[0])
    assert main([str(named), f"out={tmp_path / 'page.html'}"]) == 0
    assert (tmp_path / "page.html").is_file()


def test_where_nothing_applies_there_is_no_coverage() -> None:
    silent = counted([{"value": None, "status": "not_applicable", "reason": "nothing sounds"}] * 3)
    assert page_figures({"mean": None, **silent})["coverage"] is None


@pytest.fixture(scope="module")
def shown(made: Path, one_browser: Any) -> Iterator[Any]:
    with page(made, viewport={"width": 1280, "height": 900}) as opened:
        yield opened


def test_a_browser_plays_a_clip_and_the_timeline_follows(shown: Any) -> None:
    shown.wait_for_function("document.querySelector('video')?.readyState >= 2")
    shown.evaluate("document.querySelector('video').muted = true")
    shown.keyboard.press("Space")
    shown.wait_for_function("document.querySelector('video').currentTime > 0.2")
    shown.keyboard.press("Space")
    shown.wait_for_function("document.querySelector('video').paused")
    assert shown.evaluate("document.querySelector('video').videoWidth") == 40
    shown.locator(".timeline").click(position={"x": 200, "y": 20})
    box = shown.locator(".timeline").bounding_box()
    shown.wait_for_function(f"Math.abs(document.querySelector('video').currentTime - {2 * 200 / box['width']}) < 0.1")
    shown.wait_for_function("document.querySelector('.timeline > line:last-of-type').getAttribute('x1') > 20")


def test_the_clip_list_sorts_filters_and_obeys_the_keyboard(shown: Any) -> None:
    shown.select_option("#clip-run", "eval_late")
    shown.select_option("#clip-metric", "toybox.sync")
    values = [float(v) for v in shown.locator("#clip-list li b").all_inner_texts() if v != "–"]
    assert values == sorted(values)
    shown.select_option("#clip-order", "best")
    best = [float(v) for v in shown.locator("#clip-list li b").all_inner_texts() if v != "–"]
    assert best == sorted(values, reverse=True)
    shown.locator("h1").click()
    shown.keyboard.press("j")
    assert shown.locator("#clip-list li").nth(1).get_attribute("aria-current") == "true"
    shown.keyboard.press("/")
    shown.keyboard.type("disc")
    texts = shown.locator("#clip-list li span:first-child").all_inner_texts()
    assert texts
    assert all("disc" in text.lower() for text in texts)
    shown.keyboard.press("Escape")
    shown.fill("#clip-filter", "")
    shown.select_option("#clip-run", "eval_good")


def test_the_table_sorts_and_filters(shown: Any) -> None:
    shown.fill("#metric-filter", "toybox")
    rows = shown.locator("#metrics tr[data-metric]")
    assert {name.split(".")[0] for name in rows.evaluate_all("rows => rows.map((r) => r.dataset.metric)")} == {"toybox"}
    shown.locator("#metrics thead button").first.click()
    shown.locator("#metrics thead button").first.click()
    names = rows.evaluate_all("rows => rows.map((r) => r.dataset.metric)")
    assert names == sorted(names, reverse=True)
    shown.fill("#metric-filter", "")


def test_failures_are_told(shown: Any) -> None:
    text = shown.inner_text("#failures")
    assert "no clip of prompt" in text
    assert "cannot be opened" in text


def test_light_dark_and_phone(made: Path, one_browser: Any) -> None:
    grounds = []
    for scheme, width in (("light", 1280), ("dark", 390)):
        window = one_browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 844})
        shown = window.new_page()
        shown.goto(made.resolve().as_uri())
        grounds.append(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert shown.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out sideways
        shown.keyboard.press("t")
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") != grounds[-1]
        window.close()
    assert grounds[0] != grounds[1]
