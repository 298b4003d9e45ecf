"""Records to running torch backbones: find the weights, check them, say what they are."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from histostore.backbones import networks, weights
from histostore.backbones.download import fetch
from histostore.backbones.own import OwnNetwork, make
from histostore.backbones.records import ModelRecord
from histostore.backbones.torch_backbone import TorchBackbone
from histostore.errors import CorruptionError, SpecMismatchError, UsageError
from histostore.specs import BackboneSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from histostore.backbones.torch_backbone import Precision

_POOLINGS = ("model", "cls", "mean", "cls+mean")


def record_of(library: str, name: str) -> ModelRecord:
    """Return the record of any ``timm`` or ``torchvision`` model."""
    return networks.timm_record(name) if library == "timm" else networks.torchvision_record(name)


def load(
    record: ModelRecord,
    *,
    seed: int | None = None,
    checkpoint: Path | None = None,
    allow_pickle: bool = False,
    device: str = "auto",
    threads: int | None = None,
    precision: Precision = "auto",
    compile_with: str | None = None,
) -> TorchBackbone:
    """Load a record's network with its own weights, a local checkpoint's, or random ones."""
    if seed is not None:
        network = networks.bare(record, seed=seed)
        sha256 = weights.sha256_of_state(network.module.state_dict())
        record = dataclasses.replace(record, name=f"{record.name}-random{seed}", source=_bare_source(record, seed))
    elif checkpoint is not None:
        network = _from_checkpoint(record, checkpoint, allow_pickle=allow_pickle)
        sha256 = weights.sha256_of_file(checkpoint)
        record = _of_checkpoint(record, checkpoint)
    else:
        path = fetch(record)
        sha256 = weights.check_pinned(path, record.sha256 or _named_prefix(record))
        network = _from_own_source(record, path)
    dim = network.dim * (2 if record.pooling == "cls+mean" else 1)
    if record.dim not in (0, dim):
        msg = f"backbone '{record.name}': the network gives {dim} values, its record says {record.dim}"
        raise SpecMismatchError(msg)
    spec = BackboneSpec(
        name=record.name,
        source=record.source,
        weights_sha256=sha256,
        dim=dim,
        input_px=record.input_px,
        mean=record.mean,
        std=record.std,
        interpolation=record.interpolation,
        pooling=record.pooling,
        mpp=record.mpp,
        licence=record.licence,
    )
    return TorchBackbone(
        network.module, spec, device=device, threads=threads, precision=precision, rebuild=_recipe(record),
        compile_with=compile_with,
    )  # fmt: skip


def rebuilt(
    recipe: Mapping[str, Any],
    state: weights.State,
    spec: BackboneSpec,
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: Precision = "auto",
    compile_with: str | None = None,
) -> TorchBackbone:
    """Make the network of `TorchBackbone.rebuild` anew and put tensors into it, each by its name.

    Raises
    ------
    DataError
        A tensor is missing, of another shape or not finite.
    CorruptionError
        The tensors are not those that `spec` pins.
    """
    if "module" in recipe:
        made = make(str(recipe["module"]))
        if not isinstance(made, OwnNetwork):
            msg = f"backbone '{spec.name}': {recipe['module']} no longer gives a network; restore its old version"
            raise SpecMismatchError(msg)
        network = made.network
    else:
        options = tuple((str(k), v) for k, v in recipe.get("options", ()))
        network = networks.bare(
            ModelRecord(
                name=spec.name, source=spec.source, dim=spec.dim, arch=str(recipe["arch"]), arch_options=options
            )
        ).module
    weights.load_named(network, state, where=f"backbone '{spec.name}'")
    found = weights.sha256_of_state(network.state_dict())
    if found != spec.weights_sha256:
        msg = f"backbone '{spec.name}': its weights have sha256 {found[:16]}…, its record {spec.weights_sha256[:16]}…"
        raise CorruptionError(msg)
    return TorchBackbone(
        network, spec, device=device, threads=threads, precision=precision, rebuild=recipe, compile_with=compile_with
    )


def _recipe(record: ModelRecord) -> dict[str, Any] | None:
    library = record.arch.partition("/")[0]
    if library not in ("timm", "torchvision"):
        return None  # comes with its weights only
    return {"arch": record.arch, "options": [list(o) for o in record.arch_options]}


def load_own(
    own: OwnNetwork,
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: Precision = "auto",
    compile_with: str | None = None,
) -> TorchBackbone:
    """Wrap a user's network; its width is measured where its record does not say it."""
    if not isinstance(own.network, nn.Module):
        msg = f"backbone '{own.source}' gave {type(own.network).__name__}, not a torch.nn.Module"
        raise UsageError(msg)
    record = own.record
    if record["pooling"] not in _POOLINGS:
        msg = f"backbone '{own.source}': pooling is '{record['pooling']}', not one of {', '.join(_POOLINGS)}"
        raise UsageError(msg)
    where = f"backbone '{own.source}'"
    weights.check_finite(own.network, where=where)
    fields = {k: record[k] for k in ("input_px", "interpolation", "pooling", "mpp", "licence")}
    spec = BackboneSpec(
        name=record["name"],
        source=own.source,
        weights_sha256=weights.sha256_of_state(own.network.state_dict()),
        dim=record["dim"] or _measured_dim(own.network, record["input_px"], record["pooling"], where),
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
        **fields,
    )
    recipe = {"module": own.source.removeprefix("module:").partition("@")[0]}
    return TorchBackbone(
        own.network, spec, device=device, threads=threads, precision=precision, rebuild=recipe,
        compile_with=compile_with,
    )  # fmt: skip


