"""Many clips: in batches, over ranks, and on again after a stop.

A clip is done when its file has its name and manifest.jsonl its line. The file is written under another name and
renamed, then the line is appended: a kill at any instant leaves at worst a clip without a line, which is made again.
A clip that was made otherwise keeps its line until another takes its place; a line before the new file takes it back.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from avgen.config import to_plain
from avgen.data.media import MediaError
from avgen.lines import append_line, locked, standing_lines, write_whole
from avgen.ranks import this_process
from avgen.sample.config import SampleConfig
from avgen.sample.inputs import FILE_KINDS, Form, Request, not_text, read_requests
from avgen.sample.pipeline import AVPipeline, Made, described
from avgen.sample.write import suffix, write_made

MANIFEST = "manifest.jsonl"
SCHEMA = 1
SUFFIXES = (".mp4", ".m4a")


@dataclass(frozen=True)
class Job:
    """One clip to be made: what, in which form, and the hash of all that decides it."""

    request: Request
    form: Form
    name: str  # of its file, without suffix
    key: str


def requests_of(config: SampleConfig) -> list[Request]:
    """Every clip asked for, checked: what is wrong is said before anything is loaded."""
    files = {name: getattr(config, name) for name in FILE_KINDS}
    base = Request(config.prompt, seed=config.seed, **files)
    if (odd := not_text(config.prompt)) is not None:
        raise ValueError(odd)
    rows = [base] if config.prompts is None else read_requests(config.prompts, base)
    for row in rows:
        row.check(config.task)
    unnamed = {f"{i:05d}" for i, row in enumerate(rows) if not row.id} if config.prompts else set()
    named = [
        replace(r, id=r.id or (f"{i:05d}" if config.prompts else id_of(config.task, r))) for i, r in enumerate(rows)
    ]
    counted = Counter(r.id for r in named)
    if (twice := next((name for name, count in counted.items() if count > 1), None)) is not None:
        raise ValueError(
            f"prompts={config.prompts}: the id {twice!r} is also what a row without one is called by its number; "
            "give every row an id, or none"
        )
    found = [replace(r, seed=r.seed + i) for r in named for i in range(config.samples)]
    refuse_own_output(config.out, found)
    if unnamed:
        refuse_replacing(config, [r for r in found if r.id in unnamed])
    return found


def id_of(task: str, request: Request) -> str:
    """Of a single request: another prompt or other files are another clip, beside the first."""
    return f"{task}_{hashlib.sha256(json.dumps(asked(request), sort_keys=True).encode()).hexdigest()[:8]}"


def asked(request: Request) -> dict[str, str]:
    """The prompt and the files, which are the same whatever folder they are named from."""
    files = {kind: str(path.resolve()) for kind in FILE_KINDS if (path := getattr(request, kind)) is not None}
    return {"prompt": request.prompt, **files}


def asked_then(line: dict[str, Any]) -> dict[str, str]:
    """`asked`, of a line of the manifest."""
    files: dict[str, Any] = {kind: Path(line[kind]) for kind in FILE_KINDS if kind in line}
    return asked(Request(line["prompt"], **files))


def refuse_own_output(out: Path, requests: Sequence[Request]) -> None:
    written = {(out / f"{request.name}{end}").resolve() for request in requests for end in SUFFIXES}
    for request in requests:
        for kind in FILE_KINDS:
            path = getattr(request, kind)
            if path is not None and path.resolve() in written:
                raise ValueError(f"{kind}={path} is what this command would write: give another out, or another id")


def refuse_replacing(config: SampleConfig, requests: Sequence[Request]) -> None:
    """A row's number says nothing of what was asked for: rows of another file, or moved ones, have the same."""
    known = {line["name"]: line for line in read_manifest(config.out) if (config.out / line["file"]).is_file()}
    for request in requests:
        line = known.get(request.name)
        if line is not None and (line["task"], asked_then(line)) != (config.task, asked(request)):
            raise ValueError(
                f"out={config.out} holds {line['file']}, made for another row"
                f" ({line['task']}, {line['prompt'][:40]!r}): give another out,"
                f" or give the rows of prompts={config.prompts} ids"
            )


def jobs_of(
    config: SampleConfig,
    pipeline: AVPipeline,
    requests: Sequence[Request],
    leave_out: Callable[[Request, MediaError], None] | None = None,
) -> list[Job]:
    """A job per request; those whose files cannot be used go to `leave_out` if there is one, else end it."""
    made = []
    for request in requests:
        try:
            form = pipeline.form_of(request, config.task, config.duration_s, config.fps, config.height, config.width)
        except MediaError as error:
            if leave_out is None:
                raise
            leave_out(request, error)
            continue
        decides = [pipeline.fingerprint, config.task, asdict(form), to_plain(config.method), described(request)]
        files = [[p.stat().st_size, p.stat().st_mtime_ns] for n in FILE_KINDS if (p := getattr(request, n)) is not None]
        key = hashlib.sha256(json.dumps([decides, files], sort_keys=True).encode()).hexdigest()[:16]
        made.append(Job(request, form, request.name, key))
    return made


