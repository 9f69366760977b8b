"""The training loop: read, step, average, log, save, validate; once around is one optimiser step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor

from avgen.config import ConfigError
from avgen.data.stream import InTurn, Order, Share, Source, read_steps
from avgen.train import record
from avgen.train.cheating import Watch
from avgen.train.config import TrainConfig
from avgen.train.looks import Looks
from avgen.train.metrics import gradient_norms
from avgen.train.parallel import clip, reduce_whole_gradients, sync_gradients
from avgen.train.run import Run, prepare, save
from avgen.train.samples import Codecs
from avgen.train.step import Draw, Whole, draw
from avgen.train.trackers import Journal, Screen
from avgen.train.watch import Fault, Stopped, write_fault
from avgen.types import Batch

if TYPE_CHECKING:
    from avgen.prefer.source import PairSource


def train(
    config: TrainConfig,
    source: Source,
    held_out: Source,
    console: Console,
    order: Order | None = None,
    codecs: Codecs | None = None,
    judges: PairSource | None = None,
) -> Run:
    """Train to the last step; SIGTERM and Ctrl-C save and stop at the end of the current one.

    A run that goes wrong raises `Stopped` and leaves its checkpoints as they are.
    Without an `order` the source's clips are read one after another; `codecs` show the samples of `config.samples`;
    `judges` are held-out pairs of a run on pairs.
    """
    if config.samples.every and codecs is None:
        raise ValueError(f"samples.every={config.samples.every} needs the codecs of the latents: set samples.every=0")
    held_before = record.held_bytes()
    run = prepare(config)
    config, first = run.config, run.step
    if first < config.steps or not (config.out / record.RECORD).exists():
        record.begin(config, run.accelerator)  # of a run that is over, what was measured stays
    share = Share(config.batch, config.accumulate, run.processes.reader, run.processes.readers)
    if config.preference is not None and config.batch % (2 * share.ranks * share.accumulate):
        raise ConfigError(
            "batch",
            f"{config.batch} clips on {share.ranks} processes with accumulate={share.accumulate} would part winners "
            f"from losers: it must be a multiple of {2 * share.ranks * share.accumulate}",
        )
    journal = Journal(config, run.accelerator, first)
    screen = Screen(console, config.steps, first, run.accelerator.is_main_process)
    with stop_on_signal(run), run.writer, journal.open(), screen.open():
        order = order or InTurn(config.batch)
        looks = Looks(run, held_out, codecs, judges, Watch(run, held_out, codecs), journal, screen)
        reading = read_steps(source, order, share, first, config.steps, config.data.workers)
        if first:
            looks.make_up()
        run.meter.clear()
        save_due = stopping = False
        while run.step < config.steps and not stopping:
            with run.meter.waiting():
                micro_batches = next(reading)
            optimise(run, micro_batches, share)
            # asked once: a signal that comes after this lets one more step be taken, and saved
            last, stopping = run.step == config.steps, run.stopping
            # whoever goes on begins with an empty meter
            log_due = last or stopping or run.step % config.log_every == 0
            save_due = save_due or run.step % config.save_every == 0 or last or stopping
            if log_due or save_due:
                seen = run.meter.read(run.accelerator)
                if log_due:
                    journal.write(run.step, seen.line)
                    screen.show(run.step, seen.line)
                    run.meter.clear()
                if fault := run.guard.judge(seen):
                    raise stopped(run, fault, source, order, share)
            with run.meter.paused():
                # first, so that a step is not lost if what comes after it runs out of memory; but weights that may be
                # diverging wait: they would push a good checkpoint out
                if save_due and (last or stopping or not run.guard.doubtful):
                    save(run)
                    save_due = False
                looks.take()
            screen.step(run.step)
    if said := record.finish(config, run.accelerator, run.meter, held_before, first):
        console.print(said, highlight=False)
    return run


def stopped(run: Run, fault: Fault, source: Source, order: Order, share: Share) -> Stopped:
    """The faulty step read again, saved and named."""
    parts = next(read_steps(source, order, share, fault.step - 1, fault.step, workers=0))
    places = share.places(share.ranks * sum(part.size for part in parts))
    return write_fault(fault, run.config, run.model, parts, places, run.processes.rank)


def optimise(run: Run, micro_batches: list[Batch], share: Share) -> dict[str, Tensor]:
    """One optimiser step; the losses it saw, still on the device."""
    config = run.config.optimizer
    before = run.meter.kept() if run.loss_scale.on else None
    losses = accumulate(run, micro_batches, share)
    norms = gradient_norms(run.model)
    while run.loss_scale.overflowed(norms["all"]):
        run.model.zero_grad(set_to_none=True)
        run.meter.back_to(before)
        losses = accumulate(run, micro_batches, share)
        norms = gradient_norms(run.model)
    clip(run.model.parameters(), config.clip_norm, norms["all"])
    with run.guard.over(run.optimizers.parts, norms["all"]):
        run.optimizers.step(config.factor(run.step, run.config.steps), norms)
    run.average.update(run.model, run.step)
    run.balance.update(losses, lambda shares: run.accelerator.reduce(shares, "sum") / run.processes.context)
    run.step += 1
    run.meter.step(run.step, losses, norms)
    return losses


def accumulate(run: Run, micro_batches: list[Batch], share: Share) -> dict[str, Tensor]:
    """Gradients of the whole step's loss; that loss per modality with supervised tokens, this process's part of it."""
    config = run.config
    clips = share.ranks * sum(part.size for part in micro_batches)
    places = share.places(clips)
    drawn = [draw(batch, config, run.step, at) for batch, at in zip(micro_batches, places, strict=True)]
    # counted before anything is on the device, so that the normaliser costs no wait
    whole = Whole(global_totals(run, drawn), clips, run.balance.factors())
    logged: dict[str, Tensor] = {}
    for i, part in enumerate(drawn):
        sync_gradients(run.wrapped, i == len(drawn) - 1)
        part = part.to(run.model.device)
        with config.autocast(run.model.device):
            learned = run.objective(run.wrapped, part, whole)
        # gradients are averaged over processes, but the normaliser already counts the clips of all readers
        (learned.loss * run.processes.readers * run.loss_scale.value).backward()
        run.meter.micro_batch(learned, part)
        for m, value in learned.found.items():
            if whole.totals[m] > 0:
                logged[m] = logged.get(m, 0) + value.tokens.detach().sum() / whole.totals[m]
    reduce_whole_gradients(run.wrapped)
    run.loss_scale.undo(run.model)
    return logged


def global_totals(run: Run, drawn: list[Draw]) -> dict[str, float]:
    """Per modality, the supervised tokens of the whole step: all micro-batches of all readers.

    The wish to stop travels with them, so that all processes stop after the same step.
    """
    totals = torch.zeros(3, dtype=torch.float64)
    for part in drawn:
        for i, stream in enumerate((part.clean.video, part.clean.audio)):
            if stream is not None:
                totals[i] += stream.weight.sum()
    totals[2] = run.asked_to_stop
    video, audio, asked = run.processes.summed(totals).tolist()
    run.stopping = asked > 0
    return {"video": video, "audio": audio}


@contextmanager
def stop_on_signal(run: Run) -> Iterator[None]:
    """SIGTERM and Ctrl-C let the current step finish and be saved; a second Ctrl-C stops at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if run.asked_to_stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        run.asked_to_stop = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
