"""What the doctor found: a table for the terminal, report.json for programs, report.html to look at."""

from __future__ import annotations

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.markup import escape as escape_markup
from rich.table import Table

from avgen import __version__
from avgen.config import fingerprint, to_plain
from avgen.data.doctor.config import DoctorConfig
from avgen.data.doctor.rules import Finding, shorten
from avgen.data.tables import legible

PAGE = Path(__file__).with_name("page.html")
STRIP_WIDTH, STRIP_FRAMES, STRIP_HEIGHT = 720, 8, 96  # pixels, frames, pixels
STRIP_S = 60.0  # of a longer clip the first minute is drawn: an hour of sound alone is 1.4 GB


@dataclass(frozen=True)
class Patient:
    """A clip, or a row that is none, with what was found."""

    row: int  # in the manifest, from 0
    where: str
    name: str
    path: str
    audio_path: str  # empty: the sound is in `path`
    start_s: float
    end_s: float | None
    caption: str
    findings: tuple[Finding, ...]

    @property
    def dropped(self) -> bool:
        return any(f.action == "drop" for f in self.findings)


@dataclass(frozen=True)
class Report:
    """The outcome of a run."""

    config: DoctorConfig
    manifest: str
    clean: str
    clips: int  # rows of the manifest
    patients: tuple[Patient, ...]

    @property
    def dropped(self) -> int:
        return sum(p.dropped for p in self.patients)

    @property
    def unreadable(self) -> int:
        return sum(any(f.rule in ("row", "unreadable") for f in p.findings) for p in self.patients)

    def counts(self) -> dict[str, tuple[str, int]]:
        """Per rule that is on: what it does, and how many clips break it."""
        broken = Counter(f.rule for p in self.patients for f in p.findings)
        actions = {f.name: getattr(self.config.rules, f.name).action for f in fields(self.config.rules)}
        listed = {"row": "drop", **actions}
        return {name: (action, broken[name]) for name, action in listed.items() if action != "off"}

    def plain(self) -> dict[str, Any]:
        return {
            "manifest": self.manifest,
            "clean": self.clean,
            "clips": self.clips,
            "kept": self.clips - self.dropped,
            "dropped": self.dropped,
            "flagged": len(self.patients) - self.dropped,
            "unreadable": self.unreadable,
            "counts": {name: {"action": action, "clips": n} for name, (action, n) in self.counts().items()},
            "found": [to_plain(p) for p in self.patients],
            "made_by": {"avgen": __version__, "fingerprint": fingerprint(self.config), "config": to_plain(self.config)},
        }


def table(report: Report) -> Table:
    """Per rule: how many clips, what is done, an example."""
    examples: dict[str, tuple[str, str]] = {}
    for patient in report.patients:
        for finding in patient.findings:
            examples.setdefault(finding.rule, (patient.name, finding.reason))
    shown = Table(box=None, header_style="bold")
    for head, justify in (("rule", "left"), ("clips", "right"), ("action", "left"), ("the first", "left")):
        shown.add_column(head, justify="right" if justify == "right" else "left")
    for rule, (action, count) in report.counts().items():
        if count:
            name, reason = examples[rule]
            shown.add_row(rule, str(count), action, escape_markup(shorten(f"{name}: {legible(reason)}", 160)))
    return shown


def write_json(report: Report, path: Path) -> None:
    _write(path, json.dumps(report.plain(), indent=1))


