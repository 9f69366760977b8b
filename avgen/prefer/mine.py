"""Mining: scores of candidates to pairs, and to a reason for every clip and prompt that makes none.

Every metric is brought to standard deviations with larger being better, a group is the weighted mean of its metrics,
and a pair is two clips of one prompt that the groups tell apart. The same scores give the same pairs.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from statistics import fmean, pstdev

from avgen.config import fingerprint
from avgen.lines import relative
from avgen.prefer.candidates import Candidate, Excluded, Pool
from avgen.prefer.config import Group, PreferConfig
from avgen.prefer.pairs import Pair, Side, generated
from avgen.tasks import NAMED
from avgen.types import MODALITIES, Modality

EQUAL = 1e-9  # standard deviations: less is rounding


@dataclass(frozen=True)
class Mined:
    """Pairs, and why the rest made none."""

    pairs: tuple[Pair, ...]
    excluded: tuple[Excluded, ...]
    candidates: int  # clips that could be compared
    prompts: int
    fingerprint: str  # of settings and scores


@dataclass(frozen=True)
class Judged:
    """A candidate and its score in each group that could be scored, in standard deviations."""

    clip: Candidate
    groups: Mapping[str, float]


def mine(pool: Pool, config: PreferConfig) -> Mined:
    check_metrics(pool, config.groups)
    excluded = list(pool.excluded)
    comparable = {
        prompt: kept for prompt, clips in pool.prompts.items() if (kept := fit(prompt, clips, config, excluded))
    }
    everyone = [clip for clips in comparable.values() for clip in clips]
    scale = Scale.of(everyone, pool, config.groups)
    what = {"clips", "results", "out", "shown"}
    mark = fingerprint((pool.fingerprint, {k: v for k, v in vars(config).items() if k not in what}))
    pairs: list[Pair] = []
    for prompt, clips in comparable.items():
        own = Scale.of(clips, pool, config.groups) if config.normalise == "prompt" else scale
        judged = [Judged(clip, own.scores(clip, clips, config.groups)) for clip in clips]
        found: list[Pair] = []
        for names in claims(config):
            told = list(best(judged, names, config))
            if not told:
                reason = why_none(judged, names, config)
                excluded.append(Excluded(prompt, reason, f"{len(clips)} clips, by {' and '.join(names)}"))
            found += [pair_of(winner, loser, gaps, config, mark) for winner, loser, gaps in told]
        pairs += said_once(found, excluded)
    return Mined(tuple(pairs), tuple(excluded), len(everyone), len(pool.prompts), mark)


def check_metrics(pool: Pool, groups: Mapping[str, Group]) -> None:
    """A mistyped metric must not look like one that failed."""
    for name, group in groups.items():
        for metric, weight in group.metrics.items():
            if metric not in pool.directions:
                near = difflib.get_close_matches(metric, pool.directions, n=1) or sorted(pool.directions)[:8]
                raise ValueError(
                    f"groups.{name}.metrics: the results have no metric {metric!r}; nearest: {', '.join(near)}"
                )
            if weight < 0 and pool.directions[metric] != "none":
                raise ValueError(
                    f"groups.{name}.metrics: {metric}={weight} is negative, but the results say which values are "
                    f"better ({pool.directions[metric]}): give a positive weight"
                )


def fit(prompt: str, clips: Sequence[Candidate], config: PreferConfig, excluded: list[Excluded]) -> list[Candidate]:
    """The prompt's clips that can be compared with each other; the others, with the reason, into `excluded`."""
    kept: list[Candidate] = []
    whole = [clip for clip in clips if not lacks(clip, config.train_as)]
    asked = Counter(clip.asked for clip in whole).most_common(1)[0][0] if whole else ()
    alike = [clip for clip in whole if clip.asked == asked]
    wanted = list(dict.fromkeys(metric for group in config.groups.values() for metric in group.metrics))
    # a metric that none of them has says nothing about any of them; one that some have, about the others
    known = [metric for metric in wanted if any(metric in clip.values for clip in alike)]
    for metric in (m for m in wanted if m not in known and alike):
        says = f"{metric} is {alike[0].why_not.get(metric, 'not measured')}"
        excluded.append(Excluded(prompt, "a metric has no value for any clip", says))
    for clip in clips:
        lacking = [metric for metric in known if metric not in clip.values]
        if streams := lacks(clip, config.train_as):
            says = f"task {clip.task} has no {' and '.join(streams)}"
            excluded.append(Excluded(prompt, f"the clip lacks what train_as={config.train_as} has", says, clip.seed))
        elif clip.asked != asked:
            says = "not the task, form, caption and given files of the prompt's other clips"
            excluded.append(Excluded(prompt, "the clip was asked for otherwise", says, clip.seed))
        elif lacking:
            says = f"{lacking[0]} is {clip.why_not.get(lacking[0], 'not measured')}"
            excluded.append(Excluded(prompt, "a metric has no value for this clip", says, clip.seed))
        elif any(clip.sha256 == other.sha256 for other in kept):
            excluded.append(Excluded(prompt, "the clip is a copy of another", seed=clip.seed))
        else:
            kept.append(clip)
    if len(kept) < 2:
        excluded.append(Excluded(prompt, "fewer than two clips can be compared", f"{len(kept)} of {len(clips)}"))
        return []
    return kept


