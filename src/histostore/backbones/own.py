"""Your own network as a backbone: ``package.module:callable`` or an entry point."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histostore.backbones.catalog import entry_points
from histostore.backbones.records import IMAGENET_MEAN, IMAGENET_STD
from histostore.errors import NotFoundError, UsageError, near

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from histostore.protocols import Backbone

_DEFAULTS: dict[str, Any] = {
    "name": None,
    "version": None,
    "dim": 0,
    "input_px": 224,
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "interpolation": "bicubic",
    "pooling": "model",
    "mpp": None,
    "licence": None,
}
"""What a record dict may say of a network, and what counts where it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnNetwork:
    """A network and its record, with every field filled in."""

    network: Any
    record: Mapping[str, Any]
    source: str


def make(name: str) -> Backbone | OwnNetwork:
    """Call ``package.module:callable`` or the entry point `name` without arguments and check what it gives.

    It gives an object with ``spec``, ``engine`` and ``embed``, or a ``(torch.nn.Module, record)`` pair. The record's
    keys are name, version, dim, input_px, mean, std, interpolation, pooling, mpp and licence, all optional. The
    weights are hashed; code is not, so change ``version`` when the same weights are used differently.
    """
    made = _called(_factory(name), name)
    if all(hasattr(made, part) for part in ("spec", "engine", "embed")):
        backbone: Backbone = made
        return backbone
    network, record = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not (callable(network) and hasattr(network, "state_dict") and isinstance(record, dict)):
        msg = (
            f"backbone '{name}' gave {type(made).__name__}: return an object with spec, engine and embed, "
            "or (torch.nn.Module, record dict)"
        )
        raise UsageError(msg)
    for key in record:
        if key not in _DEFAULTS:
            msg = f"backbone '{name}': its record has an unknown field '{key}'{near(key, _DEFAULTS)}"
            raise UsageError(msg)
    filled = {**_DEFAULTS, **record}
    filled["name"] = filled["name"] or name.rpartition(":")[2].rpartition(".")[2]
    version = f"@{filled['version']}" if filled["version"] else ""
    return OwnNetwork(network=network, record=filled, source=f"module:{name}{version}")


def _called(factory: Callable[[], Any], name: str) -> Any:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        msg = f"backbone '{name}' is called without arguments: {error}"
        raise UsageError(msg) from None
    except ValueError:
        pass  # some built-in callables tell no signature
    return factory()


def _factory(name: str) -> Callable[[], Any]:
    offered = entry_points()
    if name in offered:
        factory: Callable[[], Any] = offered[name].load()
        return factory
    module_name, _, path = name.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            msg = f"backbone '{name}': there is no module '{error.name}' on the import path"
            raise NotFoundError(msg) from None
        raise
    for part in path.split("."):
        if not hasattr(value, part):
            msg = f"backbone '{name}': {module_name} has no '{part}'{near(part, dir(value))}"
            raise NotFoundError(msg)
        value = getattr(value, part)
    if not callable(value):
        msg = f"backbone '{name}' is a {type(value).__name__}: name a function or class that makes the backbone"
        raise UsageError(msg)
    made: Callable[[], Any] = value
    return made
