"""The training loop: read, step, average, log, validate, save; once around is one optimiser step."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from avgen import __version__
from avgen.config import fingerprint, to_plain
from avgen.data.stream import InTurn, Order, Share, Source, read_steps
from avgen.models.dit import AVTransformer
from avgen.train import checkpoint
from avgen.train.config import TrainConfig
from avgen.train.metrics import Meter, gradient_norms
from avgen.train.optim import Average, Optimizers
from avgen.train.step import Draw, draw, objective, step_losses
from avgen.train.trackers import Journal, Screen
from avgen.train.validate import validate
from avgen.train.watch import Fault, Guard, Stopped, write_fault
from avgen.types import Batch


@dataclass
class Run:
    """A training run's moving parts."""

    config: TrainConfig
    accelerator: Accelerator
    model: AVTransformer  # bare
    wrapped: torch.nn.Module  # as accelerate prepared it
    optimizers: Optimizers
    average: Average
    meter: Meter
    guard: Guard
    step: int = 0  # optimiser steps done
    stopping: bool = False

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "config": fingerprint(self.config.model),
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "average": self.average.weights,
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state["config"] != fingerprint(self.config.model):
            raise ValueError(
                f"the checkpoint in {self.config.out} is of another model: give another out=, or its model"
            )
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.average.weights = {name: value.to(self.model.device) for name, value in state["average"].items()}
        self.step = state["step"]


def prepare(config: TrainConfig) -> Run:
    """Build everything, from the newest checkpoint in the run's folder if there is one."""
    accelerator = Accelerator(mixed_precision="bf16" if config.precision == "bf16" else "no")
    torch.manual_seed(config.seed)
    model = AVTransformer.of(config.model).to(accelerator.device)
    model.set_checkpointing(config.checkpointing)
    if config.compile:
        model.compile_blocks()
    wrapped = accelerator.prepare_model(model)
    run = Run(
        config,
        accelerator,
        model,
        wrapped,
        Optimizers(model, config.optimizer),
        Average(model, config.ema_decay),
        Meter(config, accelerator.device),
        Guard(config.guard, accelerator.device),
    )
    saved = checkpoint.checkpoints(config.out / "checkpoints")
    if saved:
        run.restore(checkpoint.load(saved[-1]))
        accelerator.print(f"resuming after step {run.step} from {saved[-1]}")
    return run


def train(config: TrainConfig, source: Source, held_out: Source, console: Console, order: Order | None = None) -> Run:
    """Train to the last step; SIGTERM and Ctrl-C save and stop at the end of the current one.

    A run that goes wrong raises `Stopped` and leaves its checkpoints as they are.
    Without an `order` the source's clips are read one after another.
    """
    run = prepare(config)
    write_config(config, run.accelerator)
    share = Share(config.batch, config.accumulate, run.accelerator.process_index, run.accelerator.num_processes)
    journal = Journal(config, run.accelerator, run.step)
    screen = Screen(console, config.steps, run.step, run.accelerator.is_main_process)
    with stop_on_signal(run), journal.open(), screen.open():
        order = order or InTurn(config.batch)
        reading = read_steps(source, order, share, run.step, config.steps, config.data.workers)
        run.meter.clear()
        save_due = False
        while run.step < config.steps and not run.stopping:
            with run.meter.waiting():
                micro_batches = next(reading)
            optimise(run, micro_batches, share)
            last = run.step == config.steps
            log_due, validation_due = (last or run.step % n == 0 for n in (config.log_every, config.validate_every))
            save_due = save_due or run.step % config.save_every == 0 or last or run.stopping
            if log_due or save_due:
                seen = run.meter.read(run.accelerator)
                if log_due:
                    journal.write(run.step, seen.line)
                    screen.show(run.step, seen.line)
                    run.meter.clear()
                if fault := run.guard.judge(seen):
                    raise stopped(run, fault, source, order, share)
            with run.meter.paused():
                if validation_due:
                    journal.write(run.step, validate(run.model, run.average, held_out, config, run.accelerator))
                # weights that may be diverging wait: they would push a good checkpoint out
                if save_due and (last or run.stopping or not run.guard.doubtful):
                    save(run)
                    save_due = False
            screen.step(run.step)
    return run


