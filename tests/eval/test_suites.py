"""Readers of prompt suites, toybench, and which file is the clip of which prompt."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from avgen.__main__ import main
from avgen.data.toybox import ToyboxConfig, parse
from avgen.data.toybox.reader import read_events, score_caption
from avgen.sample.inputs import Request, read_requests
from eval.clips import find_clips, models_of
from eval.prompts import PromptsConfig, write_prompts
from eval.suites import READERS, Suite, read_suite, toybench
from eval.suites.published import JAVIS_AXES

JAVIS = (
    "path,text,audio_text,cat0_ind,cat1_ind,cat2_ind,cat3_ind,cat4_ind\n"
    'a.mp4,"A dog barks, twice",dog barking,"0,3",2,4,1,0\n'
    "b.mp4,Rain,rain,1,0,0,,2\n"
)


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_javisbench_categories_keep_the_order_of_the_indices(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"there")
    suite = read_suite("javisbench", written(tmp_path, "bench.csv", JAVIS))
    first, second = suite.prompts
    assert [prompt.id for prompt in suite.prompts] == ["0000", "0001"]
    assert first.text == "A dog barks, twice"
    assert first.audio_text == "dog barking"
    assert first.tags == {
        "scenario": ("0", "3"),
        "style": ("2",),
        "sound": ("4",),
        "temporal": ("1",),
        "spatial": ("0",),
    }
    assert "temporal" not in second.tags
    assert first.reference == tmp_path / "a.mp4"
    assert second.reference is not None  # where some of the ground truth is, what is missing is told
    (tmp_path / "a.mp4").unlink()
    assert {prompt.reference for prompt in read_suite("javisbench", tmp_path / "bench.csv").prompts} == {None}
    assert [axis for axis, _ in JAVIS_AXES][3:] == ["temporal", "spatial"]


def test_a_class_that_the_axis_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 1: cat3_ind='3' must list numbers of temporal classes, 0 to 2"):
        read_suite("javisbench", written(tmp_path, "bench.csv", JAVIS.replace("4,1,0", "4,3,0")))


def test_verse_bench(tmp_path: Path) -> None:
    entry = {
        "video_prompt": "A man speaks.",
        "audio_prompt": ["a voice", "traffic"],
        "speech_prompt": {"speaker": "man", "text": "hello"},
        "first_frame_path": "img/1.png",
    }
    suite = read_suite("verse_bench", written(tmp_path, "verse.json", {"set1": {"7": entry}, "set2": {"7": entry}}))
    assert [prompt.id for prompt in suite.prompts] == ["set1/7", "set2/7"]
    prompt = suite.prompts[0]
    assert (prompt.video_text, prompt.audio_text) == ("A man speaks.", "a voice. traffic")
    assert prompt.text == "A man speaks. a voice. traffic"
    assert (prompt.speech[0].text, prompt.speech[0].speaker) == ("hello", "man")
    assert prompt.first_frame == tmp_path / "img/1.png"


def test_vabench_reads_a_folder_of_categories(tmp_path: Path) -> None:
    entry = {
        "prompt_en": "A bird sings",
        "prompt_vision": "A bird",
        "prompt_audio": "song",
        "dimension": ["x"],
        "auxiliary_info_audio": ["Does a bird sing?"],
        "auxiliary_info_vision": ["Is there a bird?"],
    }
    for name in ("animals", "music"):
        written(tmp_path, f"{name}.json", [entry, entry])
    suite = read_suite("vabench", tmp_path)
    assert [prompt.id for prompt in suite.prompts] == ["animals/0", "animals/1", "music/0", "music/1"]
    assert {(c.group, c.question) for c in suite.prompts[0].checklist} == {
        ("video", "Is there a bird?"),
        ("audio", "Does a bird sing?"),
    }
    assert suite.axes == {"category": ("animals", "music"), "dimension": ("x",)}
    one = read_suite("vabench", written(tmp_path, "one.json", [{**entry, "auxiliary_info_audio": "Does a bird sing?"}]))
    assert len(one.prompts[0].checklist) == 2  # one question is not a list of letters


def test_t2av_compass(tmp_path: Path) -> None:
    entry = {
        "index": 12,
        "prompt": "long",
        "video_prompt": "seen",
        "audio_prompt": "heard",
        "speech_prompt": [{"speaker": "A", "description": "calm", "text": "hi"}],
        "core_subject": ["person", "dog"],
        "checklist_info": {"video": {"attribute": ["Is it red?"]}, "audio": [{"question": "Rain?", "answer": "no"}]},
    }
    prompt = read_suite("t2av_compass", written(tmp_path, "c.json", [entry])).prompts[0]
    assert prompt.id == "12"
    assert prompt.speech[0].description == "calm"
    assert prompt.tags == {"core_subject": ("person", "dog")}
    assert [(c.group, c.question, c.answer) for c in prompt.checklist] == [
        ("video/attribute", "Is it red?", "yes"),
        ("audio", "Rain?", "no"),
    ]


@pytest.mark.parametrize(("said", "read"), [(True, "yes"), (False, "no"), ("True", "yes"), ("No", "no"), ("red", None)])
def test_answers_of_a_checklist_are_yes_or_no(tmp_path: Path, said: object, read: str | None) -> None:
    """What is not yes would be counted as no."""
    entry = {"index": 1, "prompt": "p", "checklist_info": [{"question": "Rain?", "answer": said}]}
    file = written(tmp_path, "c.json", [entry])
    if read is None:
        with pytest.raises(ValueError, match=r"entry 1.*answer='red' to 'Rain\?' must be yes or no"):
            read_suite("t2av_compass", file)
    else:
        assert read_suite("t2av_compass", file).prompts[0].checklist[0].answer == read


def test_a_prompt_of_nothing_is_refused(tmp_path: Path) -> None:
    """Where a file names its fields otherwise, every metric that reads the text would find nothing to do."""
    with pytest.raises(ValueError, match="has no full_prompt, prompt_vision or prompt_audio; its fields are id, text"):
        read_suite("avbench", written(tmp_path, "a.json", [{"id": 1, "text": "x"}]))
    with pytest.raises(ValueError, match=r"set/7: has no prompt, video_prompt or audio_prompt; its fields are words"):
        read_suite("verse_bench", written(tmp_path, "v.json", {"set": {"7": {"words": "x"}}}))


def test_phyavbench_makes_two_prompts_of_a_pair(tmp_path: Path) -> None:
    line = {"id": "m01", "prompt_a": "wood", "prompt_b": "metal", "ref_video_a": "a.mp4", "ref_video_b": "b.mp4"}
    suite = read_suite("phyavbench", written(tmp_path, "p.jsonl", json.dumps(line)))
    assert [(p.id, p.text, p.extra["pair"]) for p in suite.prompts] == [
        ("m01_a", "wood", "m01"),
        ("m01_b", "metal", "m01"),
    ]


def test_avbench(tmp_path: Path) -> None:
    entry = {"id": 3, "prompt_vision": "A cat.", "prompt_audio": "meow", "utterance": "", "full_prompt": ""}
    prompt = read_suite("avbench", written(tmp_path, "normal.json", [entry])).prompts[0]
    assert (prompt.id, prompt.text, prompt.speech) == ("3", "A cat. meow", ())


def test_plain_files_in_both_forms_say_the_same(tmp_path: Path) -> None:
    csv = written(tmp_path, "a.csv", "id,prompt,speech,tag_place,reference\nx,A bell,hello,church|town,r.mp4\n")
    said = {
        "id": "x",
        "text": "A bell",
        "speech": ["hello"],
        "tags": {"place": ["church", "town"]},
        "reference": "r.mp4",
    }
    jsonl = written(tmp_path, "a.jsonl", json.dumps(said) + "\n")
    assert read_suite("plain", csv).prompts == read_suite("plain", jsonl).prompts

    assert read_suite("plain", csv).prompts[0].tags == {"place": ("church", "town")}


def test_who_speaks_is_not_what_is_said(tmp_path: Path) -> None:
    said = {"text": "A woman greets.", "speech": [{"speaker": "Anna", "text": "Hello there"}, "Good day"]}
    (prompt,) = read_suite("plain", written(tmp_path, "a.jsonl", json.dumps(said) + "\n")).prompts
    assert [(one.text, one.speaker) for one in prompt.speech] == [("Hello there", "Anna"), ("Good day", "")]
    wrong = written(tmp_path, "b.jsonl", json.dumps({"text": "A bell", "tags": {"place": [{"a": 1}]}}) + "\n")
    with pytest.raises(ValueError, match="place holds a dict, text is needed"):
        read_suite("plain", wrong)


def test_a_line_of_jsonl_ends_where_json_says(tmp_path: Path) -> None:
    said = {"id": "a", "text": "one line,\u2028and still it"}
    jsonl = written(tmp_path, "a.jsonl", json.dumps(said, ensure_ascii=False) + "\n")
    assert [prompt.text for prompt in read_suite("plain", jsonl).prompts] == [said["text"]]


def test_a_prompt_file_of_sample_is_a_suite(tmp_path: Path) -> None:
    """So candidates of any task are scored by the file that they were made from."""
    rows = "id,prompt,image,video,seed\nx,A bell,first.png,,3\ny,A lamp,,whole.mp4,4\n"
    one, other = read_suite("plain", written(tmp_path, "a.csv", rows)).prompts
    assert (one.id, one.text, one.first_frame, other.first_frame) == ("x", "A bell", tmp_path / "first.png", None)


@pytest.mark.parametrize(
    ("suite", "content", "words"),
    [
        ("plain", '{"id": "1"}', "line 1: has no text or prompt"),
        ("plain", '{"text": "a", "colour": "red"}', "no field 'colour'"),
        ("plain", '{"text": "a", "id": "1"}\n{"text": "b", "id": "1"}', "prompt 2: the id '1' stands twice"),
        ("plain", "{", "line 1: not JSON"),
        ("plain", "", "holds no prompt"),
        ("avbench", '{"a": 1}', "a JSON list is needed, this is a dict"),
        ("avbench", "[3]", "entry 1: a mapping is needed, this is a int"),
        ("t2av_compass", '[{"prompt": {"en": "x"}}]', "prompt is a dict, text is needed"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_place(tmp_path: Path, suite: str, content: str, words: str) -> None:
    path = written(tmp_path, "p.jsonl", content)
    with pytest.raises(ValueError, match="(?s)" + words) as refused:
        read_suite(suite, path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(("suite", "name"), [("plain", "p.csv"), ("plain", "p.jsonl"), ("avbench", "p.json")])
def test_a_file_in_another_encoding_is_refused(tmp_path: Path, suite: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes("text\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"p\..* is not UTF-8: .*; save it as UTF-8"):
        read_suite(suite, path)


def test_unknown_and_missing_suites_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the nearest is javisbench"):
        read_suite("javisbensch")
    with pytest.raises(ValueError, match=r"suite=javisbench needs prompts=: JavisBench\.csv"):
        read_suite("javisbench")
    with pytest.raises(ValueError, match="no such file"):
        read_suite("plain", tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="brings its own prompts"):
        read_suite("toybench", tmp_path)
    assert all(reader.files for reader in READERS.values())


def test_toybench_is_what_its_script_makes() -> None:
    committed = [json.loads(line) for line in toybench.FILE.read_text().splitlines()]
    assert committed == toybench.made()


def test_toybench_covers_its_axes_and_every_prompt_can_be_followed() -> None:
    suite = read_suite("toybench")
    assert len({prompt.text for prompt in suite.prompts}) == 400
    counts = {axis: Counter(p.tags[axis][0] for p in suite.prompts) for axis in suite.axes}
    for axis, categories in suite.axes.items():
        assert set(counts[axis]) == set(categories)
        assert min(counts[axis].values()) >= 20, f"{axis} has a category too small to be shown"
    # any first part is a fair sample
    assert 0.1 < sum(p.tags["novelty"] == ("held out",) for p in suite.prompts[:100]) / 100 < 0.4


def test_an_ideal_clip_does_what_the_prompt_says() -> None:
    suite = read_suite("toybench")
    form = toybench.render_facts(parse(suite.prompts[0].text), ToyboxConfig(fps=16, height=48, width=40)).clip
    right = actors = 0
    for prompt in suite.prompts[:12]:
        clip = toybench.ideal(prompt, form)
        assert clip.video is not None
        assert (clip.video.shape, clip.fps) == ((32, 48, 40, 3), 16)
        told = score_caption(read_events(clip), parse(prompt.text))
        right, actors = right + told.count, actors + told.actors
    assert right >= 0.9 * actors


def test_prompts_of_a_suite_are_what_the_sampler_reads(tmp_path: Path) -> None:
    assert main(["eval", "prompts", "limit=5", f"out={tmp_path / 'some' / 'p.jsonl'}"]) == 0
    asked = read_requests(tmp_path / "some" / "p.jsonl", Request(""))
    assert [(r.id, r.prompt) for r in asked] == [(p.id, p.text) for p in read_suite("toybench").prompts[:5]]
    (tmp_path / "first.png").write_bytes(b"")
    mine = written(tmp_path, "mine.jsonl", json.dumps({"id": "a", "text": "a", "first_frame": "first.png"}))
    write_prompts(PromptsConfig(tmp_path / "m.jsonl", "plain", mine))
    assert read_requests(tmp_path / "m.jsonl", Request(""))[0].image == tmp_path / "first.png"
    entry = {"video_prompt": "A man.", "audio_prompt": ["a voice"]}
    suite = written(tmp_path, "verse.json", {"set": {"7": entry}})
    with pytest.raises(ValueError, match="suite=verse_bench: the id 'set/7' names a folder"):
        write_prompts(PromptsConfig(tmp_path / "v.jsonl", "verse_bench", suite))


def small_suite(tmp_path: Path) -> Suite:
    lines = "".join(json.dumps({"id": name, "text": name}) + "\n" for name in ("a", "b", "set/c"))
    return read_suite("plain", written(tmp_path, "s.jsonl", lines))


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_clips_are_found_by_id_and_seed_and_a_missing_one_is_known(tmp_path: Path) -> None:
    suite = small_suite(tmp_path)
    clips = touched(tmp_path / "clips", "a_s0.mp4", "a_s1.mp4", "set/c.mp4", "set/c.wav", "noise.mp4", ".b.mp4")
    found = [(one.prompt, one.seed, one.path and one.path.name) for one in find_clips(clips, suite)]
    assert found == [("a", 0, "a_s0.mp4"), ("a", 1, "a_s1.mp4"), ("b", 0, None), ("set/c", 0, "c.mp4")]


def test_clips_are_found_by_row_number(tmp_path: Path) -> None:
    suite = small_suite(tmp_path)
    clips = touched(tmp_path / "clips", "sample_0000.mp4", "sample_0000.wav", "sample_0002.mp4", "sample_0009.mp4")
    found = [(one.prompt, one.path and one.path.name) for one in find_clips(clips, suite)]
    assert found == [("a", "sample_0000.mp4"), ("b", None), ("set/c", "sample_0002.mp4")]


def test_numbered_clips_have_the_seed_that_their_name_says(tmp_path: Path) -> None:
    suite = small_suite(tmp_path)
    clips = touched(tmp_path / "clips", "sample_0000_s0.mp4", "sample_0000_s1.mp4", "sample_0001_s7.mp4")
    found = [(one.prompt, one.seed, one.path and one.path.name) for one in find_clips(clips, suite)]
    assert found[:2] == [("a", 0, "sample_0000_s0.mp4"), ("a", 1, "sample_0000_s1.mp4")]
    assert found[2:] == [("b", 7, "sample_0001_s7.mp4"), ("set/c", 0, None)]


def test_clips_are_found_by_the_samplers_manifest(tmp_path: Path) -> None:
    suite = small_suite(tmp_path)
    clips = touched(tmp_path / "clips", "x1.mp4", "x2.mp4")
    lines = [{"id": "b", "seed": 5, "file": "x1.mp4"}, {"id": "a", "seed": 0, "file": "x2.mp4"}]
    (clips / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"id": "a", "se')
    found = [(one.prompt, one.seed, one.path and one.path.name) for one in find_clips(clips, suite)]
    assert found == [("a", 0, "x2.mp4"), ("b", 5, "x1.mp4"), ("set/c", 0, None)]


def test_places_in_another_file_are_not_this_files_prompts(tmp_path: Path) -> None:
    """A row more at the top, and every clip would be scored against its neighbour's prompt."""
    suite = read_suite("plain", written(tmp_path, "s.csv", "text\nA\nB\n"))
    clips = touched(tmp_path / "clips", "x.mp4")

    def made_of(name: str, prompt: str) -> None:
        (clips / "manifest.jsonl").write_text(json.dumps({"id": name, "file": "x.mp4", "prompt": prompt}) + "\n")

    made_of("00000", "A")
    assert find_clips(clips, suite)[0].path == clips / "x.mp4"
    made_of("00000", "B")
    with pytest.raises(ValueError, match=r"prompt 00000 was made of 'B', and prompt 00000 is 'A'"):
        find_clips(clips, suite)
    made_of("a", "A, in other words")  # an id that somebody gave stands for the prompt, however it was put
    assert find_clips(clips, small_suite(tmp_path))[0].path == clips / "x.mp4"


