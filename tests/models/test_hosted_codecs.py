"""Hosted codecs: real classes of diffusers, tiny and random, saved to a folder and opened as users open theirs.

The impulse tests ask what a latent's interval of time is worth: a flash or a click at t may change only the latents
whose interval, widened by the codec's stated reach, holds t, and a latent only the media so near to its interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avgen.models.codec_files import CodecFiles
from avgen.models.codecs import AudioCodec, VideoCodec
from avgen.models.opening import open_audio_codec, open_video_codec
from avgen.types import TimeGrid
from tests.models import codec_factory as factory


@dataclass(frozen=True)
class Case:
    """A codec and a clip that is longer than it sees."""

    make: Callable[[Path], Path]  # saves it to the folder and says where
    units: int  # frames or samples
    side: int = 0  # pixels

    def open(self, folder: Path) -> Any:
        files = CodecFiles(str(self.make(folder)))
        return open_video_codec(files) if self.side else open_audio_codec(files)

    def media(self, codec: Any, units: int | None = None, seed: int = 0) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        units = units or self.units
        if self.side:
            return torch.randint(0, 256, (1, units, self.side, self.side, 3), generator=draw, dtype=torch.uint8)
        return 0.2 * torch.randn(1, codec.geometry.audio_channels, units, generator=draw)


VIDEO = {
    "wan21": Case(lambda f: factory.saved(factory.wan21(), f), 121, 8),
    "wan22": Case(lambda f: factory.saved(factory.wan22(), f), 121, 16),
}
AUDIO = {
    "oobleck": Case(lambda f: factory.saved(factory.oobleck(), f), 2048 * 24),
}
CASES = VIDEO | AUDIO


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = CASES[name].open(tmp_path_factory.mktemp(name))
        return made[name]

    return get


def bounds(grid: TimeGrid, steps: int) -> Tensor:
    """(steps, 2) first and last + 1 unit of every step, by the intervals that tokens are given."""
    return grid.intervals(steps, 1.0).round().long()


def axes(x: Tensor, time: int) -> Tensor:
    """(T,) whether anything differs at each place of the time axis."""
    return x.movedim(time, 0).flatten(1).any(1)


@pytest.mark.parametrize("name", CASES)
def test_latents_have_the_shape_scale_and_times_that_the_geometry_states(name, opened):
    codec, case = opened(name), CASES[name]
    protocol = VideoCodec if case.side else AudioCodec
    assert isinstance(codec, protocol)
    grid = codec.geometry.time
    for units in (1, grid.first, grid.units(2), grid.units(3) + 1, grid.units(5) - 1):
        media = case.media(codec, units)
        posterior = codec.encode(media)
        steps = grid.steps(units)
        assert posterior.mean.shape[:3] == (1, codec.geometry.channels, steps)
        assert posterior.std is not None
        assert posterior.std.shape == posterior.mean.shape
        assert posterior.mean.dtype == posterior.std.dtype == torch.float32
        assert bool((posterior.std > 0).all())
        made = codec.decode(posterior.mean)
        assert made.shape[1 if case.side else 2] == grid.units(steps) >= units
        assert made.dtype == media.dtype
        rate = 24.0 if case.side else codec.geometry.sample_rate_hz
        stream = codec.geometry.stream(posterior.mean, rate) if case.side else codec.geometry.stream(posterior.mean)
        # the tokens' times cover the clip from its first instant to its last, within the part step at its end
        assert stream.time.min() == 0
        assert 0 <= stream.time.max() - units / rate < grid.stride / rate


@pytest.mark.parametrize("name", CASES)
def test_an_impulse_changes_only_the_latents_near_it(name, opened):
    codec, case = opened(name), CASES[name]
    media = case.media(codec)
    reach, grid = codec.encode_reach, codec.geometry.time
    steps = grid.steps(case.units)
    edges = bounds(grid, steps)
    plain = codec.encode(media).mean
    missed = 0
    for at in (0, case.units // 3, case.units - 1):
        struck = media.clone()
        if case.side:
            struck[:, at] = 255 - struck[:, at]
        else:
            struck[..., at] = 1.0
        changed = axes(codec.encode(struck).mean != plain, 2)
        holds = (edges[:, 0] <= at) & (at < edges[:, 1])
        near = (edges[:, 0] - reach.before <= at) & (at < edges[:, 1] + reach.after)
        assert bool(changed[holds].all())
        assert not bool((changed & ~near).any())
        missed += int((~near).sum())
    assert missed > 0, "the clip is too short for the test to say anything"


@pytest.mark.parametrize("name", CASES)
def test_a_latent_changes_only_the_time_near_it(name, opened):
    codec, case = opened(name), CASES[name]
    reach, grid = codec.decode_reach, codec.geometry.time
    latents = codec.encode(case.media(codec)).mean
    steps = latents.shape[2]
    edges = bounds(grid, steps)
    plain = codec.decode(latents)
    clock = torch.arange(plain.shape[1 if case.side else 2])
    missed = 0
    for at in (0, steps // 3, steps - 1):
        moved = latents.clone()
        moved[:, :, at] += 2.0
        changed = axes(codec.decode(moved) != plain, 1 if case.side else 2)
        begin, end = edges[at].tolist()
        holds = (begin <= clock) & (clock < end)
        near = (begin - reach.before <= clock) & (clock < end + reach.after)
        assert bool(changed[holds].any())
        assert not bool((changed & ~near).any())
        missed += int((~near).sum())
    assert missed > 0, "the clip is too short for the test to say anything"


@pytest.mark.parametrize("name", CASES)
def test_the_stated_reach_is_the_layers_and_no_more(name, opened):
    """A NaN taints whatever depends on it, however weakly: the exact structure, where a flash may fade."""
    codec, case = opened(name), CASES[name]
    grid = codec.geometry.time
    steps = grid.steps(case.units)
    edges, at = bounds(grid, steps), case.units // 3
    if case.side:
        x = torch.zeros(1, 3, grid.units(steps), case.side, case.side)
    else:
        x = torch.zeros(1, codec.geometry.audio_channels, grid.units(steps))
    x[:, :, at] = torch.nan
    with torch.no_grad():
        tainted = edges[axes(codec.posterior(x)[0].isnan(), 2)]
    before, after = int((tainted[:, 0] - at).max()), int((at + 1 - tainted[:, 1]).max())
    slack = 2 * grid.stride + 0.1 * (codec.encode_reach.before + codec.encode_reach.after)
    assert before <= codec.encode_reach.before <= before + slack
    assert max(after, 0) <= codec.encode_reach.after <= max(after, 0) + slack

    before = after = 0
    for step in (2, steps - 3):
        z = torch.zeros(1, codec.geometry.channels, steps, *[1, 1][: 2 if case.side else 0])
        z[:, :, step] = torch.nan
        with torch.no_grad():
            made = codec.pictures(z) if case.side else codec.wave(z)
        tainted = axes(made.isnan(), 2).nonzero()[:, 0]
        before = max(before, int(edges[step, 0] - tainted.min()))
        after = max(after, int(tainted.max() + 1 - edges[step, 1]))
    slack = 2 * grid.stride + 0.1 * (codec.decode_reach.before + codec.decode_reach.after)
    assert before <= codec.decode_reach.before <= before + slack
    assert after <= codec.decode_reach.after <= after + slack
