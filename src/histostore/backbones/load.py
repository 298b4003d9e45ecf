"""A name in, a backbone out. Light: what is heavy is imported when a name asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from histostore.backbones import catalog
from histostore.backbones.access import check_access
from histostore.backbones.engines import Engine, check_engine, device_for, with_engine
from histostore.backbones.names import TESTING, ParsedName, parse
from histostore.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.backbones.records import ModelRecord
    from histostore.protocols import Backbone


def load_backbone(
    name: str,
    *,
    device: str = "auto",
    threads: int | None = None,
    dihedral: bool = False,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    checkpoint: Path | None = None,
    allow_pickle: bool = False,
    engine: Engine = "torch",
    compile_with: str | None = None,
) -> Backbone:
    """Load a backbone with its weights and preprocessing.

    Parameters
    ----------
    name
        A catalogue name (``efficientnet_lite0``, ``uni2-h``), ``timm/resnet50.a1_in1k``,
        ``torchvision/resnet50.IMAGENET1K_V2``, ``file:WEIGHTS.safetensors#timm/resnet50``,
        ``package.module:callable``, an entry point of the group ``histostore.backbones``, or ``testing``.
        ``NAME@random:SEED`` gives the network with random weights of that seed.
    device
        ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
    threads
        CPU threads of a forward pass; None keeps torch's number.
    dihedral
        Average over the eight symmetries of the square (eight forward passes).
    precision
        Of the forward pass on CUDA; float32 elsewhere.
    checkpoint
        Weights to use instead of the model's own; tensors must fit by name and shape.
    allow_pickle
        Accept a checkpoint that torch pickled (tensors only, code is refused all the same).
    engine
        ``torch``, or ``openvino``: several times as fast for small networks on a CPU, with rows that differ from
        torch's by rounding; the difference is measured when it is loaded.
    compile_with
        A backend of ``torch.compile`` (``inductor``, ``cudagraphs``), for long runs on CUDA; part of the engine.

    Raises
    ------
    NotFoundError
        Nobody knows that name; near names are given.
    MissingDependencyError
        A package, a licence, a token or the network is missing; the text says what to do.
    DataError, UsageError
        The checkpoint does not fit, holds NaN, or is a pickle that was not allowed.
    """
    parsed = _parsed(name, checkpoint)
    check_engine(engine, device=device, precision=precision, compile_with=compile_with)
    backbone = _load(
        parsed, name, device=device_for(engine, device), threads=threads, precision=precision,
        allow_pickle=allow_pickle, compile_with=compile_with,
    )  # fmt: skip
    return finished(backbone, engine=engine, dihedral=dihedral)


def finished(backbone: Backbone, *, engine: Engine, dihedral: bool) -> Backbone:
    """Return a loaded backbone on the engine that was asked for, averaged over the symmetries if wanted."""
    backbone = with_engine(backbone, engine)
    if not dihedral:
        return backbone
    from histostore.backbones.dihedral import DihedralBackbone

    return DihedralBackbone(backbone)


def preflight(name: str) -> None:
    """Raise the error that `load_backbone` would raise for want of a package, a licence, a token or a network.

    Nothing is loaded or downloaded; takes seconds at most.
    """
    parsed = parse(name)
    if parsed.model == TESTING or parsed.seed is not None or parsed.checkpoint is not None or _is_own(parsed):
        return
    check_access(_record(parsed))


def _load(
    parsed: ParsedName,
    name: str,
    *,
    device: str,
    threads: int | None,
    precision: Literal["auto", "float32", "bfloat16", "float16"],
    allow_pickle: bool,
    compile_with: str | None,
) -> Backbone:
    if parsed.model == TESTING:
        from histostore.backbones.testing_backbone import TestingBackbone

        _no_weights(parsed, name)
        return TestingBackbone(delay_s=parsed.delay_s)
    if _is_own(parsed):
        from histostore.backbones.own import OwnNetwork, make

        _no_weights(parsed, name)
        made = make(parsed.model)
        if not isinstance(made, OwnNetwork):
            return made
        from histostore.backbones.torch_loader import load_own

        return load_own(made, device=device, threads=threads, precision=precision, compile_with=compile_with)
    record = _record(parsed)
    if parsed.seed is None and parsed.checkpoint is None:
        check_access(record)  # before torch is imported: a gated model says so at once
    from histostore.backbones.torch_loader import load

    return load(
        record,
        seed=parsed.seed,
        checkpoint=parsed.checkpoint,
        allow_pickle=allow_pickle,
        device=device,
        threads=threads,
        precision=precision,
        compile_with=compile_with,
    )


def _parsed(name: str, checkpoint: Path | None) -> ParsedName:
    parsed = parse(name)
    if checkpoint is None:
        return parsed
    if parsed.checkpoint is not None or parsed.seed is not None:
        msg = f"backbone '{name}' names its weights already: leave out checkpoint"
        raise UsageError(msg)
    return ParsedName(model=parsed.model, checkpoint=checkpoint)


def _no_weights(parsed: ParsedName, name: str) -> None:
    if parsed.checkpoint is not None or parsed.seed is not None:
        msg = f"backbone '{name}' brings its own weights: no checkpoint, no @random"
        raise UsageError(msg)


def _is_own(parsed: ParsedName) -> bool:
    return parsed.is_own or (catalog.find(parsed.model) is None and parsed.model in catalog.entry_points())


def _record(parsed: ParsedName) -> ModelRecord:
    if record := catalog.find(parsed.model):
        return record
    if parsed.library is None:
        raise catalog.not_known(parsed.model)
    from histostore.backbones.torch_loader import record_of

    return record_of(parsed.library, parsed.model.partition("/")[2])
