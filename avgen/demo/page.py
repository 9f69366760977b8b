"""The demo as one page of plain HTML: figures with their bars, and clips to watch and hear. It needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from avgen.demo.figures import Figure
from avgen.demo.learned import Answers, together
from avgen.demo.showing import Shown
from avgen.lines import write_whole
from avgen.sample.judge import Estimate
from avgen.sample.scores import Found

TASKS = {
    "t2av": ("Text to picture and sound", "Made from the prompt alone."),
    "i2av": ("First frame to picture and sound", "The given frame stands left, what was made of it right."),
    "v2a": ("Picture to sound", "The given picture stands left, silent; right the same with the sound made for it."),
    "a2v": ("Sound to picture", "The given sound stands left; right the picture made for it."),
}

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --text: #1d1f23; --faint: #6a6e76; --card: #fff; --line: #dfe0e3;
  --good: #1a7f45; --bad: #b3402f; }
@media (prefers-color-scheme: dark) { :root { --page: #18191c; --text: #e4e6ea; --faint: #9a9fa8; --card: #222428;
  --line: #3a3d44; --good: #5cc98a; --bad: #f08a78; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 72rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
p.faint, .card p, figcaption { color: var(--faint); font-size: .88rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 12rem; }
.met { color: var(--good); } .missed { color: var(--bad); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.card { margin: 0; padding: .9rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.card .prompt { color: var(--text); font-size: .95rem; margin: 0 0 .6rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; align-items: end; }
.pair.alone { grid-template-columns: minmax(0, 16rem); }
.pair > div { min-width: 0; }
video, img, audio { display: block; width: 100%; max-width: 100%; border-radius: .3rem; }
.pair img { image-rendering: pixelated; }
.card p { margin: .6rem 0 0; }
.sheet { margin-top: .6rem; }
@media (max-width: 40rem) { table { font-size: .8rem; } th, td { padding: .25rem .3rem; white-space: normal; }
  th:first-child, td:first-child { min-width: 7rem; } }
"""


def write_page(
    out: Path, figures: Sequence[Figure], answered: Sequence[Answers], model: str, quick: bool, bench: Path | None
) -> Path:
    """`index.html` in the folder where the clips lie."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>avgen demo</title><style>{STYLE}</style></head><body>",
        "<h1>avgen demo</h1>",
        f"<p>{escape(model)}</p>",
        "<p>quick=true: too little training and too few clips for these figures to mean much.</p>" if quick else "",
        "<h2>Figures and their bars</h2>",
        bars_table(figures),
        "" if bench is None else toybench_link(out, bench),
    ]
    for task, (title, about) in TASKS.items():
        shown = [s for a in answered if a.split == "test" for s in a.shown if s.task == task]
        if shown:
            parts += [f"<h2>{title}</h2>", f'<p class="faint">{about}</p>', '<div class="cards">']
            parts += [*(card(s) for s in shown), "</div>"]
    parts += [
        "<h2>Held-out items, by the event reader</h2>",
        '<p class="faint">In brackets 95 % intervals over clips. Ceiling: the real clips through the codecs. Null: the'
        " sound, or picture, of another clip of equal caption in its place.</p>",
        scores_table(together(answered)),
        "<h2>The world and its codecs</h2>",
        '<p class="faint">Unseen clips as rendered, and after encode and decode.</p>',
        '<img src="contact_sheet.png" alt="Frames over the waveform of unseen clips">',
        "</body></html>",
    ]
    path = out / "index.html"
    write_whole(path, "\n".join(part for part in parts if part) + "\n")
    return path


def toybench_link(out: Path, bench: Path) -> str:
    source = escape(bench.relative_to(out).as_posix(), quote=True)
    return f'<p><a href="{source}">Toybench</a>: every metric with its error bars, every clip, worst first.</p>'


def bars_table(figures: Sequence[Figure]) -> str:
    rows = []
    for figure in figures:
        verdict = {True: ("met", "met"), False: ("missed", "not met"), None: ("", "")}[figure.met]
        cells = f"<td>{escape(figure.shown)}</td><td>{escape(figure.bar)}</td>"
        rows.append(f'<tr><td>{escape(figure.name)}</td>{cells}<td class="{verdict[0]}">{verdict[1]}</td></tr>')
    return (
        f'<div class="wide"><table><tr><th></th><th>value</th><th>bar</th><th></th></tr>{"".join(rows)}</table></div>'
    )


def scores_table(found: Found) -> str:
    def said(value: float) -> str:
        return f"{value:.3g}" if math.isfinite(value) else "-"

    def estimated(e: Estimate | None) -> str:
        if e is None:
            return ""
        return f"{said(e.value)} ({said(e.low)} - {said(e.high)})" if math.isfinite(e.low) else said(e.value)

    rows = []
    for task, figures in found.items():
        for name, s in figures.items():
            cells = (
                estimated(s.figure),
                said(s.ceiling.value),
                estimated(s.share),
                "" if s.null is None else said(s.null.value),
                estimated(s.above),
                str(s.figure.clips),
            )
            rows.append(f"<tr><td>{escape(task)}: {escape(name)}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    titles = ("", "value", "ceiling", "share of it", "null", "above it", "clips")
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def card(shown: Shown) -> str:
    given = ""
    if shown.given:
        source = escape(shown.given, quote=True)
        kinds = {
            ".png": f'<img src="{source}" alt="The given first frame">',
            ".mp4": f'<video src="{source}" controls loop muted playsinline preload="metadata"></video>',
            ".m4a": f'<audio src="{source}" controls preload="metadata"></audio>',
        }
        given = f"<div>{kinds[Path(shown.given).suffix]}<p>given</p></div>"
    made = f'<video src="{escape(shown.clip, quote=True)}" controls playsinline preload="metadata"></video><p>made</p>'
    return "\n".join(
        (
            f'<figure class="card"><p class="prompt">{escape(shown.prompt)}</p>',
            f'<div class="pair{"" if given else " alone"}">{given}<div>{made}</div></div>',
            f'<img class="sheet" src="{escape(shown.sheet, quote=True)}" loading="lazy"'
            ' alt="Its frames over its waveform; marks are what the reader hears">',
            f"<p>seed {shown.seed}; {escape(shown.said)}</p></figure>",
        )
    )
