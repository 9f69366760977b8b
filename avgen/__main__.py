"""The `avgen` command: one table of verbs, each a module with `main(argv) -> int`.

Nothing heavy is imported until a verb is chosen. Each verb also runs as `python -m <module>`, which is
what `accelerate launch -m` and `torchrun -m` need.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from dataclasses import dataclass

from avgen import __version__
from avgen.command import run


@dataclass(frozen=True)
class Verb:
    name: str
    module: str  # has main(argv: list[str] | None) -> int
    about: str
    config: str | None = None  # configs/<config>.yaml ...
    schema: str | None = None  # ... builds this "module:Dataclass"


VERBS: tuple[Verb, ...] = (
    Verb(
        "demo", "avgen.demo.__main__", "see the whole thing work, with figures", "demo", "avgen.demo.config:DemoConfig"
    ),
    Verb("plan", "avgen.plan", "what a run will cost, before it runs", "plan", "avgen.plan:PlanConfig"),
    Verb(
        "prepare",
        "avgen.data.prepare",
        "encode clips once, into a store that training reads",
        "prepare",
        "avgen.data.prepare:PrepareConfig",
    ),
    Verb("train", "avgen.train.__main__", "train a model by flow matching", "train", "avgen.train.config:TrainConfig"),
    Verb(
        "sample",
        "avgen.sample.__main__",
        "make clips with a trained model",
        "sample",
        "avgen.sample.config:SampleConfig",
    ),
    Verb("app", "avgen.sample.app", "make clips on a page in the browser", "app", "avgen.sample.app:AppConfig"),
    Verb("eval", "eval.__main__", "score clips with error bars, compare two runs", "eval", "eval.config:EvalConfig"),
    Verb(
        "prefer",
        "avgen.prefer.__main__",
        "mine pairs of better and worse clips, to train on",
        "prefer",
        "avgen.prefer.config:PreferConfig",
    ),
    Verb("curves", "avgen.train.curves", "draw the loss curves of a training run"),
    Verb("bench", "avgen.bench", "time training steps beside this machine's matmul rate"),
    Verb(
        "doctor",
        "avgen.data.doctor.__main__",
        "find what is wrong with your clips, and list the good ones",
        "doctor",
        "avgen.data.doctor.config:DoctorConfig",
    ),
    Verb("toybox", "avgen.data.toybox.__main__", "write clips of the embedded world as mp4s and a manifest"),
    Verb("fit_codecs", "avgen.models.fit_codecs", "fit the embedded codecs to the embedded world"),
    Verb(
        "codecs",
        "avgen.models.codecs_command",
        "look at a pair of codecs: what their latents mean",
        "codecs",
        "avgen.models.codecs_command:CodecsConfig",
    ),
)


def usage() -> str:
    width = max(len(verb.name) for verb in VERBS) + 2
    return "\n".join(
        [
            f"avgen {__version__} - train, sample, evaluate and align joint audio-video generators",
            "",
            "usage: avgen VERB [key=value ...]",
            "",
            *(f"  {verb.name:<{width}}{verb.about}" for verb in VERBS),
            "",
            "`avgen VERB --help` lists a verb's keys. Each verb is also a module, for accelerate launch and torchrun:",
            *(f"  {verb.name:<{width}}python -m {verb.module.removesuffix('.__main__')}" for verb in VERBS),
        ]
    )


def main(argv: list[str] | None = None) -> int:
    return run(dispatch, argv)


def dispatch(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"avgen {__version__}")
        return 0
    verb = {v.name: v for v in VERBS}.get(words[0])
    if verb is None:
        near = difflib.get_close_matches(words[0], [v.name for v in VERBS], n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise ValueError(f"no verb {words[0]!r}{hint} (avgen --help lists them)")
    return importlib.import_module(verb.module).main(list(words[1:]))


if __name__ == "__main__":
    raise SystemExit(main())
