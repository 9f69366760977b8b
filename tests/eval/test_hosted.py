"""Metrics that run a network: the real classes, loading and preprocessing, on tiny random weights."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avgen.data.toybox import Toybox, ToyboxConfig
from eval import hosted
from eval.hosted import Source
from eval.metric import ClipMetric, SetMetric, Setup, Skipped, measure
from eval.metrics import judge, plugins, transcript, windows
from eval.record import Check, Prompt, Utterance
from eval.registry import GROUPS, chosen
from eval.take import Picture, Take
from tests.eval import tiny

TOYBOX = Toybox(ToyboxConfig(scenes=("single",)), "test", 3)
LONG = " ".join(["A red ball bounces and a bell rings loud."] * 6)


def take_of(i: int, text: str = "a red ball bounces.", **more: Any) -> Take:
    item = TOYBOX[i]
    return Take(Prompt(str(i), text, **more), clip=item.clip, reference=TOYBOX[i + 50].clip)


def embedded(metric: SetMetric, first: int, count: int) -> np.ndarray:
    return np.stack([np.asarray(metric.embedder.embed(take_of(i))) for i in range(first, first + count)])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    makers = (tiny.clip, tiny.clap, tiny.ast, tiny.videomae, tiny.whisper)
    return {make.__name__: str(make(folder / make.__name__)) for make in makers}


def metric(name: str, weights: dict[str, str]) -> Any:
    (found,) = chosen([name], Setup(weights=weights))
    return found


@pytest.mark.parametrize("name", ["clip.text_video", "clap.text_audio"])
def test_text_similarities_are_cosines_that_know_the_text(name: str, weights: dict[str, str]) -> None:
    of = metric(name, weights)
    first, again = (measure(of, take_of(0)) for _ in range(2))
    assert first.status == "ok", first.reason
    assert first.value == again.value
    assert abs(first.value or 0) <= 1 + 1e-6
    assert measure(of, take_of(0, "a blue lamp flashes.")).value != first.value
    assert measure(of, take_of(1)).value != first.value


JOINT = [f"pe_av.{name}" for name in ("text_video", "text_audio", "audio_video", "javis_score", "avh_score")]


@pytest.mark.parametrize("name", [*JOINT, "judge.audio_video", "judge.audio_text", "judge.video_text"])
def test_what_hears_and_sees_moves_with_each_of_the_two_it_compares(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    group, _, name = name.partition(".")
    if group == "pe_av":
        pytest.importorskip("timm")
    folder = tmp_path_factory.getbasetemp() / group
    of = metric(f"{group}.{name}", {group: str(folder if folder.exists() else getattr(tiny, group)(folder))})
    found = measure(of, take_of(0))
    assert found.status == "ok", found.reason
    assert found.value is not None
    assert abs(found.value) <= 1 + 1e-6
    assert measure(of, take_of(0)).value == found.value
    clip, other = TOYBOX[0].clip, TOYBOX[1].clip
    changed = {
        "text": take_of(0, "a blue lamp flashes."),
        "video": Take(Prompt("0", "a red ball bounces."), clip=replace(clip, video=other.video)),
        "audio": Take(Prompt("0", "a red ball bounces."), clip=replace(clip, audio=other.audio)),
    }
    sides = ("video", "audio") if name.endswith("score") else name.split("_")
    for what, take in changed.items():
        assert (measure(of, take).value != found.value) == (what in sides), what


@pytest.mark.parametrize("name", ["clip.text_video", "clap.text_audio"])
def test_the_end_of_a_long_prompt_is_read(name: str, weights: dict[str, str]) -> None:
    of = metric(name, weights)
    found = measure(of, take_of(0, LONG))
    assert found.status == "ok", found.reason
    assert found.extras["text_parts"] > 1
    assert measure(of, take_of(0, LONG[:-1] + " and stops.")).value != found.value


def test_prompts_are_split_between_sentences_and_lose_no_word() -> None:
    def tokenizer(text: str) -> dict[str, list[str]]:
        return {"input_ids": text.split()}

    text = "One two three. Four five? Six! " + " ".join(f"w{i}" for i in range(20))
    parts = hosted.pieces(text, tokenizer, 6)
    assert " ".join(parts) == text.strip()
    assert all(len(part.split()) <= 6 for part in parts)
    assert parts[0] == "One two three. Four five? Six!"


def test_a_long_prompt_without_spaces_is_read_whole() -> None:
    def tokenizer(text: str) -> dict[str, list[str]]:
        return {"input_ids": list(text)}

    text = "红色的球落在地上。" * 4 + "很" * 150
    parts = hosted.pieces(text, tokenizer, 64)
    assert "".join(parts) == text
    assert all(len(part) <= 64 for part in parts)
    assert parts[0] == "红色的球落在地上。" * 4


def test_a_long_sound_is_heard_whole_and_always_alike(weights: dict[str, str]) -> None:
    of = metric("clap.text_audio", weights)
    take = take_of(0)
    np.random.seed(1)  # noqa: NPY002  # transformers' own extractor would crop by it
    first = measure(of, take)
    np.random.seed(2)  # noqa: NPY002
    assert measure(of, take_of(0)).value == first.value
    assert first.extras["chunks"] == 2  # of two seconds, where the model hears one
    clip = take.clip
    assert clip.audio is not None
    half = clip.audio.shape[1] // 2
    for part in (slice(0, half), slice(half, None)):
        wave = clip.audio.copy()
        wave[:, part] = 0.3 * np.sin(np.arange(half)).astype(np.float32)
        assert measure(of, Take(take.prompt, clip=replace(clip, audio=wave))).value != first.value


def test_class_divergence_is_zero_of_a_clip_from_itself(weights: dict[str, str]) -> None:
    of = metric("ast.kl", weights)
    item = TOYBOX[0].clip
    assert measure(of, Take(Prompt("0", ""), clip=item, reference=item)).value == pytest.approx(0, abs=1e-6)
    other = measure(of, take_of(0))
    assert other.value is not None
    assert other.value > 0


def test_inception_score_lies_between_one_and_the_classes(weights: dict[str, str]) -> None:
    of = metric("ast.inception_score", weights)
    found = of.over(embedded(of, 0, 6), None, 0)
    assert 1 <= found.value <= 5
    same = np.repeat(embedded(of, 0, 1), 4, axis=0)
    assert of.over(same, None, 0).value == pytest.approx(1)
    assert of.over(np.eye(5), None, 0).value == pytest.approx(5, rel=1e-3)


@pytest.mark.parametrize("group", ["clip", "clap", "ast", "videomae"])
def test_set_distances_of_every_embedding(group: str, weights: dict[str, str]) -> None:
    metrics = [m for m in chosen([group], Setup(weights=weights)) if isinstance(m, SetMetric)]
    by_name = {m.definition.name.split(".")[1]: m for m in metrics}
    made, real = embedded(by_name["mmd"], 0, 8), embedded(by_name["mmd"], 50, 8)
    found = {name: by_name[name].over(made, real, 0) for name in ("frechet", "mmd", "precision", "recall", "diversity")}
    assert all(result.status == "ok" for result in found.values())
    assert found["mmd"].interval is not None
    low, high = found["mmd"].interval
    assert low < (found["mmd"].value or 0) < high
    assert by_name["frechet"].over(made, made, 0).value == pytest.approx(0, abs=1e-6)
    assert by_name["recall"].over(made, made, 0).value == 1


def test_a_definition_belongs_to_its_weights(weights: dict[str, str], tmp_path: Path) -> None:
    ours = metric("clip.text_video", weights).definition
    assert ours.hash != metric("clip.text_video", {}).definition.hash
    (tmp_path / "copy").symlink_to(weights["clip"])
    assert metric("clip.text_video", {"clip": str(tmp_path / "copy")}).definition.hash == ours.hash


def test_missing_weights_are_skipped_and_say_what_to_do(tmp_path: Path) -> None:
    found = measure(metric("clap.text_audio", {"clap": str(tmp_path)}), take_of(0))
    assert found.status == "skipped"
    assert "weights.clap=" in found.reason


def test_missing_weights_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a wall that drops packets every question takes half a minute."""
    import transformers

    asked = []

    class Absent:
        error: Exception = OSError("no route")

        @classmethod
        def from_pretrained(cls, place: str, **options: object) -> None:
            asked.append(place)
            raise cls.error

    monkeypatch.setattr(transformers, "AbsentModel", Absent, raising=False)
    for place, error in (("nobody/nothing", Absent.error), ("on/no-gpu", RuntimeError("no route to a GPU"))):
        monkeypatch.setattr(Absent, "error", error)
        for _ in range(2):
            with pytest.raises(Skipped, match=r"weights\.clip=FOLDER, or fetch it: no route"):
                Source("clip", place, "cpu", "").load("AbsentModel")
    assert asked == ["nobody/nothing", "on/no-gpu"]


