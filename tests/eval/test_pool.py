"""Worker processes that die while nobody looks."""

from __future__ import annotations

import os
import threading
import time

from eval.pool import Died, spread


def work(task: str) -> str:
    if task == "dies afterwards":
        threading.Timer(0.2, os._exit, [9]).start()
    if task == "dies":
        os._exit(9)
    return task


def test_the_only_worker_may_die_too() -> None:
    found = dict(spread(work, [("first",), ("dies",), ("third",)], workers=1))
    assert isinstance(found.pop(1), Died)
    assert found == {0: "first", 2: "third"}


def test_a_worker_that_dies_between_two_tasks_costs_neither() -> None:
    """Its answer is there, and nobody is: who is handed the next task is another."""
    tasks = ["first", "dies afterwards", "third", "fourth", "dies", "sixth"]
    found = {}
    for place, result in spread(work, [(task,) for task in tasks], workers=2):
        found[place] = result
        time.sleep(0.5)
    assert isinstance(found.pop(4), Died)
    assert found == {place: task for place, task in enumerate(tasks) if place != 4}
