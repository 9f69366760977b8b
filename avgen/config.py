"""Configuration: Hydra composes YAML files, one strict builder turns the result into frozen dataclasses.

The dataclass is the schema. It holds every key, its type, its default and, as the comment beside the
field, its meaning; `--help` prints all four. A YAML file holds only what a recipe chooses, so no default
is written twice. Nothing is coerced but an int where a float is asked for.

`configs/` lies beside the package in a checkout; an installed wheel carries it under `share/avgen/configs`.
"""

from __future__ import annotations

import difflib
import enum
import hashlib
import json
import site
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

if typing.TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

T = TypeVar("T")

UNSET = "???"  # OmegaConf's mark for a value that has no honest default


class ConfigError(ValueError):
    """A configuration the schema refuses: `key` is the full dotted key, `problem` says what rule it broke."""

    def __init__(self, key: str, problem: str, origin: str = "") -> None:
        self.key, self.problem = key, problem
        where = f" ({origin})" if origin else ""
        super().__init__(f"{key}: {problem}{where}" if key else f"{problem}{where}")


@dataclass(frozen=True)
class Leaf:
    """One key of a schema, as `--help` and the nearest-key search see it."""

    key: str  # dotted, from the root
    hint: Any  # its type
    default: Any  # UNSET where the user must choose
    owner: type  # the dataclass that declares it
    name: str  # the field within owner


def build(cls: type[T], mapping: Mapping[str, Any], key: str = "", base: Any = None) -> T:
    """A frozen dataclass from plain data; every refusal names the full dotted key.

    What the mapping leaves out is as in `base`, the default of a section that may say more than its class does.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]
    for name in mapping:
        if name not in known:
            wrong = _join(key, str(name))
            kind = f" where kind={mapping['kind']}" if "kind" in mapping else ""
            raise ConfigError(wrong, f"no such key{kind}; {_suggest(wrong, [_join(key, n) for n in known])}")
    values: dict[str, Any] = {}
    for name, field in known.items():
        here, hint = _join(key, name), hints[name]
        if name in mapping and mapping[name] != UNSET:
            values[name] = _value(hint, mapping[name], here, _default(field, base))
        elif base is not None and name not in mapping:
            values[name] = getattr(base, name)
        elif name in mapping or _required(field):
            if name in mapping or not is_dataclass(hint):
                raise ConfigError(here, f"needs a value ({type_name(hint)}): it has no default; give {here}=...")
            values[name] = build(hint, {}, here)  # type: ignore[arg-type]
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as refused:
        raise ConfigError(key, str(refused)) from refused


def _value(hint: Any, value: Any, key: str, default: Any = None) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _member(hint, value, key, default)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        names = [str(choice) for choice in args]
        raise ConfigError(key, f"{value!r} is not one of {', '.join(names)}; {_suggest(str(value), names)}")
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, Mapping):
            return build(hint, value, key, _of(hint, default))
        raise _mismatch(hint, value, key)
    if origin in (tuple, list, Sequence):
        return _sequence(origin, args, value, key, hint)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _mismatch(hint, value, key)
        return {_value(args[0], k, key): _value(args[1], v, _join(key, str(k))) for k, v in value.items()}
    return _scalar(hint, value, key)


def _of(cls: type, default: Any) -> Any:
    """The default, if it is of the class that is built."""
    return default if type(default) is cls else None


def _scalar(hint: Any, value: Any, key: str) -> Any:
    if hint in (None, type(None)) and value is None:
        return None
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        names = [str(member.value) for member in hint]
        if value not in [member.value for member in hint]:
            raise ConfigError(key, f"{value!r} is not one of {', '.join(names)}; {_suggest(str(value), names)}")
        return hint(value)
    if hint is float and type(value) is int and abs(value) <= 2**53:  # beyond that a float would be another number
        return float(value)
    if hint is Path and type(value) is str:
        return Path(value)
    if type(value) is not hint:
        raise _mismatch(hint, value, key)
    return value


def _sequence(origin: Any, args: tuple[Any, ...], value: Any, key: str, hint: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise _mismatch(hint, value, key)
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        if len(value) != len(args):
            raise ConfigError(key, f"{list(value)!r} has {len(value)} items, {len(args)} are needed")
        return tuple(_value(arg, v, f"{key}.{i}") for i, (arg, v) in enumerate(zip(args, value, strict=True)))
    made = [_value(args[0], v, f"{key}.{i}") for i, v in enumerate(value)]
    return made if origin is list else tuple(made)


def _member(hint: Any, value: Any, key: str, default: Any) -> Any:
    """The first member of a union that takes the value as it stands; dataclasses are told apart by `kind`."""
    members = typing.get_args(hint)
    if isinstance(value, Mapping):
        options = [m for m in members if is_dataclass(m)]
        if len(options) > 1:
            return _by_kind(options, value, key, default)
        if options:
            return _value(options[0], value, key, default)
    # exact types first, so that an int stays an int in `float | int`
    refusals = []
    for member in sorted(members, key=lambda m: type(value) is not m):
        try:
            return _value(member, value, key)
        except ConfigError as refused:
            refusals.append((member, refused))
    choices = [refused for member, refused in refusals if typing.get_origin(member) in (Literal, tuple, list, dict)]
    if len(choices) == 1 and type(value) in (str, list, tuple, dict):
        raise choices[0]
    raise _mismatch(hint, value, key)


def _by_kind(options: list[Any], value: Mapping[str, Any], key: str, default: Any) -> Any:
    kinds = {kind: option for option in options for kind in typing.get_args(typing.get_type_hints(option)["kind"])}
    kind = value.get("kind", next(iter(kinds)))  # unsaid, the first: what the section was before it had kinds
    if kind not in kinds:
        names = ", ".join(sorted(kinds))
        raise ConfigError(_join(key, "kind"), f"{kind!r} is not one of {names}; {_suggest(str(kind), kinds)}")
    return build(kinds[kind], value, key, _of(kinds[kind], default))


def _mismatch(hint: Any, value: Any, key: str) -> ConfigError:
    advice = f"; write {int(value)}" if isinstance(value, float) and value.is_integer() else ""
    shown = "null" if value is None else repr(value)
    return ConfigError(key, f"{shown} is {_article(type(value))}, {type_name(hint)} is needed{advice}")


def _article(kind: type) -> str:
    name = {"NoneType": "null", "dict": "mapping", "list": "list"}.get(kind.__name__, kind.__name__)
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _suggest(wrong: str, valid: typing.Iterable[str]) -> str:
    """The nearest valid name, by the whole dotted key or by its last part alone."""
    valid = list(valid)
    near = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.6)
    if not near:
        tail = wrong.rsplit(".", 1)[-1]
        tails = {v.rsplit(".", 1)[-1]: v for v in reversed(valid)}
        near = [tails[t] for t in difflib.get_close_matches(tail, tails, n=1, cutoff=0.6)]
    if near:
        return f"the nearest valid one is {near[0]}"
    return f"valid: {', '.join(valid) if len(valid) <= 12 else ', '.join(valid[:12]) + ', ...'}"


def leaves(cls: type, prefix: str = "", base: Any = None) -> Iterator[Leaf]:
    """Every key of the schema in declaration order; nested dataclasses are walked, unions of them too."""
    hints = typing.get_type_hints(cls)
    for field in fields(cls):
        if not field.init:
            continue
        key, hint, default = _join(prefix, field.name), hints[field.name], _default(field, base)
        nested = nested_dataclasses(hint)
        if not nested or type(None) in typing.get_args(hint):
            yield Leaf(key, hint, default, cls, field.name)
        for inner in nested:
            yield from leaves(inner, key, _of(inner, default))


def nested_dataclasses(hint: Any) -> list[type]:
    """The dataclasses a field may directly hold (not those inside its tuples or dicts)."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [m for m in members if is_dataclass(m) and isinstance(m, type)]


