"""How several processes work on one clip: each on a slice of every stream's tokens, attention looking at all of them.

The model asks through this protocol and knows of no process; who builds it for many of them gives it theirs
(avgen/train/parallel.py). Everything that is not a token - levels, captions, masks - is whole everywhere.

Shape letters: B samples, N tokens of a stream, n of them here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from avgen.types import Stream

Everyone = Callable[[Tensor], Tensor]  # (B, n, ...) of the tokens here -> (B, N, ...) of all, with gradient


class Sharing(Protocol):
    def mine(self, x: Tensor) -> Tensor:
        """(B, N, ...) -> (B, n, ...): the tokens here, with zeros behind them where N does not divide."""
        ...

    def everyone(self, tokens: int) -> Everyone:
        """Back to all N = `tokens`, without those zeros."""
        ...


class Alone:
    """Nobody to share with."""

    def mine(self, x: Tensor) -> Tensor:
        return x

    def everyone(self, tokens: int) -> Everyone:
        return unchanged


def unchanged(x: Tensor) -> Tensor:
    return x


def part(stream: Stream, sharing: Sharing) -> Stream:
    """The stream's tokens here; its levels and extent are those of the whole sample."""
    names = ("x", "time", "slot", "weight", "place", "valid")
    mine: dict[str, Any] = {name: sharing.mine(v) for name in names if (v := getattr(stream, name)) is not None}
    return replace(stream, **mine)
