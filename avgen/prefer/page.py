"""Mined pairs side by side, for people to see what the numbers call better: one file beside the pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from avgen.prefer.mine import Mined
from avgen.prefer.pairs import Pair, Side

PAGE = "pairs.html"
STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { margin: 1.5rem 0; padding-top: 1rem; border-top: 1px solid #8886; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
figure { margin: 0; }
video { width: 100%; image-rendering: pixelated; background: #000; }
figcaption, td, .small { font-size: 0.85rem; font-variant-numeric: tabular-nums; }
.winner figcaption b { color: light-dark(#116329, #4ac26b); }
td:last-child { text-align: right; padding-left: 1rem; }
"""


def write_page(path: Path, mined: Mined, shown: int) -> None:
    """A sample of the pairs spread evenly over all of them, and the counts of what made none."""
    reasons = Counter(one.reason for one in mined.excluded)
    rows = "".join(f"<tr><td>{escape(reason)}</td><td>{count}</td></tr>" for reason, count in reasons.most_common())
    sections = "".join(section(pair) for pair in spread(mined.pairs, shown))
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{len(mined.pairs)} pairs</title>"
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style>"
        f"<h1>{len(mined.pairs)} pairs</h1><p>Of {mined.candidates} clips of {mined.prompts} prompts; "
        f"{min(shown, len(mined.pairs))} are shown. What made none:</p><table>{rows}</table>{sections}</html>\n",
        encoding="utf-8",
    )


def spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """So many of them, evenly."""
    count = min(count, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]


def section(pair: Pair) -> str:
    return (
        f"<section><h2 class=small>{escape(pair.text)}</h2><p class=small>{escape(pair.prompt)}, task {pair.task}, "
        f"trains {escape(pair.reason)}</p><div class=sides>{side('better', pair.winner, 'winner')}"
        f"{side('worse', pair.loser, 'loser')}</div></section>"
    )


def side(title: str, clip: Side, kind: str) -> str:
    scores = ", ".join(f"{escape(metric)} {value:.4g}" for metric, value in clip.scores.items())
    source = escape(quote(clip.file), quote=True)
    return (
        f"<figure class={kind}><video controls loop preload=metadata src='{source}'></video>"
        f"<figcaption><b>{title}</b>, seed {clip.seed}: {scores}</figcaption></figure>"
    )