def lacks(clip: Candidate, train_as: str | None) -> list[Modality]:
    """Streams of the task that a pair is to be trained at which the clip's own task does without."""
    own, other = NAMED[clip.task], NAMED[train_as or clip.task]
    return [m for m in MODALITIES if getattr(other, m) is not None and getattr(own, m) is None]


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each metric, larger being better."""

    moments: Mapping[str, tuple[float, float]]
    signs: Mapping[str, str]  # direction of each

    @classmethod
    def of(cls, clips: Sequence[Candidate], pool: Pool, groups: Mapping[str, Group]) -> Scale:
        moments = {}
        for metric in {metric for group in groups.values() for metric in group.metrics}:
            values = [upward(clip.values[metric], pool.directions[metric]) for clip in clips if metric in clip.values]
            if values:
                moments[metric] = (fmean(values), pstdev(values))
        return cls(moments, pool.directions)

    def scores(self, clip: Candidate, beside: Sequence[Candidate], groups: Mapping[str, Group]) -> dict[str, float]:
        """The clip's score in every group of which it has a metric; a metric in which all are equal says 0."""
        found = {}
        for name, group in groups.items():
            weights = {metric: w for metric, w in group.metrics.items() if metric in clip.values}
            if weights:
                whole = sum(abs(w) for w in weights.values())
                found[name] = sum(w * self.z(metric, clip) for metric, w in weights.items()) / whole
        return found

    def z(self, metric: str, clip: Candidate) -> float:
        mean, deviation = self.moments[metric]
        value = upward(clip.values[metric], self.signs[metric])
        return (value - mean) / deviation if deviation > EQUAL * max(1.0, abs(mean)) else 0.0


def upward(value: float, direction: str) -> float:
    """The value with larger being better; of a metric without a better direction the weight's sign decides."""
    return {"lower": -value, "zero": -abs(value)}.get(direction, value)


def claims(config: PreferConfig) -> list[tuple[str, ...]]:
    """The groups that pairs are to follow from."""
    return [(name,) for name in config.groups] if config.mode == "modality" else [tuple(config.groups)]


def trained_by(clip: Candidate, names: Iterable[str], config: PreferConfig) -> tuple[Modality, ...]:
    """What a pair that follows from these groups says something about, of what the clip's task makes."""
    spoken = {m for name in names for m in config.groups[name].trains}
    return tuple(m for m in generated(clip.task) if m in spoken)


def best(
    judged: Sequence[Judged], names: Sequence[str], config: PreferConfig
) -> Iterator[tuple[Candidate, Candidate, dict[str, float]]]:
    """(winner, loser, gaps) from the widest apart on, no clip twice."""
    # all clips of a prompt that can be compared have a score in the same groups
    if not trained_by(judged[0].clip, set(names) & set(judged[0].groups), config):
        return
    ranked = []
    for better, worse in permutations(judged, 2):
        gaps = gaps_of(better, worse, names)
        if gaps and share(better.clip, worse.clip, config) and beats(gaps, config):
            ranked.append((better.clip, worse.clip, gaps))
    ranked.sort(key=lambda row: (-total(row[2], config), row[0].seed, row[1].seed))
    used: set[int] = set()
    for winner, loser, gaps in ranked:
        if len(used) < 2 * config.per_prompt and not {winner.seed, loser.seed} & used:
            used |= {winner.seed, loser.seed}
            yield winner, loser, gaps


