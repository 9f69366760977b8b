"""The blind page: which clip is A is drawn evenly and told with every answer, and nobody can see which is which."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection

import pytest

from avgen.data.media import write_clip
from avgen.lines import whole_lines
from avgen.prefer.label import ANSWERS, LabelConfig, Survey, questions, served
from avgen.prefer.pairs import Pair, Side, read_pairs, write_pairs
from avgen.sample.inputs import Form
from tests.browser import TIMEOUT_MS, browser, page
from tests.sample.factory import clip

FORM = Form(1.0, 8.0, 16, 16)


def pairs_in(root, count=4):
    root.mkdir()
    for name in ("upper", "lower"):
        write_clip(root / f"{name}.mp4", clip(), comment=name)
    hashes = {n: hashlib.sha256((root / f"{n}.mp4").read_bytes()).hexdigest() for n in ("upper", "lower")}
    found = []
    for i in range(count):
        sides = []
        for name, digest in hashes.items():
            file = root / f"{name}_{i}.mp4"
            file.write_bytes((root / f"{name}.mp4").read_bytes())
            sides.append(Side(file.name, 0, digest))
        found.append(Pair(f"p{i}", f"caption {i}", "t2av", FORM, *sides, ("video", "audio"), "metrics", {"x": 1.0}))
    write_pairs(root / "pairs.jsonl", found)
    return found


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_either_order_is_drawn_as_often(tmp_path, count):
    pairs = pairs_in(tmp_path / "pairs", 1) * count
    for seed in range(5):
        asked = questions(pairs, seed)
        assert sorted(q.number for q in asked) == list(range(count))
        assert abs(sum(q.winner_is_a for q in asked) - count / 2) <= 0.5
    drawn = [tuple(q.winner_is_a for q in questions(pairs, seed)) for seed in range(20)]
    assert len(set(drawn)) > 1


def test_answers_go_on_where_they_stopped_and_become_pairs(tmp_path):
    pairs_in(tmp_path / "pairs")
    config = LabelConfig(tmp_path / "pairs", "ann", tmp_path / "out")
    survey = Survey(config)
    first, second, third, _ = survey.open
    survey.answer(first.number, "a" if first.winner_is_a else "b", 1.0)
    survey.answer(second.number, "b" if second.winner_is_a else "a", 1.0)
    survey.answer(third.number, "tie", 1.0)
    with pytest.raises(ValueError, match="no open question"):
        survey.answer(first.number, "a", 1.0)
    again = Survey(config)
    assert len(again.open) == 1
    assert "3 answers, 2 of which prefer a clip: 50% of those agree" in again.report()
    labelled = {pair.prompt: pair for pair in read_pairs(tmp_path / "out")}
    assert set(labelled) == {first.pair.prompt, second.pair.prompt}
    assert "upper" in labelled[first.pair.prompt].winner.file
    assert "lower" in labelled[second.pair.prompt].winner.file
    assert all((tmp_path / "out" / s.file).is_file() for p in labelled.values() for s in (p.winner, p.loser))
    assert {pair.by for pair in labelled.values()} == {"ann"}
    assert len(Survey(LabelConfig(tmp_path / "pairs", "bob", tmp_path / "out")).open) == 4


def test_two_people_who_answer_at_once_lose_nothing_of_each_other(tmp_path):
    pairs_in(tmp_path / "pairs")
    ann, bob = (Survey(LabelConfig(tmp_path / "pairs", name, tmp_path / "out")) for name in ("ann", "bob"))
    for survey in (ann, bob, ann):
        survey.answer(survey.open[0].number, "a", 1.0)
    assert sorted(pair.by for pair in read_pairs(tmp_path / "out")) == ["ann", "ann", "bob"]
    assert len(ann.open) == 2


def test_a_second_round_into_the_same_folder_keeps_the_pairs_of_the_first(tmp_path):
    pairs_in(tmp_path / "one", 2)
    rounds = [replace(pair, prompt=f"q{i}") for i, pair in enumerate(pairs_in(tmp_path / "two", 2))]
    write_pairs(tmp_path / "two" / "pairs.jsonl", rounds)
    for folder in ("one", "two", "one"):  # the last has nothing left to ask, and asks for the pairs again
        survey = Survey(LabelConfig(tmp_path / folder, "ann", tmp_path / "out"))
        for question in survey.open:
            survey.answer(question.number, "a", 1.0)
        survey.write_pairs()
    labelled = read_pairs(tmp_path / "out")
    assert sorted(pair.prompt for pair in labelled) == ["p0", "p1", "q0", "q1"]
    assert all((tmp_path / "out" / s.file).is_file() for p in labelled for s in (p.winner, p.loser))


def test_pairs_of_another_round_whose_clips_were_made_anew_are_left_out_and_the_answers_stay(tmp_path, capsys):
    """Training would refuse all the others with them."""
    for name in ("one", "two"):
        found = pairs_in(tmp_path / name, 3)
        write_pairs(tmp_path / name / "pairs.jsonl", [replace(p, prompt=f"{name} {i}") for i, p in enumerate(found)])
    survey = Survey(LabelConfig(tmp_path / "one", "ann", tmp_path / "out"))
    for question in survey.open:
        survey.answer(question.number, "a", 1.0)
    (tmp_path / "one" / "upper_0.mp4").write_bytes(b"made anew")
    (tmp_path / "one" / "lower_1.mp4").unlink()
    other = Survey(LabelConfig(tmp_path / "two", "ann", tmp_path / "out"))
    other.answer(other.open[0].number, "a", 1.0)
    other.answer(other.open[0].number, "a", 1.0)
    assert sorted(pair.prompt for pair in read_pairs(tmp_path / "out") if "one" in pair.prompt) == ["one 2"]
    assert len(read_pairs(tmp_path / "out")) == 3
    assert len(whole_lines(tmp_path / "out" / ANSWERS)) == 5
    said = capsys.readouterr().out
    assert said.count("upper_0.mp4 is not the clip") == said.count("lower_1.mp4 is not there") == 1


@pytest.mark.parametrize("form", ["", "pairs.jsonl"])
def test_answers_do_not_take_the_place_of_the_pairs_they_are_about(tmp_path, form, monkeypatch):
    pairs_in(tmp_path / "pairs")
    before = (tmp_path / "pairs" / "pairs.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"out=.*: give another out"):
        Survey(LabelConfig(tmp_path / "pairs" / form, "ann", tmp_path / "pairs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "pairs").rename(tmp_path / "runs" / "labels")
    with pytest.raises(ValueError, match=r"runs/labels is the default"):
        Survey(LabelConfig(tmp_path / "runs" / "labels" / form, "ann"))
    assert (tmp_path / "runs" / "labels" / "pairs.jsonl").read_bytes() == before


@contextmanager
def started(config):
    """Its port, and the survey."""
    server, survey = served(replace(config, port=0))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], survey
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving(config):
    """Asks it: path, body to POST and headers -> code, headers, what it says."""

    def ask(path, body=None, **headers):
        link = HTTPConnection("127.0.0.1", port, timeout=60)
        link.request("GET" if body is None else "POST", path, body, headers)
        answer = link.getresponse()
        said = answer.read()
        link.close()
        return answer.status, answer.headers, said

    with started(config) as (port, _):
        yield ask


def test_a_page_of_an_earlier_start_answers_nothing(tmp_path):
    """Its A may be what is B now."""
    pairs_in(tmp_path / "pairs")
    config = LabelConfig(tmp_path / "pairs", "ann", tmp_path / "out")
    with serving(config) as ask:
        stale = json.loads(ask("/next")[2])["token"]
    with serving(replace(config, seed=1)) as ask:
        code, _, said = ask("/answer", json.dumps({"token": stale, "choice": "a", "seconds": 1}))
        assert (code, b"earlier start" in said) == (400, True)
        assert ask(f"/clip/{stale}/a")[0] == 404
        for wrong in ('{"number": 0, "choice": "a", "seconds": 1}', "[]", "no json"):
            assert ask("/answer", wrong)[0] == 400
        assert not (tmp_path / "out" / ANSWERS).exists()
        now = json.loads(ask("/next")[2])
        assert now["left"] == 4
        assert ask("/answer", json.dumps({"token": now["token"], "choice": "a", "seconds": 1}))[0] == 200
        assert json.loads(ask("/next")[2])["left"] == 3
    assert len(whole_lines(tmp_path / "out" / ANSWERS)) == 1


def test_a_browser_may_ask_for_clips_in_parts(tmp_path):
    pairs_in(tmp_path / "pairs", 1)
    with serving(LabelConfig(tmp_path / "pairs", "ann", tmp_path / "out")) as ask:
        clip_a = f"/clip/{json.loads(ask('/next')[2])['token']}/a"
        code, headers, whole = ask(clip_a)
        assert (code, headers["Accept-Ranges"]) == (200, "bytes")
        size = len(whole)
        parts = {"0-1": (0, 2), "5-": (5, size), "-7": (size - 7, size), f"3-{10 * size}": (3, size)}
        for asked, (begin, end) in parts.items():
            code, headers, part = ask(clip_a, Range=f"bytes={asked}")
            assert (code, part) == (206, whole[begin:end])
            assert headers["Content-Range"] == f"bytes {begin}-{end - 1}/{size}"
            assert headers["Content-Length"] == str(end - begin)
        assert ask(clip_a, Range=f"bytes={size}-")[0] == 416
        assert ask(clip_a, Range="bytes=0-1,4-5")[2] == whole  # what it does not know it may leave aside


def test_nobody_answers_a_question_twice_in_two_tabs(tmp_path):
    pairs_in(tmp_path / "pairs")
    config = LabelConfig(tmp_path / "pairs", "ann", tmp_path / "out")
    one, other = Survey(config), Survey(config)
    number = one.open[0].number
    one.answer(number, "a", 1.0)
    with pytest.raises(ValueError, match="no open question"):
        other.answer(number, "b", 1.0)
    assert len(whole_lines(tmp_path / "out" / ANSWERS)) == 1


def test_clips_that_are_not_those_compared_are_not_shown(tmp_path):
    pairs_in(tmp_path / "pairs")
    (tmp_path / "pairs" / "upper_2.mp4").write_bytes(b"another clip of that name")
    with pytest.raises(ValueError, match=r"upper_2\.mp4 is not the clip that was compared"):
        Survey(LabelConfig(tmp_path / "pairs", "ann", tmp_path / "out"))


def test_clips_that_are_gone_are_not_asked_about(tmp_path):
    pairs_in(tmp_path / "pairs")
    (tmp_path / "pairs" / "lower_1.mp4").unlink()
    with pytest.raises(ValueError, match=r"lower_1\.mp4 is not there, but stands in a pair"):
        Survey(LabelConfig(tmp_path / "pairs", "ann", tmp_path / "out"))


def test_pairs_that_a_kill_left_unwritten_are_written_at_the_next_start(tmp_path):
    pairs_in(tmp_path / "pairs", 1)
    config = LabelConfig(tmp_path / "pairs", "ann", tmp_path / "out")
    survey = Survey(config)
    survey.answer(survey.open[0].number, "a", 1.0)
    written = (tmp_path / "out" / "pairs.jsonl").read_bytes()
    (tmp_path / "out" / "pairs.jsonl").unlink()
    assert not Survey(config).open
    assert (tmp_path / "out" / "pairs.jsonl").read_bytes() == written


def test_a_port_that_is_taken_or_none_is_refused(tmp_path):
    pairs_in(tmp_path / "pairs")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port} cannot be listened at"):
            served(LabelConfig(tmp_path / "pairs", "ann", tmp_path / "out", port=port))
    with pytest.raises(ValueError, match="port=99999 must lie between"):
        LabelConfig(tmp_path / "pairs", "ann", port=99999)


def test_a_line_that_a_kill_cut_short_costs_no_other(tmp_path):
    pairs_in(tmp_path / "pairs")
    config = LabelConfig(tmp_path / "pairs", "ann", tmp_path / "out")
    survey = Survey(config)
    survey.answer(survey.open[0].number, "a", 1.0)
    with survey.path.open("a") as file:
        file.write('{"name": "ann", "pr')
    again = Survey(config)
    again.answer(again.open[0].number, "b", 1.0)
    assert [answer["choice"] for answer in Survey(config).answers] == ["a", "b"]


def test_what_people_choose_wins_whatever_the_metrics_say_later(tmp_path):
    (one,) = pairs_in(tmp_path / "pairs", 1)
    seen, heard = replace(one, trains=("video",)), replace(one, winner=one.loser, loser=one.winner, trains=("audio",))
    write_pairs(tmp_path / "pairs" / "pairs.jsonl", [seen, heard])
    config = LabelConfig(tmp_path / "pairs", "ann", tmp_path / "out")
    survey = Survey(config)
    assert [q.asked["judged"] for q in sorted(survey.open, key=lambda q: q.number)] == [
        "the picture alone",
        "the sound alone",
    ]
    for question in survey.open:  # of both questions the same clip is the better
        survey.answer(question.number, "a" if "upper" in question.side("a").file else "b", 1.0)
    assert not survey.open
    labelled = read_pairs(tmp_path / "out")
    assert {pair.trains for pair in labelled} == {("video",), ("audio",)}
    assert all("upper" in pair.winner.file for pair in labelled)
    # mined again, with the metrics of another mind: the answers stand
    write_pairs(tmp_path / "pairs" / "pairs.jsonl", [replace(seen, winner=one.loser, loser=one.winner), heard])
    again = Survey(config)
    assert not again.open
    again.write_pairs()
    assert all("upper" in pair.winner.file for pair in read_pairs(tmp_path / "out"))
    # other clips under the same names were never looked at
    other = tmp_path / "pairs" / one.winner.file
    other.write_bytes(b"another clip")
    winner = replace(one.winner, sha256=hashlib.sha256(b"another clip").hexdigest())
    write_pairs(tmp_path / "pairs" / "pairs.jsonl", [replace(seen, winner=winner)])
    assert len(Survey(config).open) == 1


@pytest.mark.slow
def test_a_person_answers_by_keys_and_by_clicks_and_sees_no_names(tmp_path):
    pairs_in(tmp_path / "pairs")
    config = LabelConfig(tmp_path / "pairs", "ann", tmp_path / "out")
    with started(config) as (port, survey), page(f"http://127.0.0.1:{port}/") as shown:
        for left, choose in ((4, "1"), (3, "3"), (2, None), (1, "4")):
            shown.get_by_text(f"{left} left").wait_for()
            shown.wait_for_function("() => document.getElementById('a').readyState >= 2", timeout=TIMEOUT_MS)
            assert "upper" not in shown.content()
            assert "lower" not in shown.content()
            if choose:
                shown.keyboard.press(choose)
            else:
                shown.get_by_text("B is better").click()
        shown.get_by_text("4 answers, 2 of which prefer a clip").wait_for()
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [line["choice"] for line in lines] == ["a", "tie", "b", "unsure"]
    for line, asked in zip(lines, survey.questions, strict=True):
        assert line["winner_is_a"] == asked.winner_is_a == ("upper" in line["a"])
        assert line["agrees"] == {"a": asked.winner_is_a, "b": not asked.winner_is_a}.get(line["choice"])


@pytest.mark.slow
def test_a_page_that_was_left_open_shows_the_question_anew(tmp_path):
    pairs_in(tmp_path / "pairs")
    config = LabelConfig(tmp_path / "pairs", "ann", tmp_path / "out")
    with started(config) as (port, survey), browser() as opened:  # not `page`, to which a refusal is an error
        shown = opened.new_context().new_page()
        shown.set_default_timeout(TIMEOUT_MS)
        shown.goto(f"http://127.0.0.1:{port}/")
        shown.get_by_text("4 left").wait_for()
        survey.secret = "of another start"
        shown.keyboard.press("1")
        shown.get_by_text("4 left. Not taken").wait_for()
        assert not survey.answers
        shown.keyboard.press("1")
        shown.get_by_text("3 left").wait_for()
        shown.context.close()
    assert len(survey.answers) == 1
