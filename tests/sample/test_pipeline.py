"""One pipeline for every task: what is given comes back, what is random depends on seed and prompt alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from avgen.data.media import MediaError, exact_fps, read_clip, write_clip, write_wav
from avgen.models.dit import AVTransformer
from avgen.sample import write
from avgen.sample.folder import open_for
from avgen.sample.guidance import NO_GUIDANCE, Guidance, ModalityGuidance
from avgen.sample.inputs import Edit, Form, Request, end_of, read_given
from avgen.sample.method import Method
from avgen.sample.pipeline import AVPipeline
from avgen.sample.solvers import SolverConfig
from avgen.sample.write import write_made
from tests.conftest import ROOT
from tests.data.media_grid import copied
from tests.sample.factory import MODEL, clip, files, pipeline

QUICK = Method(SolverConfig("euler", 2))


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return files(tmp_path_factory.mktemp("inputs"))


def same(one, other):
    return np.array_equal(one.video, other.video) and np.array_equal(one.audio, other.audio)


def psnr(one, other):
    error = np.square(one.video.astype(float) - other.video).mean()
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def test_saved_and_loaded_it_makes_the_same_clip(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = AVPipeline.from_pretrained(tmp_path)
    assert again.fingerprint == pipe.fingerprint
    ours, theirs = (p(prompt="a red ball", method=QUICK)[0].clip for p in (pipe, again))
    assert same(ours, theirs)


def test_the_same_seed_and_prompt_make_the_same_clip_in_any_company(pipe):
    prompts = ["a red ball", "a lamp that is far away and flashes", "x", "a bar"]
    alone = [pipe(prompt=p, seed=3, method=QUICK)[0].clip for p in prompts]
    together = [m.clip for m in pipe(prompt=prompts, seed=3, method=QUICK)]
    turned = [m.clip for m in pipe(prompt=prompts[::-1], seed=3, method=QUICK)][::-1]
    for one, two, three in zip(alone, together, turned, strict=True):
        assert psnr(one, two) >= 45
        assert psnr(one, three) >= 45
        assert np.abs(one.audio - two.audio).max() < 1e-2
    assert not same(alone[0], alone[1])
    assert not same(alone[0], pipe(prompt=prompts[0], seed=4, method=QUICK)[0].clip)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("t2av", ()),
        ("i2av", ("image",)),
        ("v2a", ("video",)),
        ("a2v", ("audio",)),
        ("ai2v", ("image", "audio")),
        ("extend", ("video",)),
        ("interpolate", ("video",)),
        ("inpaint", ("video",)),
    ],
)
def test_every_task_gives_a_whole_clip(pipe, inputs, task, names):
    longer = 1.5 if task == "extend" else 1.0
    method = replace(QUICK, edit=Edit(hole_s=(0.25, 0.5)))
    made = pipe(task=task, prompt="a", duration_s=longer, method=method, **{n: inputs[n] for n in names})[0]
    assert made.clip.video.shape == (round(8 * longer), 16, 16, 3)
    assert made.clip.audio.shape == (1, round(16000 * longer))
    assert made.record["task"] == task


@pytest.mark.parametrize(("task", "present", "absent"), [("t2v", "video", "audio"), ("t2a", "audio", "video")])
def test_a_task_without_a_stream_makes_none(pipe, task, present, absent):
    made = pipe(task=task, prompt="a", method=QUICK)[0].clip
    assert getattr(made, present) is not None
    assert getattr(made, absent) is None


def test_a_given_stream_comes_back_as_it_was_read(pipe, inputs):
    given = read_clip(inputs["video"], 0, 1.0, fps=8, size=(16, 16), sample_rate_hz=16000, channels=1).clip
    assert np.array_equal(pipe(task="v2a", video=inputs["video"], method=QUICK)[0].clip.video, given.video)
    assert np.array_equal(pipe(task="a2v", audio=inputs["video"], method=QUICK)[0].clip.audio, given.audio)


def packets(path, kind):
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [bytes(packet) for packet in container.demux(stream) if packet.size]


@pytest.mark.parametrize(("task", "kind"), [("v2a", "video"), ("a2v", "audio")])
def test_a_given_stream_is_copied_into_the_file_packet_by_packet(pipe, tmp_path, task, kind):
    """Whatever its size and rate: the model sees 16x16 at 8 fps of it."""
    source = files(tmp_path, fps=25.0, height=48, width=64, rate_hz=48000)["video"]
    made = pipe(task=task, method=QUICK, **{kind: source})[0]
    said = write_made(tmp_path / "out.mp4", made, "why")
    assert "bit for bit" in said
    assert packets(tmp_path / "out.mp4", kind) == packets(source, kind)
    back = read_clip(tmp_path / "out.mp4", video=True, audio=True)
    assert back.clip.video_duration_s == pytest.approx(1.0, abs=0.05)
    assert back.clip.audio_duration_s == pytest.approx(1.0, abs=0.05)


def test_a_stream_that_is_cut_is_encoded_anew_and_that_is_said(pipe, tmp_path):
    source = files(tmp_path, duration_s=2.0, fps=25.0, height=48, width=64)["video"]
    made = pipe(task="v2a", video=source, duration_s=1.0, method=QUICK)[0]
    assert "encoded anew: it lasts 2 s and the clip 1 s" in write_made(tmp_path / "out.mp4", made, "")
    assert read_clip(tmp_path / "out.mp4").clip.video.shape == (25, 48, 64, 3)


@pytest.mark.parametrize(("fps", "duration_s"), [(25.0, 1.0), (30000 / 1001, 1.0), (25.0, 3.0)])
def test_a_picture_encoded_anew_is_read_in_pieces_and_the_same(pipe, tmp_path, monkeypatch, fps, duration_s):
    """Cut, or held behind its end; five frames at a time, wherever keyframes lie."""
    frames = clip(2.0, fps, 48, 64).video
    coded(tmp_path / "in.mp4", "libx264", frames, rate=exact_fps(fps), g="7", bf="2")
    made = pipe(task="v2a", video=tmp_path / "in.mp4", duration_s=duration_s, method=QUICK)[0]
    handed, sizes = [], []

    def written(path, sound, *, film, real=write_clip, **words):
        handed.append((np.concatenate(list(film.pieces)), sound.audio))
        real(path, sound, film=replace(film, pieces=(handed[-1][0],)), **words)

    monkeypatch.setattr(write, "write_clip", written)
    assert "encoded anew" in write_made(tmp_path / "whole.mp4", made, "")

    def read(*args, real=read_clip, **words):
        found = real(*args, **words)
        sizes.append(len(found.clip.video))
        return found

    monkeypatch.setattr(write, "HELD_BYTES", 5 * 3 * 48 * 64)
    monkeypatch.setattr(write, "read_clip", read)
    assert "encoded anew" in write_made(tmp_path / "pieces.mp4", made, "")
    assert max(sizes) == 5
    assert sum(sizes) == round(duration_s * fps)
    own = read_clip(tmp_path / "in.mp4", 0, duration_s, video=True, audio=False).clip.video
    assert np.array_equal(np.concatenate(list(write.own_film(tmp_path / "in.mp4", duration_s).pieces)), own)
    whole, pieces = (read_clip(tmp_path / f"{name}.mp4").clip for name in ("whole", "pieces"))
    # Bit by bit before they are encoded: x264 makes another file of the same frames about once in a thousand times,
    # with one thread too, and the two are 43 dB apart.
    assert all(np.array_equal(one, other) for one, other in zip(*handed, strict=True))
    assert min(psnr(whole, replace(whole, video=own)), psnr(pieces, replace(whole, video=own))) >= 38
    assert np.array_equal(whole.audio, pieces.audio)


def test_a_sound_that_cannot_be_copied_is_encoded_from_its_file_not_from_what_the_model_heard(pipe, tmp_path):
    wave = clip(rate_hz=48000).audio
    write_wav(tmp_path / "in.wav", np.concatenate([wave, 0.5 * wave]), 48000)
    made = pipe(task="a2v", audio=tmp_path / "in.wav", method=QUICK)[0]
    assert "encoded anew: pcm_s16le has no place in an mp4" in write_made(tmp_path / "out.mp4", made, "")
    back = read_clip(tmp_path / "out.mp4").clip
    assert (back.audio.shape, back.sample_rate_hz) == ((2, 48000), 48000)
    loud, soft = np.abs(back.audio).mean(1)
    assert soft == pytest.approx(0.5 * loud, rel=0.05)
    edit = Edit(remake="video")
    own = files(tmp_path, rate_hz=48000)["video"]
    made = pipe(task="inpaint", video=own, method=replace(QUICK, edit=edit))[0]
    assert "sound of" in write_made(tmp_path / "other.mp4", made, "")
    assert packets(tmp_path / "other.mp4", "audio") == packets(own, "audio")


@pytest.mark.parametrize(("encoder", "task", "kind"), [("libsvtav1", "v2a", "video"), ("libmp3lame", "a2v", "audio")])
def test_what_is_copied_is_known_by_its_codec_not_by_its_decoder(pipe, tmp_path, encoder, task, kind):
    given, source = clip(height=64, width=64), tmp_path / "in.mp4"
    try:
        codec = av.Codec(encoder, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this FFmpeg has no {encoder}")
    with av.open(str(source), "w") as out:
        if codec.type == "video":
            stream = out.add_stream(encoder, rate=8)
            stream.width = stream.height = 64
            frames = [av.VideoFrame.from_ndarray(image, format="rgb24") for image in given.video]
        else:
            stream = out.add_stream(encoder, rate=16000)
            frames = [av.AudioFrame.from_ndarray(given.audio, format="fltp", layout="mono")]
            frames[0].sample_rate = 16000
        for frame in [*frames, None]:
            out.mux(stream.encode(frame))
    made = pipe(task=task, method=QUICK, **{kind: source})[0]
    assert "bit for bit" in write_made(tmp_path / "out.mp4", made, "")
    assert packets(tmp_path / "out.mp4", kind) == packets(source, kind)


def coded(path, encoder, frames=None, wave=None, rate=25, **options):
    """A file of one stream by any encoder of FFmpeg's, in the container that its name says."""
    try:
        av.Codec(encoder, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this FFmpeg has no {encoder}")
    with av.open(str(path), "w") as out:
        stream = out.add_stream(encoder, rate=rate, options=options)
        if wave is None:
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            parts = [av.VideoFrame.from_ndarray(image, format="rgb24") for image in frames]
        else:
            parts = [av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")]
            parts[0].sample_rate = rate
        for part in [*parts, None]:
            out.mux(stream.encode(part))
    return path


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("libx264", {"x264-params": "bframes=2:b-adapt=0:scenecut=0"}),
        ("libx265", {"x265-params": "bframes=3:b-adapt=0:log-level=none"}),
    ],
)
def test_reordered_frames_of_matroska_are_copied_from_the_first(pipe, tmp_path, encoder, options):
    """It keeps no decoding times, and FFmpeg finds none for the first packets: one of them is the only keyframe."""
    frames = clip(1.0, 25.0, 48, 64).video
    source = coded(tmp_path / "in.mkv", encoder, frames, **options)
    with av.open(str(source)) as container:
        assert next(p.dts for p in container.demux(video=0)) is None
    made = pipe(task="v2a", video=source, method=QUICK)[0]
    assert "bit for bit" in write_made(tmp_path / "out.mp4", made, "")
    assert len(packets(tmp_path / "out.mp4", "video")) == len(frames)
    ours, theirs = (read_clip(p, 0, 1.0, video=True, audio=False) for p in (tmp_path / "out.mp4", source))
    assert ours.complete
    assert np.array_equal(ours.clip.video, theirs.clip.video)


