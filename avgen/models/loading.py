"""Networks are loaded by the libraries that know them; their errors become one line that says what is wrong where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from avgen.config import ConfigError


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Of a folder that is not there, a download cut short, a broken config.json."""
    try:
        yield
    except (OSError, json.JSONDecodeError, ConfigError) as refused:
        reason = next(iter(str(refused).strip().splitlines()), type(refused).__name__)
        raise ValueError(f"{what} cannot be loaded: {reason}") from refused
