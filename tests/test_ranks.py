"""This process among others."""

from __future__ import annotations

import subprocess
import sys


def test_processes_wait_for_the_slowest_for_as_long_as_it_takes() -> None:
    """Torch's own patience is ten or thirty minutes, and one process may have hours more to do."""
    code = (
        "import os, datetime, torch.distributed as dist\n"
        "asked = []\n"
        "begin = dist.init_process_group\n"
        "dist.init_process_group = lambda *a, **k: asked.append(k) or begin(*a, **k)\n"
        "from avgen.ranks import this_process\n"
        "this_process().wait_for_everyone()\n"
        "assert asked[0]['timeout'] >= datetime.timedelta(days=1), asked\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "--no-python"]
    subprocess.run([*launcher, sys.executable, "-c", code], check=True, timeout=120)