def share(one: Candidate, other: Candidate, config: PreferConfig) -> bool:
    """Whether the two have in common what they must have."""
    alike = {"picture": one.picture == other.picture, "sound": one.sound == other.sound, "nothing": True}
    return any(alike[what] for what in (("picture", "sound") if config.shared == "either" else (config.shared,)))


def gaps_of(winner: Judged, loser: Judged, names: Sequence[str]) -> dict[str, float]:
    return {name: winner.groups[name] - loser.groups[name] for name in names if name in winner.groups}


def beats(gaps: Mapping[str, float], config: PreferConfig) -> bool:
    ahead = total(gaps, config) > config.margin + EQUAL
    return ahead and (config.mode == "sum" or all(gap > config.groups[n].margin + EQUAL for n, gap in gaps.items()))


def total(gaps: Mapping[str, float], config: PreferConfig) -> float:
    """Weighted mean over the groups."""
    weights = [config.groups[name].weight for name in gaps]
    return math.fsum(w * gap for w, gap in zip(weights, gaps.values(), strict=True)) / sum(weights)


def why_none(judged: Sequence[Judged], names: Sequence[str], config: PreferConfig) -> str:
    """Why no two clips of a prompt make a pair."""
    if not trained_by(judged[0].clip, names, config):
        spoken = dict.fromkeys(m for name in names for m in config.groups[name].trains)
        return f"the task makes no {' or '.join(spoken)}"
    met = [(one, other) for one, other in combinations(judged, 2) if share(one.clip, other.clip, config)]
    if not met:
        return f"no two clips share {'picture or sound' if config.shared == 'either' else 'their ' + config.shared}"
    both = [gaps_of(one, other, names) for one, other in met]
    if not any(both):
        return "no metric of the groups has a value"
    if not trained_by(judged[0].clip, both[0], config):
        return "no metric of what the task makes has a value"
    if all(abs(gap) <= EQUAL for gaps in both for gap in gaps.values()):
        return "tie: the groups find all clips equal"
    if all(abs(total(gaps, config)) <= config.margin + EQUAL for gaps in both):
        return "tie: no two clips are further apart than the margin"
    return "no clip is ahead of another in every group"


def said_once(pairs: Sequence[Pair], excluded: list[Excluded]) -> list[Pair]:
    """Of each modality of two clips one pair: groups may ask for the same twice, or for the opposite."""
    winners: dict[tuple[frozenset[int], Modality], set[int]] = {}
    for pair in pairs:
        for modality in pair.trains:
            winners.setdefault((seeds_of(pair), modality), set()).add(pair.winner.seed)
    kept: list[Pair] = []
    said: set[tuple[frozenset[int], Modality]] = set()
    for pair in pairs:
        claimed = {(seeds_of(pair), modality) for modality in pair.trains}
        opposed = {claim for claim in claimed if len(winners[claim]) > 1}
        trains = tuple(m for m in pair.trains if (seeds_of(pair), m) not in opposed | said)
        said |= claimed - opposed
        if trains:
            kept.append(replace(pair, trains=trains))
        else:
            reason = "groups disagree about two clips" if opposed else "another group says the same of the two clips"
            seeds = f"{pair.winner.seed} before {pair.loser.seed}"
            excluded.append(Excluded(pair.prompt, reason, f"{' and '.join(pair.gaps)}: seed {seeds}"))
    return kept


def seeds_of(pair: Pair) -> frozenset[int]:
    return frozenset((pair.winner.seed, pair.loser.seed))


def pair_of(
    winner: Candidate,
    loser: Candidate,
    gaps: Mapping[str, float],
    config: PreferConfig,
    mark: str,
) -> Pair:
    metrics = list(dict.fromkeys(metric for name in gaps for metric in config.groups[name].metrics))

    def side(clip: Candidate) -> Side:
        scores = {metric: clip.values[metric] for metric in metrics if metric in clip.values}
        return Side(relative(clip.file, config.out), clip.seed, clip.sha256, clip.model, scores)

    rounded = {name: round(gap, 6) for name, gap in gaps.items()}
    kept = trained_by(winner, gaps, config)
    task = config.train_as or winner.task  # what the clips were given is in both: they differ in what was made
    return Pair(
        winner.prompt, winner.text, task, winner.form, side(winner), side(loser), kept, "metrics", rounded, mark
    )
