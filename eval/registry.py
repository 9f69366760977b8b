"""Which metrics there are: one line per group, each a module with `metrics(setup)`, imported when it is chosen."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from eval.metric import Metric, Setup


@dataclass(frozen=True)
class Group:
    """Metrics that share their code. `metrics(setup: Setup) -> Sequence[Metric]` in the module builds them."""

    name: str  # the part before the dot in its metrics' names
    # tier0: no weights; tier0.5: weights inside a wheel; tier1: hosted weights; tier2: plug-ins; toybox: of its own
    tier: str
    module: str


GROUPS: tuple[Group, ...] = (
    Group("file", "tier0", "eval.metrics.integrity"),
    Group("loudness", "tier0", "eval.metrics.loudness"),
    Group("spectrum", "tier0", "eval.metrics.spectrum"),
    Group("stereo", "tier0", "eval.metrics.stereo"),
    Group("picture", "tier0", "eval.metrics.picture"),
    Group("sync", "tier0", "eval.metrics.sync"),
    Group("paired", "tier0", "eval.metrics.paired"),
    Group("speech", "tier0.5", "eval.metrics.speech"),
    Group("clip", "tier1", "eval.metrics.clip"),
    Group("clap", "tier1", "eval.metrics.clap"),
    Group("pe_av", "tier1", "eval.metrics.joint"),
    Group("ast", "tier1", "eval.metrics.sound_events"),
    Group("videomae", "tier1", "eval.metrics.video_features"),
    Group("whisper", "tier1", "eval.metrics.transcript"),
    Group("judge", "tier1", "eval.metrics.judge"),
    Group("audiobox", "tier2", "eval.metrics.plugins"),
    Group("imagebind", "tier2", "eval.metrics.plugins"),
    Group("synchformer", "tier2", "eval.metrics.plugins"),
    Group("syncnet", "tier2", "eval.metrics.plugins"),
    Group("videoreward", "tier2", "eval.metrics.plugins"),
    Group("toybox", "toybox", "eval.metrics.toybox"),
)


def chosen(names: Sequence[str], setup: Setup | None = None) -> tuple[Metric, ...]:
    """Metrics by tier, group or full name, in the order of the registry, each once."""
    tiers = {group.tier for group in GROUPS}
    groups = {group.name for group in GROUPS}
    for name in names:
        if name not in tiers | groups and name.split(".")[0] not in groups:
            near = difflib.get_close_matches(name, tiers | groups, n=1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise ValueError(
                f"metrics={name!r}: no such metric, group or tier{hint} (groups: {', '.join(sorted(groups))})"
            )
    found: list[Metric] = []
    for group in GROUPS:
        whole = group.tier in names or group.name in names
        some = {name for name in names if name.split(".")[0] == group.name and name not in tiers | groups}
        if not whole and not some:
            continue
        made = importlib.import_module(group.module).metrics(setup or Setup())
        built = tuple(metric for metric in made if metric.definition.name.split(".")[0] == group.name)
        known = {metric.definition.name for metric in built}
        for name in sorted(some - known):
            raise ValueError(f"metrics={name!r}: {group.name} has {', '.join(sorted(known))}")
        found += [metric for metric in built if whole or metric.definition.name in some]
    return tuple(found)
