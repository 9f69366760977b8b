"""A training run's moving parts: built, saved, restored, exported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from avgen.config import fingerprint
from avgen.flow import FlowConfig
from avgen.models.architecture import ModelConfig
from avgen.models.attention import choose
from avgen.models.cost import PARTS
from avgen.models.dit import AVTransformer
from avgen.models.lora import BENEATH, add_lora, beneath, save_lora
from avgen.rate import faster_precision
from avgen.train import checkpoint
from avgen.train.balance import Balance
from avgen.train.config import TrainConfig
from avgen.train.metrics import Meter, part_of
from avgen.train.optim import Average, LossScale, Optimizers, trained
from avgen.train.parallel import Processes, gathered, spread
from avgen.train.preference import Preference, adapter_off, frozen_copy
from avgen.train.step import FlowMatching, Objective
from avgen.train.watch import Guard


@dataclass
class Run:
    """A training run's moving parts."""

    config: TrainConfig
    accelerator: Accelerator
    processes: Processes
    model: AVTransformer  # bare
    wrapped: torch.nn.Module  # as the processes share it: the training step's forward pass goes through here
    optimizers: Optimizers
    average: Average
    loss_scale: LossScale
    writer: checkpoint.Writer
    meter: Meter
    guard: Guard
    balance: Balance
    objective: Objective
    beneath: str  # fingerprint of the weights that adapters lie over; "" without adapters
    step: int = 0  # optimiser steps done
    asked_to_stop: bool = False  # this process was
    stopping: bool = False  # all processes agreed to, at the same step

    def state(self) -> dict[str, Any]:
        """Every tensor that a later run must have back; saving and loading happen in place.

        Beside adapters the weights are those of `start`, and stay there.
        """
        lora = self.config.lora is not None
        return {
            "model": {n: p.detach() for n, p in trained(self.model)} if lora else self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "average": self.average.weights,
            "balance": self.balance.state,
        }

    @property
    def meaning(self) -> list[str]:
        """Of what the network puts out, where it is not what it is by default: checkpoints of before say nothing."""
        predict = self.config.flow.predict
        return [] if predict == FlowConfig.predict else [predict]

    def about(self) -> checkpoint.About:
        config, scale = self.config, self.loss_scale
        # which tensors there are, and what they go on from
        start, optimizer = config.start if config.preference is not None else None, config.optimizer
        still = [name for name in PARTS if optimizer.scale.of(name) == 0]
        # a kernel decides no tensor: who changes machines, or finds a kernel slow, may take another
        model = replace(config.model, attention=ModelConfig.attention)
        made_of = fingerprint((model, config.lora, self.beneath, start, optimizer.kind, still, *self.meaning))
        value = scale.value if scale.on else None
        return checkpoint.About(self.step, made_of, self.processes.count, value, scale.clean_steps)

    def restore(self, path: Path) -> None:
        about = checkpoint.about(path)
        if about.fingerprint != self.about().fingerprint:
            raise ValueError(
                f"the checkpoint in {path} was begun with another model, lora, start (or what lies there now),"
                " flow.predict, optimizer.kind or set of parts at optimizer.scale 0: give those again, or another out="
            )
        checkpoint.load(path, self.state(), self.processes.host)
        self.step = about.step
        if self.loss_scale.on and about.loss_scale is not None:
            self.loss_scale.value, self.loss_scale.clean_steps = about.loss_scale, about.clean_steps


def built(config: TrainConfig) -> AVTransformer:
    """The model that is trained, on the host: fresh or from `start`, with what is not trained frozen."""
    torch.manual_seed(config.seed)
    model = AVTransformer.of(config.model)
    if config.start is not None:
        given = AVTransformer.from_pretrained(config.start)
        if replace(given.spec, attention=config.model.attention) != config.model:
            raise ValueError(f"start={config.start} holds another model than model= describes: give both alike")
        model.load_state_dict(given.state_dict())
    for name, p in model.named_parameters():
        p.requires_grad_(config.optimizer.scale.of(part_of(name)) > 0)
    if config.lora is not None:
        add_lora(model, config.lora.parts, config.lora.rank, config.lora.alpha)
    return model


def prepare(config: TrainConfig) -> Run:
    """Build everything, from the newest checkpoint in the run's folder if there is one."""
    # without cpu=True accelerate takes the processes that torchrun starts on CPUs for strangers, without a word
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    processes = Processes.of(accelerator, config.parallel.context)
    if not config.settled:
        config = config.settle(processes.agreed(faster_precision(accelerator.device)))
    choose(config.model.attention, accelerator.device, config.half is not None)
    model = built(config)
    base = "" if config.lora is None else beneath(model)
    model.set_checkpointing(config.checkpointing)
    wrapped = spread(model, config.parallel, accelerator, config.half)
    if config.compile:
        model.compile_blocks(config.compile_shapes)
    objective = objective_of(config, model, accelerator)
    folder = config.out / "checkpoints"
    run = Run(
        config,
        accelerator,
        processes,
        model,
        wrapped,
        Optimizers(model, config.optimizer),
        Average(model, config.ema_decay),
        LossScale(on=config.precision == "fp16"),
        checkpoint.Writer(folder, config.keep, processes.files),
        Meter(config, accelerator.device, objective.notes),
        Guard(config.guard, accelerator.device),
        Balance(config.balance, accelerator.device),
        objective,
        base,
    )
    saved = processes.agreed(next((path.name for path in reversed(checkpoint.checkpoints(folder))), ""))
    if saved:
        run.restore(folder / saved)
        accelerator.print(f"resuming after step {run.step} from {folder / saved}")
    return run


def objective_of(config: TrainConfig, model: AVTransformer, accelerator: Accelerator) -> Objective:
    """Flow matching, or preferences against what `start` held: the model without its adapters, else a copy."""
    if config.preference is None:
        return FlowMatching(config.flow)
    if config.lora is not None:
        return Preference(config.preference, config.flow, adapter_off(model))
    copy = built(config).requires_grad_(False)
    shared = spread(copy, config.parallel, accelerator, config.half)
    if config.compile:
        copy.compile_blocks(config.compile_shapes)
    return Preference(config.preference, config.flow, frozen_copy(shared))


def save(run: Run) -> None:
    """Every process must call it; the writing goes on beside the next steps."""
    run.writer.save(run.about(), run.state())


def export(run: Run) -> Path:
    """The averaged weights, gathered, as a folder that `AVTransformer.from_pretrained` loads.

    Adapters become a folder that `load_lora` loads onto the model of `start`.
    """
    lora = run.config.lora is not None
    folder = run.config.out / ("lora" if lora else "model")
    first = run.accelerator.is_main_process
    weights: dict[str, torch.Tensor] = {}
    for name, value in (run.state()["model"] | run.average.weights).items():
        whole = gathered(value.detach())
        if first:
            weights[name] = whole.cpu()
    if first and lora:
        model = built(run.config)
        model.load_state_dict(weights, strict=False)
        save_lora(model, folder)
        (folder / BENEATH).write_text(run.beneath)
    elif first:
        with torch.device("meta"):
            model = AVTransformer.of(run.config.model)
        model.load_state_dict(weights, assign=True)
        model.save_pretrained(folder)
    run.accelerator.wait_for_everyone()
    return folder