def test_a_folder_without_the_suites_clips_says_how_they_are_found(tmp_path: Path) -> None:
    suite = small_suite(tmp_path)
    with pytest.raises(ValueError, match=r"a\.mp4, a_s0\.mp4.*sample_0000\.mp4.*manifest\.jsonl"):
        find_clips(touched(tmp_path / "clips", "other.mp4"), suite)
    with pytest.raises(ValueError, match="no such folder"):
        find_clips(tmp_path / "nowhere", suite)


def test_a_job_half_done_anew_is_told(tmp_path: Path) -> None:
    """avgen sample takes a line back before another clip takes the place of its file."""
    (tmp_path / "p.csv").write_text("id,prompt\na,A bell\nb,A lamp\nc,A drum\n")
    suite, clips = (
        read_suite("plain", tmp_path / "p.csv"),
        touched(tmp_path / "clips", "a_s3.mp4", "b_s3.mp4", "c_s3.mp4"),
    )
    lines: list[dict[str, Any]] = [
        {"name": f"{i}_s3", "id": i, "seed": 3, "file": f"{i}_s3.mp4", "model": "one"} for i in "abc"
    ]
    lines += [{"name": "b_s3", "seed": 3, "replaced": True}, {**lines[1], "model": "two"}]
    lines += [{"name": "c_s3", "seed": 3, "replaced": True}]  # and then it was killed
    (clips / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = find_clips(clips, suite)
    assert [one.path and one.path.name for one in found] == ["a_s3.mp4", "b_s3.mp4", None]
    assert models_of(clips, found) == ("one", "two")