def _named_prefix(record: ModelRecord) -> str | None:
    """Return the first digits of the sha256 that torchvision puts into its files' names."""
    match = re.fullmatch(r".+-([0-9a-f]{8,})\.pth", record.file or "")
    return match[1] if match and record.source.startswith("torchvision:") else None


def _from_own_source(record: ModelRecord, path: Path) -> networks.Network:
    """Load the file that the record itself names: pinned or from its own publisher, so read even if pickled."""
    if record.arch.startswith("conch/"):
        return networks.from_own_package(record, path)
    if record.package or record.source.startswith("hub:"):
        return _fill(record, weights.read_state(path, allow_pickle=True), where=path.name)
    network = networks.pretrained(record, path)
    weights.check_finite(network.module, where=path.name)
    return network


def _from_checkpoint(record: ModelRecord, path: Path, *, allow_pickle: bool) -> networks.Network:
    if record.arch.startswith("conch/"):
        weights.read_state(path, allow_pickle=allow_pickle)
        return networks.from_own_package(record, path)
    state = weights.read_state(path, allow_pickle=allow_pickle)
    return _fill(record, state, where=f"checkpoint {path.name}")


def _fill(record: ModelRecord, state: weights.State, *, where: str) -> networks.Network:
    network = networks.bare(record)
    if record.layout == "ordered":
        weights.load_ordered(network.module, state, where=where)
        return network
    state = weights.dinov2_to_timm(state) if record.layout == "dinov2" else state
    weights.load_named(network.module, state, where=where, head=network.head)
    return network


def _bare_source(record: ModelRecord, seed: int) -> str:
    library, _, name = record.arch.partition("/")
    # which published weights the name would have had does not matter here
    return f"{library}:{name.partition('.')[0]}@random:{seed}"


def _of_checkpoint(record: ModelRecord, path: Path) -> ModelRecord:
    if record.source.startswith("hub:"):
        return record  # a local copy of the published weights: same bytes, same digest
    name = re.sub(r"[^A-Za-z0-9._+@-]", "_", path.stem).strip(".")[:60] or record.name
    # where the file lies is no part of what it is: its sha256 is
    source = f"file:{record.arch.partition('.')[0]}"
    return dataclasses.replace(record, name=name, source=source, licence=None, mpp=None)


def _measured_dim(network: nn.Module, edge: int, pooling: str, where: str) -> int:
    probe = torch.zeros(1, 3, edge, edge)
    with torch.inference_mode():
        network.eval()
        out = network(probe) if pooling == "model" else network.forward_features(probe)  # type: ignore[operator]
    shape = tuple(getattr(out, "shape", ()))
    wanted = 2 if pooling == "model" else 3
    if len(shape) != wanted:
        expected = "(b, dim)" if wanted == 2 else "(b, tokens, dim)"
        msg = f"{where}: its output is {shape or type(out).__name__}, expected {expected}"
        raise UsageError(msg)
    return int(shape[-1]) * (2 if pooling == "cls+mean" else 1)