def stopped(run: Run, fault: Fault, source: Source, order: Order, share: Share) -> Stopped:
    """The faulty step read again, saved and named."""
    parts = next(read_steps(source, order, share, fault.step - 1, fault.step, workers=0))
    places = share.places(share.ranks * sum(part.size for part in parts))
    return write_fault(fault, run.config, run.model, parts, places, share.rank)


def optimise(run: Run, micro_batches: list[Batch], share: Share) -> dict[str, Tensor]:
    """One optimiser step; the losses it saw, still on the device."""
    config = run.config.optimizer
    losses = accumulate(run, micro_batches, share)
    norms = gradient_norms(run.model)
    torch.nn.utils.clip_grads_with_norm_(run.model.parameters(), config.clip_norm, norms["all"])
    with run.guard.over(run.optimizers.parts, norms["all"]):
        run.optimizers.step(config.factor(run.step, run.config.steps))
    run.average.update(run.model, run.step)
    run.step += 1
    run.meter.step(run.step, losses, norms)
    return losses


def accumulate(run: Run, micro_batches: list[Batch], share: Share) -> dict[str, Tensor]:
    """Gradients of the whole step's loss; that loss per modality with supervised tokens, this rank's part of it."""
    config, accelerator = run.config, run.accelerator
    places = share.places(share.ranks * sum(part.size for part in micro_batches))
    drawn = [draw(batch, config, run.step, at) for batch, at in zip(micro_batches, places, strict=True)]
    # counted before anything is on the device, so that the normaliser costs no wait
    totals = global_totals(drawn, accelerator)
    logged: dict[str, Tensor] = {}
    for i, part in enumerate(drawn):
        more = i < len(drawn) - 1
        with accelerator.no_sync(run.wrapped) if more else nullcontext():
            with accelerator.autocast():
                part = part.to(accelerator.device)
                found = step_losses(run.wrapped, part, config.flow)
                loss = objective(found, totals, config.flow)
            # DDP averages gradients over ranks; the normaliser already counts them all
            accelerator.backward(loss * accelerator.num_processes)
        run.meter.micro_batch(found, part)
        for m, value in found.items():
            if totals[m] > 0:
                logged[m] = logged.get(m, 0) + value.tokens.detach().sum() / totals[m]
    return logged


def global_totals(drawn: list[Draw], accelerator: Accelerator) -> dict[str, float]:
    """Per modality, the supervised tokens of the whole step: all micro-batches of all ranks."""
    totals = torch.zeros(2, dtype=torch.float64)
    for part in drawn:
        for i, stream in enumerate((part.clean.video, part.clean.audio)):
            if stream is not None:
                totals[i] += stream.weight.sum()
    if accelerator.num_processes > 1:
        totals = accelerator.reduce(totals.float().to(accelerator.device), "sum").double().cpu()
    return dict(zip(("video", "audio"), totals.tolist(), strict=True))


def save(run: Run) -> None:
    if run.accelerator.is_main_process:
        checkpoint.save(run.config.out / "checkpoints", run.step, run.state(), run.config.keep)
    run.accelerator.wait_for_everyone()


def export(run: Run) -> Path:
    """The averaged weights as a folder that `AVTransformer.from_pretrained` loads."""
    folder = run.config.out / "model"
    back = run.average.swapped(run.model)
    try:
        if run.accelerator.is_main_process:
            run.model.save_pretrained(folder)
    finally:
        back()
    run.accelerator.wait_for_everyone()
    return folder


def write_config(config: TrainConfig, accelerator: Accelerator) -> None:
    """What made this run, beside what it makes."""
    if accelerator.is_main_process:
        config.out.mkdir(parents=True, exist_ok=True)
        made_by = {"avgen": __version__, "torch": torch.__version__, "config": to_plain(config)}
        (config.out / "run.json").write_text(json.dumps(made_by, indent=2) + "\n")


@contextmanager
def stop_on_signal(run: Run) -> Iterator[None]:
    """SIGTERM and Ctrl-C let the current step finish and be saved; a second Ctrl-C stops at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if run.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        run.stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