@pytest.mark.parametrize("flags", ["cmaf+frag_keyframe+delay_moov+global_sidx", "cmaf+frag_keyframe+delay_moov"])
def test_fragments_that_ffmpeg_reads_late_are_not_copied_late(pipe, tmp_path, flags):
    """Their picture would come two frames after the sound that was made for it."""
    plain = coded(tmp_path / "plain.mp4", "libx264", clip(1.0, 25.0, 48, 64).video, bf="2")
    source = copied(plain, tmp_path / "in.mp4", flags)
    made = pipe(task="v2a", video=source, duration_s=1.0, method=QUICK)[0]
    said = write_made(tmp_path / "out.mp4", made, "")
    ours, theirs = (read_clip(p, 0, 0.9, video=True, audio=False).clip for p in (tmp_path / "out.mp4", source))
    apart = [np.abs(ours.video.astype(float) - np.roll(theirs.video, late, axis=0)).mean() for late in range(4)]
    assert np.argmin(apart) == 0, said


def test_what_the_muxer_refuses_is_encoded_anew_and_that_is_said(pipe, tmp_path):
    wave = clip(rate_hz=8000).audio
    source = coded(tmp_path / "in.mkv", "libmp3lame", wave=wave, rate=8000)
    made = pipe(task="a2v", audio=source, duration_s=1.15, method=QUICK)[0]
    assert "encoded anew: an mp4 does not take its packets" in write_made(tmp_path / "out.mp4", made, "")
    back = read_clip(tmp_path / "out.mp4").clip
    assert back.audio_duration_s == pytest.approx(made.clip.audio_duration_s, abs=0.01)
    assert np.abs(back.audio).max() > 0.2
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_video_without_sound_stays_without_in_any_company(pipe, tmp_path):
    given, form = files(tmp_path), pipe.trained_form
    edit = Edit(remake="video")
    method = replace(QUICK, edit=edit)
    requests = [Request(prompt="a", video=given["video"]), Request(prompt="b", video=given["mute"], seed=1)]
    together = pipe.make(requests, "inpaint", form, method)
    alone = pipe.make(requests[1:], "inpaint", form, method)[0]
    assert together[0].clip.audio is not None
    assert together[1].clip.audio is None
    assert alone.clip.audio is None
    assert psnr(together[1].clip, alone.clip) > 45


