"""`avgen app`: a page in the browser on which to make clips."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

from avgen import command
from avgen.sample.cache import CacheConfig
from avgen.sample.guidance import Guidance
from avgen.sample.method import Precision
from avgen.sample.solvers import SolverConfig


@dataclass(frozen=True)
class AppConfig:
    """The model behind the page, where its clips go, and who can reach it."""

    model: Path = Path("runs/toybox")  # as in avgen sample
    out: Path = Path("runs/app")  # folder of the clips, of manifest.jsonl and of the files that people give
    host: str = "127.0.0.1"  # address to listen at: this machine alone; 0.0.0.0 lets the whole network in
    port: int | None = None  # default: the first free one from 7860 on
    waiting: int = 20  # clips that may be queued; the next one is turned away
    longest_s: float = 30.0  # of a clip
    largest: str = "200mb"  # of a file given
    solver: SolverConfig = field(default_factory=SolverConfig)  # its steps are the page's first value
    guidance: Guidance = field(default_factory=Guidance)  # likewise the weight of the text
    precision: Precision = "fp32"  # of matrix products, by autocast
    cache: CacheConfig = field(default_factory=CacheConfig)
    attention: str | None = None  # kernel, as model.attention of avgen train; null: the one it was trained with

    def __post_init__(self) -> None:
        if self.waiting < 1:
            raise ValueError(f"waiting={self.waiting} must be at least 1")
        if not self.longest_s > 0:
            raise ValueError(f"longest_s={self.longest_s} must be positive")
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port={self.port} must lie between 1 and 65535")
        if not re.fullmatch(r"\d+ ?(b|kb|mb|gb|tb)", self.largest.lower()):
            raise ValueError(f"largest={self.largest!r} must be a number and a unit, such as 200mb or 2gb")


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        AppConfig,
        "app",
        argv,
        "make clips on a page in the browser",
        ["avgen app model=runs/toybox", "avgen app model=runs/toybox port=8000 host=0.0.0.0 cache=half"],
    )
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError("avgen app needs gradio, which is not installed: pip install -e '.[demo]'") from error
    from avgen.ranks import this_process
    from avgen.sample.folder import open_for
    from avgen.sample.page import serve
    from avgen.sample.studio import Studio

    print(f"opening {config.model} ...", flush=True)
    pipeline = open_for(this_process().device, config.model, config.attention)
    served = serve(Studio(pipeline, config.out, config.longest_s), config)
    print(f"{served.local_url}  (Ctrl+C ends it; clips are in {config.out})", flush=True)
    try:
        threading.Event().wait()
    finally:
        served.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
