"""The embedded video codec: principal components of space-time patches, and a small decoder that knows edges."""

from __future__ import annotations

import torch
from diffusers import ModelMixin  # noqa: F401  # a pipeline that loads a codec looks for its base class in this module
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from avgen.models.codecs import Posterior, Reach
from avgen.models.embedded import Components, EmbeddedCodec, Refiner, fit_decoder
from avgen.types import TimeGrid, VideoGeometry


class PatchVideoCodec(EmbeddedCodec):
    """Latents of `time_stride` frames x `space_stride`^2 pixels; any duration, any size that the stride divides.

    A latent depends on the pixels of its own patch alone. A decoded patch depends on its own latent and its
    nearest neighbours in time and space, which is what removes the seams of a plain patch transform.
    """

    @register_to_config
    def __init__(self, channels: int = 24, time_stride: int = 2, space_stride: int = 8, hidden: int = 128) -> None:
        super().__init__()
        self.geometry = VideoGeometry(channels, TimeGrid(time_stride, time_stride), space_stride)
        features = time_stride * space_stride**2 * 3
        self.components = Components(features, channels)
        self.refine = Refiner(nn.Conv3d, channels, hidden, features, reach=1, pad=True)

    @property
    def encode_reach(self) -> Reach:
        return Reach(0, 0)

    @property
    def decode_reach(self) -> Reach:
        return Reach(self.geometry.time.stride, self.geometry.time.stride)

    def encode(self, frames: Tensor) -> Posterior:
        """(B, T, H, W, 3) uint8 -> (B, C, T', H/s, W/s).

        A last step that T does not fill is filled with the last frame, held still.
        """
        return Posterior(rearrange(self.components(self.patches(frames)), "b t h w c -> b c t h w"))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, T', H', W') -> (B, T, H, W, 3) uint8."""
        return self.pixels(latents).mul(255).round().to(torch.uint8)

    def pixels(self, latents: Tensor) -> Tensor:
        """`decode` before rounding: float in [0, 1], differentiable."""
        return unpatch(self.raw_patches(latents), self.geometry).add(1).div(2).clamp(0, 1)

    def raw_patches(self, latents: Tensor) -> Tensor:
        """(B, T', H', W', F) patches in [-1, 1], unclamped."""
        linear = self.components.inverse(rearrange(latents, "b c t h w -> b t h w c"))
        return linear + rearrange(self.refine(latents), "b f t h w -> b t h w f")

    def patches(self, frames: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 -> (B, T', H', W', F) in [-1, 1]."""
        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            raise ValueError(f"frames must be (B, T, H, W, 3) uint8, not {tuple(frames.shape)} {frames.dtype}")
        stride, side = self.geometry.time.stride, self.geometry.space_stride
        _, length, height, width, _ = frames.shape
        if height % side or width % side:
            raise ValueError(f"frames of {height}x{width} pixels: both must be multiples of the codec's stride, {side}")
        missing = self.geometry.time.units(self.geometry.time.steps(length)) - length
        frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        x = frames.float().div(127.5).sub(1)
        return rearrange(x, "b (t r) (h p) (w q) c -> b t h w (r p q c)", r=stride, p=side, q=side)


def unpatch(patches: Tensor, geometry: VideoGeometry) -> Tensor:
    side = geometry.space_stride
    return rearrange(patches, "b t h w (r p q c) -> b (t r) (h p) (w q) c", r=geometry.time.stride, p=side, q=side, c=3)


@torch.no_grad()
def _analyse(codec: PatchVideoCodec, frames: Tensor, first: int) -> tuple[Tensor, Tensor, float]:
    patches = codec.patches(frames)
    kept = codec.components.fit(patches[:first].flatten(0, 3)).sum().item()
    return patches, codec.encode(frames).mean, kept


def fit_video(
    codec: PatchVideoCodec,
    frames: Tensor,
    steps: int = 600,
    noise: float = 0.3,
    seed: int = 0,
    analysed: int | None = None,
) -> float:
    """Fit to (N, T, H, W, 3) uint8 clips, the components to the first `analysed` of them alone; returns the share of
    variance the latents keep."""
    patches, latents, kept = _analyse(codec, frames, analysed or len(frames))
    codec.refine.reset(seed)

    def loss(x: Tensor, rows: Tensor) -> Tensor:
        return F.mse_loss(codec.raw_patches(x), patches[rows])

    fit_decoder(codec.refine.parameters(), latents, loss, steps, seed, rate=3e-3, noise=noise)
    return kept
