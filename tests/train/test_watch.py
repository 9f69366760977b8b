"""What stops a bad run: the weights stay those before the bad step, the batch is named, checkpoints are left alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from avgen import command
from avgen.data.stream import Share
from avgen.models.text import bytes_of, captions_of
from avgen.train import __main__ as verb
from avgen.train import checkpoint, data, loop
from avgen.train.config import GuardConfig, OptimizerConfig
from avgen.train.loop import optimise, train
from avgen.train.metrics import Reading
from avgen.train.run import prepare
from avgen.train.watch import Guard, Stopped
from tests.train.test_train import Clips, config, quiet, same


class Poisoned(Clips):
    """One clip's latents hold a number that is none."""

    def __init__(self, clip, value=math.nan):
        self.clip, self.value = clip, value

    def batch(self, indices, at=None):
        batch = super().batch(indices)
        if self.clip in indices:
            batch.video.x[list(indices).index(self.clip), 0, 0] = self.value
        return batch


def weights_after(settings, steps):
    run = prepare(replace(settings, out=settings.out / "sound"))
    for step in range(steps):
        optimise(run, [Clips().batch(range(step * 4, step * 4 + 4))], Share(4, 1))
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_poisoned_batch_stops_the_run_with_the_weights_before_it(tmp_path, monkeypatch, kind, value):
    """The bad step is the 4th, nobody looks before the 6th, and a checkpoint would be due by then."""
    optimizer = OptimizerConfig(kind=kind, warmup_steps=2, weight_decay=0.1)
    settings = config(tmp_path, optimizer=optimizer, tasks={"t2av": 1}, log_every=6, save_every=3, validate_every=6)
    runs = []
    monkeypatch.setattr(loop, "prepare", lambda c: runs.append(prepare(c)) or runs[-1])
    with pytest.raises(Stopped, match=r"at step 4 .*clip 1 \(t2av, 'clip 13'\) is not finite") as stop:
        train(settings, Poisoned(13, value), Clips(), quiet())
    left = dict(runs[0].model.named_parameters())
    expected = weights_after(settings, 3)
    assert all(torch.equal(left[name], expected[name]) for name in expected)
    assert not same(expected, weights_after(settings, 4))
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["step_00000003"]
    assert str(tmp_path / "stopped_at_00000004") in str(stop.value)


def test_the_batch_is_saved_whole_and_every_clip_is_described(tmp_path):
    settings = config(tmp_path, tasks={"t2av": 1}, accumulate=2)
    with pytest.raises(Stopped):
        train(settings, Poisoned(6), Clips(), quiet())
    folder = tmp_path / "stopped_at_00000002"
    about = json.loads((folder / "rank_0.json").read_text())
    assert (about["step"], about["seed"]) == (2, settings.seed)
    assert [(clip["place"], clip["caption"], clip["finite"]) for clip in about["clips"]] == [
        (i, f"clip {4 + i}", i != 2) for i in range(4)
    ]
    assert [math.isfinite(clip["loss"]["video"]) for clip in about["clips"]] == [True, True, False, True]
    saved = torch.load(folder / "rank_0.pt", weights_only=True)
    first, second = saved["micro_batches"]
    assert first["tasks"] == ["t2av", "t2av"]
    assert first["clean"]["video"]["x"].isfinite().all()
    assert second["clean"]["video"]["x"][0, 0, 0].isnan()
    expected = loop.draw(Clips().batch([4, 5]), settings, 1, range(2))
    assert torch.equal(first["noise"]["video"], expected.noise.video)
    assert torch.equal(first["noisy"]["video"]["x"], expected.noisy.video.x)


def reading(first, losses, norm=1.0):
    steps = tuple(range(first, first + len(losses)))
    return Reading({}, steps, {"video": list(losses), "audio": [math.nan] * len(losses)}, [norm] * len(losses))


def judged(guard, losses, window=5):
    """The first fault in a run whose log comes every `window` steps."""
    for first in range(0, len(losses), window):
        if fault := guard.judge(reading(first + 1, losses[first : first + window])):
            return fault
    return None


@pytest.mark.parametrize("log_every", [1, 5, 7, 40])
def test_a_diverging_loss_is_found_at_the_step_where_it_began(log_every):
    guard = Guard(GuardConfig(factor=4.0, steps=10, window=20), torch.device("cpu"))
    sound = [1.0 + 0.5 * math.sin(i) for i in range(40)]
    fault = judged(guard, sound + [4.5 + i for i in range(60)], log_every)
    assert fault.step == 41
    assert "guard.factor=4" in fault.what


def test_spikes_a_falling_loss_and_steps_without_a_modality_stop_nothing():
    settings = GuardConfig(factor=4.0, steps=10, window=20)
    falling = [100 * 0.9**i for i in range(60)]
    spiky = [50.0 if i % 11 < 9 else 1.0 for i in range(25, 200)]
    gaps = [math.nan] * 30
    for losses in (falling, [1.0] * 25 + spiky, gaps, [1.0] * 20 + gaps + [1.0] * 20):
        assert judged(Guard(settings, torch.device("cpu")), losses) is None
    assert judged(Guard(replace(settings, factor=None), torch.device("cpu")), [1.0] * 30 + [99.0] * 90) is None


def test_no_checkpoint_is_written_while_the_loss_may_be_diverging(tmp_path, monkeypatch):
    """Saves are due at every step; the ones of the diverging steps wait, and the last good ones stay."""
    guard = GuardConfig(factor=2.0, steps=3, window=10)
    settings = config(tmp_path, steps=20, save_every=1, validate_every=20, guard=guard, tasks={"t2av": 1})

    class Growing(Clips):
        def batch(self, indices, at=None):
            batch = super().batch(indices)
            return replace(batch, video=replace(batch.video, x=batch.video.x * (10 if indices[0] >= 32 else 1)))

    with pytest.raises(Stopped, match=r"at step 9 loss/video has been more than guard\.factor=2"):
        train(settings, Growing(), Clips(), quiet())
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == [
        "step_00000007",
        "step_00000008",
    ]


def test_the_command_ends_with_a_code_that_says_it_failed(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise Stopped("stopped: at step 3 ...")

    monkeypatch.setattr(loop, "train", fails)
    monkeypatch.setattr(data, "reading", lambda config: data.Reading(None, None, None, None))  # nothing is read
    assert command.run(verb.main, ["recipe=toybox", f"out={tmp_path}"]) == command.FAILED != 0
    assert capsys.readouterr().err.startswith("stopped: at step 3")


def test_captions_are_read_back():
    captions = ["a red ball", "", "une lampe qui é"]
    assert captions_of(bytes_of(captions, 64)) == captions


def test_impossible_rules_are_refused():
    with pytest.raises(ValueError, match="factor=1"):
        GuardConfig(factor=1.0)
    with pytest.raises(ValueError, match="steps=50 must lie between 1 and window=20"):
        GuardConfig(window=20)
