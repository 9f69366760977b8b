"""Loss curves as a picture: `avgen curves run=runs/toybox`; `avgen train` draws them however a run ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from avgen import command
from avgen.config import ConfigError
from avgen.train.trackers import METRICS, read_metrics

PICTURE = "curves.png"
Series = dict[str, tuple[list[int], list[float]]]  # by name: steps and values

VIDEO, AUDIO = "tab:blue", "tab:orange"
PARTS = {  # of the model, as gradient norms name them
    "all": "black",
    "largest": "lightgrey",
    "video": VIDEO,
    "audio": AUDIO,
    "bridge": "tab:green",
    "captions": "tab:red",
}
STYLES = {"video": "-", "audio": "--"}


@dataclass(frozen=True)
class CurvesConfig:
    """Which run to draw."""

    run: Path  # its folder
    smoothing: float = 0.9  # share of the past in the running mean of training losses

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing} must lie in [0, 1); 0 draws what was logged")
        if not (self.run / METRICS).is_file():
            raise ConfigError("run", f"{self.run} holds no {METRICS}: give the folder of a training run")


def draw(config: CurvesConfig) -> Path | None:
    """curves.png beside the run's metrics; None while nothing is logged."""
    lines = read_metrics(config.run / METRICS)
    if not lines:
        return None
    figure = Figure(figsize=(13, 8), layout="constrained")
    (training, held_out), (levels, gradients) = figure.subplots(2, 2)
    _training(training, series(lines, "loss/"), config.smoothing)
    _held_out(held_out, {n: s for n, s in series(lines, "held_out/").items() if "/level_" not in n})
    _levels(levels, lines)
    norms = series(lines, "gradient_norm/")
    for name in sorted(norms, key=list(PARTS).index):
        gradients.plot(*norms[name], label=name, color=PARTS[name])
    some = any(isfinite(value) and value > 0 for _, values in norms.values() for value in values)
    _finish(gradients, "gradient norm by part, before clipping", log=some)
    path = config.run / PICTURE
    figure.suptitle(str(config.run.name))
    figure.savefig(path, dpi=110)
    return path


def series(lines: Sequence[dict[str, float]], prefix: str) -> Series:
    """Everything logged under a prefix, by the rest of its name."""
    found: Series = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith(prefix):
                steps, values = found.setdefault(name.removeprefix(prefix), ([], []))
                steps.append(int(line["step"]))
                values.append(value)
    return found


def smoothed(values: Sequence[float], share: float) -> list[float]:
    """Running mean whose weights fall by `share` from one point to the one before; its start is not pulled to zero."""
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = share * mean + (1 - share) * value, share * weight + (1 - share)
        out.append(mean / weight)
    return out


def _training(axes: Axes, losses: Series, smoothing: float) -> None:
    for name, colour in (("video", VIDEO), ("audio", AUDIO)):
        if name in losses:
            steps, values = losses[name]
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            axes.plot(steps, smoothed(values, smoothing), color=colour, label=name)
    _finish(axes, f"training loss, smoothed by {smoothing:g}")


def _held_out(axes: Axes, losses: Series) -> None:
    """A colour per task, solid for the picture, dashed for the sound."""
    tasks = sorted({name.split("/")[0] for name in losses})
    for name in sorted(losses):
        task, modality = name.split("/")
        marker = "o" if len(losses[name][0]) < 20 else None
        line = axes.plot(*losses[name], STYLES[modality], color=f"C{tasks.index(task)}", label=f"{task} {modality}")[0]
        line.set(marker=marker, markersize=3)
    _finish(axes, "held-out loss by task, of the averaged weights")


def _levels(axes: Axes, lines: Sequence[dict[str, float]]) -> None:
    """Where in the noise a model is weak; low noise is dark, and the last line has the last word."""
    for m, colours in (("video", "Blues"), ("audio", "Oranges")):
        buckets = series(lines, f"loss/{m}/level_")
        for i, name in enumerate(sorted(buckets)):
            colour = colormaps[colours](0.95 - 0.18 * i)
            axes.plot(buckets[name][0], smoothed(buckets[name][1], 0.8), color=colour, label=f"{m} {name}")
    _finish(axes, "training loss by noise level (0 is data, 1 is noise), smoothed by 0.8")


def _finish(axes: Axes, title: str, log: bool = False) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=7, ncols=2, handlelength=3)  # long enough to tell dashes


EXAMPLES = ("avgen curves run=runs/toybox", "avgen curves run=runs/toybox smoothing=0")


def main(argv: list[str] | None = None) -> int:
    config = command.configure(CurvesConfig, None, argv, "draw a run's loss curves", EXAMPLES, verb="curves")
    path = draw(config)
    print(path or f"nothing is logged in {config.run} yet")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
