"""What the fork server imports once, for all processes of the tests."""

import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp

import avgen.train.loop
import avgen.train.metrics
import tests.distributed.training  # noqa: F401

torch.set_num_threads(1)
# measured at the start of every run, it takes longer than these runs do, in fp16 on a CPU many times longer
avgen.train.metrics.matmul_rate = lambda device, dtype: 1e9
