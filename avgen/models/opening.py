"""Opening codecs: a folder or a hub id in, a `VideoCodec` or an `AudioCodec` out.

The class is named by the folder's own config.json, so the same few lines open published weights, a codec
fitted here, and a tiny random one that a test saved.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import diffusers
import torch
import transformers

from avgen.models.codec_files import CodecFiles
from avgen.models.codecs import AudioCodec, VideoCodec
from avgen.models.embedded_audio import SpectralAudioCodec
from avgen.models.embedded_video import PatchVideoCodec
from avgen.models.hosted import OPENED, HostedCodec
from avgen.models.hosted_audio import AudioLDM2AudioCodec, LTX2AudioCodec, MMAudioCodec, OobleckAudioCodec
from avgen.models.hosted_video import LTX2VideoCodec, WanVideoCodec
from avgen.models.loading import in_one_line


class Host(NamedTuple):
    """Who understands a class of network."""

    codec: Callable[..., Any]  # of (network, patch), (network) or (network, vocoder)
    modality: Literal["video", "audio"]
    vocoders: tuple[str, ...] = ()  # classes that turn its output into sound


HOSTS = {
    "AutoencoderKLWan": Host(WanVideoCodec, "video"),
    "AutoencoderKLLTX2Video": Host(LTX2VideoCodec, "video"),
    "AutoencoderOobleck": Host(OobleckAudioCodec, "audio"),
    "AutoencoderKLLTX2Audio": Host(LTX2AudioCodec, "audio", ("LTX2Vocoder", "LTX2VocoderWithBWE")),
    "AutoencoderKL": Host(AudioLDM2AudioCodec, "audio", ("SpeechT5HifiGan",)),
    "MMAudioVAE": Host(MMAudioCodec, "audio", ("MMAudioVocoder",)),
}
EMBEDDED: dict[str, tuple[Any, str]] = {
    "PatchVideoCodec": (PatchVideoCodec, "video"),
    "SpectralAudioCodec": (SpectralAudioCodec, "audio"),
}


def open_video_codec(files: CodecFiles) -> VideoCodec:
    return _open(files, "video")


def open_audio_codec(files: CodecFiles) -> AudioCodec:
    return _open(files, "audio")


def open_folder(folder: Path) -> HostedCodec:
    """A hosted codec as its own save_pretrained wrote it, opened as it was then."""
    name = _class_name(str(folder), "", None)
    opened = json.loads((folder / OPENED).read_text())
    return _limited(CodecFiles(str(folder), **opened), name)


def _limited(files: CodecFiles, name: str) -> Any:
    """As much of a clip at once as the files say."""
    codec: Any = _hosted(files, name, HOSTS[name])
    if files.piece_steps is not None:
        codec.in_pieces(files.piece_steps)
    if files.tile_px is not None:
        codec.tile(files.tile_px)
    return codec


def _open(files: CodecFiles, modality: str) -> Any:
    name = _class_name(files.path, files.subfolder, files.revision)
    if name not in HOSTS and name not in EMBEDDED:
        known = ", ".join([*EMBEDDED, *HOSTS])
        raise ValueError(f"codec.{modality}.path={files.path} holds a {name!r}; hosted are {known}")
    found = EMBEDDED[name][1] if name in EMBEDDED else HOSTS[name].modality
    if found != modality:
        raise ValueError(f"codec.{modality}.path={files.path} holds a {name}, a codec of {found}")
    if name in EMBEDDED:
        if (files.tile_px, files.piece_steps, files.patch, files.dtype) != (None, None, 1, "float32"):
            raise ValueError(
                f"codec.{modality}: a {name} has no dtype, patch, tile_px or piece_steps of its own; leave them out"
            )
        fitted: Any = _weights(EMBEDDED[name][0], files.path, files.subfolder, files)
        return fitted.eval().requires_grad_(False)
    if files.tile_px is not None and found != "video":
        raise ValueError(f"codec.audio.tile_px={files.tile_px}: sound has no pixels; leave it null")
    return _limited(files, name)


def _hosted(files: CodecFiles, name: str, host: Host) -> Any:
    network = _weights(getattr(diffusers, name), files.path, files.subfolder, files)
    if host.modality == "video":
        return host.codec(network, files.patch)
    if files.patch != 1:
        raise ValueError(f"codec.audio.patch={files.patch}: sound has one token an instant; leave it 1")
    if not host.vocoders:
        return host.codec(network)
    subfolder = files.vocoder or "vocoder"
    kind = _class_name(files.path, subfolder, files.revision)
    if kind not in host.vocoders:
        offered = " or ".join(host.vocoders)
        raise ValueError(f"{files.path}/{subfolder} holds a {kind!r}, but a {name} is heard through {offered}")
    return host.codec(network, _weights(_vocoder_class(kind), files.path, subfolder, files))


def _vocoder_class(name: str) -> Any:
    if name.startswith("LTX2"):  # diffusers exports these from their pipeline alone
        return getattr(importlib.import_module("diffusers.pipelines.ltx2.vocoder"), name)
    return getattr(diffusers, name) if hasattr(diffusers, name) else getattr(transformers, name)


def _weights(kind: Any, path: str, subfolder: str, files: CodecFiles) -> torch.nn.Module:
    """The network, whole: weights that are only warned of as missing would be random."""
    dtype = "torch_dtype" if issubclass(kind, diffusers.ModelMixin) else "dtype"
    options: dict[str, Any] = {dtype: getattr(torch, files.dtype), "output_loading_info": True}
    local = _local(path, subfolder)
    with in_one_line(f"the network in {local or path}"):
        if local is not None:  # never by subfolder: where the folder above holds weights too, diffusers takes those
            network, info = kind.from_pretrained(local, **options)
        else:
            network, info = kind.from_pretrained(path, subfolder=subfolder, revision=files.revision, **options)
    wrong = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if wrong:
        raise ValueError(
            f"the weights in {local or path} do not fit its config.json; {len(wrong)} are missing or misshapen, "
            f"the first of them {wrong[0]}"
        )
    return network


def _class_name(path: str, subfolder: str, revision: str | None) -> str:
    """Of the network that a folder or a hub repository's subfolder holds."""
    local = _local(path, subfolder)
    if local is None:
        where = {"subfolder": subfolder} if subfolder else {}
        with in_one_line(f"path={path} is no folder here, and from the hub it"):
            config = diffusers.AutoencoderKL.load_config(path, revision=revision, **where)
    else:
        with in_one_line(f"{local / 'config.json'}"):
            config = json.loads((local / "config.json").read_text())
    return str(config.get("_class_name") or (config.get("architectures") or ["nothing known"])[0])


def _local(path: str, subfolder: str) -> Path | None:
    """The folder, when `path` is one; the rest are ids of the hub."""
    if not Path(path).is_dir():
        if path.startswith((".", "/")) or path.count("/") > 1:
            raise ValueError(f"path={path}: no such folder")
        return None
    folder = Path(path) / subfolder
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json: name the codec's own subfolder")
    return folder
