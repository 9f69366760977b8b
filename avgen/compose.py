"""Configuration from files: Hydra composes YAML with `key=value` overrides, the builder of `config.py` does the rest.

`configs/` lies beside the package in a checkout; an installed wheel carries it under `share/avgen/configs`.
"""

from __future__ import annotations

import site
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from avgen.config import ConfigError, Leaf, build, leaves, members, suggest

if typing.TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

T = TypeVar("T")


def config_root() -> Path:
    """The folder of YAML files: beside the package in a checkout, under share/ in an installed wheel."""
    beside = Path(__file__).resolve().parent.parent / "configs"
    shared = [Path(place) / "share" / "avgen" / "configs" for place in (sys.prefix, site.getuserbase())]
    for folder in (beside, *shared):
        if (folder / "train.yaml").is_file():  # beside an installed package a folder of this name is somebody else's
            return folder
    raise ConfigError("", f"no configs/ folder at {beside} or {shared[0]}: reinstall avgen, or give --config-dir DIR")


@dataclass(frozen=True)
class Composed:
    """The outcome of a composition, and where each part of it came from."""

    mapping: dict[str, Any]
    overrides: tuple[str, ...]
    files: tuple[tuple[str, Path], ...]  # (dotted prefix of the file's keys, file), the last one wins
    folders: tuple[Path, ...]
    offered: tuple[str, ...]  # the config groups of the root file

    def origin(self, key: str) -> str:
        """Where to change `key`: the flag or the file it came from."""
        for override in reversed(self.overrides):
            given = override.split("=", 1)[0].lstrip("+~")
            if given not in self.offered and (_inside(key, given) or (key and _inside(given, key))):
                return f"from {override!r} on the command line"
        for prefix, file in reversed(self.files):
            if _inside(key, prefix) and _holds(file, key[len(prefix) :].lstrip(".")):
                return f"in {self.shown(file)}"
        return f"in {self.shown(self.files[0][1])}" if self.files else ""

    def shown(self, file: Path) -> str:
        """A file's path from its configs folder on: configs/model/toy.yaml."""
        folder = next(f for f in self.folders if file.is_relative_to(f))
        return str(file.relative_to(folder.parent))


def _inside(key: str, section: str) -> bool:
    """Whether a dotted key is the section or lies in it; everything lies in the root."""
    return section == "" or f"{key}.".startswith(f"{section}.")


def _holds(file: Path, key: str) -> bool:
    from omegaconf import OmegaConf

    data: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    for part in key.split(".") if key else ():
        if not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return True


def groups(name: str | None, config_dir: Path | None = None) -> dict[str, list[str]]:
    """The config groups of a root file and the options each offers."""
    if name is None:
        return {}
    folders = _folders(config_dir)
    found: dict[str, list[str]] = {}
    for entry in _defaults_list(_find(name, folders)):
        for group in entry if isinstance(entry, dict) else ():
            clean = group.removeprefix("optional ").split("@")[0].strip("/ ")
            if not clean.startswith("override "):
                found[clean] = _choices(clean, folders)
    return found


def load(cls: type[T], name: str | None, overrides: Sequence[str] = (), config_dir: Path | None = None) -> T:
    """Compose configs/<name>.yaml with `key=value` overrides and build it; refusals say what to change.

    Without a name the overrides alone are built: for commands that need no file.
    """
    composed = compose(cls, name, overrides, config_dir)
    try:
        return build(cls, composed.mapping)
    except ConfigError as refused:
        key, problem = refused.key, refused.problem
        if problem.startswith("no such key"):  # search the whole schema, not only the keys beside it
            everywhere = [leaf.key for leaf in leaves(cls)]
            # a key that exists for another `kind` keeps the builder's own words
            problem = problem if key in everywhere else f"no such key; {suggest(key, everywhere)}"
        origin = "" if "has no default" in problem else composed.origin(key)
        raise ConfigError(key, problem, origin) from refused


