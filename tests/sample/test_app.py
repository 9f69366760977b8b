"""The page in a real browser, and the studio behind it."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from avgen.__main__ import main
from avgen.data.media import probe
from avgen.sample.config import SampleConfig
from avgen.sample.guidance import Guidance, ModalityGuidance
from avgen.sample.inputs import Edit
from avgen.sample.jobs import read_manifest
from avgen.sample.solvers import SolverConfig
from avgen.sample.studio import SHEET_WIDTH, Studio
from tests.browser import TIMEOUT_MS, browser
from tests.sample.factory import files, pipeline

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


@pytest.mark.parametrize(
    ("begin", "end", "which", "wanted"),
    [
        ("", "", "video", Edit(remake="video")),
        ("", "1", "both", Edit(hole_s=(0.0, 1.0))),
        ("0.5", "1", "audio", Edit(remake="audio", hole_s=(0.5, 1.0))),
        ("", "", "both", "say from when to when"),
        ("0.5", "", "both", "say where the part to make anew ends"),
    ],
)
def test_what_is_to_be_made_anew_is_read_from_the_fields(begin, end, which, wanted):
    from avgen.sample.page import edit_of  # gradio takes seconds to import

    if isinstance(wanted, Edit):
        assert edit_of("inpaint", begin, end, which) == wanted
    else:
        with pytest.raises(ValueError, match=wanted):
            edit_of("inpaint", begin, end, which)


def test_what_people_give_is_kept_and_told_apart(pipe, asked, tmp_path):
    video = files(tmp_path)["video"]
    studio = Studio(pipe, asked.out, 30)
    shown = studio.make(replace(asked, task="v2a", video=video))
    kept = Path(json.loads(shown.line.read_text())["video"])
    assert kept.read_bytes() == video.read_bytes()
    assert kept.is_relative_to(asked.out)
    again = tmp_path / "upload" / video.name  # a browser's upload lies elsewhere each time
    again.parent.mkdir()
    again.write_bytes(video.read_bytes())
    assert studio.make(replace(asked, task="v2a", video=again)) == shown
    video.write_bytes(b"another")
    assert studio.keep(video, ExitStack()) != kept
    assert video.name in " ".join(shown.notes)
    assert kept.name not in " ".join(shown.notes)


def test_of_a_refused_request_nothing_is_kept_but_what_others_gave(pipe, asked, tmp_path):
    studio, given = Studio(pipe, asked.out, 30), files(tmp_path)
    wrong = tmp_path / "wrong.mp4"
    wrong.write_bytes(b"this is no video")
    too_long = replace(asked, task="v2a", video=given["video"], duration_s=40.0)
    nothing_to_add = replace(asked, task="extend", video=given["video"])  # known only when it is read
    for refused in (replace(asked, task="v2a", video=wrong), too_long, nothing_to_add):
        with pytest.raises(ValueError, match=r"cannot be opened|more than the 30 s|leaves nothing to add"):
            studio.make(refused)
        assert list(studio.given.iterdir()) == []
    shown = studio.make(replace(too_long, duration_s=None))
    (kept,) = studio.given.iterdir()
    with pytest.raises(ValueError, match="more than the 30 s"):
        studio.make(too_long)
    assert list(studio.given.iterdir()) == [kept]
    assert studio.make(replace(too_long, duration_s=None)) == shown


def test_a_copy_that_fails_leaves_nothing(pipe, asked, tmp_path, monkeypatch):
    def full(source, target):
        target.write_bytes(b"half")
        raise OSError("no space left")

    studio, video = Studio(pipe, asked.out, 30), files(tmp_path)["video"]
    monkeypatch.setattr("avgen.sample.studio.shutil.copyfile", full)
    with pytest.raises(OSError, match="no space left"):
        studio.make(replace(asked, task="v2a", video=video))
    assert list(studio.given.iterdir()) == []


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
        "error: avgen app needs gradio, which is not installed: pip install -e '.[demo]'\n"
    )


@contextmanager
def served(pipe, out, **config):
    pytest.importorskip("gradio", reason="no gradio: install the demo extra")
    from avgen.sample.app import AppConfig
    from avgen.sample.page import serve

    page = serve(Studio(pipe, out, 30), AppConfig(out=out, **{"solver": QUICK, **config}))
    yield page.local_url
    page.close()


@pytest.fixture
def url(pipe, asked, tmp_path, monkeypatch):
    """Of a page whose folder is neither where it was started nor among temporary files: gradio lets both be shown."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with served(pipe, asked.out) as address:
        yield address


def ask(url, **changed):
    """What the button does with the form as it first stands, but for the fields of these labels; what it is told."""
    import httpx  # gradio's own

    page = httpx.get(f"{url}config").json()
    parts = {part["id"]: part for part in page["components"]}
    make = max(page["dependencies"], key=lambda event: len(event["inputs"]))
    fields = [parts[i] for i in make["inputs"]]
    first = [f["props"].get("value") or ("" if f["type"] == "textbox" else None) for f in fields]
    data = [changed.get(f["props"]["label"], value) for f, value in zip(fields, first, strict=True)]
    who = uuid.uuid4().hex
    with httpx.Client(base_url=f"{url}gradio_api", timeout=TIMEOUT_MS / 1000) as server:
        server.post("/queue/join", json={"data": data, "fn_index": make["id"], "session_hash": who}).raise_for_status()
        with server.stream("GET", "/queue/data", params={"session_hash": who}) as told:
            done = next(line for line in told.iter_lines() if '"process_completed"' in line)
    return json.loads(done.removeprefix("data:"))["output"]


def upload(url, path):
    import httpx

    (there,) = httpx.post(f"{url}gradio_api/upload", files={"files": (path.name, path.read_bytes())}).json()
    return {"path": there, "meta": {"_type": "gradio.FileData"}}


