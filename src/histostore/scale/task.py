"""What is sent to a worker, and the steps of a slide between which it is sent."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from histostore.store.receipts import Receipt

type Steps[T] = Generator[list[Task], list[Any], T]
"""The work on one slide: it yields tasks, is sent their answers in the same order, and returns its result.

It runs in the client, holds the locks of the attempts it has begun, and gives them back however it ends.
"""


@dataclass(frozen=True, slots=True)
class Task:
    """One call of a function of `histostore.scale.work`. Pure: two starts of it do no more than one."""

    run: Callable[..., Any]
    args: tuple[Any, ...]
    what: str
    """For people: ``pixels 3``."""
    rows: int = 0
    """Tiles that it brings, for progress."""


@dataclass(frozen=True, slots=True)
class Context:
    """What every task of a run needs to know."""

    uri: str
    uuid: str
    """Of the store: the path must lead every worker to the same one."""
    run: str
    """A token: what a worker keeps between tasks, it keeps for one run."""
    versions: Mapping[str, str]
    """Of the client, which the worker must have too."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a task that writes shards hands back."""

    receipts: tuple[Receipt, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Where its time went."""
