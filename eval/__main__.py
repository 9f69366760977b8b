"""`avgen eval`, `python -m eval`, `accelerate launch -m eval`: score a folder of clips, or compare two scored ones."""

from __future__ import annotations

import sys

from avgen import command
from eval.config import EvalConfig

EXAMPLES = (
    "avgen eval suite=toybench clips=runs/sample out=runs/eval",
    "avgen eval suite=javisbench prompts=JavisBench-mini.csv clips=outputs out=runs/javis",
    "avgen eval suite=plain prompts=mine.csv clips=outputs 'metrics=[file,sync]' nulls=false",
    "avgen eval compare runs/eval_a runs/eval_b",
    "avgen eval report runs/eval_b runs/eval_a",
    "avgen eval prompts out=toybench.jsonl",
    "avgen eval selftest",
)
# `avgen eval WORD ...`: each a module with main(argv) -> int
SUBCOMMANDS = {name: f"eval.{name}" for name in ("compare", "prompts", "report", "selftest")}


def main(argv: list[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in SUBCOMMANDS:
        import importlib

        return int(importlib.import_module(SUBCOMMANDS[words[0]]).main(words[1:]))
    config = command.configure(EvalConfig, "eval", words, "score a folder of clips", EXAMPLES)
    from rich.console import Console

    from eval.report import ReportConfig, write_report
    from eval.run import RESULTS, SUMMARY, evaluate
    from eval.show import table

    console = Console()
    summary = evaluate(config, console)
    if summary:
        console.print(table(summary))
        page = write_report(ReportConfig(runs=(config.out,)))
        console.print(f"{RESULTS}, {SUMMARY} and {page.name} are in [bold]{config.out}[/bold]")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
