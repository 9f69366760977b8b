"""One model making one clip at a time for whoever asks, into one folder: what stands behind `avgen app`.

The folder is one of `avgen sample`: clips and manifest.jsonl, besides each clip's contact sheet, its own line and the
files that people gave for it. The same request is not made twice.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avgen.data.contact_sheet import contact_sheet
from avgen.lines import file_hash
from avgen.sample.config import SampleConfig
from avgen.sample.inputs import FILE_KINDS
from avgen.sample.jobs import Job, finish, jobs_of, read_manifest, requests_of
from avgen.sample.pipeline import AVPipeline

SHEET_WIDTH = 720  # as wide as a column of the page, so that its small print can be read


@dataclass(frozen=True)
class Shown:
    """A clip on disk and what is shown beside it."""

    clip: Path
    sheet: Path  # frames over the waveform
    line: Path  # its line of the manifest, alone
    notes: tuple[str, ...]  # what became of the files given, by the names they came under
    seconds: float  # that it took to make

    @property
    def has_picture(self) -> bool:
        return self.clip.suffix == ".mp4"


class Studio:
    def __init__(self, pipeline: AVPipeline, out: Path, longest_s: float) -> None:
        self.pipeline, self.out, self.longest_s = pipeline, out, longest_s
        self.given = (out / "given").resolve()  # notes name it alike wherever the page is started from
        self.lock = threading.Lock()  # a model on one device serves one clip after the other
        out.mkdir(parents=True, exist_ok=True)

    def make(self, config: SampleConfig, after_step: Callable[[int, int], None] = lambda done, of: None) -> Shown:
        """The one clip that the config asks for."""
        (request,) = requests_of(config)
        # files are kept under the lock too: another request with the same one must not lose it when this is refused
        with self.lock, ExitStack() as refused:
            given: dict[str, Any] = {
                name: self.keep(path, refused) for name in FILE_KINDS if (path := getattr(request, name)) is not None
            }
            # its id says where the upload lay, which is elsewhere each time
            (job,) = jobs_of(config, self.pipeline, [replace(request, id=config.task, **given)])
            if job.form.duration_s > self.longest_s:
                raise ValueError(
                    f"duration_s={job.form.duration_s:g} is more than the {self.longest_s:g} s this page makes;"
                    " ask for less, or start it with a higher longest_s"
                )
            job = replace(job, name=f"{config.task}_{job.key}")
            shown = self.shown(self.done(job) or self.made(config, job, after_step))
            refused.pop_all()
            return shown

    def keep(self, path: Path, refused: ExitStack) -> Path:
        """A copy, under a name that tells contents apart, that outlives the upload; `refused` drops one that is new."""
        kept = self.given / f"{file_hash(path)[:8]}_{path.name}"
        if not kept.exists():
            self.given.mkdir(exist_ok=True)
            refused.callback(kept.unlink, missing_ok=True)
            partial = kept.with_name(f".{kept.name}.{os.getpid()}.part")
            refused.callback(partial.unlink, missing_ok=True)
            shutil.copyfile(path, partial)
            partial.replace(kept)
        return kept

    def as_given(self, words: str) -> str:
        """Words about files that were kept, which are called there as whoever gave them calls them."""
        return re.sub(re.escape(f"{self.given}/") + "[0-9a-f]{8}_", "", words)

    def done(self, job: Job) -> dict[str, Any] | None:
        """The line of the clip, if it was made before and is still there."""
        for line in read_manifest(self.out):
            files = (self.out / line["file"], self.sheet(line["name"]), self.line(line["name"]))
            if line["name"] == job.name and all(file.is_file() for file in files):
                return line
        return None

    def made(self, config: SampleConfig, job: Job, after_step: Callable[[int, int], None]) -> dict[str, Any]:
        began = time.perf_counter()
        made = self.pipeline.make([job.request], config.task, job.form, config.method, after_step)[0]
        contact_sheet([made.clip], width=SHEET_WIDTH, most_frames=12, wave_height=96).save(self.sheet(job.name))
        line = finish(self.out, job, made, time.perf_counter() - began)
        self.line(job.name).write_text(json.dumps(line) + "\n", encoding="utf-8")
        return line

    def shown(self, line: dict[str, Any]) -> Shown:
        name = line["name"]
        notes = tuple(self.as_given(note) for note in line["notes"])
        return Shown(self.out / line["file"], self.sheet(name), self.line(name), notes, line["seconds"])

    def sheet(self, name: str) -> Path:
        return self.out / f"{name}.png"

    def line(self, name: str) -> Path:
        return self.out / f"{name}.jsonl"
