"""Hosted codecs: real classes of diffusers, tiny and random, saved to a folder and opened as users open theirs.

The impulse tests ask what a latent's interval of time is worth: a flash or a click at t may change only the latents
whose interval, widened by the codec's stated reach, holds t, and a latent only the media so near to its interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avgen.models.codec_files import CodecFiles
from avgen.models.codecs import AudioCodec, VideoCodec
from avgen.models.embedded_audio import SpectralAudioCodec
from avgen.models.embedded_video import PatchVideoCodec
from avgen.models.hosted import span_of_layers
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


def case(units: int, network: Callable[[], Any], vocoder: Callable[[], Any] | None = None, side: int = 0) -> Case:
    return Case(lambda folder: factory.saved(network(), folder, vocoder and vocoder()), units, side)


LOCAL = {
    "wan21": case(121, factory.wan21, side=8),
    "wan22": case(121, factory.wan22, side=16),
    "ltx2_video": case(161, factory.ltx2_video, side=64),
    "oobleck": case(2048 * 24, factory.oobleck),
    "ltx2_audio": case(240 + 960 * 43, factory.ltx2_audio, factory.ltx2_vocoder),
    "ltx2_audio_bwe": case(480 + 1920 * 44, factory.ltx2_audio, factory.ltx2_vocoder_with_bwe),
}
EMBEDDED = {
    "patches": case(12, lambda: factory.embedded(PatchVideoCodec(4, hidden=8)), side=16),
    "spectra": case(800 * 12, lambda: factory.embedded(SpectralAudioCodec(6, hidden=8, rank=8, refinements=1))),
}
# attention or normalisation over time: every latent sees the whole clip, a little
GLOBAL = {
    "audioldm2": case(640 * 20, factory.audioldm2, factory.hifigan),
    "mmaudio": case(1024 * 20, factory.mmaudio, factory.mmaudio_vocoder),
}
CASES = LOCAL | GLOBAL | EMBEDDED


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
        assert posterior.mean.dtype == torch.float32
        assert (posterior.std is None) == (name in EMBEDDED)
        if posterior.std is not None:
            assert (posterior.std.shape, posterior.std.dtype) == (posterior.mean.shape, torch.float32)
            assert bool((posterior.std > 0).all())
        made = codec.decode(posterior.mean)
        assert made.shape[1 if case.side else 2] == grid.units(steps) >= units
        assert made.dtype == media.dtype
        rate = 24.0 if case.side else codec.geometry.sample_rate_hz
        stream = codec.geometry.stream(posterior.mean, rate) if case.side else codec.geometry.stream(posterior.mean)
        # the tokens' times cover the clip from its first instant to its last, within the part step at its end
        assert stream.time.min() == 0
        assert 0 <= stream.time.max() - units / rate < grid.stride / rate


@pytest.mark.parametrize("name", LOCAL | EMBEDDED)
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


@pytest.mark.parametrize("name", [*LOCAL, "patches"])
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


@pytest.mark.parametrize("name", LOCAL)
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
        cells = [case.side // codec.geometry.space_stride] * 2 if case.side else []
        z = torch.zeros(1, codec.geometry.channels, steps, *cells)
        z[:, :, step] = torch.nan
        with torch.no_grad():
            made = codec.pictures(z) if case.side else codec.wave(z)
        tainted = axes(made.isnan(), 2).nonzero()[:, 0]
        before = max(before, int(edges[step, 0] - tainted.min()))
        after = max(after, int(tainted.max() + 1 - edges[step, 1]))
    slack = 2 * grid.stride + 0.1 * (codec.decode_reach.before + codec.decode_reach.after)
    assert before <= codec.decode_reach.before <= before + slack
    assert after <= codec.decode_reach.after <= after + slack


@pytest.mark.parametrize("name", GLOBAL)
def test_where_a_latent_sees_the_whole_clip_it_sees_its_own_time_most(name, opened):
    codec, case = opened(name), CASES[name]
    grid = codec.geometry.time
    assert codec.encode_reach is None
    assert codec.decode_reach is None
    media = 0.01 * case.media(codec)
    plain = codec.encode(media).mean
    middles = bounds(grid, plain.shape[2]).float().mean(1)
    for step in (5, 9, 14):
        at = step * grid.stride + grid.stride // 2
        struck = media.clone()
        struck[..., at] = 0.9
        change = (codec.encode(struck).mean - plain)[0].square().sum(0)
        assert abs(int(change.argmax()) - step) <= 1
        assert abs((change * middles).sum() / change.sum() - at) < 2 * grid.stride
    changes = []
    for step in (5, 9, 14):
        moved = plain.clone()
        moved[:, :, step] += 10.0
        change = (codec.decode(moved) - codec.decode(plain))[0, 0].square()
        changes.append([change[(at - 1) * grid.stride : (at + 2) * grid.stride].mean() for at in (5, 9, 14)])
    # of the three, each moves its own time most; what is common to all is what the clip's ends and mean do
    assert torch.tensor(changes).argmax(0).tolist() == [0, 1, 2]


class Nothing(torch.nn.Module):
    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return x


@pytest.mark.parametrize("name", GLOBAL)
def test_without_what_sees_the_whole_clip_the_layers_are_local(name, opened, tmp_path):
    """Attention and normalisation over time taken out, an impulse stays within the convolutions and the window."""
    codec, case = CASES[name].open(tmp_path), replace(CASES[name], units=3 * CASES[name].units)
    encoder = codec.network.encoder if name == "audioldm2" else codec.network.vae.encoder
    for path, module in list(encoder.named_modules()):
        if isinstance(module, torch.nn.GroupNorm) or type(module).__name__ in ("Attention", "MMAudioAttnBlock1D"):
            parent, _, child = path.rpartition(".")
            setattr(encoder.get_submodule(parent), child, Nothing())
    grid = codec.geometry.time
    wave = case.media(codec)
    span = span_of_layers(encoder, lambda: codec.posterior(wave), case.units)
    window = 1024 if name == "audioldm2" else codec.network.config.n_fft
    assert 0 < span + window < case.units // 2
    at = case.units // 3
    wave[..., at] = torch.nan
    tainted = bounds(grid, grid.steps(case.units))[axes(codec.posterior(wave)[0].isnan(), 2)]
    assert tainted[:, 0].min() >= at - span - window
    assert tainted[:, 1].max() <= at + span + window
    assert bool(((tainted[:, 0] <= at) & (at < tainted[:, 1])).any())


@pytest.mark.parametrize("name", ["oobleck", "ltx2_audio", "ltx2_video"])
def test_long_clips_in_pieces_are_the_same_in_bounded_memory(name, opened, monkeypatch, tmp_path):
    whole, case = opened(name), CASES[name]
    pieces = CASES[name].open(tmp_path)
    pieces.in_pieces(8)
    grid, steps = whole.geometry.time, {"oobleck": 34, "ltx2_audio": 80, "ltx2_video": 40}[name]
    media = case.media(whole, grid.units(steps) - 1)
    most: list[int] = []
    encode, decode = pieces.network.encode, pieces.network.decode
    monkeypatch.setattr(pieces.network, "encode", lambda x, *a: (most.append(x.shape[2]), encode(x, *a))[1])
    posterior = pieces.encode(media)
    torch.testing.assert_close(posterior.mean, whole.encode(media).mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(posterior.std, whole.encode(media).std, rtol=1e-4, atol=1e-5)
    assert len(most) == -(-steps // 8)
    seen: list[int] = []
    monkeypatch.setattr(pieces.network, "decode", lambda z, *a: (seen.append(z.shape[2]), decode(z, *a))[1])
    ours, theirs = pieces.decode(posterior.mean), whole.decode(posterior.mean)
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=1.0 if case.side else 1e-5)
    assert max(seen) <= 8 + 2 * pieces.pieces.context < steps


@pytest.mark.parametrize("name", GLOBAL)
def test_pieces_of_a_codec_that_sees_the_whole_clip_line_up_with_it(name, opened, tmp_path):
    """Not the same numbers, but the same instants: shifted by a step they fit worse."""
    whole, case = opened(name), CASES[name]
    pieces = CASES[name].open(tmp_path)
    pieces.in_pieces(6)
    pieces.pieces = replace(pieces.pieces, context=4)
    media = case.media(whole)
    ours, theirs = pieces.encode(media).mean, whole.encode(media).mean
    assert ours.shape == theirs.shape
    error = (ours - theirs).square().mean().sqrt() / theirs.std()
    shifted = (ours[..., 1:] - theirs[..., :-1]).square().mean().sqrt() / theirs.std()
    print(f"{name}: {error:.3f}, shifted {shifted:.3f}")
    assert error < 0.5 * shifted


def test_tiles_of_what_is_too_small_are_refused(opened):
    with pytest.raises(ValueError, match="tile_px=40 must be a multiple of 32"):
        opened("wan21").tile(40)


@pytest.mark.parametrize("cells", [(4, 7), (7, 4), (10, 5)])
def test_tiles_of_which_the_last_would_be_a_cell_wide_are_decoded(cells, tmp_path):
    """LTX-2's decoder mirrors pictures at their edges: of one cell there is nothing to mirror."""
    codec = CASES["ltx2_video"].open(tmp_path)
    codec.tile(4 * 32)
    made = codec.decode(torch.zeros(1, 4, 2, *cells))
    assert made.shape == (1, 9, 32 * cells[0], 32 * cells[1], 3)