def test_a_file_longer_than_the_clip_says_how_long_it_is(pipe, tmp_path):
    source = files(tmp_path, duration_s=3.0)["video"]
    with pytest.raises(ValueError, match="the picture given is 3 s long and duration_s=1 leaves nothing to add"):
        pipe(task="extend", video=source, method=QUICK)


def test_a_prefix_comes_back_to_its_last_frame_and_sample_wherever_tokens_end(pipe, tmp_path):
    """Five frames are two tokens and a half, 9700 samples no whole number of them."""
    whole = clip(0.625)
    write_clip(tmp_path / "in.mp4", replace(whole, audio=whole.audio[:, :9700]))
    assert 9700 % pipe.audio_codec.geometry.time.stride
    made = pipe(task="extend", video=tmp_path / "in.mp4", method=QUICK)[0]
    samples = round(made.given.real_s[1] * 16000)
    assert made.given.real_s[0] == 0.625
    assert 9700 <= samples < 9800
    assert np.array_equal(made.clip.video[:5], made.given.frames[:5])
    assert not np.array_equal(made.clip.video[5], made.given.frames[5])
    fade = round(0.005 * 16000)
    assert np.array_equal(made.clip.audio[:, : samples - fade], made.given.wave[:, : samples - fade])
    picture, sound = made.given.notes
    assert picture.endswith("given until 0.625 s, the rest is made")
    assert "s, the rest is made" in sound
    assert "held" not in picture + sound


