"""`avgen toybox export | preview | check`: the embedded world as mp4s, as one picture, as its reader reads it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from avgen.command import field_comments, run
from avgen.config import UNSET, ConfigError, build, leaves, to_plain, type_name
from avgen.data.toybox.check import CheckConfig, check, table
from avgen.data.toybox.world import LENGTH, Split, Toybox, ToyboxConfig, ToyClip

T = TypeVar("T")

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class ExportConfig:
    """What to write where."""

    out: Path  # export: the folder; preview: the PNG file
    n: int = 100  # how many clips
    first: int = 0  # index of the first
    split: Split = "train"  # train and test share combinations of kind, colour and size; heldout has the others
    seed: int = 0  # of the world; clip i depends on (seed, split, i) alone
    world: ToyboxConfig = field(default_factory=ToyboxConfig)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n={self.n} must be at least 1")
        if not 0 <= self.first <= LENGTH - self.n:
            raise ValueError(f"first={self.first} must lie between 0 and {LENGTH - self.n}: there are {LENGTH} clips")

    @property
    def toybox(self) -> Toybox:
        return Toybox(self.world, self.split, self.seed)


def main(argv: list[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or {"-h", "--help", "help"} & set(words):
        print(_help())
        return 0
    verb, *overrides = words
    if verb == "export":
        return export(_configured(ExportConfig, overrides))
    if verb == "preview":
        return preview(_configured(ExportConfig, overrides))
    if verb == "check":
        return show_check(_configured(CheckConfig, overrides))
    raise ConfigError("", f"avgen toybox has no {verb!r}: choose export, preview or check")


def export(config: ExportConfig) -> int:
    """Clips as mp4s and one manifest line each; what is whole already is kept."""
    from rich.console import Console
    from rich.progress import Progress

    from avgen.data.media import write_clip

    console = Console(stderr=True)
    world, folder = config.toybox, config.out
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    lines = _whole_lines(folder, world.fingerprint)
    wanted = range(config.first, config.first + config.n)
    missing = [i for i in wanted if i not in lines]
    with Progress(console=console) as progress, (folder / MANIFEST).open("a", encoding="utf-8") as manifest:
        task = progress.add_task("writing clips", total=config.n, completed=config.n - len(missing))
        for index in missing:
            item = world[index]
            path = Path("clips") / f"{config.split}-{config.seed}-{index:08d}.mp4"
            write_clip(folder / path, item.clip)
            size = (folder / path).stat().st_size
            lines[index] = manifest_line(item, world, index, path.as_posix(), size)
            manifest.write(json.dumps(lines[index]) + "\n")
            manifest.flush()
            progress.advance(task)
    _write_manifest(folder, lines)
    console.print(f"{config.n} clips ({len(missing)} new) and {MANIFEST} in {folder}", soft_wrap=True)
    return 0


def preview(config: ExportConfig) -> int:
    """A contact sheet of the clips with their true events marked."""
    from avgen.data.contact_sheet import contact_sheet

    if config.out.suffix.lower() != ".png":
        raise ConfigError("out", f"{config.out} must be a .png file for preview")
    items = [config.toybox[i] for i in range(config.first, config.first + config.n)]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(
        [item.clip for item in items], [item.caption for item in items], [event_marks(item) for item in items]
    ).save(config.out)
    print(f"{len(items)} clips in {config.out}", file=sys.stderr)
    return 0


def show_check(config: CheckConfig) -> int:
    """The reader's precision and recall, printed."""
    from rich.console import Console

    figures = check(config)
    said = figures.captions
    console = Console(width=150)
    console.print(table(figures))
    console.print(
        f"captions: of {said.actors} actors {said.kind} with the right kind, {said.colour} colour, {said.size} size,"
        f" {said.count} count; {said.extra} not named. {1000 * figures.read_s:.1f} ms of processor time per clip",
        highlight=False,
    )
    return 0


def event_marks(item: ToyClip) -> list[Any]:
    """The item's events as marks for a contact sheet."""
    from avgen.data.contact_sheet import Mark
    from avgen.data.toybox.scene import RGB

    marks = []
    for event in item.events:
        red, green, blue = (round(255 * part) for part in RGB[event.colour])
        note = "" if event.visible and event.audible else " (unseen)" if event.audible else " (silent)"
        marks.append(Mark(event.instant_s, (red, green, blue), event.kind + note))
    return marks


