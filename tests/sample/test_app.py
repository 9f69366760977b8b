"""The page in a real browser, and the studio behind it."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from avgen.__main__ import main
from avgen.data.media import probe
from avgen.sample.config import SampleConfig
from avgen.sample.jobs import read_manifest
from avgen.sample.solvers import SolverConfig
from avgen.sample.studio import SHEET_WIDTH, Studio
from tests.sample.factory import files, pipeline

WAIT_MS = 120_000  # of a busy machine
QUICK = SolverConfig("euler", 2)


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@pytest.fixture
def asked(tmp_path):
    return SampleConfig(prompt="a", out=tmp_path / "out", solver=QUICK)


def test_a_clip_comes_with_its_sheet_and_its_line_and_is_made_once(pipe, asked):
    studio, steps = Studio(pipe, asked.out, 30), []
    first = studio.make(asked, lambda done, of: steps.append((done, of)))
    assert steps == [(1, 2), (2, 2)]
    assert probe(first.clip).video is not None
    assert Image.open(first.sheet).width == SHEET_WIDTH
    line = json.loads(first.line.read_text())
    assert [line] == read_manifest(asked.out)
    assert (line["prompt"], line["file"]) == ("a", first.clip.name)
    assert studio.make(asked, lambda done, of: steps.append("again")) == first
    assert "again" not in steps
    assert studio.make(replace(asked, seed=1)).clip != first.clip
    first.clip.unlink()
    assert studio.make(asked).clip.is_file()


def test_what_people_give_is_kept_and_told_apart(pipe, asked, tmp_path):
    video = files(tmp_path)["video"]
    studio = Studio(pipe, asked.out, 30)
    shown = studio.make(replace(asked, task="v2a", video=video))
    kept = Path(json.loads(shown.line.read_text())["video"])
    assert kept.read_bytes() == video.read_bytes()
    assert kept.is_relative_to(asked.out)
    video.write_bytes(b"another")
    assert studio.keep(video) != kept
    video.unlink()
    assert str(kept) in " ".join(shown.notes)


def test_two_who_ask_at_once_each_get_theirs(pipe, asked):
    studio, inside, most = Studio(pipe, asked.out, 30), [], []

    def ask(seed):
        def step(done, of):
            inside.append(seed)
            most.append(len(set(inside)))
            if done == of:
                inside[:] = [s for s in inside if s != seed]

        got[seed] = studio.make(replace(asked, seed=seed), step)

    got = {}
    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert {json.loads(shown.line.read_text())["seed"] for shown in got.values()} == {0, 1, 2, 3}
    assert len(read_manifest(asked.out)) == 4


def test_too_long_a_clip_is_refused(pipe, asked):
    with pytest.raises(ValueError, match=r"duration_s=40 is more than the 30 s"):
        Studio(pipe, asked.out, 30).make(replace(asked, duration_s=40.0))


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert capsys.readouterr().err == (
        "error: avgen app needs gradio, which is not installed: pip install 'avgen[demo]'\n"
    )


@pytest.fixture(scope="module")
def chromium():
    """A page factory of a headless browser."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'avgen[demo]'")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def url(pipe, asked):
    from avgen.sample.app import AppConfig
    from avgen.sample.page import serve

    served = serve(Studio(pipe, asked.out, 30), AppConfig(out=asked.out, solver=QUICK))
    yield served.local_url
    served.close()


def choose(page, task):
    page.locator("#task input").click()
    page.get_by_role("option", name=task, exact=True).click()


def playing(page):
    """How long the clip lasts, once the browser can play it through."""
    ready = "() => { const v = document.querySelector('#clip video'); return v && v.readyState >= 3 && v.currentSrc }"
    source = page.wait_for_function(ready, timeout=WAIT_MS).json_value()
    page.evaluate("() => { const v = document.querySelector('#clip video'); v.muted = true; return v.play() }")
    page.wait_for_function("() => document.querySelector('#clip video').currentTime > 0.2", timeout=WAIT_MS)
    return source, page.evaluate("() => document.querySelector('#clip video').duration")


@pytest.mark.slow
def test_a_person_makes_clips_and_is_told_what_is_wrong(chromium, url, asked, tmp_path):
    page = chromium.new_page()
    page.set_default_timeout(WAIT_MS)
    broken = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(url)
    page.locator("#prompt textarea").fill("a red ball")
    assert not any(page.locator(f"#{kind}").is_visible() for kind in ("image", "video", "audio"))
    page.locator("#make").click()
    first, duration_s = playing(page)
    assert duration_s == pytest.approx(1.0, abs=0.1)
    wide = "() => { const i = document.querySelector('#sheet img'); return i && i.complete && i.naturalWidth }"
    assert page.wait_for_function(wide).json_value() == SHEET_WIDTH

    choose(page, "Video to sound")
    page.locator("#video").wait_for(state="visible")
    assert not page.locator("#image").is_visible()
    page.locator("#make").click()
    page.get_by_text("Video to sound needs a video").wait_for()
    page.get_by_label("Close").or_(page.locator(".toast-close")).first.click()

    wrong = tmp_path / "wrong.mp4"
    wrong.write_bytes(b"this is no video")
    page.locator("#video input[type=file]").set_input_files(wrong)
    page.get_by_text("wrong.mp4").first.wait_for()
    page.locator("#make").click()
    page.locator(".toast-body").wait_for()
    assert "wrong.mp4" in page.locator(".toast-body").inner_text()
    assert "Traceback" not in page.content()

    page.reload()
    choose(page, "Video to sound")
    page.locator("#video input[type=file]").set_input_files(files(tmp_path)["video"])
    page.locator("#video video").wait_for()
    page.locator("#make").click()
    second, duration_s = playing(page)
    assert second != first
    assert duration_s == pytest.approx(1.0, abs=0.1)
    page.get_by_text("copied bit for bit").wait_for()
    with page.expect_download() as saved:
        page.locator("#save_line").click()
    assert json.loads(Path(saved.value.path()).read_text())["task"] == "v2a"
    with page.expect_download() as saved:
        page.locator("#save").click()
    assert probe(Path(saved.value.path())).audio is not None
    assert [line["task"] for line in read_manifest(asked.out)] == ["t2av", "v2a"]
    assert broken == []
