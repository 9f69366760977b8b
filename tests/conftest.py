"""What every test shares: the GPU mark, one core per worker, hypothesis profiles, the folder of real clips."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
CLIPS = Path(os.environ.get("AVGEN_CLIPS", "nowhere"))

# Timings vary too much between machines for a deadline; in CI the same examples every time.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


# What a shell or a CI system may have set, and tests would read.
INHERITED = (
    *("AVGEN_TRACEBACK", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


def pytest_configure(config: pytest.Config) -> None:
    for name in INHERITED:
        os.environ.pop(name, None)
    os.environ["no_proxy"] = "127.0.0.1,localhost"  # servers of tests are here
    # models are tiny here: more threads gain nothing, and on a busy machine they wait for each other
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """The folder of real clips: $AVGEN_CLIPS."""
    if not CLIPS.is_dir():
        pytest.skip("no real clips here: set AVGEN_CLIPS")
    return CLIPS