def test_a_visitor_can_fetch_the_clip_and_no_file_of_the_folder(url, asked, tmp_path):
    import httpx

    shown = ask(url, Task="v2a", Video=upload(url, files(tmp_path)["video"]))
    clip = shown["data"][0]["value"]
    fetched = httpx.get(clip["url"])
    (line,) = read_manifest(asked.out)
    assert fetched.status_code == 200
    assert fetched.content == (asked.out / line["file"]).read_bytes()
    for kept in (asked.out / "manifest.jsonl", asked.out / line["file"], Path(line["video"])):
        assert kept.is_file()
        assert httpx.get(f"{url}gradio_api/file={kept}").status_code == 403


def test_what_is_wrong_is_said_in_the_words_of_the_page(url, asked, tmp_path):
    def told(**changed):
        return ask(url, **changed)["error"]

    video = upload(url, files(tmp_path)["video"])
    wrong = tmp_path / "wrong.html"
    wrong.write_text("<script></script>")
    assert told(Task="v2a") == "Video to sound needs a video"
    assert told(Task="extend") == "Extend a clip needs a video, a sound or both: what is to go on"
    assert told(Task="v2a", Video=upload(url, wrong)).startswith("wrong.html: cannot be opened as media")
    assert told(Task="extend", Video=video).startswith("Extend a clip: the picture given is 1 s long and Duration=1 ")
    late = {"Task": "inpaint", "Video": video, "Anew from (s)": "3", "to (s)": "4"}
    assert told(**late).startswith("in.mp4: the part to make anew=[3,4] lies outside the clip")
    assert list((asked.out / "given").iterdir()) == []


@pytest.mark.parametrize(("text", "steps"), [(0.5, 2), (12.0, 101)])
def test_the_form_can_be_sent_as_the_page_was_started(pipe, asked, text, steps):
    guided = Guidance(ModalityGuidance(text=text), ModalityGuidance(text=text))
    with served(pipe, asked.out, guidance=guided, solver=SolverConfig("euler", steps)) as url:
        assert "error" not in ask(url)
    (line,) = read_manifest(asked.out)
    assert (line["guidance"]["video"]["text"], line["solver"]["steps"]) == (text, steps)


def choose(shown, task):
    shown.locator("#task input").click()
    shown.get_by_role("option", name=task, exact=True).click()


def playing(shown):
    """How long the clip lasts, once the browser can play it through."""
    ready = "() => { const v = document.querySelector('#clip video'); return v && v.readyState >= 3 && v.currentSrc }"
    source = shown.wait_for_function(ready, timeout=TIMEOUT_MS).json_value()
    shown.evaluate("() => { const v = document.querySelector('#clip video'); v.muted = true; return v.play() }")
    shown.wait_for_function("() => document.querySelector('#clip video').currentTime > 0.2", timeout=TIMEOUT_MS)
    return source, shown.evaluate("() => document.querySelector('#clip video').duration")


@pytest.mark.slow
def test_a_person_makes_clips_and_is_told_what_is_wrong(url, asked, tmp_path):
    with browser() as opened:
        shown = opened.new_page()
        shown.set_default_timeout(TIMEOUT_MS)
        broken = []  # the console's errors do not count: the browser complains there of the broken video
        shown.on("pageerror", lambda error: broken.append(str(error)))
        shown.goto(url)
        shown.locator("#prompt textarea").fill("a red ball")
        assert not any(shown.locator(f"#{kind}").is_visible() for kind in ("image", "video", "audio"))
        shown.locator("#make").click()
        first, duration_s = playing(shown)
        assert duration_s == pytest.approx(1.0, abs=0.1)
        wide = "() => { const i = document.querySelector('#sheet img'); return i && i.complete && i.naturalWidth }"
        assert shown.wait_for_function(wide).json_value() == SHEET_WIDTH

        choose(shown, "Video to sound")
        shown.locator("#video").wait_for(state="visible")
        assert not shown.locator("#image").is_visible()
        shown.locator("#make").click()
        shown.get_by_text("Video to sound needs a video").wait_for()
        shown.get_by_label("Close").or_(shown.locator(".toast-close")).first.click()

        wrong = tmp_path / "wrong.mp4"
        wrong.write_bytes(b"this is no video")
        shown.locator("#video input[type=file]").set_input_files(wrong)
        # its name is on the page only while it is sent: what stays is a player
        shown.locator("#video video").wait_for(state="attached")
        shown.locator("#make").click()
        # gradio's player says on its own that it cannot play the file: ours is the message that names it
        shown.locator(".toast-body", has_text="wrong.mp4").wait_for()
        assert "Traceback" not in shown.content()

        shown.reload()
        choose(shown, "Video to sound")
        shown.locator("#video input[type=file]").set_input_files(files(tmp_path)["video"])
        shown.locator("#video video").wait_for()
        shown.locator("#make").click()
        second, duration_s = playing(shown)
        assert second != first
        assert duration_s == pytest.approx(1.0, abs=0.1)
        shown.get_by_text("copied bit for bit").wait_for()
        with shown.expect_download() as saved:
            shown.locator("#save_line").click()
        assert json.loads(Path(saved.value.path()).read_text())["task"] == "v2a"
        with shown.expect_download() as saved:
            shown.locator("#save").click()
        assert probe(Path(saved.value.path())).audio is not None
        shown.close()
    assert [line["task"] for line in read_manifest(asked.out)] == ["t2av", "v2a"]
    assert broken == []


@pytest.mark.parametrize("largest", ["200", "abc", "2 bytes"])
def test_a_size_without_its_unit_is_refused(largest):
    from avgen.sample.app import AppConfig

    with pytest.raises(ValueError, match="must be a number and a unit"):
        AppConfig(largest=largest)