def write_page(report: Report, strips: Mapping[int, bytes], path: Path) -> None:
    """One file with everything in it: nothing is fetched from anywhere."""
    clean = sum(n == 0 for _, n in report.counts().values())
    rules = "".join(
        f'<label><input type="checkbox" checked value="{rule}"><b>{count}</b> {rule.replace("_", " ")}'
        f'<span class="{action}">{action}</span></label>'
        for rule, (action, count) in report.counts().items()
        if count
    )
    plain = report.plain()
    figures = "".join(
        f'<div class="figure {name}"><b>{plain[name]}</b>{name}</div>'
        for name in ("clips", "kept", "dropped", "flagged")
    )
    shown = report.patients[: report.config.pictures]
    hidden = len(report.patients) - len(shown)
    note = f"{hidden} more are in report.json (pictures={report.config.pictures} shows more)." if hidden else ""
    text = PAGE.read_text(encoding="utf-8")
    for mark, value in {
        "TITLE": _text(Path(report.manifest).name),
        "MANIFEST": _text(report.manifest),
        "CLEAN": _text(report.clean),
        "FIGURES": figures,
        "RULES": rules or "<p>Every clip keeps every rule.</p>",
        "KEPT_RULES": f"{clean} rules are kept by every clip.",
        "CARDS": "".join(_cards(shown, strips)),
        "NOTE": note,
        "MADE": _text(f"avgen {__version__}, rules {plain['made_by']['fingerprint']}"),
    }.items():
        text = text.replace(f"{{{{{mark}}}}}", value)
    _write(path, text)


def strip_of(path: Path, start_s: float, end_s: float | None, audio_path: Path | None = None) -> bytes:
    """A clip as a small JPEG: frames over its waveform; nothing of a clip that cannot be read."""
    from avgen.data.media import MediaError

    try:
        return _drawn(path, start_s, end_s, audio_path)
    except (MediaError, OSError):
        return b""


def _drawn(path: Path, start_s: float, end_s: float | None, audio_path: Path | None) -> bytes:
    from avgen.data.contact_sheet import contact_sheet
    from avgen.data.media import probe, read_clip

    info = probe(path)
    begin = max(start_s, info.start_s)
    last = info.end_s if end_s is None else min(end_s, info.end_s)
    last = max(min(last, begin + STRIP_S), begin + 0.05)
    size = None
    if info.video is not None:
        scale = STRIP_HEIGHT / info.video.height
        size = (STRIP_HEIGHT, max(8, round(info.video.width * scale)))
    clip = read_clip(
        path,
        begin,
        last,
        audio=None if audio_path is None or size is None else False,
        fps=None if size is None else min(30.0, max(1.0, STRIP_FRAMES / (last - begin))),
        size=size,
        chroma="fast",
        sample_rate_hz=None if info.audio is None else 8000,
        threads=1,
    ).clip
    if audio_path is not None:
        wanted: dict[str, Any] = {"sample_rate_hz": 8000, "threads": 1, "may_be_empty": True}
        sound = read_clip(audio_path, begin, last, video=False, **wanted).clip
        clip = replace(clip, audio=sound.audio, sample_rate_hz=sound.sample_rate_hz)
    sheet = contact_sheet([clip], width=STRIP_WIDTH, most_frames=STRIP_FRAMES, wave_height=36)
    with io.BytesIO() as file:
        sheet.save(file, "JPEG", quality=72)
        return file.getvalue()


def _cards(patients: Sequence[Patient], strips: Mapping[int, bytes]) -> Iterator[str]:
    for patient in patients:
        strip = base64.b64encode(strips.get(patient.row, b"")).decode()
        picture = f'<img alt="frames and waveform" src="data:image/jpeg;base64,{strip}">' if strip else ""
        found = "".join(
            f'<li><span class="{f.action}">{f.action}</span> <b>{f.rule.replace("_", " ")}</b> {_text(f.reason)}</li>'
            for f in patient.findings
        )
        rules = " ".join(f.rule for f in patient.findings)
        said = f"<p>{_text(shorten(patient.caption, 300))}</p>" if patient.caption else ""
        yield (
            f'<article data-rules="{rules}">{picture}<h2>{_text(patient.name)}</h2>'
            f"<small>{_text(patient.where)}</small>{said}<ul>{found}</ul></article>\n"
        )


def _text(text: str) -> str:
    return html.escape(legible(text))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
