"""Video codecs hosted by diffusers.

All are causal: the first latent step is the first frame alone, each later one `stride` frames. A further
class of diffusers needs its strides, its reach and its two calls: see docs/hosted_codecs.md.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

import torch
from diffusers import ModelMixin  # noqa: F401  # a pipeline that loads a codec looks for its base class in this module
from einops import rearrange
from torch import Tensor, nn

from avgen.models.codecs import Posterior, Reach
from avgen.models.hosted import HostedCodec, Pieces, scale_of, span_of_layers
from avgen.types import TimeGrid, VideoGeometry


class HostedVideoCodec(HostedCodec):
    """(B, T, H, W, 3) uint8 to normalised latents and back; frames of a part step are the last one, held still."""

    def __init__(self, network: nn.Module, patch: int = 1) -> None:
        super().__init__(network)
        channels, time, space = self.strides()
        if patch < 1:
            raise ValueError(f"patch={patch} must be at least 1")
        self.geometry = VideoGeometry(channels, TimeGrid(time, 1), space, patch)
        self.scale = scale_of(network, channels)

    @property
    def patch(self) -> int:
        return self.geometry.patch

    @abstractmethod
    def strides(self) -> tuple[int, int, int]:
        """Latent channels, frames per step, pixels per cell: as the network's layers have them."""

    @property
    @abstractmethod
    def encode_reach(self) -> Reach | None: ...

    @property
    @abstractmethod
    def decode_reach(self) -> Reach | None: ...

    @property
    def least_cells(self) -> int:
        """Along a side, for latents to be decoded."""
        return 1

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
        self.tile_px = side

    @abstractmethod
    def in_pieces(self, steps: int) -> None:
        """Work on so many latent steps at once: memory no longer grows with the clip, and the numbers stay."""

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Posterior:
        side = self.geometry.space_stride
        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            raise ValueError(f"frames must be (B, T, H, W, 3) uint8, not {tuple(frames.shape)} {frames.dtype}")
        height, width = frames.shape[2:4]
        if height % side or width % side:
            raise ValueError(f"frames of {height}x{width} pixels: both must be multiples of the codec's stride, {side}")
        least = self.least_cells * side
        if min(height, width) < least:
            raise ValueError(f"frames of {height}x{width} pixels: the codec decodes none of under {least} along a side")
        grid = self.geometry.time
        missing = grid.units(grid.steps(frames.shape[1])) - frames.shape[1]
        frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        x = rearrange(frames.to(self.device), "b t h w c -> b c t h w").float().div(127.5).sub(1).to(self.dtype)
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

    Each step's state is carried on exactly, so long clips need no other pieces in time.
    """

    def in_pieces(self, steps: int) -> None:
        """Its pieces are single steps already."""

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


class LTX2VideoCodec(HostedVideoCodec):
    """LTX-2's (32 x 32 x 8): a causal encoder; whether its decoder is causal its configuration says."""

    pieces: Pieces | None = None

    def strides(self) -> tuple[int, int, int]:
        config, network = self.network.config, self.network
        scaled = config.spatio_temporal_scaling
        scaled = [scaled] * len(config.downsample_type) if isinstance(scaled, bool) else list(scaled)
        kinds = [kind for kind, does in zip(config.downsample_type, scaled, strict=True) if does]
        unknown = set(kinds) - {"spatial", "temporal", "spatiotemporal"}
        if unknown or any(config.decoder_inject_noise if not isinstance(config.decoder_inject_noise, bool) else []):
            raise ValueError(f"downsample_type={kinds}, decoder_inject_noise={config.decoder_inject_noise}: not hosted")
        time = config.patch_size_t * 2 ** sum(kind != "spatial" for kind in kinds)
        space = config.patch_size * 2 ** sum(kind != "temporal" for kind in kinds)
        # tiles are counted by these; where a configuration states none, diffusers assumes what its layers don't do
        network.temporal_compression_ratio, network.spatial_compression_ratio = time, space
        return config.latent_channels, time, space

    @cached_property
    def encode_reach(self) -> Reach:
        grid, side = self.geometry.time, 2 * self.geometry.space_stride
        x = torch.zeros(1, 3, grid.units(33), side, side, dtype=self.dtype, device=self.device)
        return Reach(span_of_layers(self.network.encoder, lambda: self.network.encoder(x), x.shape[2]), 0)

    @cached_property
    def decode_reach(self) -> Reach:
        z = torch.zeros(1, self.geometry.channels, 33, 2, 2, dtype=self.dtype, device=self.device)
        units = self.geometry.time.units(33)
        span = span_of_layers(self.network.decoder, lambda: self.network.decoder(z, self._instant(z)), units)
        return Reach(0, span) if self.network.config.decoder_causal else Reach(-(-span // 2), -(-span // 2))

    @property
    def least_cells(self) -> int:
        """A decoder that mirrors pictures at their edges needs a cell beside the last to mirror."""
        return 2 if self.network.config.decoder_spatial_padding_mode == "reflect" else 1

    def in_pieces(self, steps: int) -> None:
        """Each piece with the steps around it that have a part in it."""
        reach = max(vars(self.encode_reach).values()), max(vars(self.decode_reach).values())
        self.pieces = Pieces(self.geometry.time, steps, 1 - (-max(reach) // self.geometry.time.stride))
        self.piece_steps = steps

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        run = super().posterior
        if self.pieces is None:
            return run(x)
        both = self.pieces.encode(lambda part: torch.cat(run(part), dim=1), x)
        mean, std = both.chunk(2, dim=1)
        return mean, std

    def pictures(self, z: Tensor) -> Tensor:
        def run(part: Tensor) -> Tensor:
            return self.network.decode(part, self._instant(part)).sample

        height, width = (cells * self.geometry.space_stride for cells in z.shape[-2:])
        z = self._wide_enough(z)
        x = run(z) if self.pieces is None else self.pieces.decode(run, z)
        return x[..., :height, :width]

    def _wide_enough(self, z: Tensor) -> Tensor:
        """(B, C, T, H, W), an edge repeated where the last tile of diffusers' would be one cell wide.

        A tile begins at every multiple of the step between them, also where it is all overlap.
        """
        cell, network = self.geometry.space_stride, self.network
        if self.least_cells == 1 or self.tile_px is None or max(z.shape[-2:]) * cell <= self.tile_px:
            return z
        step = network.tile_sample_stride_height // cell
        if (z.shape[-2] - 1) % step == 0:
            z = torch.cat([z, z[..., -1:, :]], dim=-2)
        if (z.shape[-1] - 1) % step == 0:
            z = torch.cat([z, z[..., -1:]], dim=-1)
        return z

    def _instant(self, z: Tensor) -> Tensor | None:
        """A decoder that also denoises is told that nothing is left to denoise."""
        return z.new_zeros(len(z)) if self.network.config.timestep_conditioning else None


def _causal_frames(module: nn.Module, jump: float) -> int:
    """Frames before a latent's last (or after its first) that a chain of causal convolutions connects with it.

    The layers of Wan are listed in the order in which they run; `jump` is how many frames apart the entries
    of the current layer are.
    """
    frames = 0.0
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Conv3d):
            continue
        frames += (layer.kernel_size[0] - 1) * jump
        if name.endswith("time_conv"):  # a step of the time resampling: twice as few, or twice as many
            jump = jump * 2 if layer.stride[0] == 2 else jump / 2
    return int(frames)
