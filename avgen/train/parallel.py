"""How a run spreads over processes: the one file that knows of DDP, FSDP2, meshes and process groups.

Losses are sums over the whole step's tokens, so gradients are summed over processes, never averaged: both
wrappers divide by their number, and the loss is multiplied by it beforehand.

Processes that share clips (`parallel.context`) each compute the loss of whole clips, from a forward pass in which each
holds a slice of the tokens. How the weights are spread does not depend on who shares what: both wrappers run over all
processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_tensor_autograd
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from avgen.models.dit import AVTransformer
from avgen.models.sharing import Everyone
from avgen.train.config import ParallelConfig

Said = TypeVar("Said", bound=str)


@dataclass(frozen=True)
class Processes:
    """The processes of a run and two channels between them that never touch a device.

    A number that the host needs at once (how many tokens a step supervises, whether to stop) would make it wait
    for all queued kernels if it travelled by NCCL.
    """

    rank: int
    count: int
    context: int  # neighbours that share clips
    host: dist.ProcessGroup | None  # for numbers; None: there is one process
    files: dist.ProcessGroup | None  # for the thread that writes checkpoints

    @classmethod
    def of(cls, accelerator: Accelerator, context: int) -> Processes:
        count = accelerator.num_processes
        host, files = (dist.new_group(backend="gloo") if count > 1 else None for _ in range(2))
        return cls(accelerator.process_index, count, context, host, files)

    @property
    def reader(self) -> int:
        """Which share of the data this process reads."""
        return self.rank // self.context

    @property
    def readers(self) -> int:
        return self.count // self.context

    @property
    def leads(self) -> bool:
        """The first of those that share clips."""
        return self.rank % self.context == 0

    def summed(self, values: Tensor) -> Tensor:
        """Numbers on the host, summed over all readers: processes that share clips count once."""
        if self.host is not None:
            dist.all_reduce(values, group=self.host)
        return values / self.context

    def agreed(self, value: Said) -> Said:
        """What the first process says, once it says it."""
        said = [value]
        if self.host is not None:
            dist.broadcast_object_list(said, src=0, group=self.host)
        return said[0]

    def collected(self, value: Any) -> list[Any]:
        """On the first process what each of them brought; nothing on the others."""
        if self.host is None:
            return [value]
        found = [None] * self.count if self.rank == 0 else None
        dist.gather_object(value, found, dst=0, group=self.host)
        return found or []


def spread(
    model: AVTransformer, config: ParallelConfig, accelerator: Accelerator, half: torch.dtype | None
) -> nn.Module:
    """The model on its device, as the strategy spreads it; the forward pass goes through what is returned.

    `half` is the type of matrix products, None for float32.
    """
    replicate, shard = config.mesh(accelerator.num_processes)
    if config.context > 1:
        model.sharing = ContextGroup.of(accelerator, config.context)
    if config.strategy == "ddp":
        model.to(accelerator.device)
        # what is not trained has no gradients to share
        if accelerator.num_processes == 1 or not any(p.requires_grad for p in model.parameters()):
            return model
        devices = [accelerator.device.index] if accelerator.device.type == "cuda" else None
        return DistributedDataParallel(model, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
    return fully_sharded(model, replicate, shard, accelerator.device, half)


@dataclass(frozen=True)
class ContextGroup:
    """Neighbouring processes that share clips: the model's `Sharing` over them."""

    group: dist.ProcessGroup
    rank: int  # within it
    size: int

    @classmethod
    def of(cls, accelerator: Accelerator, size: int) -> ContextGroup:
        shape = (accelerator.num_processes // size, size)
        mesh = init_device_mesh(accelerator.device.type, shape, mesh_dim_names=("reader", "context"))["context"]
        return cls(mesh.get_group(), mesh.get_local_rank(), size)

    def mine(self, x: Tensor) -> Tensor:
        count = -(-x.shape[1] // self.size)
        found = x[:, self.rank * count : (self.rank + 1) * count]
        return torch.cat([found, x.new_zeros(len(x), count - found.shape[1], *x.shape[2:])], dim=1)

    def everyone(self, tokens: int) -> Everyone:
        return AllOf(self.group, tokens)


@dataclass(frozen=True)
class AllOf:
    """All tokens of a stream, from every process's slice; in the backward pass each gets the sum of its gradients."""

    group: dist.ProcessGroup
    tokens: int

    def __call__(self, mine: Tensor) -> Tensor:
        return all_gather_tensor_autograd(mine.contiguous(), 1, self.group)[:, : self.tokens]


def fully_sharded(
    model: AVTransformer, replicate: int, shard: int, device: torch.device, half: torch.dtype | None
) -> nn.Module:
    """FSDP2: block by block, then everything outside of them.

    Weights outside of blocks are gathered in float32, because levels and heads are computed so. Inside, the
    vectors that must stay float32 are kept whole on every process: they weigh nothing, and one all-gather
    carries one type.
    """
    if not dist.is_initialized():  # one process that no launcher started
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    sizes, names = ((replicate, shard), ("replicate", "shard")) if replicate > 1 else ((shard,), ("shard",))
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
    whole = kept_whole(model)
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    inside = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=inside, ignored_params=whole)
    # resharded after the forward pass too: whoever looks at the weights between steps must see the shards
    outside = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(model, mesh=mesh, mp_policy=outside, reshard_after_forward=True, ignored_params=whole)
    return model


def kept_whole(model: AVTransformer) -> set[nn.Parameter]:
    """The small float32 parameters inside blocks: norms and modulation tables."""
    small = set(model._keep_in_fp32_modules)
    return {p for name, p in model.blocks.named_parameters() if small & set(name.split("."))}  # type: ignore[attr-defined]


def sync_gradients(wrapped: nn.Module, on: bool) -> None:
    """Whether the next backward pass adds up gradients over processes, or leaves that to a later one."""
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.require_backward_grad_sync = on
    elif isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(on)


def reduce_whole_gradients(wrapped: nn.Module) -> None:
    """After the last backward pass: the mean over processes of gradients that FSDP2 was told to ignore."""
    if not isinstance(wrapped, FSDPModule) or dist.get_world_size() == 1:
        return
    gradients = [p.grad for p in wrapped.parameters() if p.grad is not None and not isinstance(p.grad, DTensor)]
    if gradients:
        flat = torch.cat([g.flatten() for g in gradients]) / dist.get_world_size()
        dist.all_reduce(flat)
        parts = flat.split([g.numel() for g in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """() float32: the Euclidean norm over whole tensors, whichever of them are cut into shards."""
    tensors = list(tensors)
    kinds = [[t for t in tensors if isinstance(t, DTensor) is cut] for cut in (True, False)]
    parts = [torch.nn.utils.get_total_norm(kind) for kind in kinds if kind]
    return torch.stack([p.full_tensor() if isinstance(p, DTensor) else p for p in parts]).norm()


def scale_(tensors: Iterable[Tensor], factor: Tensor) -> None:
    """Multiply in place by a () tensor, without a wait for the device."""
    torch._foreach_mul_([local(t) for t in tensors], factor)


def clip(parameters: Iterable[nn.Parameter], limit: float, found: Tensor) -> None:
    """Scale gradients so that their norm over all weights and shards, which is `found`, becomes at most `limit`."""
    scale_([p.grad for p in parameters if p.grad is not None], (limit / (found + 1e-6)).clamp(max=1.0))


def local(tensor: Tensor) -> Tensor:
    """This process's part, sharing memory with the whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """The whole; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
