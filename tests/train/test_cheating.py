"""The watch for cheating: each cheap attack is found, harmless changes are not, and a reward for loudness trips it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from avgen.sample.solvers import SolverConfig
from avgen.train.cheating import Traits, Watch, alarms
from avgen.train.config import CheatingConfig, LoraConfig, OptimizerConfig, PreferenceConfig, SamplesConfig
from avgen.train.loop import train
from avgen.train.parallel import Processes
from avgen.train.run import prepare
from avgen.types import Clip
from tests.train.factory import Pixels, Waves
from tests.train.pairs import Pairs, config, order

RATE_HZ, FPS, FRAMES = 16000, 8.0, 16


def clip(seed: int, beats: int = 2, gain: float = 0.1) -> Clip:
    """Blocks that move, and tones that begin at `beats` instants."""
    random = np.random.default_rng(seed)
    frames = np.kron(random.integers(0, 255, (FRAMES, 4, 4, 3)), np.ones((1, 4, 4, 1)))
    wave = np.zeros(2 * RATE_HZ)
    for instant in random.permutation(9)[:beats] * 0.2:
        begin = int(instant * RATE_HZ)
        wave[begin : begin + RATE_HZ // 20] = gain * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ // 20) / RATE_HZ)
    return Clip(frames.astype(np.uint8), wave[None].astype(np.float32), FPS, RATE_HZ)


def twins(**how):
    return [[clip(10 * prompt + t, **how) for t in range(2)] for prompt in range(4)]


def still(made):
    return replace(made, video=np.repeat(made.video[:1], FRAMES, axis=0))


ATTACKS = {
    "louder": (twins(gain=0.2), "dB louder"),
    "busier": (twins(beats=4), "times of the onsets"),
    "still": ([[still(one) for one in pair] for pair in twins()], "times of the motion"),
    "alike": ([[pair[0], pair[0]] for pair in twins()], "times of the variety"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_attack_is_told_by_its_name(attack):
    made, words = ATTACKS[attack]
    found = alarms(Traits.of(made), Traits.of(twins()), CheatingConfig())
    assert len([one for one in found if words in one]) == 1


def test_onsets_where_the_reference_has_none_are_an_alarm():
    made, silent, still_ones = (
        Traits.of(clips) for clips in (twins(), twins(beats=0), [[still(one) for one in pair] for pair in twins()])
    )
    found = alarms(replace(made, loudness_db=silent.loudness_db), silent, CheatingConfig())
    assert found == ["busier: 1 onsets per s, none before (cheating.more_onsets=1.5)"]
    assert not [one for one in alarms(silent, silent, CheatingConfig()) if "onsets" in one]
    assert not [one for one in alarms(made, still_ones, CheatingConfig()) if "motion" in one]  # more is no harm


def test_what_is_counted_is_what_was_put_in():
    traits = Traits.of(twins(beats=3))
    assert traits.onsets_per_s == pytest.approx(3 / 2)
    share = 3 * 0.05 / 2  # of the time that sounds, at the power of a sine of 0.1
    assert traits.loudness_db == pytest.approx(10 * np.log10(0.1**2 / 2 * share), abs=0.05)


def test_other_clips_of_the_same_kind_are_no_alarm():
    others = [[clip(1000 + 10 * prompt + t) for t in range(2)] for prompt in range(4)]
    assert alarms(Traits.of(others), Traits.of(twins()), CheatingConfig()) == []
    silent = Traits(None, None, None, None)
    assert alarms(silent, silent, CheatingConfig()) == []


class Faint(Waves):
    """Plays the latents' mean so faintly that nothing is too loud to become louder."""

    def decode(self, latents):
        return 0.2 * super().decode(latents).atanh()


