"""The strict builder, composition and overrides, help, and the YAML files of the repository."""

from __future__ import annotations

import ast
import enum
import importlib
import json
import tomllib
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avgen import compose
from avgen.__main__ import VERBS
from avgen.command import field_comments, help_text
from avgen.compose import load
from avgen.config import UNSET, ConfigError, build, fingerprint, leaves, to_plain
from avgen.train.config import TrainConfig
from tests.conftest import ROOT


class Shape(enum.Enum):
    ROUND = "round"
    SQUARE = "square"


@dataclass(frozen=True)
class Inner:
    width: int = 8  # in channels
    # a comment above,
    # over two lines
    coupling: Literal["cross", "joint"] = "cross"

    def __post_init__(self) -> None:
        if self.width < 0:
            raise ValueError(f"width={self.width} must not be negative")


@dataclass(frozen=True)
class Plain:
    rate: float
    kind: Literal["plain"] = "plain"


@dataclass(frozen=True)
class Fancy:
    momentum: float = 0.9
    nested: Inner = Inner()
    kind: Literal["fancy"] = "fancy"


@dataclass(frozen=True)
class Deep:
    tables: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Everything:
    whole: int
    ratio: float
    name: str
    inner: Inner
    optimiser: Plain | Fancy
    maybe: int | None = None
    either: int | float | str = 1
    auto: Literal["auto"] | int = "auto"
    switch: bool = False
    shape: Shape = Shape.ROUND
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[float, ...] = ()
    several: tuple[Inner, ...] = ()
    listed: list[str] = field(default_factory=list)
    table: dict[str, float] = field(default_factory=dict)
    folder: Path = Path("runs")
    extra: Inner | None = None


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INNERS = st.builds(Inner, st.integers(0, 10**6), st.sampled_from(["cross", "joint"]))
EVERYTHING = st.builds(
    Everything,
    whole=st.integers(),
    ratio=FLOATS,
    name=st.text(),
    inner=INNERS,
    optimiser=st.builds(Plain, FLOATS, st.just("plain")) | st.builds(Fancy, FLOATS, INNERS, st.just("fancy")),
    maybe=st.none() | st.integers(),
    either=st.integers() | FLOATS | st.text().filter(lambda t: t != UNSET),
    auto=st.just("auto") | st.integers(),
    switch=st.booleans(),
    shape=st.sampled_from(Shape),
    pair=st.tuples(st.integers(), FLOATS),
    many=st.lists(FLOATS).map(tuple),
    several=st.lists(INNERS, max_size=3).map(tuple),
    listed=st.lists(st.text()),
    table=st.dictionaries(st.text(), FLOATS),
    folder=st.sampled_from([Path("a"), Path("/b/c d")]),
    extra=st.none() | INNERS,
)
GOOD: dict[str, Any] = {"whole": 1, "ratio": 2.0, "name": "x", "inner": {}, "optimiser": {"kind": "plain", "rate": 1.0}}


@given(EVERYTHING.filter(lambda e: e.name != UNSET))
def test_a_dataclass_survives_json_and_back(value: Everything) -> None:
    rebuilt = build(Everything, json.loads(json.dumps(to_plain(value))))
    assert rebuilt == value
    assert [type(getattr(rebuilt, f.name)) for f in fields(value)] == [
        type(getattr(value, f.name)) for f in fields(value)
    ]
    assert fingerprint(rebuilt) == fingerprint(value)


@given(EVERYTHING, EVERYTHING)
def test_fingerprints_tell_different_values_apart(a: Everything, b: Everything) -> None:
    assert (fingerprint(a) == fingerprint(b)) == (to_plain(a) == to_plain(b) and repr(to_plain(a)) == repr(to_plain(b)))


@dataclass(frozen=True)
class Scalars:
    truth: bool = False
    whole: int = 0
    ratio: float = 0.0
    text: str = ""


VALUES = {bool: st.booleans(), int: st.integers(), float: FLOATS, str: st.text().filter(lambda t: t != UNSET)}


