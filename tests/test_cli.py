"""The avgen command: its verbs, how fast it answers, and how it tells users and bugs apart."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest

from avgen import command
from avgen.__main__ import VERBS, Verb, main, usage
from avgen.types import TimeGrid
from tests.conftest import ROOT


def avgen(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avgen", *words], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )


@pytest.mark.parametrize("words", [["--help"], [], ["--version"], ["trian"]])
def test_the_first_answers_need_nothing_heavy(words: list[str]) -> None:
    script = (
        f"import sys; from avgen.__main__ import main; main({words!r});"
        "heavy = {'torch', 'numpy', 'hydra', 'omegaconf', 'rich', 'av'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_verb_with_a_line_and_a_module() -> None:
    for verb in VERBS:
        assert f"  {verb.name}" in usage()
        assert verb.about in usage()
        assert f"python -m {verb.module.removesuffix('.__main__')}" in usage()


@pytest.mark.parametrize("verb", VERBS, ids=lambda v: v.name)
def test_every_verb_has_its_main_and_its_help(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = importlib.import_module(verb.module).main(["--help"])
    except SystemExit as left:
        code = left.code
    assert code == 0
    assert f"usage: avgen {verb.name}" in capsys.readouterr().out


def test_an_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dmo"]) == 2
    assert "the nearest is demo" in capsys.readouterr().err


def test_a_mistyped_key_ends_with_2_and_one_line_that_names_the_right_one() -> None:
    done = avgen("demo", "wolrd.fps=5")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: wolrd.fps: no such key; the nearest valid one is world.fps; change 'wolrd.fps=5'"
    ]


def test_show_prints_a_configuration_that_builds_again() -> None:
    from omegaconf import OmegaConf

    from avgen.compose import load
    from avgen.config import build
    from avgen.demo.config import DemoConfig

    done = avgen("demo", "world.fps=12", "--show")
    assert done.returncode == 0, done.stderr
    shown = OmegaConf.to_container(OmegaConf.create(done.stdout))
    assert build(DemoConfig, shown) == load(DemoConfig, "demo", ["world.fps=12"])  # type: ignore[arg-type]


def user_mistake(_: list[str] | None) -> int:
    TimeGrid(stride=4, first=9)
    return 0


def library_misuse(_: list[str] | None) -> int:
    np.zeros(3).reshape(2)
    return 0


def missing_file(_: list[str] | None) -> int:
    with open("no/such/file"):  # noqa: PTH123
        return 0


def interrupted(_: list[str] | None) -> int:
    raise KeyboardInterrupt


def test_a_users_mistake_is_one_line_and_a_bug_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.run(user_mistake) == 2
    assert capsys.readouterr().err == "error: TimeGrid.first=9 must lie between 1 and stride=4\n"
    assert command.run(missing_file) == 2
    assert "no/such/file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="reshape"):
        command.run(library_misuse)
    monkeypatch.setenv("AVGEN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="TimeGrid"):
        command.run(user_mistake)


def test_ctrl_c_leaves_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(interrupted) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("word", ["--foo", "--config-dir"])
def test_unknown_options_are_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", word]) == 2
    assert word in capsys.readouterr().err