class Loudest(Pairs):
    """Winners are winners because their sound is louder, and for nothing else: further from zero, on the side where
    the reference's own sounds lie."""

    def batch(self, indices, at=None):
        made = super().batch([i // 2 * 2 for i in indices])
        louder = torch.tensor([0.0 if i % 2 else 1.0 for i in indices])[:, None, None]
        return replace(made, audio=replace(made.audio, x=made.audio.x - 2 * louder))


def loud_run(folder, source, **changes):
    settings = config(
        folder,
        steps=60,
        lora=LoraConfig(rank=4),
        preference=PreferenceConfig(beta_video=30.0, beta_audio=30.0, cheating=CheatingConfig(every=60, prompts=3)),
        optimizer=OptimizerConfig(kind="adamw", lr=1e-2, warmup_steps=2),
        ema_decay=0.5,
        samples=SamplesConfig(solver=SolverConfig(steps=4), text=1.0),
        **changes,
    )
    said = Console(record=True, width=400, quiet=False, file=(folder / "said.txt").open("w"))
    train(settings, source, Pairs(), said, order(settings), codecs=(Pixels(), Faint()))
    lines = [json.loads(line) for line in (settings.out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "cheating/alarms" in line], said.export_text()


def test_a_reward_for_loudness_trips_the_alarm(tmp_path):
    [line], said = loud_run(tmp_path, Loudest())
    assert line["cheating/loudness_db"] - line["cheating/loudness_db/reference"] > 3
    assert line["cheating/alarms"] >= 1
    assert "alarm at step 60: against the reference, held-out clips have become" in said
    assert "dB louder" in said


class Sharing(Processes):
    """One of several processes, which run one after another: the first comes last."""

    def collected(self, value):
        BROUGHT.append(value)
        return BROUGHT


BROUGHT: list[dict] = []


@pytest.mark.parametrize(("batch", "text"), [(12, 1.0), (6, 2.0), (48, 2.0)])
def test_processes_share_the_clips(tmp_path, batch, text):
    """Whatever fits at once: figures are those of one process."""
    settings = config(
        tmp_path,
        batch=48,
        preference=PreferenceConfig(cheating=CheatingConfig(prompts=4)),
        samples=SamplesConfig(solver=SolverConfig(steps=2), text=text),
    )
    run = prepare(settings)
    alone = Watch(run, Pairs(), (Pixels(), Faint())).traits(run.model)
    run.config = replace(settings, batch=batch)
    BROUGHT.clear()
    calls = []
    for rank in (2, 1, 0):
        run.processes = Sharing(rank, 3, 1, None, None)
        watch, made = Watch(run, Pairs(), (Pixels(), Faint())), []
        watch.made = lambda model, asked, make=watch.made, made=made: made.append(asked) or make(model, asked)
        together = watch.traits(run.model)
        assert (together is None) == (rank > 0)
        assert max(map(len, made)) * (1 if text == 1.0 else 2) <= max(2, batch // 3)
        calls.append(len(made))
    assert len(set(calls)) == 1  # a sharded model needs all of them
    assert sorted(prompt for part in BROUGHT for prompt in part) == [0, 1, 2, 3]
    assert vars(together) == pytest.approx(vars(alone), rel=1e-3)


def test_as_many_prompts_are_looked_at_as_are_asked_for(tmp_path):
    few = SamplesConfig(solver=SolverConfig(steps=1), text=1.0)
    watched = PreferenceConfig(cheating=CheatingConfig(prompts=3))
    run = prepare(config(tmp_path, validation_clips=2, preference=watched, samples=few))
    watch, seen = Watch(run, Pairs(), (Pixels(), Faint())), []
    watch.made = lambda model, asked, make=watch.made: seen.extend(asked) or make(model, asked)
    watch.traits(run.model)
    assert seen == [(prompt, twin) for prompt in range(3) for twin in range(2)]


def test_without_codecs_the_watch_says_what_to_set(tmp_path):
    settings = config(tmp_path, preference=PreferenceConfig())
    with pytest.raises(ValueError, match=r"set preference\.cheating\.every=0"):
        train(settings, Pairs(), Pairs(), Console(quiet=True), order(settings))
