"""Tasks as data: what is given, on random geometries, against exact fractions."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avgen import tasks
from avgen.tasks import Given, Hole, Task, assign
from avgen.types import Batch, Stream, stack_batches
from tests.worlds import Sample, Token, samples

EVERY_TASK = [
    *tasks.NAMED.values(),
    tasks.extend(0.5, 0.25),
    tasks.extend(None, 0.5),
    tasks.extend(0.25, None),
    tasks.interpolate([0.0, 0.5, 99.0]),
    tasks.inpaint(video=[Hole(0.25, 0.5)]),
    tasks.inpaint(audio=[Hole(0.0, 0.25), Hole(0.5, 0.75)]),
    tasks.inpaint(video=[Hole(top=0.5), Hole(0.0, 0.25, left=0.5, right=0.75)], audio=[Hole(start_s=0.5)]),
]


def promised(part: Given, tokens: tuple[Token, ...]) -> list[bool]:
    """Which tokens the documentation of Given hands over, in exact arithmetic, one at a time."""
    first, last = min(t.start_s for t in tokens), max(t.start_s for t in tokens)
    found = []
    for token in tokens:
        taken = any(a <= token.start_s and token.end_s <= b for a, b in map(exact_span, part.spans_s))
        for instant in part.instants_s:
            moment = min(max(Fraction(instant).limit_denominator(10**6), first), last)
            taken |= token.start_s <= moment < token.end_s
        found.append(taken and not any(touches(hole, token) for hole in part.holes))
    return found


def exact(value: float) -> Fraction | float:
    return value if abs(value) == float("inf") else Fraction(value).limit_denominator(10**6)


def exact_span(span: tuple[float, float]) -> tuple[Fraction | float, Fraction | float]:
    return exact(span[0]), exact(span[1])


def touches(hole: Hole, token: Token) -> bool:
    if token.start_s >= exact(hole.end_s) or token.end_s <= exact(hole.start_s):
        return False
    if token.box is None:
        return True
    top, left, bottom, right = token.box
    return (top < exact(hole.bottom) and bottom > exact(hole.top)) and (
        left < exact(hole.right) and right > exact(hole.left)
    )


def given_of(stream: Stream) -> list[bool]:
    """The tokens at level 0, once every token of the stream came in at level 1."""
    assert torch.equal(stream.level == 0, stream.weight == 0)
    return (stream.level[0] == 0).tolist()


@st.composite
def parts(draw: st.DrawFn, tokens: tuple[Token, ...]) -> Given:
    """Spans, instants and holes whose ends lie on token boundaries as often as between them."""
    edges = sorted({float(e) for t in tokens for e in (t.start_s, t.end_s)} or {0.0})
    moments = st.sampled_from(edges) | st.integers(-1000, 5000).map(lambda ms: ms / 1000 + 0.0003)
    fractions = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1.0])
    pairs = st.tuples(moments, moments).filter(lambda p: p[0] < p[1])
    boxes = st.tuples(fractions, fractions).filter(lambda p: p[0] < p[1])

    def hole(span: tuple[float, float], rows: tuple[float, float], columns: tuple[float, float]) -> Hole:
        return Hole(*span, top=rows[0], bottom=rows[1], left=columns[0], right=columns[1])

    spans = draw(st.lists(pairs | st.just(tasks.FOREVER), max_size=2))
    return Given(
        tuple(spans),
        tuple(draw(st.lists(moments, max_size=3))),
        tuple(draw(st.lists(st.builds(hole, pairs, boxes, boxes), max_size=2))),
    )


@given(samples(), st.data())
def test_given_is_what_its_documentation_promises(clip: Sample, data: st.DataObject) -> None:
    origin = tasks.origins(clip.batch)
    for stream, tokens in ((clip.batch.video, clip.video), (clip.batch.audio, clip.audio)):
        if stream is not None:
            part = data.draw(parts(tokens))
            assert tasks.given_mask(part, stream, origin)[0].tolist() == promised(part, tokens)


@given(samples(), st.sampled_from(EVERY_TASK))
def test_every_task_gives_its_tokens_and_leaves_the_rest(clip: Sample, task: Task) -> None:
    if not _compatible(clip, task):
        with pytest.raises(ValueError, match=f"{task.name}.*leaves"):
            assign(clip.batch, [task])
        return
    assigned = assign(clip.batch, [task])
    for name in ("video", "audio"):
        before, after, part = getattr(clip.batch, name), getattr(assigned, name), getattr(task, name)
        if part is None or before is None:
            assert after is None
            continue
        assert given_of(after) == promised(part, getattr(clip, name))
        kept = after.level != 0
        assert torch.equal(after.level[kept], before.level[kept])
        assert torch.equal(after.weight[kept], before.weight[kept])
        assert torch.equal(after.x, before.x)


def _compatible(clip: Sample, task: Task) -> bool:
    """Whether anything is left of the clip when the task has taken away what it does without."""
    return any(getattr(task, name) is not None and getattr(clip.batch, name) is not None for name in ("video", "audio"))


@given(samples(start_s=0.0, both=True), st.sampled_from([1.7, 59.94, 3600.1, 86399.9]), st.sampled_from(EVERY_TASK))
def test_shifting_a_clip_in_time_changes_nothing(clip: Sample, shift_s: float, task: Task) -> None:
    def shifted(stream: Stream | None) -> Stream | None:
        return None if stream is None else replace(stream, time=stream.time + shift_s)

    later = replace(clip.batch, video=shifted(clip.batch.video), audio=shifted(clip.batch.audio))
    here, there = assign(clip.batch, [task]), assign(later, [task])
    for name in ("video", "audio"):
        a, b = getattr(here, name), getattr(there, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.equal(a.level, b.level)
            assert torch.equal(a.weight, b.weight)


@given(st.lists(samples(), min_size=1, max_size=4), st.data())
def test_a_sample_gets_in_company_what_it_gets_alone(clips: list[Sample], data: st.DataObject) -> None:
    chosen = []
    for clip in clips:
        chosen.append(data.draw(st.sampled_from([t for t in EVERY_TASK if _compatible(clip, t)])))
    together = assign(stack_batches([clip.batch for clip in clips]), chosen)
    for stream in (together.video, together.audio):
        assert stream is None or (stream.weight[~stream.mask()] == 0).all()
    for i, (clip, task) in enumerate(zip(clips, chosen, strict=True)):
        alone = assign(clip.batch, [task])
        for name in ("video", "audio"):
            assert _row(getattr(together, name), i) == _row(getattr(alone, name), 0)


def _row(stream: Stream | None, row: int) -> tuple[list, list] | None:
    if stream is None or not stream.present[row]:
        return None
    keep = stream.mask()[row]
    return stream.level[row, keep].tolist(), stream.weight[row, keep].tolist()


@given(samples(), st.sampled_from(EVERY_TASK))
def test_a_sample_that_lacks_a_modality_keeps_lacking_it(clip: Sample, task: Task) -> None:
    whole = stack_batches([clip.batch, clip.batch])
    company = assign(whole, [task, tasks.T2AV])
    for name in ("video", "audio"):
        if getattr(clip.batch, name) is None:
            assert getattr(company, name) is None
        elif getattr(task, name) is None:
            assert getattr(company, name).present.tolist() == [False, True]


@given(samples(both=True))
def test_the_named_tasks_give_what_their_names_say(clip: Sample) -> None:
    def shares(task: Task) -> tuple[str, str]:
        done = assign(clip.batch, [task])
        return _share(done.video, clip.video), _share(done.audio, clip.audio)

    assert shares(tasks.T2AV) == ("nothing", "nothing")
    assert shares(tasks.I2AV) in {("first", "nothing"), ("all", "nothing")}
    assert shares(tasks.V2A) == ("all", "nothing")
    assert shares(tasks.A2V) == ("nothing", "all")
    assert shares(tasks.AI2V) in {("first", "all"), ("all", "all")}
    assert shares(tasks.T2V) == ("nothing", "absent")
    assert shares(tasks.T2A) == ("absent", "nothing")
    first = assign(clip.batch, [tasks.I2AV]).video
    assert first is not None
    assert given_of(first) == [token.start_s == 0 for token in clip.video]


def _share(stream: Stream | None, tokens: tuple[Token, ...]) -> str:
    if stream is None:
        return "absent"
    taken = given_of(stream)
    if not any(taken):
        return "nothing"
    if all(taken):
        return "all"
    return "first" if taken == [token.start_s == 0 for token in tokens] else "some"


@given(samples(both=True), st.integers(1, 60))
def test_a_longer_prefix_gives_no_less(clip: Sample, ticks: int) -> None:
    short, long = (assign(clip.batch, [tasks.extend(s, s)]) for s in (ticks / 24, (ticks + 1) / 24))
    for name in ("video", "audio"):
        assert not (getattr(short, name).weight == 0)[getattr(long, name).weight > 0].any()


@given(samples(both=True), st.data())
def test_a_hole_and_a_prefix_split_the_clip_between_them(clip: Sample, data: st.DataObject) -> None:
    """At a token boundary, what extend gives is what a hole from there on leaves."""
    edge = data.draw(st.sampled_from([float(t.end_s) for t in clip.audio if t.end_s > 0] or [1.0]))
    kept = assign(clip.batch, [tasks.extend(None, edge)]).audio
    holed = assign(clip.batch, [tasks.inpaint(audio=[Hole(start_s=edge)])]).audio
    assert kept is not None
    assert holed is not None
    assert given_of(kept) == given_of(holed)


@given(samples(both=True))
def test_noise_levels_of_tokens_not_given_stay(clip: Sample) -> None:
    video = clip.batch.video
    assert video is not None
    noised = replace(clip.batch, video=replace(video, levels=torch.full_like(video.levels, 0.7)))
    after = assign(noised, [tasks.I2AV]).video
    assert after is not None
    assert set(after.level[after.weight > 0].tolist()) <= {torch.tensor(0.7).item()}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tasks.extend(None, None), "give video_s, audio_s or both"),
        (lambda: tasks.extend(0.0, None), "video_s=0.0 must be positive"),
        (lambda: tasks.interpolate([]), "at least one instant"),
        (lambda: tasks.inpaint(), "a hole in the video, the audio or both"),
        (lambda: Hole(1.0, 1.0), "the end must be later"),
        (lambda: Hole(top=0.5, bottom=0.5), "must be ordered and within"),
        (lambda: Hole(right=1.5), "must be ordered and within"),
        (lambda: Given(spans_s=((2.0, 1.0),)), "the end must be later"),
        (lambda: Task("both", tasks.EVERYTHING, tasks.EVERYTHING), "leaves nothing to generate"),
        (lambda: Task("none", None, None), "leaves nothing to generate"),
    ],
)
def test_impossible_tasks_are_refused_in_words(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


@given(samples())
def test_one_task_per_sample_is_asked_for(clip: Sample) -> None:
    batch: Batch = clip.batch
    with pytest.raises(ValueError, match="one per sample"):
        assign(batch, [tasks.T2AV, tasks.T2AV])
