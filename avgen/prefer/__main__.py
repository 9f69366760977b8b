"""`avgen prefer`: pairs of a better and a worse clip, from a folder of clips and its scores."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avgen import __version__, command
from avgen.config import to_plain
from avgen.prefer.config import PreferConfig

MINED = "mined.json"
EXAMPLES = (
    "avgen sample model=runs/toybox prompts=prompts.jsonl samples=6 out=runs/candidates",
    "avgen eval suite=plain prompts=prompts.jsonl clips=runs/candidates 'metrics=[toybox]' out=runs/candidates_eval",
    "avgen prefer clips=runs/candidates results=runs/candidates_eval out=runs/pairs",
    "avgen prefer pool clips=runs/candidates exchanged=1 out=runs/pool",
    "avgen prefer label pairs=runs/pairs name=ann",
    "avgen train recipe=toybox_dpo data.pairs=runs/pairs",
)


def main(argv: list[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["label"]:
        from avgen.prefer.label import main as label

        return label(words[1:])
    if words[:1] == ["pool"]:
        from avgen.prefer.pool import main as pool

        return pool(words[1:])
    config = command.configure(PreferConfig, "prefer", words, "mine pairs of better and worse clips", EXAMPLES)
    from rich.console import Console

    from avgen.prefer.candidates import read_pool
    from avgen.prefer.mine import mine
    from avgen.prefer.page import PAGE, write_page
    from avgen.prefer.pairs import PAIRS, write_pairs

    console = Console()
    mined = mine(read_pool(config.clips, config.results), config)
    config.out.mkdir(parents=True, exist_ok=True)
    if mined.pairs:
        write_pairs(config.out / PAIRS, mined.pairs)
    write_report(config.out / MINED, config, mined)
    write_page(config.out / PAGE, mined, config.shown)
    console.print(f"{len(mined.pairs)} pairs of {mined.candidates} clips of {mined.prompts} prompts")
    for reason, count in Counter(one.reason for one in mined.excluded).most_common():
        console.print(f"{count:>6}  {reason}", highlight=False, markup=False)
    paired = f"{PAIRS}, " if mined.pairs else ""
    console.print(f"{paired}{MINED} (every exclusion) and {PAGE} are in [bold]{config.out}[/bold]")
    if not mined.pairs:
        console.print("no pair to train on: lower margin or the groups' margins, or make more clips per prompt")
        if (config.out / PAIRS).exists():
            console.print(f"{PAIRS} there is of an earlier mining, as it was")
        return command.INCOMPLETE
    return 0


def write_report(path: Path, config: PreferConfig, mined: Any) -> None:
    """What made the pairs, and why each clip and prompt without one has none."""
    said = {
        "schema": 1,
        "avgen": __version__,
        "config": to_plain(config),
        "fingerprint": mined.fingerprint,
        "pairs": len(mined.pairs),
        "candidates": mined.candidates,
        "prompts": mined.prompts,
        "excluded": dict(Counter(one.reason for one in mined.excluded).most_common()),
        "each": [asdict(one) for one in mined.excluded],
    }
    path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(command.run(main))
