"""The configuration of `avgen doctor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from avgen.data.doctor.rules import Rules


@dataclass(frozen=True)
class DoctorConfig:
    """Which clips to look at, and how."""

    manifest: Path  # csv, tsv, jsonl or parquet file, or folder of clips
    out: Path | None = None  # folder of report and cleaned manifest; null = NAME.doctor beside the manifest
    workers: int | None = None  # processes that decode; null = one per core
    timeout_s: float = 600.0  # seconds for one clip, after which it counts as unreadable
    pictures: int = 200  # clips shown with frames and waveform in the page; the others are in report.json
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers={self.workers} must be at least 1, or null for one per core")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s={self.timeout_s} must be positive")
        if self.pictures < 0:
            raise ValueError(f"pictures={self.pictures} must not be negative")