def manifest_line(item: ToyClip, world: Toybox, index: int, path: str, size: int) -> dict[str, Any]:
    """One line of the manifest. `bytes` tells a whole file from one cut short."""
    config = world.config
    return {
        "path": path,
        "caption": item.caption,
        "video_caption": item.video_caption,
        "audio_caption": item.audio_caption,
        "duration_s": config.duration_s,
        "fps": config.fps,
        "height": config.height,
        "width": config.width,
        "sample_rate_hz": config.sample_rate_hz,
        "audio_channels": config.audio_channels,
        "scene": item.scene.type,
        "events": [asdict(event) for event in item.events],
        "split": world.split,
        "seed": world.seed,
        "index": index,
        "world": world.fingerprint,
        "config": to_plain(config),
        "bytes": size,
    }


def _whole_lines(folder: Path, fingerprint: str) -> dict[int, dict[str, Any]]:
    """The manifest's lines whose files are whole, by index; a line cut off by a crash is dropped."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    whole: dict[int, dict[str, Any]] = {}
    for line in _lines(path):
        if line.get("world") != fingerprint:
            raise ValueError(
                f"{path} lists clips of another world (fingerprint {line.get('world')}, this one is {fingerprint}):"
                " give another out=, or the seed, split and world.* they were made with"
            )
        file = folder / line["path"]
        if file.is_file() and file.stat().st_size == line["bytes"]:
            whole[line["index"]] = line
    _write_manifest(folder, whole)
    return whole


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(text, 1):
        try:
            if line.strip():
                yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(text):  # only the last line can have been cut off while it was written
                raise ValueError(f"{path} line {number} is not JSON ({error}): mend or delete the file") from error


def _write_manifest(folder: Path, lines: dict[int, dict[str, Any]]) -> None:
    """In order of index, in one move."""
    partial = folder / (MANIFEST + ".partial")
    partial.write_text("".join(json.dumps(lines[i]) + "\n" for i in sorted(lines)), encoding="utf-8")
    partial.replace(folder / MANIFEST)


def _configured(cls: type[T], overrides: Sequence[str]) -> T:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    for word in overrides:
        if "=" not in word:
            raise ConfigError("", f"{word!r} is not key=value; `avgen toybox --help` lists the keys")
    try:
        mapping: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (YAMLError, OmegaConfBaseException) as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            "", f"{' '.join(overrides)}: cannot be read ({said}); are brackets and quotes closed?"
        ) from error
    return build(cls, mapping)


def _help() -> str:
    lines = [
        "avgen toybox - clips of the embedded world, in which every sound has a visible cause at a known instant",
        "",
        "usage: avgen toybox export out=DIR [key=value ...]        mp4s and a manifest; run again to go on",
        "       avgen toybox preview out=FILE.png n=8 [key=value ...]   one picture with frames, sound and events",
        "       avgen toybox check through=mp4 [key=value ...]          how well the event reader reads unseen clips",
        "",
        "keys (key=default | type | meaning):",
    ]
    for leaf in leaves(ExportConfig):
        default = to_plain(leaf.default)
        shown = f"[{','.join(str(v) for v in default)}]" if isinstance(default, list) else default
        head = f"  {leaf.key}={'...' if shown == UNSET else shown}"
        meaning = field_comments(leaf.owner).get(leaf.name, "")
        lines.append(f"{head:<34} {type_name(leaf.hint)}{': ' + meaning if meaning else ''}")
    lines += [
        "  through=nothing                   check only; one of nothing, mp4, blur: what is done to the clips before",
        "",
        "check's own defaults are n=500 split=test seed=30001.",
        "",
        "examples:",
        "  avgen toybox export out=data/toys n=1000 split=train",
        "  avgen toybox export out=data/big world.height=256 world.width=256 world.fps=24 world.duration_s=5",
        "  avgen toybox preview out=toys.png n=8 split=heldout 'world.scenes=[pair,turn]'",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run(main))
