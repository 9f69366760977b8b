"""Text to picture and sound: `python -m avgen.sample.t2av MODEL PROMPT OUT.mp4`."""

from __future__ import annotations

import sys
from pathlib import Path

from avgen.sample.folder import open_pipeline
from avgen.sample.write import write_made


def main(words: list[str]) -> None:
    model, prompt, out = words
    pipeline = open_pipeline(Path(model))
    made = pipeline(task="t2av", prompt=prompt)[0]
    print(*made.given.notes, write_made(Path(out), made, comment=prompt), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