@pytest.mark.parametrize(("frames", "samples", "what"), [(1, 8000, "picture"), (4, 40, "sound")])
def test_a_prefix_shorter_than_a_token_is_refused(pipe, tmp_path, frames, samples, what):
    whole = clip()
    write_clip(tmp_path / "in.mov", replace(whole, video=whole.video[:frames], audio=None, sample_rate_hz=None))
    write_wav(tmp_path / "in.wav", whole.audio[:, :samples], 16000)
    given = {"video": tmp_path / "in.mov", "audio": tmp_path / "in.wav"}
    with pytest.raises(MediaError, match=f"the {what} given is .* s long, and the model's first token holds"):
        pipe(task="extend", method=QUICK, **given)


def test_names_with_colons_are_names(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files(tmp_path)["video"].rename("take:1.mp4")
    made = pipe(task="v2a", video=Path("take:1.mp4"), method=QUICK)[0]
    assert "bit for bit" in write_made(Path("out:1.mp4"), made, "")
    assert read_clip("out:1.mp4").clip.video_duration_s == pytest.approx(1.0, abs=0.05)


def test_given_tokens_stay_bit_for_bit(pipe, inputs, monkeypatch):
    seen = {}
    monkeypatch.setattr(pipe, "decode", lambda tokens, form, count: seen.update(tokens) or [clip()] * count)
    request, form = Request(image=inputs["image"]), pipe.trained_form
    pipe.make([request], "i2av", form, Method(SolverConfig("multistep", 3)))
    given = read_given(request, "i2av", form, pipe.audio_codec.geometry, QUICK.edit)
    clean = pipe.batch([request], [given], form).video.x
    assert torch.equal(seen["video"][:, :4], clean[:, :4])  # one latent step of 2 x 2 tokens
    assert not torch.isclose(seen["video"][:, 4:], clean[:, 4:]).any()


def test_a_clip_is_as_long_as_the_given_stream_not_as_its_file(pipe, tmp_path):
    made, longer = clip(1.0), clip(2.5)
    write_clip(tmp_path / "in.mp4", replace(made, audio=longer.audio))
    request = Request(video=tmp_path / "in.mp4")
    form = pipe.form_of(request, "v2a")
    assert form.duration_s == pytest.approx(1.0, abs=0.01)
    notes = read_given(request, "v2a", form, pipe.audio_codec.geometry, QUICK.edit).notes
    assert notes
    assert not any("left out" in note for note in notes)
    assert pipe.form_of(Request(audio=tmp_path / "in.mp4"), "a2v").duration_s == pytest.approx(2.5, abs=0.05)


def test_frames_are_counted_at_the_rate_that_is_meant():
    """23.976 and 29.97 are fractions: half a frame more or less decides (301 frames of 60000/1001 are 150.5 of half the
    rate, and a half is read as one more)."""
    assert Form(301 * 1001 / 60000, 29.97, 16, 16).frames == 151


def test_what_is_missing_before_the_end_counts_as_given():
    assert end_of(((8000, 12000), (14000, 16000))) == 16000
    assert end_of(()) == 0


@pytest.mark.parametrize("name", ["euler", "heun", "multistep"])
def test_the_model_never_sees_given_tokens_moved(pipe, inputs, name):
    """Not even where a solver looks ahead within a step."""
    request, form = Request(image=inputs["image"]), pipe.trained_form
    clean = pipe.batch([request], [read_given(request, "i2av", form, pipe.audio_codec.geometry, QUICK.edit)], form)
    seen = []
    hook = pipe.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].video.x[:1, :4]))
    try:
        pipe.make([request], "i2av", form, Method(SolverConfig(name, 3)))
    finally:
        hook.remove()
    assert len(seen) >= 3
    assert all(torch.equal(tokens, clean.video.x[:, :4]) for tokens in seen)