def test_weights_of_another_class_are_not_filled_up_at_random(weights: dict[str, str], tmp_path: Path) -> None:
    """transformers draws what a file lacks, and only warns."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    config = ASTConfig.from_pretrained(weights["ast"])
    tiny.saved(tmp_path / "headless", ASTModel(config), ASTFeatureExtractor.from_pretrained(weights["ast"]))
    found = measure(metric("ast.kl", {"ast": str(tmp_path / "headless")}), take_of(0))
    assert found.status == "skipped"
    assert "weights of ASTForAudioClassification, classifier." in found.reason
    assert measure(metric("ast.kl", weights), take_of(0)).status == "ok"


def test_a_fused_clap_hears_a_long_sound_always_alike(tmp_path: Path) -> None:
    """Of several chunks its extractor would call one drawn at random the long one."""
    clap = metric("clap.text_audio", {"clap": str(tiny.clap(tmp_path, fused=True))})
    found = []
    for seed in range(4):
        np.random.seed(seed)  # noqa: NPY002  # what the extractor draws from
        found.append(measure(clap, take_of(0)))
    assert found[0].extras["chunks"] == 2
    assert len({result.value for result in found}) == 1


def test_a_network_that_comes_in_a_wheel_is_known_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("speech.activity", "speech.dnsmos_ovrl", "whisper.wer", "sync.compat_av_align_javisbench")
    before = [metric(name, {}).definition.hash for name in names[:3]]
    for module in ("speech", "transcript"):
        monkeypatch.setattr(f"eval.metrics.{module}.versions", lambda *packages: dict.fromkeys(packages, "99"))
    assert all(metric(name, {}).definition.hash != old for name, old in zip(names[:3], before, strict=True))
    assert {"librosa", "opencv-python-headless"} <= metric(names[3], {}).definition.parameters.keys()


def test_windows_follow_their_definition() -> None:
    assert windows.window_starts(4.2) == pytest.approx([0, 0.5, 1, 1.5, 2, 2.2])
    assert windows.window_starts(1.0) == [0]
    frames = np.eye(3)[[0] * 10 + [1] * 10]  # 2 s at 10 fps: the first half is one thing, the second another
    heard = np.array([1.0, 0, 0])
    # the lowest 40 % of 20 frames all lie in the second half
    assert windows.javis_score(frames, 10, 2.0, lambda a, b: heard) == 0
    assert windows.avh_score(frames, 2.0, lambda a, b: heard) == 0.5
    assert windows.javis_score(frames[:10], 10, 1.0, lambda a, b: heard) == 1


def test_windows_hear_what_they_show() -> None:
    """A sound that follows the picture scores higher than the same sound shifted."""
    angle = np.linspace(0, np.pi / 2, 40)  # 4 s at 10 fps
    frames = np.stack([np.cos(angle), np.sin(angle)], 1)

    def hear(late: float) -> windows.Hear:
        def of(a: float, b: float) -> np.ndarray:
            middle = np.clip((a + b) / 2 - late, 0, 4) / 4 * np.pi / 2
            return np.array([np.cos(middle), np.sin(middle)])

        return of

    scores = [windows.javis_score(frames, 10, 4.0, hear(late)) for late in (0, 0.5, 1, 2)]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)],
)
def test_edit_distance_against_textbook_pairs(first: str, second: str, distance: int) -> None:
    assert transcript.edits(first, second) == distance


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert transcript.plain("Hello,  WORLD! It's 5 o'clock.") == "hello world it's 5 o'clock"


@pytest.mark.parametrize(
    "said", ["I don\u2019t know", "'I don't know'", "\u2018I don\u2019t know\u2019", "i don't know."]
)
def test_apostrophes_inside_words_are_kept_and_quotes_are_not(said: str) -> None:
    assert transcript.plain(said) == "i don't know"


def test_whisper_runs_on_speech_and_is_not_asked_of_silence(
    weights: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of = metric("whisper.wer", weights)
    assert measure(of, take_of(0)).status == "not_applicable"
    spoken = {"speech": (Utterance("a red ball"),)}
    if measure(of, take_of(0, **spoken)).status == "skipped":
        pytest.skip("silero-vad is not installed")
    silent = measure(of, take_of(0, **spoken))
    assert (silent.value, silent.weight, silent.extras["heard"]) == (1.0, 3, "")  # a bell is no speech
    monkeypatch.setattr(transcript, "speaking", lambda sound: np.ones(60))
    found = measure(metric("whisper.cer", weights), take_of(0, **spoken))
    assert found.status == "ok", found.reason
    assert found.extras["heard"] != ""


def test_speech_is_gated(weights: dict[str, str]) -> None:
    activity, quality = (metric(f"speech.{name}", {}) for name in ("activity", "dnsmos_ovrl"))
    found = measure(activity, take_of(0))
    if found.status == "skipped":
        pytest.skip(found.reason)
    assert found.value is not None
    assert found.value < 0.5
    assert measure(quality, take_of(0)).status == "not_applicable"


def test_dnsmos_prefers_a_clean_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("silero_vad", "speechmos", "onnxruntime"):
        pytest.importorskip(package)
    from eval.metrics import speech

    monkeypatch.setattr(speech, "speaking", lambda sound: np.ones(60))
    of = metric("speech.dnsmos_bak", {})
    clip = TOYBOX[0].clip
    assert clip.audio is not None
    noise = np.random.default_rng(0).normal(0, 0.1, clip.audio.shape).astype(np.float32)
    clean, noisy = (measure(of, Take.of(replace(clip, audio=w))) for w in (clip.audio, clip.audio + noise))
    assert clean.value is not None, clean.reason
    assert noisy.value is not None
    assert clean.value > noisy.value


class Answers(BaseHTTPRequestHandler):
    """A server that leans towards yes, and truly believes in red."""

    seen: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        question = body["messages"][0]["content"][-1]["text"]
        believes = ("red" in question) != ("contradict" in question)
        yes = 0.9 if believes else 0.4
        yes += 0.05 if question.endswith("No or Yes.") else 0
        top = [{"token": t, "logprob": float(np.log(p))} for t, p in (("Yes", yes / 2), (" no", (1 - yes) / 2))]
        said = json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1#tiny"
    server.shutdown()
    server.server_close()


def test_a_judge_is_asked_both_ways_round(address: str) -> None:
    of = metric("judge.video_text", {"judge": address})
    red, blue = (measure(of, take_of(0, text)) for text in ("a red ball", "a blue ball"))
    # yes to the question .9 and .95, no to its opposite 1 - .4 and 1 - .45
    assert red.value == pytest.approx((0.9 + 0.95 + 0.6 + 0.55) / 4)
    assert blue.value == pytest.approx((0.4 + 0.45 + 0.1 + 0.05) / 4)
    assert red.extras["leaning"] == pytest.approx(0.35)
    assert red.confidence == pytest.approx(0.6)
    body = Answers.seen[-1]
    assert (body["model"], body["logprobs"], body["temperature"]) == ("tiny", True, 0)
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png")


def test_a_checklist_counts_right_answers(address: str) -> None:
    checks = (Check("Is it red?"), Check("Is it blue?", answer="no"))
    found = measure(metric("judge.checklist", {"judge": address}), take_of(0, checklist=checks))
    assert found.value == pytest.approx(((0.9 + 0.95) / 2 + 1 - (0.4 + 0.45) / 2) / 2)
    kinds = {part["type"] for part in Answers.seen[-1]["messages"][0]["content"]}
    assert kinds == {"image_url", "input_audio", "text"}
    assert measure(metric("judge.checklist", {"judge": address}), take_of(0)).status == "not_applicable"


def test_a_judge_is_told_how_fast_the_picture_goes(tmp_path: Path) -> None:
    local = judge.Local(Source.of(Setup(), "judge", str(tiny.judge(tmp_path))))
    frames = take_of(0).picture.frames[:8]
    slow, fast = (local.yes("Does it ring?", Picture(frames, fps), None) for fps in (1.0, 2.0))
    assert slow != fast


def test_no_judge_and_a_dead_one_are_skipped() -> None:
    assert measure(metric("judge.audio_video", {}), take_of(0)).status == "skipped"
    dead = measure(metric("judge.audio_video", {"judge": "http://127.0.0.1:9/v1#x"}), take_of(0))
    assert dead.status == "skipped"
    assert "cannot be reached" in dead.reason


def test_no_weights_are_not_the_folder_that_one_stands_in() -> None:
    assert Source.of(Setup(), "judge", "").digest == ""


def brightness(frames: Any, fps: Any, wave: Any, rate: Any, text: str) -> float:
    return float(frames.mean()) / 255


def test_a_plug_in_is_a_function_that_is_named() -> None:
    found = measure(metric("synchformer.desync_s", {"synchformer": f"{__name__}:brightness"}), take_of(0))
    assert found.value is not None
    assert 0 < found.value < 1
    absent = measure(metric("synchformer.desync_s", {}), take_of(0))
    assert absent.status == "skipped"
    assert "clone https://github.com/v-iashin/Synchformer" in absent.reason


def test_an_edited_plug_in_is_another_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for factor in (1, 100):
        (tmp_path / "of_mine.py").write_text(f"def score(frames, fps, wave, rate, text):\n    return {factor}\n")
        plugins.parameters.cache_clear()
        importlib.invalidate_caches()
        hashes.append(metric("imagebind.audio_video", {"imagebind": "of_mine:score"}).definition.hash)
    assert hashes[0] != hashes[1]


def test_a_folder_is_known_without_what_a_download_notes_of_its_time(tmp_path: Path) -> None:
    for name, noted in (("a", "1"), ("b", "2")):
        (tmp_path / name / ".cache" / "huggingface").mkdir(parents=True)
        (tmp_path / name / ".cache" / "huggingface" / "x.metadata").write_text(noted)
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    one, other = (Source.of(Setup(weights={"clip": str(tmp_path / name)}), "clip", "") for name in "ab")
    assert one.digest == other.digest != ""


def test_strict_licences_refuse_what_forbids_commerce() -> None:
    plug = {"imagebind": f"{__name__}:brightness", "synchformer": f"{__name__}:brightness"}
    refused = measure(metric("imagebind.audio_video", plug), take_of(0), strict_licence=True)
    assert refused.status == "skipped"
    assert "CC BY-NC-SA" in refused.reason
    ours, theirs = (metric("videomae.mmd", where).definition.needs for where in ({}, {"videomae": "my/weights"}))
    assert (ours.commercial, ours.licence) == (False, "CC BY-NC 4.0")
    assert theirs.commercial  # as far as avgen can know
    assert measure(metric("imagebind.audio_video", plug), take_of(0)).status == "ok"
    assert measure(metric("synchformer.desync_s", plug), take_of(0), strict_licence=True).status == "ok"


@pytest.mark.parametrize("tier", ["tier0.5", "tier1", "tier2"])
def test_every_group_of_a_tier_can_be_chosen(tier: str) -> None:
    metrics: list[ClipMetric | SetMetric] = list(chosen([tier]))
    names = [m.definition.name for m in metrics]
    assert len(set(names)) == len(names)
    assert {name.split(".")[0] for name in names} == {g.name for g in GROUPS if g.tier == tier}
    assert judge.ORDERS[0] != judge.ORDERS[1]
