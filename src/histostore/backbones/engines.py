"""What a network runs on: torch, or an engine that it is converted for. Light: nothing heavy is imported here."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from histostore.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from histostore.protocols import Backbone
    from histostore.specs import BackboneSpec

type Engine = Literal["torch", "openvino"]

ENGINES: tuple[Engine, ...] = ("torch", "openvino")
SUFFIX = "+openvino"
_SOURCE = "openvino:"


def converted_spec(spec: BackboneSpec) -> BackboneSpec:
    """Return the identity of a network that OpenVINO runs: a digest and a name of its own, with ``+openvino``.

    Its embeddings are so never taken for torch's, nor joined with them: not in a view, a head or an index.
    """
    return replace(spec, name=spec.name + SUFFIX, source=_SOURCE + spec.source)


def network_digest(spec: BackboneSpec) -> str:
    """Return the digest that a backbone has on torch, whatever it runs on."""
    return replace(spec, source=spec.source.removeprefix(_SOURCE)).digest


def with_engine(backbone: Backbone, engine: Engine) -> Backbone:
    """Return a loaded backbone on another engine.

    Raises
    ------
    UsageError
        There is no such engine, or the backbone is no torch network.
    MissingDependencyError
        The engine's package is not installed.
    """
    if engine == "torch":
        return backbone
    from histostore.backbones.torch_backbone import TorchBackbone

    if not isinstance(backbone, TorchBackbone):
        msg = f"backbone '{backbone.spec.name}' is no torch network: engine {engine} cannot run it, leave it out"
        raise UsageError(msg)
    from histostore.backbones.openvino_backbone import OpenVinoBackbone

    return OpenVinoBackbone(backbone)


def device_for(engine: Engine, device: str) -> str:
    """Return the device that a network is loaded on for an engine: OpenVINO converts it on the CPU."""
    return device if engine == "torch" else "cpu"


def check_engine(engine: str, *, device: str, precision: str, compile_with: str | None) -> None:
    """Refuse an engine before anything is loaded, where it is not known, not installed or asked for what it has not.

    Raises
    ------
    UsageError, MissingDependencyError
        Which of these.
    """
    if engine not in ENGINES:
        msg = f"engine is '{engine}': use {' or '.join(ENGINES)}"
        raise UsageError(msg)
    if engine == "torch":
        return
    if device not in ("auto", "cpu") or precision not in ("auto", "float32") or compile_with is not None:
        msg = "engine openvino runs on the CPU in float32: leave out device, precision and compile"
        raise UsageError(msg)
    if importlib.util.find_spec("openvino") is None:
        msg = "engine openvino needs the package openvino: pip install 'histostore[openvino]'"
        raise MissingDependencyError(msg)