def test_guidance_that_is_off_changes_nothing(pipe):
    plain = pipe(prompt="a", method=replace(QUICK, guidance=NO_GUIDANCE))[0].clip
    narrow = ModalityGuidance(text=5.0, cross=3.0, low=0.35, high=0.36)  # no step falls into it
    nothing = ModalityGuidance(layers=(0, 1), rescale=0.7)
    for off in (narrow, nothing):
        assert same(plain, pipe(prompt="a", method=replace(QUICK, guidance=Guidance(off, off)))[0].clip)
    text = Guidance(ModalityGuidance(text=3.0), ModalityGuidance(text=3.0))
    once = pipe(prompt="a", method=replace(QUICK, guidance=text))[0].clip
    again = Guidance(*(ModalityGuidance(text=3.0, cross=1.0, perturbed=0.0, layers=(1,)) for _ in range(2)))
    assert same(once, pipe(prompt="a", method=replace(QUICK, guidance=again))[0].clip)


@pytest.mark.parametrize(
    "term", [{"text": 3.0}, {"cross": 3.0}, {"perturbed": 2.0, "layers": (0,)}, {"text": 3.0, "rescale": 1.0}]
)
def test_guidance_that_is_on_changes_the_clip(pipe, term):
    guided = Guidance(ModalityGuidance(**term), ModalityGuidance(**term))
    clips = [pipe(prompt="a", method=replace(QUICK, guidance=g))[0].clip for g in (NO_GUIDANCE, guided)]
    assert not same(*clips)


