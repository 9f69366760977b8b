"""Text to picture and sound: `python -m avgen.sample.t2av MODEL PROMPT OUT.mp4`."""

from __future__ import annotations

import sys
from pathlib import Path

from avgen import command
from avgen.sample.folder import open_pipeline
from avgen.sample.write import write_made


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    if len(words) != 3:
        raise ValueError("python -m avgen.sample.t2av wants MODEL PROMPT OUT.mp4")
    model, prompt, out = words
    pipeline = open_pipeline(Path(model))
    made = pipeline(task="t2av", prompt=prompt)[0]
    print(*made.given.notes, write_made(Path(out), made, comment=prompt), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
