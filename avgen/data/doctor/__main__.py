"""`avgen doctor clips.csv`: every clip decoded and judged; a report, a page, and a manifest of the good ones.

Exit code 0: every clip could be read. 3: some could not (the report names them). 2: the call was wrong.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avgen import command
from avgen.data.doctor.cache import Cache
from avgen.data.doctor.config import DoctorConfig
from avgen.data.doctor.copies import Copies
from avgen.data.doctor.crew import Crew, Lost
from avgen.data.doctor.measure import Measures, measure
from avgen.data.doctor.report import Patient, Report, strip_of, table, write_json, write_page
from avgen.data.doctor.rules import CaptionCommon, Finding, shorten
from avgen.data.manifest import BadRow, Record, copy_rows, manifest_file, scan_manifest
from avgen.ranks import cores

Findings = dict[int, list[Finding]]

# What the crew needs: imported once for all its processes, with what the media layer imports when first used.
WORK = (
    "avgen.data.doctor.measure",
    "avgen.data.doctor.report",
    "avgen.data.contact_sheet",
    "av.sidedata.sidedata",
    "av.video.reformatter",
    "scipy.signal",
)


def main(argv: list[str] | None = None) -> int:
    from rich.console import Console

    words = sys.argv[1:] if argv is None else argv
    # `avgen doctor clips.csv`: what is no key=value and no option is the manifest
    named = [w if "=" in w or w.startswith("-") or w == "help" else f"manifest={w}" for w in words]
    config = command.configure(
        DoctorConfig,
        "doctor",
        named,
        "find what is wrong with the clips of a manifest or folder",
        examples=(
            "avgen doctor clips.csv",
            "avgen doctor folder/of/clips out=report rules.silent.action=drop rules.static.action=drop",
            "avgen doctor clips.jsonl rules.duplicate.action=flag rules.end_gap.at_most_s=0.1",
        ),
    )
    console = Console(stderr=True)
    report, out = examine(config, console)
    kept = report.clips - report.dropped
    console.print(table(report))
    console.print(
        f"{report.clips} clips: {kept} kept, {report.dropped} dropped, {len(report.patients) - report.dropped} more "
        f"flagged. {out / 'report.html'} shows them, {report.clean} lists the kept",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    return command.INCOMPLETE if report.unreadable else 0


def examine(config: DoctorConfig, console: Any) -> tuple[Report, Path]:
    """Everything: measures (kept ones first), judges, writes. Returns the report and its folder."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    source = manifest_file(config.manifest)
    named = source.resolve().name if source.is_dir() else source.stem
    out = config.out or source.resolve().parent / f"{named}.doctor"
    out.mkdir(parents=True, exist_ok=True)
    total = sum(1 for _ in scan_manifest(source))
    if not total:
        raise ValueError(f"{source} lists no clips")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    crew = Crew(config.workers or cores(), config.timeout_s, WORK)
    with Progress(*columns, console=console) as progress, crew:
        reading = progress.add_task("reading", total=total)
        found, copies = _each(config, source, out / "measures.sqlite", crew, reading, progress)
        if config.rules.duplicate.action != "off":
            for number, reason in copies.found().items():
                found[number].append(Finding("duplicate", config.rules.duplicate.action, reason))
        for number, reason in _common(source, config.rules.caption_common):
            found[number].append(Finding("caption_common", config.rules.caption_common.action, reason))
        patients = tuple(_patients(source, found))
        dropped = {p.row for p in patients if p.dropped}
        clean = out / f"clean{source.suffix if source.suffix.lower() in ('.csv', '.tsv') else '.jsonl'}"
        copy_rows(source, clean, lambda number: number not in dropped)
        report = Report(config, str(source), str(clean), total, patients)
        write_json(report, out / "report.json")  # drawing is for the page alone
        shown = [p for p in patients[: config.pictures] if p.path and not _lost(p)]
        strips = _strips(crew, shown, progress.add_task("drawing", total=len(shown)), progress)
    write_page(report, strips, out / "report.html")
    return report, out


def _each(
    config: DoctorConfig, source: Path, kept: Path, crew: Crew, task: Any, progress: Any
) -> tuple[Findings, Copies]:
    """What is wrong with each clip alone, and the fingerprints of all."""
    found: Findings = defaultdict(list)
    copies = Copies(config.rules.duplicate)

    def judge(number: int, record: Record, clip: Measures) -> None:
        found_here = list(config.rules.findings(record, clip))
        if found_here:
            found[number] += found_here
        if all(one.action != "drop" for one in found_here):  # or the kept one of several copies might be a dropped one
            copies.add(number, record, clip)
        progress.advance(task)

    def missing() -> Iterator[tuple[tuple[int, Record], tuple[Any, ...]]]:
        for number, record in enumerate(scan_manifest(source)):
            if isinstance(record, BadRow):
                found[number].append(Finding("row", "drop", record.reason))
                progress.advance(task)
                continue
            known = cache.get(record)
            if known is not None:
                judge(number, record, known)
            else:
                yield (number, record), (record.path, record.start_s, record.end_s, record.audio_path)

    with Cache(kept) as cache:
        for (number, record), clip in crew.run(measure, missing()):
            if isinstance(clip, Lost):  # not kept: it may have been the machine's fault
                judge(number, record, Measures(error=f"{record.path}: {clip.reason}"))
            else:
                if not clip.error:  # it may lie in the machine too: rights, memory, a disk that went away
                    cache.put(record, clip)
                judge(number, record, clip)
    return found, copies


def _common(source: Path, rule: CaptionCommon) -> Iterator[tuple[int, str]]:
    """The clips whose caption too many others have as well."""
    if rule.action == "off":
        return
    shares: Counter[int] = Counter()  # by hash: the texts of millions of clips need not be in memory
    for record in scan_manifest(source):
        if isinstance(record, Record):
            shares.update({hash(text) for _, text in record.captions})
    if not shares or shares.most_common(1)[0][1] <= rule.clips:
        return
    for number, record in enumerate(scan_manifest(source)):
        for kind, text in record.captions if isinstance(record, Record) else ():
            if shares[hash(text)] > rule.clips:
                yield (
                    number,
                    f"{shares[hash(text)]} clips share the {kind} caption {shorten(text)!r} (at most {rule.clips})",
                )
                break


def _patients(source: Path, found: Findings) -> Iterator[Patient]:
    for number, record in enumerate(scan_manifest(source)):
        if number not in found:
            continue
        if isinstance(record, BadRow):
            yield Patient(number, record.where, record.where, "", "", 0.0, None, "", tuple(found[number]))
        else:
            caption = next((text for _, text in record.captions), "")
            yield Patient(
                number,
                record.where,
                record.name,
                str(record.path),
                "" if record.audio_path is None else str(record.audio_path),
                record.start_s,
                record.end_s,
                caption,
                tuple(found[number]),
            )


def _strips(crew: Crew, patients: list[Patient], task: Any, progress: Any) -> dict[int, bytes]:
    strips: dict[int, bytes] = {}
    tasks = (
        (p.row, (Path(p.path), p.start_s, p.end_s, Path(p.audio_path) if p.audio_path else None)) for p in patients
    )
    for row, strip in crew.run(strip_of, tasks):
        if not isinstance(strip, Lost):
            strips[row] = strip
        progress.advance(task)
    return strips


def _lost(patient: Patient) -> bool:
    return any(f.rule == "unreadable" for f in patient.findings)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