def test_pictures_that_could_not_be_decoded_are_not_encoded(opened):
    codec = opened("ltx2_video")
    with pytest.raises(ValueError, match="frames of 32x64 pixels: the codec decodes none of under 64"):
        codec.encode(torch.zeros(1, 1, 32, 64, 3, dtype=torch.uint8))
    assert codec.encode(torch.zeros(1, 1, 64, 64, 3, dtype=torch.uint8)).mean.shape[-2:] == (2, 2)


@pytest.mark.parametrize("name", ["wan21", "wan22", "ltx2_video"])
def test_tiles_differ_from_the_whole_by_a_seam_alone(name, opened, tmp_path):
    whole, tiled = opened(name), CASES[name].open(tmp_path)
    cell = whole.geometry.space_stride
    tiled.tile(4 * cell)
    draw = torch.Generator().manual_seed(5)
    coarse = torch.rand(1, 3, 2, 3, 3, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (9, 6 * cell, 6 * cell), mode="trilinear", align_corners=True)
    frames = (smooth * 255).to(torch.uint8).permute(0, 2, 3, 4, 1)
    ours, theirs = tiled.encode(frames).mean, whole.encode(frames).mean
    assert ours.shape == theirs.shape
    encoded = (ours - theirs).square().mean().sqrt() / theirs.std()
    made, clean = tiled.decode(theirs).float(), whole.decode(theirs).float()
    assert made.shape == clean.shape
    decoded = (made - clean).square().mean().sqrt() / clean.std()
    print(f"{name}: latents {encoded:.3f}, pictures {decoded:.3f}")
    # random weights see far and mean little: published ones, whose far weights are small, should differ by less
    assert encoded < 0.75
    assert decoded < 0.75
