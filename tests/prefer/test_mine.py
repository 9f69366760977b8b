"""Mining: which clips make pairs, which make none, and that every one of those is told why."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avgen.__main__ import main
from avgen.prefer.candidates import read_pool
from avgen.prefer.config import Group, PreferConfig
from avgen.prefer.mine import mine
from avgen.prefer.page import write_page
from avgen.prefer.pairs import read_pairs, write_pairs
from tests.prefer.scored import folders

DIRECTIONS = {"look": "higher", "noise": "lower", "offset": "zero", "level": "none"}
LOOK = Group({"look": 1.0}, ("video",))
NOISE = Group({"noise": 1.0}, ("audio",))
BOTH = {"picture": LOOK, "sound": NOISE}


def mined(root, scores, groups, directions=DIRECTIONS, said=(), **changes):
    clips, results = folders(root, scores, directions, **dict(said))
    config = PreferConfig(clips, results, root / "pairs", groups, **changes)
    return mine(read_pool(clips, results), config)


def sides(found):
    return [(pair.prompt, pair.winner.seed, pair.loser.seed) for pair in found.pairs]


def reasons(found):
    return Counter(one.reason for one in found.excluded)


def test_all_wants_every_group_modality_asks_each_and_sum_weighs(tmp_path):
    # seed 0 looks best, seed 1 sounds best; lower noise is better
    scores = {"a": [{"look": 3.0, "noise": 5.0}, {"look": 1.0, "noise": 1.0}], "b": [{"look": 0.0, "noise": 0.0}] * 2}
    scores["b"] = [{"look": 2.0, "noise": 1.0}, {"look": 1.0, "noise": 2.0}]
    assert sides(mined(tmp_path, scores, BOTH, mode="all")) == [("b", 0, 1)]
    each = mined(tmp_path, scores, BOTH, mode="modality")
    assert [(p.prompt, p.winner.seed, p.trains) for p in each.pairs] == [
        ("a", 0, ("video",)),
        ("a", 1, ("audio",)),
        ("b", 0, ("video",)),
        ("b", 0, ("audio",)),
    ]
    assert sides(mined(tmp_path, scores, BOTH, mode="sum")) == [("a", 1, 0), ("b", 0, 1)]
    louder = BOTH | {"picture": Group({"look": 1.0}, ("video",), weight=10.0)}
    assert sides(mined(tmp_path, scores, louder, mode="sum")) == [("a", 0, 1), ("b", 0, 1)]


def test_two_sounds_of_one_picture_may_be_trained_as_a_choice_of_t2av(tmp_path):
    scores = {"a": [{"noise": 5.0}, {"noise": 1.0}]}
    for asked, task in ((None, "v2a"), ("t2av", "t2av")):
        [pair] = mined(tmp_path, scores, {"sound": Group({"noise": 1.0})}, said={"task": "v2a"}, train_as=asked).pairs
        assert (pair.task, pair.trains, pair.winner.seed) == (task, ("audio",), 1)  # the picture is the same in both


def test_clips_without_sound_are_not_trained_as_a_choice_of_t2av(tmp_path):
    """Training would read a sound that their files do not have."""
    scores = {"a": [{"look": 1.0}, {"look": 2.0}]}
    found = mined(tmp_path, scores, {"picture": LOOK}, said={"task": "t2v"}, train_as="t2av")
    assert not found.pairs
    lacking = [(one.seed, one.says) for one in found.excluded if "lacks what train_as=t2av has" in one.reason]
    assert lacking == [(0, "task t2v has no audio"), (1, "task t2v has no audio")]
    [pair] = mined(tmp_path, scores, {"picture": LOOK}, said={"task": "t2v"}).pairs
    assert (pair.task, pair.trains) == ("t2v", ("video",))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=6), st.booleans())
def test_a_winner_is_ahead_in_every_group_and_the_gap_is_the_widest(tmp_path_factory, table, per_prompt_scale):
    root = tmp_path_factory.mktemp("mine")
    scores = {"a": [{"look": float(x), "noise": float(y)} for x, y in table]}
    found = mined(root, scores, BOTH, normalise="prompt" if per_prompt_scale else "pool")
    clear = [(i, j) for i, a in enumerate(table) for j, b in enumerate(table) if a[0] > b[0] and a[1] < b[1]]
    assert len(found.pairs) == bool(clear)
    assert len(found.pairs) + len(found.excluded) >= 1
    if found.pairs:
        deviations = [max(1e-9, (sum((v - sum(c) / len(c)) ** 2 for v in c) / len(c)) ** 0.5) for c in zip(*table)]  # noqa: B905

        def gap(i, j):
            return (table[i][0] - table[j][0]) / deviations[0] + (table[j][1] - table[i][1]) / deviations[1]

        [pair] = found.pairs
        assert (pair.winner.seed, pair.loser.seed) in clear
        assert gap(pair.winner.seed, pair.loser.seed) == pytest.approx(max(gap(i, j) for i, j in clear))
        assert sum(pair.gaps.values()) == pytest.approx(gap(pair.winner.seed, pair.loser.seed), abs=1e-5)


def test_directions_decide_what_is_better(tmp_path):
    offset = {"joint": Group({"offset": 1.0})}
    scores = {"a": [{"offset": -0.3}, {"offset": 0.1}, {"offset": 0.4}]}
    assert sides(mined(tmp_path, scores, offset)) == [("a", 1, 2)]
    level = [{"level": 1.0}, {"level": 2.0}]
    assert sides(mined(tmp_path / "up", {"a": level}, {"x": Group({"level": 1.0})})) == [("a", 1, 0)]
    assert sides(mined(tmp_path / "down", {"a": level}, {"x": Group({"level": -1.0})})) == [("a", 0, 1)]
    with pytest.raises(ValueError, match=r"noise=-1\.0 is negative, but the results say"):
        mined(tmp_path / "no", {"a": [{"noise": 1.0}]}, {"x": Group({"noise": -1.0})})


def test_every_clip_and_prompt_without_a_pair_is_told_why(tmp_path):
    nothing = ("failed", "RuntimeError: no weights")
    scores = {
        "fine": [{"look": 2.0, "noise": 1.0}, {"look": 1.0, "noise": 2.0}],
        "tie": [{"look": 1.0, "noise": 1.0}] * 2,
        "opposed": [{"look": 2.0, "noise": 2.0}, {"look": 1.0, "noise": 1.0}],
        "one failed": [{"look": nothing, "noise": 1.0}, {"look": 1.0, "noise": 2.0}, {"look": 2.0, "noise": 1.0}],
        "all failed": [{"look": nothing, "noise": 1.0}, {"look": nothing, "noise": 2.0}],
        "alone": [{"look": 2.0, "noise": 1.0}],
    }
    found = mined(tmp_path, scores, BOTH)
    # where a metric failed for all clips of a prompt, the other groups still say something
    assert sides(found) == [("fine", 0, 1), ("one failed", 2, 1), ("all failed", 0, 1)]
    told = {(one.prompt, one.seed): (one.reason, one.says) for one in found.excluded}
    assert told["tie", None][0] == "tie: the groups find all clips equal"
    assert told["opposed", None][0] == "no clip is ahead of another in every group"
    assert told["one failed", 0] == (
        "a metric has no value for this clip",
        "look is failed: RuntimeError: no weights",
    )
    assert told["all failed", None] == (
        "a metric has no value for any clip",
        "look is failed: RuntimeError: no weights",
    )
    assert told["alone", None][0] == "fewer than two clips can be compared"
    paired = {prompt for prompt, *_ in sides(found)}
    assert paired | {prompt for prompt, _ in told} == set(scores)


def test_a_clip_made_anew_since_it_was_scored_makes_no_pair(tmp_path):
    clips, results = folders(tmp_path, {"a": [{"look": float(i)} for i in range(3)]}, DIRECTIONS)
    (clips / "a_s2.mp4").write_bytes(b"another clip of that name")
    found = mine(read_pool(clips, results), PreferConfig(clips, results, tmp_path / "p", {"x": LOOK}))
    assert sides(found) == [("a", 1, 0)]
    assert [one.reason for one in found.excluded] == [
        "the clip is not the one that was scored: evaluate the clips again"
    ]


def test_clips_that_are_gone_copies_or_unknown_make_no_pair(tmp_path):
    scores = {"a": [{"look": float(i)} for i in range(5)]}
    clips, results = folders(tmp_path, scores, DIRECTIONS)
    (clips / "a_s2.mp4").write_bytes((clips / "a_s1.mp4").read_bytes())
    folders(tmp_path, scores, DIRECTIONS)  # the scores are of those bytes
    (clips / "a_s4.mp4").unlink()
    manifest = (clips / "manifest.jsonl").read_text().splitlines()
    (clips / "manifest.jsonl").write_text("\n".join(line for line in manifest if '"seed": 3' not in line))
    found = mine(read_pool(clips, results), PreferConfig(clips, results, tmp_path / "p", {"x": LOOK}))
    assert sides(found) == [("a", 1, 0)]
    assert {(one.seed, one.reason) for one in found.excluded} == {
        (2, "the clip is a copy of another"),
        (3, "the manifest does not know the clip"),
        (4, "the clip is missing"),
    }


def test_a_margin_leaves_close_pairs_out_and_clips_are_used_once(tmp_path):
    scores = {"a": [{"look": value} for value in (0.0, 0.1, 1.0, 1.1)]}
    assert sides(mined(tmp_path, scores, {"x": LOOK}, per_prompt=5)) == [("a", 3, 0), ("a", 2, 1)]
    far = mined(tmp_path, scores, {"x": LOOK}, margin=100.0)
    assert reasons(far) == {"tie: no two clips are further apart than the margin": 1}
    # a group that may be a little behind does not stop a pair, one that is far behind does
    scores = {"a": [{"look": 2.0, "noise": 1.01}, {"look": 1.0, "noise": 1.0}], "b": [{"look": 0.0, "noise": 5.0}] * 2}
    near = BOTH | {"sound": Group({"noise": 1.0}, margin=-0.1)}
    assert sides(mined(tmp_path / "near", scores, near)) == [("a", 0, 1)]
    assert sides(mined(tmp_path / "near", scores, BOTH)) == []


def test_a_modality_that_was_given_is_not_trained(tmp_path):
    scores = {"a": [{"look": 2.0, "noise": 1.0}, {"look": 1.0, "noise": 2.0}]}
    v2a = {"task": "v2a", "video": "in.mp4"}
    [pair] = mined(tmp_path, scores, BOTH, said=v2a).pairs
    assert pair.trains == ("audio",)
    found = mined(tmp_path, scores, BOTH, said=v2a, mode="modality")
    assert [pair.trains for pair in found.pairs] == [("audio",)]
    assert reasons(found) == {"the task makes no video": 1}


def test_mining_twice_writes_the_same_bytes_and_what_is_written_reads_back(tmp_path, capsys):
    scores = {
        f"p{i}": [{"look": float((7 * i + 3 * s) % 5) if i % 4 else 1.0, "noise": float(s)} for s in range(4)]
        for i in range(20)
    }
    clips, results = folders(tmp_path, scores, DIRECTIONS)
    mine_ours = ["~reward", "groups={a:{metrics:{look:1},trains:[video]},b:{metrics:{noise:1}}}"]
    words = [f"clips={clips}", f"results={results}", *mine_ours]
    written = []
    for name in ("one", "two"):
        assert main(["prefer", *words, f"out={tmp_path / name}"]) == 0
        written.append((tmp_path / name / "pairs.jsonl").read_bytes())
    assert written[0] == written[1]
    report = json.loads((tmp_path / "one" / "mined.json").read_text())
    assert sum(report["excluded"].values()) == len(report["each"]) > 0
    pairs = read_pairs(tmp_path / "one")
    assert len(pairs) == report["pairs"]
    write_pairs(tmp_path / "again.jsonl", pairs)
    assert (tmp_path / "again.jsonl").read_bytes() == written[0]
    assert all((tmp_path / "one" / side.file).is_file() for p in pairs for side in (p.winner, p.loser))
    page = (tmp_path / "one" / "pairs.html").read_text()
    assert page.count("<video") == 2 * len(pairs)


def test_what_cannot_be_read_is_named(tmp_path, capsys):
    clips, results = folders(tmp_path, {"a": [{"look": 1.0}, {"look": 2.0}]}, DIRECTIONS)
    words = [f"clips={clips}", f"results={results}", f"out={tmp_path}"]
    assert main(["prefer", *words, "~reward", "groups={a:{metrics:{lok:1}}}"]) == 2
    assert "the results have no metric 'lok'; nearest: look" in capsys.readouterr().err
    assert main(["prefer", f"clips={clips}", f"results={clips}"]) == 2
    assert "holds no results.jsonl" in capsys.readouterr().err
    bad = tmp_path / "pairs.jsonl"
    bad.write_text('{"prompt": 1}\n')
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 1: prompt"):
        read_pairs(bad)
    bad.write_text("3\n")
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 1: 3 is no pair"):
        read_pairs(bad)


def test_the_page_finds_clips_whatever_they_are_called(tmp_path):
    clips, results = folders(tmp_path, {"take#1?": [{"look": 0.0}, {"look": 1.0}]}, DIRECTIONS)
    found = mine(read_pool(clips, results), PreferConfig(clips, results, tmp_path, {"x": LOOK}))
    write_page(tmp_path / "pairs.html", found, 4)
    assert "take%231%3F_s1.mp4" in (tmp_path / "pairs.html").read_text()


def test_a_pair_trains_what_its_groups_have_judged(tmp_path):
    """Where a group has no value for a prompt, what it alone speaks of has no part in the pair."""
    without = ("not_applicable", "nothing is heard")
    scores = {"a": [{"look": 2.0, "noise": without}, {"look": 1.0, "noise": without}]}
    for mode in ("all", "sum", "modality"):
        [pair] = mined(tmp_path / mode, scores, BOTH, mode=mode).pairs
        assert (pair.trains, list(pair.gaps)) == (("video",), ["picture"])
    found = mined(tmp_path / "given", scores, BOTH, said={"task": "v2a", "video": "in.mp4"})
    assert not found.pairs
    assert reasons(found)["no metric of what the task makes has a value"] == 1


def test_groups_that_say_the_same_or_the_opposite_of_two_clips_make_one_pair_or_none(tmp_path):
    scores = {"a": [{"look": 2.0, "noise": 5.0, "level": 2.0}, {"look": 1.0, "noise": 1.0, "level": 1.0}]}
    look, level, noise = ({name: 1.0} for name in ("look", "level", "noise"))
    same = mined(tmp_path / "same", scores, {"x": Group(look), "y": Group(level, ("video",))}, mode="modality")
    assert [(pair.winner.seed, pair.trains) for pair in same.pairs] == [(0, ("video", "audio"))]
    assert reasons(same) == {"another group says the same of the two clips": 1}
    opposed = mined(tmp_path / "no", scores, {"x": Group(look), "y": Group(noise, ("audio",))}, mode="modality")
    assert [(pair.winner.seed, pair.trains) for pair in opposed.pairs] == [(0, ("video",))]
    assert reasons(opposed) == {"groups disagree about two clips": 1}


def test_scores_for_another_caption_make_no_pair(tmp_path):
    clips, results = folders(tmp_path, {"a": [{"look": 0.0}, {"look": 1.0}]}, DIRECTIONS)
    lines = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]
    for text, pairs in (("text of a", 1), ("what another row says", 0)):
        (results / "results.jsonl").write_text("".join(json.dumps({**line, "text": text}) + "\n" for line in lines))
        found = mine(read_pool(clips, results), PreferConfig(clips, results, tmp_path / "p", {"x": LOOK}))
        assert len(found.pairs) == pairs
    assert [one.reason.split(":")[0] for one in found.excluded][:2] == ["the scores are for another caption"] * 2


def test_clips_without_scores_are_named(tmp_path):
    clips, results = folders(tmp_path, {"a": [{"look": float(i)} for i in range(3)]}, DIRECTIONS)
    lines = (results / "results.jsonl").read_text().splitlines()
    (results / "results.jsonl").write_text("\n".join(lines[:2]) + "\n")
    found = mine(read_pool(clips, results), PreferConfig(clips, results, tmp_path / "p", {"x": LOOK}))
    assert sides(found) == [("a", 1, 0)]
    assert [(one.seed, one.reason) for one in found.excluded] == [
        (2, "the clip has no scores: evaluate the clips again")
    ]


def test_one_clip_that_was_asked_for_otherwise_does_not_exclude_the_others(tmp_path):
    clips, results = folders(tmp_path, {"a": [{"look": float(i)} for i in range(3)]}, DIRECTIONS)
    made = [json.loads(line) for line in (clips / "manifest.jsonl").read_text().splitlines()]
    made[0]["prompt"] = "an older text"
    (clips / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    found = mine(read_pool(clips, results), PreferConfig(clips, results, tmp_path / "p", {"x": LOOK}))
    assert sides(found) == [("a", 2, 1)]
    assert [(one.seed, one.reason) for one in found.excluded] == [(0, "the clip was asked for otherwise")]


def test_what_only_a_clip_that_was_asked_for_otherwise_has_says_nothing_about_the_others(tmp_path):
    nothing = ("not_applicable", "no sound")
    scores = {"a": [{"look": float(i), "noise": 1.0 if i == 0 else nothing} for i in range(3)]}
    clips, results = folders(tmp_path, scores, DIRECTIONS)
    made = [json.loads(line) for line in (clips / "manifest.jsonl").read_text().splitlines()]
    made[0]["task"], made[1]["task"], made[2]["task"] = "t2av", "t2v", "t2v"
    (clips / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    found = mine(read_pool(clips, results), PreferConfig(clips, results, tmp_path / "p", BOTH))
    assert sides(found) == [("a", 2, 1)]
    assert reasons(found) == {"the clip was asked for otherwise": 1, "a metric has no value for any clip": 1}


def test_spaces_around_a_prompt_are_no_other_caption(tmp_path):
    scores = {"a": [{"look": 0.0}, {"look": 1.0}]}
    clips, results = folders(tmp_path, scores, DIRECTIONS, prompt="text of a ")
    lines = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]
    (results / "results.jsonl").write_text("".join(json.dumps({**line, "text": "text of a"}) + "\n" for line in lines))
    found = mine(read_pool(clips, results), PreferConfig(clips, results, tmp_path / "p", {"x": LOOK}))
    assert sides(found) == [("a", 1, 0)]


def test_mining_that_finds_nothing_leaves_earlier_pairs_alone(tmp_path, capsys):
    clips, results = folders(tmp_path, {"a": [{"look": 1.0}, {"look": 2.0}]}, DIRECTIONS)
    words = ["prefer", f"clips={clips}", f"results={results}", f"out={tmp_path / 'p'}", "~reward"]
    words += ["groups={a:{metrics:{look:1}}}"]
    assert main(words) == 0
    before = (tmp_path / "p" / "pairs.jsonl").read_bytes()
    assert main([*words, "margin=100"]) == 3
    assert (tmp_path / "p" / "pairs.jsonl").read_bytes() == before
    assert "is of an earlier mining" in capsys.readouterr().out
