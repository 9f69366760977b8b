"""Configuration: one strict builder turns plain data into frozen dataclasses.

The dataclass is the schema. It holds every key, its type, its default and, as the comment beside the
field, its meaning; `--help` prints all four. A YAML file holds only what a recipe chooses, so no default
is written twice. Nothing is coerced but an int where a float is asked for.
"""

from __future__ import annotations

import difflib
import enum
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

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
            raise ConfigError(wrong, f"no such key{kind}; {suggest(wrong, [_join(key, n) for n in known])}")
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
        raise ConfigError(key, f"{value!r} is not one of {', '.join(names)}; {suggest(str(value), names)}")
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
            raise ConfigError(key, f"{value!r} is not one of {', '.join(names)}; {suggest(str(value), names)}")
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
        raise ConfigError(_join(key, "kind"), f"{kind!r} is not one of {names}; {suggest(str(kind), kinds)}")
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


def suggest(wrong: str, valid: typing.Iterable[str]) -> str:
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
    return [m for m in members(hint) if is_dataclass(m) and isinstance(m, type)]


def members(hint: Any) -> tuple[Any, ...]:
    """The types that a union offers, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


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


def at_least_one(config: Any, *names: str) -> None:
    """A check for `__post_init__`: of numbers that count something."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")


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
