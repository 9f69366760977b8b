"""What a run looks at between its steps: held-out loss, samples, the watch for cheating."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avgen.data.stream import Source
from avgen.train.cheating import Watch
from avgen.train.run import Run
from avgen.train.samples import Codecs, folder_of, sample
from avgen.train.trackers import METRICS, Journal, Screen, read_metrics
from avgen.train.validate import told_apart, validate

if TYPE_CHECKING:
    from avgen.prefer.source import PairSource

KINDS = ("validation", "samples", "cheating")


@dataclass(frozen=True)
class Looks:
    """Looks of three kinds, each at steps of its own and at the last."""

    run: Run
    held_out: Source
    codecs: Codecs | None  # that show samples
    judges: PairSource | None  # held-out pairs of a run on pairs
    watch: Watch
    journal: Journal
    screen: Screen

    def take(self, kinds: Collection[str] = KINDS) -> None:
        """Those of these kinds that are due after the step that was just taken."""
        run, config = self.run, self.run.config
        last = run.step == config.steps
        if "validation" in kinds and (last or run.step % config.validate_every == 0):
            self.journal.write(run.step, self.held_out_line())
        if "samples" in kinds and self.codecs is not None and config.samples.due(run.step, last):
            sheet = sample(run, self.held_out, self.codecs)
            if sheet is not None:
                self.journal.picture(run.step, "samples", sheet)
        if "cheating" in kinds and self.watch.due(run.step, last):
            line, alarms = self.watch.look()
            self.journal.write(run.step, line)
            self.screen.alarm(run.step, alarms)

    def make_up(self) -> None:
        """Take those that the step a run goes on from lacks: it was saved before them, and then the run ended."""
        run = self.run
        metrics = run.config.out / METRICS
        lines = read_metrics(metrics) if metrics.exists() else []
        named = {name.split("/")[0] for line in lines if line["step"] == run.step for name in line}
        missing = {
            "validation": "held_out" not in named,
            "samples": not folder_of(run).exists(),
            "cheating": "cheating" not in named,
        }
        self.take(run.processes.agreed(" ".join(kind for kind, absent in missing.items() if absent)).split())

    def held_out_line(self) -> dict[str, float]:
        """What is logged of clips and pairs that are never read."""
        run = self.run
        line = validate(run.model, run.average, self.held_out, run.config, run.accelerator)
        return line if self.judges is None else line | told_apart(run, self.judges)