def compose(cls: type, name: str | None, overrides: Sequence[str] = (), config_dir: Path | None = None) -> Composed:
    """Hydra's composition as plain data, with overrides checked against the schema beforehand."""
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        return _composed(cls, name, overrides, config_dir)
    except YAMLError as error:  # it names the file, the line and what was expected there
        raise ConfigError("", f"a YAML file cannot be read: {' '.join(str(error).split())}") from error


def _composed(cls: type, name: str | None, overrides: Sequence[str], config_dir: Path | None) -> Composed:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    folders = _folders(config_dir)
    root = None if name is None else _find(name, folders)
    home = root.parent if root else folders[0]  # Hydra wants the primary file in its first folder
    others = [folder for folder in folders if folder != home]
    offered = groups(name, config_dir)
    composing, texts, mappings = _checked(cls, overrides, offered, _options(folders), rooted=root is not None)
    if others:
        composing = [f"hydra.searchpath=[{','.join(quoted(f'file://{f}') for f in others)}]", *composing]
    try:
        with initialize_config_dir(str(home), version_base="1.3"):
            config = hydra_compose(name, overrides=composing, return_hydra_config=True)
        chosen: dict[str, Any] = dict(config.hydra.runtime.choices)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        # OmegaConf would read "${" and backslashes in a text, so it sees a mark, and other keys may still refer to it
        marks = {f"\0{i}\0": text for i, (_, text) in enumerate(texts)}
        for (key, _), mark in zip(texts, marks, strict=True):
            OmegaConf.update(config, key, mark, force_add=True)
        for key, value in mappings:
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        mapping = _filled(OmegaConf.to_container(config, resolve=True, throw_on_missing=False), marks)
    except (HydraException, OmegaConfBaseException) as refused:
        what = f"{name}.yaml does not compose" if name else "the keys do not compose"
        raise ConfigError("", f"{what}: {str(refused).splitlines()[0]}") from refused
    files = [("", root)] if root else []
    for group, option in chosen.items():
        for folder in folders if isinstance(option, str) and not group.startswith("hydra/") else ():
            file = folder / group / f"{option}.yaml"
            if file.is_file():
                files.append((group.replace("/", "."), file))
    return Composed(mapping, tuple(overrides), tuple(files), tuple(folders), tuple(offered))


def _filled(value: Any, marks: Mapping[str, str]) -> Any:
    """The composed data with every mark replaced by its text."""
    if isinstance(value, dict):
        return {key: _filled(inner, marks) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, marks) for inner in value]
    if isinstance(value, str):
        for mark, text in marks.items():
            value = value.replace(mark, text)
    return value


def _checked(
    cls: type,
    overrides: Sequence[str],
    offered: Mapping[str, list[str]],
    options: Mapping[str, list[str]],
    rooted: bool,
) -> tuple[list[str], list[tuple[str, str]], list[tuple[str, Any]]]:
    """Overrides for Hydra; those of text keys, whose value is taken as typed: a prompt may hold commas; and those that
    are put in afterwards: mappings whose keys are free, which a mapping replaces (Hydra would mix the tasks given with
    the recipe's), and keys that are called as a folder of configs/ is, which Hydra takes for its group."""
    schema = {leaf.key: leaf for leaf in leaves(cls)}
    sections = {key.rsplit(".", i)[0] for key in schema for i in range(1, key.count(".") + 1)}
    composing: list[str] = []
    texts: list[tuple[str, str]] = []
    mappings: list[tuple[str, Any]] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        bare = key.lstrip("+~")
        if not equals and not key.startswith("~"):
            raise ConfigError("", f"{override!r} is not key=value; {suggest(bare, [*schema, *offered])}")
        if bare in offered:
            if equals and value not in (*offered[bare], "null"):
                named = ", ".join(offered[bare])
                raise ConfigError(bare, f"no option {value!r}; {suggest(value, offered[bare])} (offered: {named})")
            composing = [word for word in composing if word != f"~{bare}"]  # the last one counts
            composing.append(f"~{bare}" if value == "null" else _parsed(override))
        elif bare in schema and equals and _is_text(schema[bare].hint):
            if value != "null":
                texts.append((bare, value))
            else:
                _forget(bare, texts, mappings)
                if bare in options:
                    mappings.append((bare, None))
                else:
                    composing.append(f"++{bare}=null")
        elif equals and bare in sections and bare in options and not value.startswith("{"):
            if value not in options[bare]:
                named = ", ".join(options[bare])
                raise ConfigError(bare, f"{value!r} is none of {named}; give one key of it as {bare}.KEY=VALUE")
            composing.append(_parsed(override if rooted else f"+{bare}={value}"))
        elif (
            (value.startswith("{") and _is_free(bare, schema))
            or (equals and bare in options and (bare in schema or bare in sections))
            or any(bare.startswith(f"{replaced}.") for replaced, _ in mappings)
        ):
            mappings.append((bare, _read(f"{bare}={value}").value()))
        elif bare in schema or bare in sections or _inside_open_leaf(bare, schema):
            _forget(bare, texts, mappings)
            # a key may stand in the schema alone, which Hydra would call unknown without "++"
            composing.append(_parsed(override if key.startswith("~") else f"++{bare}={value}"))
        else:
            raise ConfigError(bare, f"no such key; {suggest(bare, [*schema, *offered])}; change {override!r}")
    return composing, texts, mappings


