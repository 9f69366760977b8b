"""The training loop: what is random depends on the step alone, and a run cut short goes on exactly."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avgen.config import fingerprint
from avgen.data.stream import Share
from avgen.flow import FlowConfig
from avgen.models.dit import AVTransformer
from avgen.rng import noise_like, uniforms
from avgen.train import checkpoint
from avgen.train.compare import Difference
from avgen.train.config import LoraConfig, OptimizerConfig, PartRates, TrackingConfig
from avgen.train.data_config import PairsData, StoreData, ToyboxData
from avgen.train.loop import accumulate, optimise, train
from avgen.train.metrics import reproducible
from avgen.train.run import export, prepare, save
from avgen.train.step import draw
from avgen.train.trackers import METRICS, read_metrics
from avgen.types import stack_batches
from tests.models.factory import batch, model, scatter
from tests.models.factory import config as model_config
from tests.train.factory import config as tiny
from tests.train.factory import quiet


class Clips:
    """Ragged clips by index; every third is silent."""

    def batch(self, indices, at=None):
        clips = [batch((f"clip {i}",), frames=2 + i % 3, audio_steps=4 + i % 4, level=1.0, seed=i) for i in indices]
        silent = [replace(clip, audio=None) if i % 3 == 2 else clip for i, clip in zip(indices, clips, strict=True)]
        return stack_batches(silent)


class Interrupted(Clips):
    """A signal comes while the fourth step's clips are read."""

    def batch(self, indices, at=None):
        if indices[0] == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(indices)


def config(folder, **changes):
    often = {"tracking": TrackingConfig(to=()), "validate_every": 3, "save_every": 2}
    return tiny(folder, **often | changes)


def weights(run):
    return {**run.model.state_dict(), **{f"average {k}": v for k, v in run.average.weights.items()}}


def same(one, other, tolerance=0.0):
    return all((one[name] - other[name]).abs().max() <= tolerance * (1 + one[name].abs().max()) for name in one)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_cut_short_goes_on_exactly(tmp_path, kind):
    optimizer = OptimizerConfig(kind=kind, warmup_steps=2)
    whole = train(config(tmp_path / "whole", optimizer=optimizer), Clips(), Clips(), quiet())
    cut = config(tmp_path / "cut", optimizer=optimizer)
    again = prepare(cut)
    for step in range(4):
        optimise(again, [Clips().batch(range(step * 4, step * 4 + 4))], Share(4, 1))
    save(again)
    again.writer.wait()
    resumed = train(cut, Clips(), Clips(), quiet())
    assert resumed.step == whole.step == 6
    assert same(weights(whole), weights(resumed))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    last = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    for ours, theirs in zip(lines[-3:], last[-3:], strict=True):
        assert reproducible(ours) == reproducible(theirs)


