"""The sound of a video, which is copied as it is: `python -m avgen.sample.v2a MODEL PROMPT VIDEO OUT.mp4`."""

from __future__ import annotations

import sys
from pathlib import Path

from avgen import command
from avgen.sample.folder import open_pipeline
from avgen.sample.write import write_made


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    if len(words) != 4:
        raise ValueError("python -m avgen.sample.v2a wants MODEL PROMPT VIDEO OUT.mp4")
    model, prompt, video, out = words
    pipeline = open_pipeline(Path(model))
    made = pipeline(task="v2a", prompt=prompt, video=video)[0]
    print(*made.given.notes, write_made(Path(out), made, comment=prompt), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