def run(config: SampleConfig, pipeline: AVPipeline, jobs: Sequence[Job], console: Console) -> int:
    """Make what is missing; returns how many clips are missing still: rows of prompts whose files cannot be used."""
    state = this_process()
    config.out.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        for note in replaced(config.out, jobs):
            console.print(note, highlight=False, markup=False)
        tidy(config.out, jobs)
    state.wait_for_everyone()
    there = {line["name"]: line.get("key") for line in read_manifest(config.out)}
    # nobody appends before everybody has read
    state.wait_for_everyone()
    missing = [job for job in jobs if there.get(job.name) != job.key]
    if state.is_main_process and there:
        console.print(f"{len(jobs) - len(missing)} of {len(jobs)} clips are there already")
        if otherwise := sum(job.name in there for job in missing):
            console.print(f"made by another model or with other settings, and made anew: {otherwise}")
    mine = missing[state.process_index :: state.num_processes]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not state.is_main_process) as bar:
        clips = bar.add_task("clips", total=len(mine))
        steps = bar.add_task("steps")
        for group in batches(mine, config.batch):
            make(config, pipeline, group, console, there, lambda i, of: bar.update(steps, completed=i, total=of))
            bar.advance(clips, len(group))
    state.wait_for_everyone()
    there = {line["name"]: line.get("key") for line in read_manifest(config.out)}
    state.wait_for_everyone()
    if state.is_main_process:
        tidy(config.out, jobs)
    return sum(there.get(job.name) != job.key for job in jobs)


def make(
    config: SampleConfig,
    pipeline: AVPipeline,
    group: Sequence[Job],
    console: Console,
    replaces: Collection[str],
    after_step: Callable[[int, int], None],
) -> None:
    """The clips of one batch; of a file of prompts, what cannot be read costs its own rows alone."""

    def leave_out(job: Job, error: MediaError) -> None:
        if config.prompts is None:
            raise error
        console.print(left_out(job.request, error), highlight=False, markup=False, soft_wrap=True)

    began = time.perf_counter()
    given = []
    for job in group:
        try:
            given.append((job, pipeline.read(job.request, config.task, job.form, config.method)))
        except MediaError as error:
            leave_out(job, error)
    if not given:
        return
    media = [files for _, files in given]
    made = pipeline.make_from([job.request for job, _ in given], media, group[0].form, config.method, after_step)
    seconds = (time.perf_counter() - began) / len(given)
    for (job, _), clip in zip(given, made, strict=True):
        try:
            say(console, finish(config.out, job, clip, seconds, job.name in replaces), clip)
        except MediaError as error:  # what is encoded anew is read again
            leave_out(job, error)


def left_out(request: Request, error: MediaError) -> str:
    return f"{request.name} is left out: {error}"


def replaced(out: Path, jobs: Sequence[Job]) -> Iterator[str]:
    """What to say of clips that give way to others of the same id: nobody shall think that they are still there."""
    known = {line["name"]: line for line in read_manifest(out)}
    for job in jobs:
        line = known.get(job.name)
        if line is not None and asked_then(line) != asked(job.request):
            yield f"{line['file']} was made for {line['prompt'][:40]!r} or other files, and is replaced"


def batches(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Neighbours of one form, at most `size` of them."""
    for _, same in groupby(jobs, key=lambda job: job.form):
        rest = list(same)
        for first in range(0, len(rest), size):
            yield rest[first : first + size]


def finish(out: Path, job: Job, made: Made, seconds: float, replaces: bool = False) -> dict[str, Any]:
    """The clip's file, then its line; before both what takes back the line of a clip whose place it takes."""
    name = job.name + suffix(made)
    record = {**made.record, "key": job.key}
    began = time.perf_counter()
    notes = list(made.given.notes)
    if replaces:
        append_line(out / MANIFEST, {"schema": SCHEMA, "name": job.name, "seed": job.request.seed, "replaced": True})
    copied = write_made(out / name, made, json.dumps(record))
    line = {
        "schema": SCHEMA,
        "name": job.name,
        "file": name,
        **record,
        "notes": [*notes, copied] if copied else notes,
        "bytes": (out / name).stat().st_size,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "write_seconds": round(time.perf_counter() - began, 3),
    }
    append_line(out / MANIFEST, line)
    return line


def say(console: Console, line: dict[str, Any], made: Made) -> None:
    for note in line["notes"]:
        console.print(note, highlight=False, markup=False)
    console.print(f"{line['file']}  {made.request.prompt[:80]}", highlight=False, markup=False)


def read_manifest(out: Path) -> list[dict[str, Any]]:
    """The lines of whole clips."""
    return standing_lines(out / MANIFEST)


def tidy(out: Path, jobs: Sequence[Job]) -> None:
    """Drop lines whose clip is not whole or has given way to another, and what a kill left over.

    A clip that is to be made otherwise now is whole: who stops the job finds it with its line, and need not make it.
    """
    kept = {}
    with locked(out / MANIFEST):  # another command may be adding its lines
        for line in read_manifest(out):
            file = out / line["file"]
            if file.is_file() and file.stat().st_size == line["bytes"]:
                kept[line["name"]] = line
        write_whole(out / MANIFEST, "".join(json.dumps(line) + "\n" for line in kept.values()))
    names = {job.name for job in jobs}
    for left in list(out.iterdir()):  # one look at the folder, however many jobs
        if left.name.startswith(".") and _drafted(left.name) in names:
            left.unlink(missing_ok=True)


def _drafted(hidden: str) -> str:
    """The job whose draft it is: `.NAME.PID.partial.mp4`, or a draft's own draft `..NAME.PID.made.PID.partial.mp4`."""
    found = re.match(r"\.+(.+?)\.\d+\.(?:made|partial|joined)\.", hidden)
    return found[1] if found else ""