def test_a_signal_saves_the_step_and_stops(tmp_path):
    stopped = train(config(tmp_path, save_every=100), Interrupted(), Clips(), quiet())
    assert stopped.step == 4
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["step_00000004"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_steps_before_a_signal_are_logged(tmp_path):
    """Whoever goes on begins with an empty meter."""
    settings = config(tmp_path, save_every=100, log_every=3)
    train(settings, Interrupted(), Clips(), quiet())
    train(settings, Clips(), Clips(), quiet())
    logged = [line for line in read_metrics(tmp_path / METRICS) if "loss/video" in line]
    assert [line["step"] for line in logged] == [3, 4, 6]
    assert [round(line["steps_per_s"] * line["seconds"]) for line in logged] == [3, 1, 2]


def test_a_signal_during_validation_does_not_lose_the_steps_since_the_last_save(tmp_path):
    class Interrupting(Clips):
        def batch(self, indices, at=None):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(indices)

    stopped = train(config(tmp_path, save_every=100), Clips(), Interrupting(), quiet())
    assert stopped.step < 6
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == [f"step_{stopped.step:08d}"]


def test_a_step_is_saved_before_it_is_validated(tmp_path):
    """Validation may run out of memory, and the same command would come to the same step again."""

    class Large(Clips):
        def batch(self, indices, at=None):
            raise MemoryError

    with pytest.raises(MemoryError):
        train(config(tmp_path, validate_every=3, save_every=3), Clips(), Large(), quiet())
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["step_00000003"]

    def judged() -> list[float]:
        return [line["step"] for line in read_metrics(tmp_path / METRICS) if "held_out/t2av/video" in line]

    # who goes on makes up for it, in the middle and at the end
    with pytest.raises(MemoryError):
        train(config(tmp_path, steps=3, validate_every=3, save_every=3), Clips(), Large(), quiet())
    train(config(tmp_path, steps=3, validate_every=3, save_every=3), Clips(), Clips(), quiet())
    assert judged() == [3]
    for _ in range(2):
        train(config(tmp_path, validate_every=3, save_every=3), Clips(), Clips(), quiet())
        assert judged() == [3, 6]


def test_a_run_goes_on_with_another_attention_kernel_but_not_as_another_model(tmp_path):
    before = train(config(tmp_path, steps=2), Clips(), Clips(), quiet())
    after = train(config(tmp_path, steps=3, model=model_config(attention="math")), Clips(), Clips(), quiet())
    assert after.step == 3
    # the default's fingerprint is that of the model as it is described, so that older checkpoints keep theirs
    described = fingerprint((before.config.model, None, "", None, before.config.optimizer.kind, []))
    assert before.about().fingerprint == after.about().fingerprint == described
    with pytest.raises(ValueError, match="begun with another model"):
        prepare(config(tmp_path, steps=4, model=model_config(coupling="none")))


def test_accumulation_equals_the_big_batch(tmp_path):
    """Ragged, with clips that lack sound: the loss is per supervised token of the step, not per micro-batch."""
    gradients = []
    for micro_batches in (1, 2, 4):
        run, share = prepare(config(tmp_path, accumulate=micro_batches)), Share(4, micro_batches)
        scatter(run.model)
        accumulate(run, [Clips().batch(list(places)) for places in share.places()], share)
        gradients.append({name: p.grad for name, p in run.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == gradients[2].keys()
    assert same(gradients[0], gradients[1], 1e-5)
    assert same(gradients[0], gradients[2], 1e-5)


def test_what_is_random_depends_on_the_place_in_the_global_batch_alone():
    settings = config("unused")
    crowd = Clips().batch(range(8))
    whole = draw(crowd, settings, 5, range(8))
    parts = [draw(Clips().batch(places), settings, 5, places) for places in (range(4), range(4, 8))]
    assert whole.tasks == parts[0].tasks + parts[1].tasks
    for i in range(8):
        part, j = parts[i // 4], i % 4
        stream, alone = whole.noisy.video, part.noisy.video
        tokens = int(alone.mask()[j].sum())
        assert torch.equal(stream.level[i, :tokens], alone.level[j, :tokens])
        assert torch.equal(whole.noise.video[i, :tokens], part.noise.video[j, :tokens])
    assert not torch.equal(whole.noise.video[0, :6], whole.noise.video[1, :6])
    assert not torch.equal(draw(crowd, settings, 6, range(8)).noise.video, whole.noise.video)


def test_padding_does_not_change_noise():
    short, long = torch.zeros(2, 7, 5), torch.zeros(2, 31, 5)
    ours = noise_like(short, 1, "video noise", 3, range(2))
    assert torch.equal(ours, noise_like(long, 1, "video noise", 3, range(2))[:, :7])


def test_tasks_are_drawn_by_weight():
    settings = config("unused", tasks={"t2av": 3, "v2a": 1})
    drawn = [draw(batch(("a",) * 8, level=1.0), settings, step, range(8)).tasks for step in range(40)]
    share = sum(names.count("v2a") for names in drawn) / 320
    assert share == pytest.approx(0.25, abs=0.08)


def test_uniforms_never_touch_the_ends():
    u = uniforms(50, 0, "level", 0, range(50))
    assert 0 < u.min() < 0.01
    assert 0.99 < u.max() < 1


def test_learning_rate_counts_optimiser_steps():
    cosine = OptimizerConfig(warmup_steps=10)
    assert [cosine.factor(s, 110) for s in (0, 9, 10, 60, 110)] == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])
    wsd = OptimizerConfig(warmup_steps=10, schedule="wsd")
    assert [wsd.factor(s, 110) for s in (9, 50, 89, 100, 110)] == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0])


def test_shares_cover_the_batch_once():
    taken = [i for rank in range(3) for places in Share(24, 4, rank, 3).places() for i in places]
    assert taken == list(range(24))
    with pytest.raises(ValueError, match="batch=10"):
        Share(10, 2, 0, 2)


def written(folder, step, value=1.0, keep=2):
    writer = checkpoint.Writer(folder, keep)
    writer.save(checkpoint.About(step, "", 1), {"model": {"a": torch.full((3,), value)}})
    writer.wait()
    return folder / f"step_{step:08d}"