def _forget(key: str, *given: list[tuple[str, Any]]) -> None:
    """Drop what was given before of a key or inside it: these are put in after all of Hydra's, and the last counts."""
    for earlier in given:
        earlier[:] = [(name, value) for name, value in earlier if not _inside(name, key)]


def _parsed(override: str) -> str:
    """The override itself, once Hydra's grammar has accepted it."""
    _read(override)
    return override


def _read(override: str) -> Override:
    """As Hydra's grammar reads it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        parsed = OverridesParser.create().parse_overrides([override])[0]
    except OverrideParseException as refused:
        reason = str(refused).splitlines()[0]
        raise ConfigError("", f"{override.lstrip('+')!r} cannot be read: {reason}; put the value in quotes") from None
    if parsed.is_sweep_override():
        raise ConfigError("", f"{override.lstrip('+')!r} lists several values; write a list as [a,b]")
    return parsed


def _is_text(hint: Any) -> bool:
    return all(m in (str, Path, type(None)) for m in members(hint))


def _is_free(key: str, schema: Mapping[str, Leaf]) -> bool:
    """Whether the key is a mapping whose keys the schema leaves open, or lies inside one."""
    return (key in schema and _is_open(schema[key].hint)) or _inside_open_leaf(key, schema)


def _inside_open_leaf(key: str, schema: Mapping[str, Leaf]) -> bool:
    """Whether the key lies inside a mapping whose keys the schema leaves open."""
    parents = [key.rsplit(".", i)[0] for i in range(1, key.count(".") + 1)]
    return any(p in schema and _is_open(schema[p].hint) for p in parents)


def _is_open(hint: Any) -> bool:
    return typing.get_origin(hint) in (dict, Mapping)


def _folders(config_dir: Path | None) -> list[Path]:
    """Where YAML files are looked for: the user's folder first, so that a file of theirs can replace one of ours."""
    if config_dir is None:
        return [config_root()]
    if not config_dir.is_dir():
        raise ConfigError("", f"--config-dir {config_dir} is not a folder")
    return [config_dir.resolve(), config_root()]


def _options(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Every folder of YAML files by name, with what it offers, asked for by the root file or not."""
    names = {path.parent.name for folder in folders for path in folder.glob("*/*.yaml")}
    return {name: _choices(name, folders) for name in names}


def _choices(group: str, folders: Sequence[Path]) -> list[str]:
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def quoted(text: str) -> str:
    """For Hydra's grammar, which has a meaning for brackets and commas."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _find(name: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted(file.stem for folder in folders for file in folder.glob("*.yaml"))
    raise ConfigError("", f"no {name}.yaml in {', '.join(map(str, folders))}; {suggest(name, known)}")


def _defaults_list(file: Path) -> list[Any]:
    from omegaconf import OmegaConf

    loaded: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    return list(loaded.get("defaults", [])) if isinstance(loaded, dict) else []
