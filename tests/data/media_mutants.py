"""Reads broken files in a process of its own, so that a native crash or a hang is seen rather than suffered.

`python -m tests.data.media_mutants FOLDER` reads every file there and prints one line of verdict for each.
"""

from __future__ import annotations

import faulthandler
import random
import sys
from pathlib import Path

from avgen.data.media import MediaError, read_clip

MEDIA_LIBRARY_LOADED = "av" in sys.modules  # by the import above alone: it should wait until a file is opened
WINDOWS = ((0.0, 1.0), (1.3, 2.3))
LIMIT_S = 20


def make(source: Path, folder: Path, count: int, seed: int) -> None:
    """Truncations, flipped bits and overwritten stretches; half of the damage falls on the headers."""
    rng = random.Random(seed)
    whole = source.read_bytes()
    for index in range(count):
        data = bytearray(whole)
        kind = index % 4
        if kind == 0:
            data = data[: rng.randrange(len(data))]
        elif kind == 1:
            for _ in range(rng.randrange(1, 40)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            head = min(2000, len(data))  # where mkv has its header; mp4 has it at the end
            at = rng.choice((0, len(data) - head))
            for _ in range(rng.randrange(1, 12)):
                data[at + rng.randrange(head)] = rng.randrange(256)
        else:
            start = rng.randrange(len(data))
            length = rng.randrange(1, 400)
            data[start : start + length] = rng.randbytes(length)
        (folder / f"{index:03d}{source.suffix}").write_bytes(data)


def verdict(path: Path) -> str:
    """'error' or 'read' when every window is one of the two; anything else is a defect."""
    answers = []
    for start, end in WINDOWS:
        try:
            window = read_clip(path, start, end, fps=12, size=(24, 32), sample_rate_hz=16000, channels=1, threads=1)
        except MediaError as error:
            answers.append("error" if str(path) in str(error) else f"nameless: {error}")
            continue
        clip = window.clip
        if clip.video is not None and clip.video.shape != (12, 24, 32, 3):
            answers.append(f"wrong picture {clip.video.shape}")
        if clip.audio is not None and clip.audio.shape != (1, 16000):
            answers.append(f"wrong sound {clip.audio.shape}")
        answers.append("read")
    return next((a for a in answers if a not in ("read", "error")), "+".join(answers))


def main() -> None:
    assert not MEDIA_LIBRARY_LOADED, "importing avgen.data.media loads PyAV"
    for path in sorted(Path(sys.argv[1]).iterdir()):
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        print(path.name, verdict(path), flush=True)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