def test_an_empty_prompt_is_no_caption(pipe):
    assert bool(pipe.text(["", " ", "a"]).dropped.tolist() == [True, True, False])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"task": "v2a"}, "needs video=FILE"),
        ({"task": "t2av", "image": "x.png"}, "does not use image"),
        ({"task": "t2q"}, "is unknown"),
        ({"task": "i2av", "image": "nowhere.png"}, "nowhere.png: no such file"),
        ({"height": 20}, "multiple of the model's 8 pixels; try 16"),
        ({"duration_s": 0.0}, "duration_s=0.0 must be positive"),
        ({"duration_s": 0.01}, "less than a frame"),
        ({"method": Method(guidance=Guidance(video=ModalityGuidance(perturbed=1.0, layers=(9,))))}, "layers 0 to 1"),
    ],
)
def test_a_wrong_request_is_refused(pipe, wrong, words):
    with pytest.raises(ValueError, match=words):
        pipe(**wrong)


def test_a_file_without_the_stream_is_refused(pipe, inputs):
    with pytest.raises(ValueError, match="has no sound"):
        pipe(task="a2v", audio=inputs["mute"], method=QUICK)
    with pytest.raises(ValueError, match="has no picture"):
        pipe(task="v2a", video=inputs["audio"], method=QUICK)


@pytest.mark.parametrize("prompt", ["x" * 10_000, "🔴🏀 bounces", "ein roter Ball springt", "红色的球弹跳"])
def test_any_text_is_a_prompt(pipe, prompt):
    made = pipe(prompt=prompt, method=QUICK)[0]
    assert made.clip.video is not None
    assert ("cut to the 63" in " ".join(made.given.notes)) == (len(prompt) > 63)


def test_a_model_of_one_tower_makes_its_stream_and_refuses_the_other(pipe):
    deaf = AVTransformer.of(replace(MODEL, audio=None)).eval()
    form = {"height": 16, "width": 16, "fps": 8.0, "duration_s": 1.0}
    alone = AVPipeline(deaf, pipe.video_codec, pipe.audio_codec, **form)
    assert alone(task="t2v", method=QUICK)[0].clip.video is not None
    for task in ("t2av", "t2a"):
        with pytest.raises(
            ValueError, match=f"task={task} has audio, for which the model has no tower: try t2v or i2v"
        ):
            alone(task=task, method=QUICK)


def test_no_prompt_is_an_error_that_says_so(pipe):
    with pytest.raises(ValueError, match=r"prompt=\[\] names no clip"):
        pipe(prompt=[])


def test_a_kernel_that_only_goes_forward_serves_sampling_on_a_cpu(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert open_for(torch.device("cpu"), tmp_path, "flex").model.spec.attention == "flex"


def test_a_folder_opens_in_a_process_that_has_imported_the_pipeline_alone(pipe, tmp_path):
    """diffusers takes no part of a module that nobody has imported."""
    pipe.save_pretrained(tmp_path)
    opened = f"AVPipeline.from_pretrained({str(tmp_path)!r})"
    code = f"from avgen.sample.pipeline import AVPipeline; print({opened}.fingerprint)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == pipe.fingerprint, done.stderr[-2000:]
