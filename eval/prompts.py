"""`avgen eval prompts`: a suite's prompts as the file that `avgen sample prompts=` reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from avgen import command
from eval.record import Prompt
from eval.suites import read_suite

EXAMPLES = (
    "avgen eval prompts out=toybench.jsonl",
    "avgen eval prompts suite=javisbench prompts=JavisBench-mini.csv limit=200 out=javis.jsonl",
)


@dataclass(frozen=True)
class PromptsConfig:
    """Which prompts, and where to."""

    out: Path  # the file to write: one prompt a line, with the id by which its clip is found again
    suite: str = "toybench"  # as of avgen eval
    prompts: Path | None = None  # the suite's own file, or folder of files; toybench brings its own
    limit: int | None = None  # only the first so many

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1, or null for every prompt")


def write_prompts(config: PromptsConfig) -> int:
    """How many were written."""
    asked = read_suite(config.suite, config.prompts).prompts[: config.limit]
    for prompt in asked:
        if "/" in prompt.id:
            raise ValueError(
                f"suite={config.suite}: the id {prompt.id!r} names a folder, and avgen sample writes into one folder"
                " only; make these clips with a manifest.jsonl of your own"
            )
    lines = [json.dumps(line_of(prompt), ensure_ascii=False) + "\n" for prompt in asked]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def line_of(prompt: Prompt) -> dict[str, str]:
    image = {} if prompt.first_frame is None else {"image": str(prompt.first_frame.resolve())}
    return {"id": prompt.id, "prompt": prompt.text, **image}


def main(argv: list[str] | None = None) -> int:
    about = "write a suite's prompts as avgen sample reads them"
    config = command.configure(PromptsConfig, None, argv, about, EXAMPLES, "eval prompts")
    print(f"{write_prompts(config)} prompts are in {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
