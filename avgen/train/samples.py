"""Clips made while training: what the averaged weights make of every task, always from the same clips and noise.

The noise of a clip follows from the run's seed and the clip's number, so sheets of different steps, and of different
numbers of processes, show the same thing getting better; and nothing that the training draws is touched.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from avgen.config import to_plain
from avgen.data.contact_sheet import stacked, strip
from avgen.data.media import write_clip
from avgen.data.stream import Source
from avgen.models.codecs import AudioCodec, VideoCodec
from avgen.models.compilation import uncompiled
from avgen.models.dit import AVTransformer
from avgen.models.text import captions_of
from avgen.rng import gaussian
from avgen.sample.guidance import Guidance, ModalityGuidance
from avgen.sample.loop import generate
from avgen.tasks import assign, fitting, shown
from avgen.train.config import TrainConfig
from avgen.train.run import Run
from avgen.train.validate import at_once, shared
from avgen.types import Batch, Clip, Stream

FOLDER = "samples"
Codecs = tuple[VideoCodec, AudioCodec]


def sample(run: Run, held_out: Source, codecs: Codecs) -> Image.Image | None:
    """Write `samples/step_N/`, a file per clip and a sheet of all; the sheet, on the first process.

    Processes share the clips, and every one of them must call it. The folder gets its name when it is whole.
    """
    processes = run.processes
    places = range(run.config.samples.clips)
    held = held_out.batch(list(places))  # of those, a task is shown on the clips that have what it gives and makes
    fits = {task: fitting(task, held).tolist() for task in run.config.task_names}
    wanted = [(task, place) for task in fits for place in places if fits[task][place]]
    if not wanted:
        return None
    final = folder_of(run)
    draft = final.with_name(f".{final.name}.part")
    if processes.rank == 0:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    processes.agreed("nobody writes before the first has cleared up")
    drawn: dict[int, Image.Image] = {}
    back = run.average.swapped(run.model)
    try:
        with uncompiled():
            together = at_once(run.config, processes.readers, rows_of(run.config))
            for numbers, counts in shared(len(wanted), processes.reader, processes.readers, together):
                made = made_of(run, held_out, codecs, [wanted[i] for i in numbers])
                if counts and processes.leads:
                    for i, (clip, caption) in zip(numbers, made, strict=True):
                        drawn[i] = kept(run, draft, *wanted[i], clip, caption)
    finally:
        back()
    found = {i: image for part in processes.collected(drawn) for i, image in part.items()}
    sheet = None
    if processes.rank == 0:
        sheet = stacked([found[i] for i in range(len(wanted))])
        sheet.save(draft / "sheet.png", optimize=True)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
    processes.agreed("nobody goes on before the folder has its name")
    return sheet


def folder_of(run: Run) -> Path:
    """Of the samples of a run's step."""
    return run.config.out / FOLDER / f"step_{run.step:06d}"


def made_of(run: Run, held_out: Source, codecs: Codecs, wanted: list[tuple[str, int]]) -> list[tuple[Clip, str]]:
    """Clips of any tasks in one batch, with their captions."""
    config, device = run.config, run.model.device
    batch = held_out.batch([place for _, place in wanted])
    captions = captions_of(batch.video_text) or [""] * batch.size
    batch = assign(batch, shown([task for task, _ in wanted], batch)).to(device)
    noise = {
        m: torch.stack([gaussian(s.x.shape[1:], config.seed, f"{m} sample", place) for _, place in wanted]).to(device)
        for m, s in batch.streams.items()
    }
    made = generated(run.model, batch, noise, config)
    with on_device(codecs, device):
        return [(clip_of(batch, made, row, codecs), caption) for row, caption in enumerate(captions)]


def rows_of(config: TrainConfig) -> int:
    """How often a clip stands in the sampler's batch: guidance needs it once more, without its caption."""
    return 1 if config.samples.text == 1 else 2


def generated(model: AVTransformer, batch: Batch, noise: dict[str, Tensor], config: TrainConfig) -> dict[str, Tensor]:
    """Tokens, as a run's samples are made."""
    pushed = ModalityGuidance(text=config.samples.text)
    with config.autocast(batch.video_text.x.device):
        return generate(
            *(model, batch, noise, config.samples.solver, Guidance(pushed, pushed)), predict=config.flow.predict
        )


@torch.no_grad()
def clip_of(batch: Batch, made: dict[str, Tensor], row: int, codecs: Codecs) -> Clip:
    """One sample's tokens as media; what was given is seen through the codec, as the model saw it."""
    video, audio = codecs
    picture = wave = fps = None
    if batch.video is not None and batch.video.present[row]:
        stream = batch.video
        assert stream.extent is not None
        height, width = stream.extent[row].int().tolist()
        latents = video.geometry.latents(real(stream, made["video"], row), height, width)
        picture = video.decode(latents.to(device_of(video)))[0].cpu().numpy()
        start_s, end_s = stream.time[row, 0].tolist()
        fps = round(video.geometry.time.first / (end_s - start_s), 6)
    if batch.audio is not None and batch.audio.present[row]:
        latents = audio.geometry.latents(real(batch.audio, made["audio"], row))
        wave = audio.decode(latents.to(device_of(audio)))[0].cpu().numpy()
    return Clip(picture, wave, fps, None if wave is None else audio.geometry.sample_rate_hz)


def real(stream: Stream, made: Tensor, row: int) -> Tensor:
    """(1, N, C) without padding."""
    return made[row : row + 1, stream.mask()[row]]


@contextmanager
def on_device(codecs: Codecs, device: torch.device) -> Iterator[None]:
    """Codecs beside the model while they decode, and back where they were: held-out clips may be encoded by the same.

    A host takes minutes for a clip of a large decoder, whose weights would take memory from every training step.
    """
    moved = [(codec, device_of(codec)) for codec in codecs if isinstance(codec, nn.Module)]
    try:
        for codec, _ in moved:
            codec.to(device)
        yield
    finally:
        for codec, before in moved:
            codec.to(before)


def device_of(codec: VideoCodec | AudioCodec) -> torch.device:
    tensors = codec.state_dict().values() if isinstance(codec, nn.Module) else ()
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def kept(run: Run, folder: Path, task: str, place: int, clip: Clip, caption: str) -> Image.Image:
    """The clip as a file that says what made it, and as a strip of the sheet."""
    record = {"task": task, "prompt": caption, "step": run.step, "held_out": place, "seed": run.config.seed}
    comment = json.dumps(record | to_plain(run.config.samples))
    suffix = "m4a" if clip.video is None else "mp4"
    write_clip(folder / f"{task}_{place:02d}.{suffix}", clip, comment=comment)
    return strip(clip, f"{task}  {caption}")
