"""Every command that a page, a YAML comment, a docstring or --help shows can be read by what it names; none is run."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from avgen import command
from avgen.__main__ import VERBS
from avgen.config import ConfigError
from avgen.data.toybox import __main__ as toybox
from avgen.prefer.demo import DemoConfig
from avgen.train.config import TrainConfig
from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "configs").rglob("*.yaml"),
]
SOURCES = [file for package in ("avgen", "eval") for file in (ROOT / package).rglob("*.py")]
HEAD = re.compile(
    r"(\$ |time |srun |[A-Z_]+=\S+ )*"
    r"(avgen (?P<verb>[a-z]\w*)"
    r"|((python|accelerate launch|torchrun) (.* )?-m (?P<module>(avgen|eval)[\w.]*))"
    r"|make (?P<target>[a-z-]+)(?= [A-Z]+=|$))"
    r"(?P<rest>( .*)?)$"
)
PLACEHOLDERS = ("...", "WORD", "recipe=NAME", "codec=NAME", "MODEL PROMPT", "[key=value")
ASIDE = {"avgen demo wolrd.fps=12": "no such key"}  # shown to be refused


class Read(Exception):
    def __init__(self, config: object) -> None:
        self.config = config


def joined(text: str) -> str:
    return re.sub(r"\\\n[\s#]*", " ", text)


def documented() -> Iterator[tuple[str, str]]:
    """(place, command): what stands between backticks or, alone, behind an indent, a fence's lines or a '#   '."""
    for file in PAGES:
        text = joined(file.read_text())
        fenced = "\n".join(re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.S | re.M))
        lines = re.findall(r"^(?:    |#   )\s*(.*)", text, re.M) + fenced.split("\n")
        for said in lines + re.findall(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)", text):
            yield str(file.relative_to(ROOT)), said
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for said in (node.value, *re.findall(r"`([^`]+)`", node.value)):
                    yield str(file.relative_to(ROOT)), said


def tidy(said: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\s#\s.*", "", said)).strip().removeprefix("$ ")


SHOWN = {
    tidy(said): file
    for file, said in documented()
    if HEAD.match(tidy(said)) and not any(p in said for p in PLACEHOLDERS)
}
CASES = sorted(
    (file, said)
    for said, file in SHOWN.items()
    if re.search(r"[=/]|\.csv", HEAD.match(said)["rest"]) or "make " in said
)


def words_of(rest: str) -> list[str]:
    """As bash reads them: braces and quotes, with the variables of the loops in docs/store.md."""
    line = f"part=toys seed=0; printf '%s\\0' {rest}"
    return subprocess.run(["bash", "-fc", line], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


@pytest.fixture
def nothing_runs(monkeypatch):
    load = command.load

    def read(*given):
        raise Read(load(*given))

    def built(config):
        raise Read(config)

    monkeypatch.setattr(command, "load", read)
    for work in ("export", "preview", "show_check"):
        monkeypatch.setattr(toybox, work, built)
    return load


@pytest.mark.parametrize(("file", "said"), CASES, ids=[f"{file}: {said}" for file, said in CASES])
def test_a_command_that_is_shown_is_read(file, said, nothing_runs):
    found = HEAD.match(said)
    words = words_of(found["rest"])
    if found["target"]:
        assert re.search(rf"^{found['target']}:", (ROOT / "Makefile").read_text(), re.M), f"no target {found['target']}"
        demo = [shlex.split(word.removeprefix("DEMO=")) for word in words if word.startswith("DEMO=")]
        if not demo:
            return
        module, words = {"demo": "avgen.demo", "demo-dpo": "avgen.prefer.demo"}[found["target"]], demo[0]
    else:
        module = found["module"] or {verb.name: verb.module for verb in VERBS}[found["verb"]]
    name = f"{module}.__main__" if find_spec(module).submodule_search_locations else module
    try:
        importlib.import_module(name).main(words)
        outcome = "it ran"
    except Read as done:
        outcome = ""
        if isinstance(done.config, DemoConfig) and module == "avgen.prefer.demo":
            nothing_runs(TrainConfig, "train", ["recipe=toybox_dpo", *done.config.train])
    except ConfigError as refused:
        outcome = str(refused)
    # a folder that is not there is no fault of the page
    assert not outcome or "holds no" in outcome or ASIDE.get(said, "\0") in outcome, f"{file}: {said}\n{outcome}"
