"""The manners every command shares: help from the schema, one-line user errors, exit codes.

Light on purpose: nothing here imports torch, so `--help` and a mistyped key answer at once.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import shutil
import sys
import textwrap
import tokenize
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from avgen.compose import Composed, compose, groups, load
from avgen.config import UNSET, ConfigError, Leaf, leaves, nested_dataclasses, to_plain, type_name

T = TypeVar("T")

FAILED = 1
USER_ERROR = 2
INCOMPLETE = 3  # done, but some of the input could not be used; the report says which
INTERRUPTED = 130


def run(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """main(argv) with user errors as one line and exit code 2; a bug keeps its traceback."""
    try:
        code = main(argv)
        sys.stdout.flush()  # here, where a reader that went away is expected
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as in `avgen ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  # keeps the interpreter's last flush quiet
        return 0
    except (ValueError, OSError) as error:
        said = users_error(error)
        if os.environ.get("AVGEN_TRACEBACK") or said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return USER_ERROR


def users_error(error: BaseException) -> str | None:
    """One line for whoever can mend it, if this package refused something; None if a library was called wrongly."""
    if isinstance(error, OSError):
        ours = error.filename is not None
    else:
        frames = list(traceback.walk_tb(error.__traceback__))
        ours = bool(frames) and frames[-1][0].f_globals.get("__name__", "").split(".")[0] in (
            "avgen",
            "eval",
            "__main__",
        )
    return " ".join(str(error).split()) if ours else None


def configure(
    cls: type[T],
    name: str | None,
    argv: list[str] | None,
    about: str,
    examples: Sequence[str] = (),
    verb: str | None = None,
    besides: type | None = None,
) -> T:
    """The configuration of a command line, from configs/<name>.yaml if named; `--help` and `--show` print and leave.

    `verb` is what stands behind `avgen`, or the whole of a command that is none of its verbs: "python -m MODULE".
    `besides` has the keys of a command that reads another command's configuration and a few words of its own.
    """
    overrides, config_dir, asked = _split(sys.argv[1:] if argv is None else argv)
    if asked == "help":
        print(help_text(cls, name, overrides, config_dir, about, examples, verb or name or "", besides))
        raise SystemExit(0)
    config = load(cls, name, overrides, config_dir)
    if asked == "show":
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.create(to_plain(config))), end="")
        raise SystemExit(0)
    return config


def folders_first(argv: list[str] | None) -> tuple[list[str], list[str]]:
    """The folders that a command line names as plain words, and its other words."""
    words = list(sys.argv[1:] if argv is None else argv)
    named = [
        word
        for word in words
        if not word.startswith("-") and word != "help" and ("=" not in word or Path(word).is_dir())
    ]
    return named, [word for word in words if word not in named]


def _split(argv: Sequence[str]) -> tuple[list[str], Path | None, str]:
    """Overrides, the user's folder of YAML files, and what was asked for instead of a run."""
    overrides: list[str] = []
    config_dir, asked = None, ""
    rest = iter(argv)
    for word in rest:
        if word in ("-h", "--help", "help"):
            asked = "help"
        elif word == "--show":
            asked = asked or "show"
        elif word == "--config-dir" or word.startswith("--config-dir="):
            folder = word.partition("=")[2] or next(rest, "")
            if not folder:
                raise ConfigError("", "--config-dir needs a folder")
            config_dir = Path(folder)
        elif word.startswith("-"):
            raise ConfigError("", f"{word} is no option: give key=value, --help, --show or --config-dir DIR")
        else:
            overrides.append(word)
    return overrides, config_dir, asked


def help_text(
    cls: type,
    name: str | None,
    overrides: Sequence[str],
    config_dir: Path | None,
    about: str,
    examples: Sequence[str],
    verb: str,
    besides: type | None = None,
) -> str:
    """Every key with its value now, type and meaning; the groups with their options; examples."""
    composed = compose(cls, name, overrides, config_dir)
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    typed_so = verb if verb.startswith("python ") else f"avgen {verb}"
    lines = [f"{typed_so} - {about}", "", f"usage: {typed_so} [key=value ...] [--show] [--config-dir DIR]", ""]
    offered = groups(name, config_dir)
    if offered:
        lines.append("groups (each option is a file configs/GROUP/OPTION.yaml):")
        lines += [
            f"  {group}={chosen(composed, group)}  of: {', '.join(options)}" for group, options in offered.items()
        ]
        lines.append("")
    lines.append("keys (key=value now, type: meaning):")
    if besides is not None:
        lines += keys_text(besides, compose(besides, None, [], None), width)
    lines += keys_text(cls, composed, width)
    lines += ["", "--show prints the composed configuration, --config-dir adds a folder of your own YAML files."]
    if examples:
        lines += ["", "examples:", *(f"  {example}" for example in examples)]
    return "\n".join(lines)


def keys_text(cls: type, composed: Composed, width: int) -> list[str]:
    """A line or more of every key, section by section."""
    lines: list[str] = []
    section = None
    for leaf in leaves(cls):
        parent = ".".join(leaf.key.split(".")[:-1][:2])
        if parent != section:
            section = parent
            lines.append("")
        lines += _key_lines(leaf, composed, width)
    return lines


def chosen(composed: Composed, group: str) -> str:
    """The option of a group that the composition took."""
    files = [file for prefix, file in composed.files if prefix == group.replace("/", ".") and prefix]
    return files[-1].stem if files else "null"


def _key_lines(leaf: Leaf, composed: Composed, width: int) -> list[str]:
    value = _value_now(leaf, composed.mapping)
    # a section that may be null: its keys follow
    head = f"  {leaf.key}={'{...}' if nested_dataclasses(leaf.hint) and value is not None else typed(value)}"
    tail = type_name(leaf.hint)
    meaning = field_comments(leaf.owner).get(leaf.name, "")
    text = f"{tail}: {meaning}" if meaning else tail
    indent = 40
    body = textwrap.wrap(text, max(width - indent, 30))
    lines = [head] if len(head) >= indent - 1 else [head.ljust(indent) + body.pop(0)]
    return lines + [" " * indent + line for line in body]


def _value_now(leaf: Leaf, mapping: typing.Mapping[str, Any]) -> Any:
    value: Any = mapping
    for part in leaf.key.split("."):
        if not isinstance(value, typing.Mapping) or part not in value:
            return to_plain(leaf.default)
        value = value[part]
    other_kind = leaf.name == "kind" and value not in typing.get_args(leaf.hint)
    return leaf.default if other_kind else value


def typed(value: Any) -> str:
    """A plain value as it is typed on the command line: [single,turn], null, {t2av:1}."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(typed(v) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}:{typed(v)}' for k, v in value.items())}}}"
    return UNSET if value == UNSET else str(value)


def field_comments(cls: type) -> dict[str, str]:
    """The comment beside each field of a dataclass, or the comment lines right above it."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(owner))
        comments = {
            token.start[0]: (token.string.lstrip("# ").rstrip(), token.line.lstrip().startswith("#"))
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT and not token.string.startswith(("# type:", "# noqa", "# fmt"))
        }
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            rows = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            beside = [comments[row][0] for row in rows if row in comments]
            above: list[str] = []
            row = node.lineno - 1
            while row in comments and comments[row][1]:
                above.insert(0, comments[row][0])
                row -= 1
            found[node.target.id] = " ".join(beside or above)
    return found
