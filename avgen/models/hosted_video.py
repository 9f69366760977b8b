"""Video codecs hosted by diffusers.

All are causal: the first latent step is the first frame alone, each later one `stride` frames. A further
class of diffusers needs its strides, its reach and its two calls: see docs/codecs.md.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  # a pipeline that loads a codec looks for its base class in this module
from einops import rearrange
from torch import Tensor, nn

from avgen.models.codecs import Posterior
from avgen.models.hosted import HostedCodec, Reach, scale_of
from avgen.types import TimeGrid, VideoGeometry


class HostedVideoCodec(HostedCodec):
    """(B, T, H, W, 3) uint8 to normalised latents and back; frames of a part step are the last one, held still."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        channels, time, space = self.strides()
        self.geometry = VideoGeometry(channels, TimeGrid(time, 1), space)
        self.scale = scale_of(network, channels)

    @abstractmethod
    def strides(self) -> tuple[int, int, int]:
        """Latent channels, frames per step, pixels per cell: as the network's layers have them."""

    @property
    @abstractmethod
    def encode_reach(self) -> Reach | None:
        """Frames that a latent depends on past its interval; None = all."""

    @property
    @abstractmethod
    def decode_reach(self) -> Reach | None:
        """Frames past its interval that a latent has a part in; None = all."""

    def tile(self, side: int) -> None:
        """Work on squares of `side` pixels, blended where they overlap: memory no longer grows with the picture."""
        cell = self.geometry.space_stride
        if side < 4 * cell or side % (4 * cell):
            raise ValueError(f"tile_px={side} must be a multiple of {4 * cell}, four of the codec's cells")
        step = side * 3 // 4
        self.network.enable_tiling(
            tile_sample_min_height=side,
            tile_sample_min_width=side,
            tile_sample_stride_height=step,
            tile_sample_stride_width=step,
        )

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Posterior:
        side = self.geometry.space_stride
        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            raise ValueError(f"frames must be (B, T, H, W, 3) uint8, not {tuple(frames.shape)} {frames.dtype}")
        height, width = frames.shape[2:4]
        if height % side or width % side:
            raise ValueError(f"frames of {height}x{width} pixels: both must be multiples of the codec's stride, {side}")
        grid = self.geometry.time
        missing = grid.units(grid.steps(frames.shape[1])) - frames.shape[1]
        frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        x = rearrange(frames.to(self.device), "b t h w c -> b c t h w").to(self.dtype).div(127.5).sub(1)
        return self.scale.latents(*self.posterior(x))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        if latents.ndim != 5 or latents.shape[1] != self.geometry.channels:
            raise ValueError(f"latents must be (B, {self.geometry.channels}, T, H, W), not {tuple(latents.shape)}")
        x = self.pictures(self.scale.raw(latents.to(self.device)).to(self.dtype))
        x = x.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        return rearrange(x, "b c t h w -> b t h w c")

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, T, H, W) in [-1, 1] -> mean and standard deviation in the codec's own numbers."""
        distribution = self.network.encode(x).latent_dist
        return distribution.mean, distribution.std

    def pictures(self, z: Tensor) -> Tensor:
        """Latents in the codec's own numbers -> (B, 3, T, H, W) in about [-1, 1]."""
        return self.network.decode(z).sample


class WanVideoCodec(HostedVideoCodec):
    """Wan 2.1 (8 x 8 x 4) and 2.2 (16 x 16 x 4, residual): they run from step to step, in memory that is bounded.

    Each step's state is carried on exactly, so long clips need no pieces in time.
    """

    def strides(self) -> tuple[int, int, int]:
        config = self.network.config
        time = 2 ** sum(config.temperal_downsample)
        if time != 4:
            raise ValueError(f"temperal_downsample={list(config.temperal_downsample)} makes steps of {time} frames: 4")
        space = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
        self.network.spatial_compression_ratio = space  # tiles are counted by it; a config may state another
        return config.z_dim, time, space

    @property
    def encode_reach(self) -> Reach:
        return Reach(_causal_frames(self.network.encoder, 1.0), 0)

    @property
    def decode_reach(self) -> Reach:
        return Reach(0, _causal_frames(self.network.decoder, float(self.geometry.time.stride)))


def _causal_frames(module: nn.Module, jump: float) -> int:
    """Frames before a latent's last (or after its first) that a chain of causal convolutions connects with it.

    The layers of Wan are listed in the order in which they run; `jump` is how many frames apart the entries
    of the current layer are.
    """
    frames = 0.0
    for name, layer in _layers(module):
        if not isinstance(layer, nn.Conv3d):
            continue
        frames += (layer.kernel_size[0] - 1) * jump
        if name.endswith("time_conv"):  # a step of the time resampling: twice as few, or twice as many
            jump = jump * 2 if layer.stride[0] == 2 else jump / 2
    return int(frames)


def _layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from module.named_modules()
