"""What the fork server imports once, for all processes of the tests."""

import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp

import tests.distributed.training  # noqa: F401

torch.set_num_threads(1)
