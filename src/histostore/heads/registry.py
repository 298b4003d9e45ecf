"""Heads by name: the package's own, and those that other packages offer under the entry point ``histostore.heads``."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from histostore.errors import NotFoundError, UsageError, near

if TYPE_CHECKING:
    from collections.abc import Iterable

    from histostore.protocols import Head

ENTRY_POINT = "histostore.heads"

_OWN = {
    "ridge": "histostore.heads.ridge:Ridge",
    "mean": "histostore.heads.baselines:TrainingMean",
    "pls": "histostore.heads.pls:PLS",
    "reduced-rank-ridge": "histostore.heads.reduced_rank:ReducedRankRidge",
    "mlp": "histostore.heads.mlp:MLP",
    "knn": "histostore.heads.knn:KNN",
    "decoded": "histostore.heads.decoded:Decoded",
    "position-knn": "histostore.heads.baselines:PositionKNN",
    "renn": "histostore.heads.mixed.renn:RENN",
    "attention": "histostore.heads.attention:AttentionPool",
    "hest": "histostore.heads.pca_ridge:PCARidge",
    "logistic": "histostore.heads.classifier:Logistic",
    "mlp-classifier": "histostore.heads.mlp_classifier:MLPClassifier",
}
"""Names and where they live: imported when asked for."""


def names() -> list[str]:
    """Return the names of all heads that can be made here, sorted."""
    return sorted({*_OWN, *(e.name for e in entry_points(group=ENTRY_POINT))})


def head_class(name: str) -> type[Head]:
    """Return the estimator class of a name; own names come before those of other packages.

    Raises
    ------
    NotFoundError
        With near names.
    """
    if name in _OWN:
        module, _, attribute = _OWN[name].partition(":")
        found: type[Head] = getattr(import_module(module), attribute)
        return found
    for entry in entry_points(group=ENTRY_POINT, name=name):
        loaded: type[Head] = entry.load()
        return loaded
    msg = f"no head '{name}' (there are {', '.join(names())}){near(name, names())}"
    raise NotFoundError(msg)


def check_task(name: str, task: str) -> None:
    """Refuse a classifier for numbers, and the other way round."""
    classifies = hasattr(head_class(name), "predict_proba")
    if classifies != (task == "labels"):
        kind, other = ("classes", "numbers") if classifies else ("numbers", "classes")
        right = [n for n in sorted(_OWN) if hasattr(head_class(n), "predict_proba") != classifies]
        msg = f"head '{name}' predicts {kind} and {other} are asked for: use {', '.join(right)}"
        raise UsageError(msg)


def name_of(head: Head) -> str:
    """Return the name under which a head of this class can be made again.

    Raises
    ------
    NotFoundError
        Its class is not registered.
    """
    home = f"{type(head).__module__}:{type(head).__qualname__}"
    for name, own in _OWN.items():
        # by name: comparing classes would import every head's library
        if own == home:
            return name
    for entry in entry_points(group=ENTRY_POINT):
        if entry.name not in _OWN and entry.load() is type(head):
            return str(entry.name)
    msg = f"{type(head).__name__} is no registered head (there are {', '.join(names())}); offer it as an entry point"
    raise NotFoundError(msg)


def make(name: str, options: Iterable[tuple[str, Any]] = (), *, seed: int | None = None) -> Head:
    """Return an unfitted head.

    Parameters
    ----------
    name
        One of `names`.
    options
        Constructor arguments; an unknown one is a `UsageError` with near names.
    seed
        Given to heads that have a ``seed`` and were not given one.
    """
    found = head_class(name)
    known = tuple(found().get_params())
    given = dict(options)
    for key in given:
        if key not in known:
            msg = f"head '{name}' has no option '{key}' (it has {', '.join(known) or 'none'}){near(key, known)}"
            raise UsageError(msg)
    if seed is not None and "seed" in known:
        given.setdefault("seed", seed)
    return found(**given)


def parse_options(texts: Iterable[str]) -> tuple[tuple[str, Any], ...]:
    """Return the options that command-line texts like ``alphas=1e3,1e4`` or ``scale=none`` mean.

    Numbers, ``true``, ``false`` and ``null`` are read as such, commas make a tuple, anything else is text. Sorted by
    name, so that the order typed changes no digest.
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            msg = f"option '{text}' is not NAME=VALUE"
            raise UsageError(msg)
        if key in options:
            msg = f"option '{key}' is given twice"
            raise UsageError(msg)
        options[key] = tuple(_value(v) for v in value.split(",") if v.strip()) if "," in value else _value(value)
    return tuple(sorted(options.items()))


def _value(text: str) -> Any:
    text = text.strip()
    try:
        # NaN and Infinity are no JSON: they stay text, and the head refuses them
        value = json.loads(text, parse_constant=str)
    except ValueError:
        return text
    return value if value is None or isinstance(value, int | float | str) else text