@given(st.sampled_from(["truth", "whole", "ratio", "text"]), st.data())
def test_nothing_is_coerced_but_an_int_to_a_float(name: str, data: st.DataObject) -> None:
    wanted = typing.get_type_hints(Scalars)[name]
    for kind, values in {**VALUES, type(None): st.none()}.items():
        value = data.draw(values)
        if kind is wanted or (kind is int and wanted is float and abs(value) <= 2**53):
            built = getattr(build(Scalars, {name: value}), name)
            assert built == value
            assert type(built) is wanted
        else:
            with pytest.raises(ConfigError, match=f"^{name}: "):
                build(Scalars, {name: value})


@given(st.sampled_from([leaf.key for leaf in leaves(Everything)]), st.data())
def test_a_letter_lost_is_found_again(key: str, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, len(key) - 1).filter(lambda i: key[i] != "."))
    typo = key[:lost] + key[lost + 1 :]
    with pytest.raises(ConfigError, match=r"nearest valid one is (\S+)") as refused:
        compose._checked(Everything, [f"{typo}=1"], {}, {}, rooted=True)
    assert f"nearest valid one is {key}" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inner": {"wdth": 3}}, "inner.wdth: no such key; the nearest valid one is inner.width"),
        ({"inner": {"width": -3}}, "inner: width=-3 must not be negative"),
        ({"inner": {"coupling": "jont"}}, "inner.coupling: 'jont' is not one of cross, joint; the nearest"),
        ({"inner": 3}, "inner: 3 is an int, mapping is needed"),
        ({"several": [{"width": 1}, {"wdth": 1}]}, "several.1.wdth: no such key"),
        ({"optimiser": {"kind": "fncy"}}, "optimiser.kind: 'fncy' is not one of fancy, plain; the nearest"),
        ({"optimiser": {"kind": "fancy", "rate": 1.0}}, "optimiser.rate: no such key where kind=fancy"),
        ({"optimiser": {"kind": "plain"}}, "optimiser.rate: needs a value"),
        ({"whole": "???"}, "whole: needs a value"),
        ({"whole": 3.0}, "whole: 3.0 is a float, int is needed; write 3"),
        ({"pair": [1]}, "pair: [1] has 1 items, 2 are needed"),
        ({"pair": "ab"}, "pair: 'ab' is a str"),
        ({"many": [1.0, "x"]}, "many.1: 'x' is a str, float is needed"),
        ({"shape": "oval"}, "shape: 'oval' is not one of round, square"),
        ({"auto": "atuo"}, "auto: 'atuo' is not one of auto; the nearest"),
        ({"maybe": "x"}, "maybe: 'x' is a str, int or null is needed"),
        ({"table": {"a": "b"}}, "table.a: 'b' is a str, float is needed"),
    ],
)
def test_refusals_name_the_full_key_and_the_rule(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(Everything, {**GOOD, **change})
    assert words in str(refused.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's own folder of YAML files for Everything."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "recipe").mkdir()
    (tmp_path / "job.yaml").write_text(
        "defaults:\n  - _self_\n  - inner: small\n  - recipe: none\n"
        "whole: 1\nratio: 1e-4\nname: ???\noptimiser: {kind: plain, rate: 0.5}\n"
    )
    (tmp_path / "inner" / "small.yaml").write_text("width: 16\n")
    (tmp_path / "inner" / "wide.yaml").write_text("width: 64\n")
    (tmp_path / "inner" / "broken.yaml").write_text("wdth: 64\n")
    (tmp_path / "inner" / "negative.yaml").write_text("width: -1\n")
    (tmp_path / "recipe" / "none.yaml").write_text("# @package _global_\n")
    (tmp_path / "recipe" / "big.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /inner: wide\nwhole: 100\n"
    )
    return tmp_path


def test_files_groups_recipes_and_overrides_compose(folder: Path) -> None:
    plain = load(Everything, "job", ["name=a"], folder)
    assert (plain.whole, plain.ratio, plain.inner.width) == (1, 1e-4, 16)
    assert load(Everything, "job", ["name=a", "recipe=big"], folder).inner.width == 64
    assert load(Everything, "job", ["name=a", "recipe=big", "whole=7"], folder).whole == 7
    assert load(Everything, "job", ["name=a", "inner.width=3"], folder).inner.width == 3
    # keys that no YAML file mentions need no "+"
    assert load(Everything, "job", ["name=a", "many=[1,2.5]", "table.x=3"], folder).many == (1.0, 2.5)
    assert load(Everything, "job", ["name=a", "table.x=3"], folder).table == {"x": 3.0}


def test_a_key_of_a_section_leaves_the_others_as_the_section_has_them() -> None:
    """The default of a section may be another than that of its class."""

    @dataclass(frozen=True)
    class Wide:
        inner: Inner = Inner(width=64)
        maybe: Inner | None = Inner(width=32)
        chosen: Plain | Fancy = Fancy(momentum=0.5)

    assert load(Wide, None, ["inner.coupling=joint"]).inner == Inner(64, "joint")
    assert load(Wide, None, ["maybe.coupling=joint"]).maybe == Inner(32, "joint")
    assert load(Wide, None, ["chosen.kind=fancy", "chosen.nested.width=4"]).chosen == Fancy(0.5, Inner(4))
    assert load(Wide, None, ["chosen.kind=plain", "chosen.rate=2"]).chosen == Plain(2.0)
    assert load(Wide, None, ["inner.width=1"]).inner == Inner(1)
    assert {leaf.key: leaf.default for leaf in leaves(Wide)}["inner.width"] == 64


def test_a_mapping_replaces_that_of_the_file_and_one_key_is_laid_over_it(folder: Path) -> None:
    with (folder / "job.yaml").open("a") as file:
        file.write("table: {x: 1, y: 2}\n")

    def table(*words: str) -> dict[str, float]:
        return load(Everything, "job", ["name=a", *words], folder).table

    assert table("table={z: 3}") == {"z": 3}
    assert table("table.x=3") == {"x": 3, "y": 2}
    assert table("table.x=3", "table={z: 3}", "table.y=4") == {"z": 3, "y": 4}
    assert table("table={}") == {}

    def inner(*words: str) -> dict[str, float]:
        return load(Deep, None, ["tables={a: {x.y: 1, z: 2}}", *words]).tables

    assert inner("tables.a={x.y: 3}") == {"a": {"x.y": 3}}
    assert inner("tables.b={z: 3}", "tables.b.z=4") == {"a": {"x.y": 1, "z": 2}, "b": {"z": 4}}

    with pytest.raises(ConfigError, match=r"table.z: 'x' is a str, float is needed \(from 'table={z: x}'"):
        table("table={z: x}")


@settings(max_examples=40)  # each composes a file
@given(st.text().filter(lambda t: t not in (UNSET, "null") and "\x00" not in t))
@example("a ${b}, a \\${b} and a \\\\${b}")
@example("${text}")
def test_text_is_taken_as_typed(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "typed"
    folder.mkdir(exist_ok=True)
    if not (folder / "note.yaml").exists():
        (folder / "note.yaml").write_text("text: plain\n")
    assert load(Scalars, "note", [f"text={text}"], folder).text == text


def test_of_several_values_for_a_key_the_last_counts() -> None:
    """As where a script passes its own arguments on behind those it gives."""
    from avgen.data.prepare import PrepareConfig
    from avgen.train.config import TrainConfig

    assert load(TrainConfig, "train", ["recipe=toybox", "start=runs/a", "start=null"]).start is None
    assert load(TrainConfig, "train", ["recipe=toybox", "start=null", "start=runs/a"]).start == Path("runs/a")
    shape = "windows.shapes=[{height: 16, width: 16, fps: 8, duration_s: 1}]"
    given = ["manifest=a.csv", "out=latents", shape, "codec=wan21"]
    assert load(PrepareConfig, "prepare", [*given, "text.path=t5", "text=null"]).text is None
    assert load(PrepareConfig, "prepare", [*given, "text=null", "text.path=t5"]).text is not None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.whole=5", "trian.whole: no such key; the nearest valid one is whole; change 'trian.whole=5'"),
        ("inner.wdth=5", "inner.wdth: no such key; the nearest valid one is inner.width"),
        ("innr=wide", "innr: no such key; the nearest valid one is inner"),
        ("inner=wid", "inner: no option 'wid'; the nearest valid one is wide (offered: broken, negative, small, wide)"),
        ("inner=broken", "inner.wdth: no such key; the nearest valid one is inner.width (in {folder}/inner/broken"),
        ("inner=negative", "inner: width=-1 must not be negative (in {folder}/inner/negative.yaml)"),
        ("inner.width=-1", "inner: width=-1 must not be negative (from 'inner.width=-1' on the command line)"),
        ("whole=x", "whole: 'x' is a str, int is needed (from 'whole=x' on the command line)"),
        ("whole", "'whole' is not key=value"),
        ("whole=[1", "'whole=[1' cannot be read"),
        ("whole=1,2", "'whole=1,2' lists several values"),
        ("whole=${nowhere}", "nowhere"),
    ],
)
def test_a_wrong_override_names_what_to_change(folder: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(Everything, "job", ["name=a", override], folder)
    assert words.format(folder=folder.name) in str(refused.value)


def test_a_missing_value_and_a_missing_file_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="name: needs a value"):
        load(Everything, "job", [], folder)
    with pytest.raises(ConfigError, match=r"no jb\.yaml.*the nearest valid one is job"):
        load(Everything, "jb", [], folder)
    with pytest.raises(ConfigError, match="is not a folder"):
        load(Everything, "job", [], folder / "nowhere")


def test_a_command_without_a_file_builds_its_overrides_alone() -> None:
    assert load(Scalars, None, ["whole=3", "text=a, b"]) == Scalars(whole=3, text="a, b")
    with pytest.raises(ConfigError, match="whle: no such key; the nearest valid one is whole"):
        load(Scalars, None, ["whle=3"])
    with pytest.raises(ConfigError, match="whole: 'x' is a str, int is needed"):
        load(Scalars, None, ["whole=x"])


def test_help_shows_every_key_its_value_now_its_type_and_its_comment(folder: Path) -> None:
    text = help_text(Everything, "job", ["recipe=big"], folder, "does a job", ["avgen job name=x"], "job")
    for leaf in leaves(Everything):
        assert f"  {leaf.key}=" in text
    assert "inner.width=64" in text
    unwrapped = " ".join(text.split())
    assert "in channels" in unwrapped
    assert "a comment above, over two lines" in unwrapped
    assert "inner=wide  of: broken, negative, small, wide" in text
    assert "avgen job name=x" in text


COMMANDS = [verb for verb in VERBS if verb.config]


def schema_of(verb: Any) -> type:
    module, name = verb.schema.split(":")
    return getattr(importlib.import_module(module), name)


def combinations(name: str) -> list[list[str]]:
    """The root alone, and with each option of each of its groups."""
    return [[]] + [[f"{group}={option}"] for group, options in compose.groups(name).items() for option in options]


CHOSEN = {
    "prepare": {
        "manifest": "clips.csv",
        "out": "latents",
        "windows.shapes": "[{height: 8, width: 8, fps: 8, duration_s: 1}]",
    },
    "train": {"data.path": "latents", "start": "model", "data.pairs": "pairs", "data.pipeline": "pipeline"},
}


def for_lack_of_a_default(verb: Any, overrides: list[str]) -> list[str]:
    """What a user must say: keys that the files leave open, or never mention."""
    mapping = compose.compose(schema_of(verb), verb.config, overrides).mapping
    found = []
    for key, value in CHOSEN.get(verb.name, {}).items():
        section, name = mapping, key
        while "." in name:
            head, name = name.split(".", 1)
            section = section.get(head, {})
        if section.get(name, UNSET if verb.name == "prepare" else None) == UNSET:
            found.append(f"{key}={value}")
    return found


@pytest.mark.parametrize("verb", COMMANDS, ids=lambda v: v.name)
def test_every_yaml_file_of_a_command_builds(verb: Any) -> None:
    for overrides in combinations(verb.config):
        load(schema_of(verb), verb.config, [*overrides, *for_lack_of_a_default(verb, overrides)])


def test_every_yaml_file_belongs_to_a_command() -> None:
    reached = {
        file
        for verb in COMMANDS
        for overrides in combinations(verb.config)
        for _, file in compose.compose(schema_of(verb), verb.config, overrides).files
    }
    assert set((ROOT / "configs").rglob("*.yaml")) == reached


def test_the_wheel_carries_every_folder_of_yaml_files() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    for folder in {file.parent for file in (ROOT / "configs").rglob("*.yaml")}:
        inside = folder.relative_to(ROOT)
        assert listed.get(f"share/avgen/{inside}") == [f"{inside}/*.yaml"], f"list {inside} in pyproject.toml"


def reachable(cls: type, seen: set[type]) -> set[type]:
    """The dataclass and all those inside its fields, at any depth."""
    if cls in seen:
        return seen
    seen.add(cls)
    for hint in typing.get_type_hints(cls).values():
        stack = [hint]
        while stack:
            part = stack.pop()
            stack.extend(typing.get_args(part))
            if isinstance(part, type) and is_dataclass(part):
                reachable(part, seen)
    return seen


def attributes_read(sources: list[str]) -> set[str]:
    """Names read as attributes anywhere but in __post_init__: checking a value is no use of it."""
    names: set[str] = set()

    class Reads(ast.NodeVisitor):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            if node.name != "__post_init__":
                self.generic_visit(node)

        def visit_Attribute(self, node: ast.Attribute) -> None:
            if isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            self.generic_visit(node)

    for source in sources:
        Reads().visit(ast.parse(source))
    return names


def test_every_key_is_read_somewhere() -> None:
    files = [file for package in ("avgen", "eval") for file in (ROOT / package).rglob("*.py")]
    read = attributes_read([file.read_text() for file in files])
    for verb in COMMANDS:
        for cls in reachable(schema_of(verb), set()):
            unread = [f.name for f in fields(cls) if f.name not in read and f.name != "kind"]
            assert not unread, f"no code reads {cls.__name__}.{', '.join(unread)}: use it or remove it"


def test_a_key_that_is_only_checked_counts_as_unread() -> None:
    source = "class A:\n def __post_init__(self):\n  self.checked\n def f(self):\n  self.used; self.set = 1"
    assert attributes_read([source]) == {"used"}


@pytest.mark.parametrize("verb", COMMANDS, ids=lambda v: v.name)
def test_every_key_has_a_meaning_in_help(verb: Any) -> None:
    for leaf in leaves(schema_of(verb)):
        if leaf.name != "kind":
            assert field_comments(leaf.owner)[leaf.name], f"say beside {leaf.owner.__name__}.{leaf.name} what it means"


def test_a_key_called_as_a_folder_of_options_is_a_key() -> None:
    """Hydra would take it for its group, and refuse it in words of its own."""
    from avgen.sample.scores import ScoresConfig
    from eval.config import EvalConfig

    def every(*words: str) -> int:
        return load(ScoresConfig, None, words).cache.every

    assert load(EvalConfig, "eval", ["cache=null"]).cache is None
    assert every("cache=half") == 2
    assert every("cache=half", "cache.every=3") == 3
    assert every("cache={every: 4}") == 4
    with pytest.raises(ConfigError, match=r"cache: 'hlf' is none of .*half.*cache\.KEY=VALUE"):
        every("cache=hlf")


@pytest.mark.parametrize("name", ["my configs (1)", "a,b=c", "it's"])
def test_a_folder_of_own_files_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "recipe").mkdir(parents=True)
    (tmp_path / name / "recipe" / "mine.yaml").write_text("# @package _global_\nwidth: 123\n")
    (tmp_path / name / "job.yaml").write_text("defaults: [{recipe: mine}]\n")
    assert load(Inner, "job", [], tmp_path / name).width == 123


def test_no_option_of_a_group() -> None:
    from avgen.train.config import TrainConfig

    assert load(TrainConfig, "train", ["recipe=toybox", "parallel=null"]).parallel.strategy == "ddp"
    assert load(TrainConfig, "train", ["recipe=toybox", "model=small"]).model.video.width > 192
    assert load(TrainConfig, "train", ["recipe=null", "recipe=toybox"]).steps == 2100


@pytest.mark.parametrize("text", ["whole: [1\n", "\twhole: 1\n", "whole: 1\nwhole: 2\n"])
def test_a_file_that_is_no_yaml_is_named_with_the_place(tmp_path, text):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "broken.yaml").write_text(f"# @package _global_\n{text}")
    with pytest.raises(ConfigError, match=r"cannot be read: .*broken\.yaml.*line"):
        load(TrainConfig, "train", ["recipe=broken"], tmp_path)