def test_a_checkpoint_holds_what_the_tensors_were_when_it_was_asked_for(tmp_path):
    writer, tensor = checkpoint.Writer(tmp_path, 2), torch.ones(1000)
    writer.save(checkpoint.About(1, "", 1), {"a": tensor})
    tensor.zero_()
    writer.wait()
    found = {"a": torch.empty(1000)}
    checkpoint.load(tmp_path / "step_00000001", found)
    assert torch.equal(found["a"], torch.ones(1000))


@pytest.mark.parametrize("harm", ["cut short", "lost", "nonsense", "no index"])
def test_a_damaged_checkpoint_is_an_error_and_a_half_written_one_is_not_seen(tmp_path, harm):
    path = written(tmp_path, 3)
    (tmp_path / ".step_00000004.part").mkdir()
    assert checkpoint.checkpoints(tmp_path) == [path]
    shard = next(path.glob("*.distcp"))
    if harm == "lost":
        shard.unlink()
    elif harm == "no index":
        (path / ".metadata").unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-40] if harm == "cut short" else b"nonsense" * 100)
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load(path, {"model": {"a": torch.zeros(3)}})


def test_a_checkpoint_that_lacks_a_tensor_is_an_error(tmp_path):
    path = written(tmp_path, 3)
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load(path, {"model": {"a": torch.zeros(3), "b": torch.zeros(3)}})


def test_a_checkpoint_that_cannot_be_written_stops_the_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    writer = checkpoint.Writer(tmp_path / "file", 2)
    writer.save(checkpoint.About(1, "", 1), {"a": torch.ones(1)})
    with pytest.raises(OSError, match="could not be written"):
        writer.wait()


def test_the_newest_checkpoints_stay(tmp_path):
    for step in (2, 4, 6, 8):
        written(tmp_path, step, float(step))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000006", "step_00000008"]
    found = {"model": {"a": torch.zeros(3)}}
    checkpoint.load(tmp_path / "step_00000008", found)
    assert torch.equal(found["model"]["a"], torch.full((3,), 8.0))


def test_another_model_is_not_resumed_into(tmp_path):
    train(config(tmp_path, steps=1), Clips(), Clips(), quiet())
    with pytest.raises(ValueError, match="another model"):
        prepare(config(tmp_path, model=model_config("none")))
    for other in (OptimizerConfig(kind="adamw"), OptimizerConfig(scale=PartRates(video=0.0))):
        with pytest.raises(ValueError, match=r"another model, .* optimizer\.kind or set of parts"):
            prepare(config(tmp_path, optimizer=other))
    with pytest.raises(ValueError, match=r"another model, .* flow\.predict"):  # its outputs mean something else
        prepare(config(tmp_path, flow=FlowConfig(predict="data")))


def test_adapters_are_not_resumed_over_other_weights(tmp_path):
    start = tmp_path / "start"
    model().save_pretrained(start)
    settings = config(tmp_path / "run", lora=LoraConfig(rank=2), start=start, steps=2, save_every=1)
    train(replace(settings, steps=1), Clips(), Clips(), quiet())
    train(settings, Clips(), Clips(), quiet())
    other = model()
    with torch.no_grad():
        other.towers["video"].head.weight.add_(0.01)
    other.save_pretrained(start)
    with pytest.raises(ValueError, match="begun with another model, lora, start"):
        train(replace(settings, steps=3), Clips(), Clips(), quiet())


def test_the_export_is_the_average_and_leaves_the_run_as_it_was(tmp_path):
    run = train(config(tmp_path, steps=3), Clips(), Clips(), quiet())
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    exported = AVTransformer.from_pretrained(export(run))
    assert same(before, run.model.state_dict())
    assert same(dict(exported.named_parameters()), run.average.weights)
    assert not same(dict(exported.named_parameters()), dict(run.model.named_parameters()))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "betas=[0.9, 1.0]: each must lie in [0, 1)"),
        (lambda: OptimizerConfig(weight_decay=-0.1), "weight_decay=-0.1 cannot be negative"),
        (lambda: ToyboxData(workers=-1), "workers=-1 cannot be negative"),
        (lambda: StoreData("latents", workers=-1), "workers=-1 cannot be negative"),
        (lambda: PairsData(Path("pairs"), Path("model"), workers=-1), "workers=-1 cannot be negative"),
    ],
)
def test_numbers_that_torch_would_refuse_are_refused_first(made, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        made()


def test_ways_without_any_spread_differ_by_more_than_any_error():
    same, apart = Difference.between([1.0, 1.0], [1.0, 1.0]), Difference.between([1.0, 1.0], [2.0, 2.0])
    assert same.errors == 0
    assert apart.errors == -math.inf