def _default(field: Field[Any], base: Any = None) -> Any:
    if base is not None:
        return getattr(base, field.name)
    if field.default is not MISSING:
        return field.default
    return UNSET if field.default_factory is MISSING else field.default_factory()


def type_name(hint: Any) -> str:
    """A type as a user reads it: `float or null`, `one of cross, joint, none`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    if origin is Literal:
        return f"one of {', '.join(str(a) for a in args)}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(str(m.value) for m in hint)}"
    if origin in (tuple, list, Sequence):
        if origin is tuple and Ellipsis not in args:
            return f"[{', '.join(type_name(a) for a in args)}]"
        return f"list of {type_name(args[0])}"
    if origin in (dict, Mapping):
        return f"mapping of {type_name(args[0])} to {type_name(args[1])}"
    if is_dataclass(hint):
        return "mapping"
    return {"str": "text", "Path": "path", "bool": "true or false"}.get(
        getattr(hint, "__name__", ""), getattr(hint, "__name__", str(hint))
    )


def to_plain(value: Any) -> Any:
    """Plain data (dict, list, str, numbers) that `build` turns back into an equal dataclass."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def fingerprint(config: Any) -> str:
    """16 hex digits that change with any value of the configuration."""
    text = json.dumps({"class": type(config).__qualname__, "values": to_plain(config)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
            problem = problem if key in everywhere else f"no such key; {_suggest(key, everywhere)}"
        origin = "" if "has no default" in problem else composed.origin(key)
        raise ConfigError(key, problem, origin) from refused


def compose(cls: type, name: str | None, overrides: Sequence[str] = (), config_dir: Path | None = None) -> Composed:
    """Hydra's composition as plain data, with overrides checked against the schema beforehand."""
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
        composing = [f"hydra.searchpath=[{','.join(_quoted(f'file://{f}') for f in others)}]", *composing]
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
            raise ConfigError("", f"{override!r} is not key=value; {_suggest(bare, [*schema, *offered])}")
        if bare in offered:
            if equals and value not in (*offered[bare], "null"):
                named = ", ".join(offered[bare])
                raise ConfigError(bare, f"no option {value!r}; {_suggest(value, offered[bare])} (offered: {named})")
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
            raise ConfigError(bare, f"no such key; {_suggest(bare, [*schema, *offered])}; change {override!r}")
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
    members = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return all(m in (str, Path, type(None)) for m in members)


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


def _quoted(text: str) -> str:
    """For Hydra's grammar, which has a meaning for brackets and commas."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _find(name: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted(file.stem for folder in folders for file in folder.glob("*.yaml"))
    raise ConfigError("", f"no {name}.yaml in {', '.join(map(str, folders))}; {_suggest(name, known)}")


def _defaults_list(file: Path) -> list[Any]:
    from omegaconf import OmegaConf

    loaded: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    return list(loaded.get("defaults", [])) if isinstance(loaded, dict) else []
