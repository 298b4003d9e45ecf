"""Tensors from files into networks, and what identifies them. Nothing is ever unpickled but tensors."""

from __future__ import annotations

import hashlib
import pickle
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from histostore.errors import CorruptionError, DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

type State = dict[str, Tensor]

_CONTAINERS = ("state_dict", "model", "teacher")
_LEAF = ".safetensors"


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_state(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors in order: name, dtype, shape and bytes of each."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{flat.dtype}|{tuple(flat.shape)}|".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_pinned(path: Path, expected: str | None) -> str:
    """Return the sha256 of a weights file, which must be (or begin with) the expected one where there is one."""
    found = sha256_of_file(path)
    if expected is not None and not found.startswith(expected):
        msg = f"{path.name}: sha256 is {found[:16]}…, expected {expected[:16]}…: {path} was changed, fetch it again"
        raise CorruptionError(msg)
    return found


def read_state(path: Path, *, allow_pickle: bool = False) -> State:
    """Read the tensors of a weights file.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or a file that torch saved.
    allow_pickle
        Accept a file that torch saved (a pickle). Only tensors are taken from it even so: a file that would run
        code is refused in any case.

    Raises
    ------
    UsageError
        For a pickle that was not allowed.
    DataError
        For a file that is missing, cut short or holds no tensors.
    """
    if not path.is_file():
        msg = f"checkpoint {path}: no such file"
        raise DataError(msg)
    if path.suffix == _LEAF:
        return _read_safetensors(path)
    if not allow_pickle:
        msg = (
            f"checkpoint {path.name} is a pickle ({path.suffix or 'no suffix'}), which can carry code: convert it to "
            "safetensors, or allow it with allow_pickle=True (--allow-pickle) if you trust its source"
        )
        raise UsageError(msg)
    return _read_torch(path)


def _read_safetensors(path: Path) -> State:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        msg = f"checkpoint {path.name} is not a whole safetensors file: {error}"
        raise DataError(msg) from None


def _read_torch(path: Path) -> State:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        msg = f"checkpoint {path.name} holds more than tensors, or is cut short: {reason[:160]}"
        raise DataError(msg) from None
    return _tensors_of(value, path)


def _tensors_of(value: Any, path: Path) -> State:
    if isinstance(value, dict):
        for key in _CONTAINERS:
            if isinstance(value.get(key), dict):
                value = value[key]
                break
        tensors = {str(k): v for k, v in value.items() if isinstance(v, torch.Tensor)}
        if tensors and len(tensors) == len(value):
            prefixed = all(k.startswith("module.") for k in tensors)
            return {k.removeprefix("module.") if prefixed else k: v for k, v in tensors.items()}
    msg = f"checkpoint {path.name}: expected a state dict of named tensors, got {type(value).__name__}"
    raise DataError(msg)


def load_named(network: nn.Module, state: State, *, where: str, head: Sequence[str] = ()) -> None:
    """Put tensors into a network by name; every one of the network's must be there, with its shape.

    Parameters
    ----------
    head
        Names or prefixes of classifier tensors, which a feature extractor does not have: left out.
    """
    own = network.state_dict()
    state = {k: v for k, v in state.items() if k in own or not _is_head(k, head)}
    missing = [k for k in own if k not in state]
    if missing:
        msg = (
            f"{where}: {len(missing)} of the network's {len(own)} tensors are missing, first '{missing[0]}': "
            "is it a checkpoint of this architecture?"
        )
        raise DataError(msg)
    extra = [k for k in state if k not in own]
    if extra:
        msg = f"{where}: {len(extra)} tensors have no place in the network, first '{extra[0]}'"
        raise DataError(msg)
    _check_shapes(own, state, where)
    network.load_state_dict(state)
    check_finite(network, where=where)


def load_ordered(network: nn.Module, state: State, *, where: str) -> None:
    """Put tensors into a network by position: for files with another library's names and the same order.

    The file may hold a classifier's weight and bias behind the network's own tensors.
    """
    own = network.state_dict()
    if len(state) - len(own) not in (0, 2):
        msg = f"{where}: {len(state)} tensors, the network has {len(own)}"
        raise DataError(msg)
    pairs = list(zip(own, state, strict=False))
    for mine, theirs in pairs:
        if mine.rpartition(".")[2] != theirs.rpartition(".")[2]:
            msg = f"{where}: tensor '{theirs}' stands where '{mine}' is due"
            raise DataError(msg)
    renamed = {mine: state[theirs] for mine, theirs in pairs}
    load_named(network, renamed, where=where)


def check_finite(network: nn.Module, *, where: str) -> None:
    """Refuse weights with NaN or infinity: they load silently and poison every embedding."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            msg = f"{where}: tensor '{name}' has {bad} values that are NaN or infinite"
            raise DataError(msg)


def dinov2_to_timm(state: State) -> State:
    """Rename the tensors of Hugging Face's Dinov2 class to those of timm's vision transformer.

    Query, key and value are joined into one matrix; the mask token, used in training only, is left out. On random
    weights the renamed network gave the same bytes as transformers 5.23's own class.
    """
    out: State = {}
    for name, tensor in state.items():
        if name.endswith("mask_token") or ".attention.attention.key." in name or ".attention.attention.value." in name:
            continue
        if ".attention.attention.query." in name:
            siblings = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if missing := [n for n in siblings if n not in state]:
                msg = f"checkpoint has '{name}' and lacks '{missing[0]}'"
                raise DataError(msg)
            parts = [state[n] for n in siblings]
            out[_dinov2_name(name).replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
        else:
            out[_dinov2_name(name)] = tensor
    return out


_DINOV2 = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."),
    ("attention.output.dense", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm.", "norm."),
)


def _dinov2_name(name: str) -> str:
    name = name.removeprefix("dinov2.")
    for theirs, ours in _DINOV2:
        name = name.replace(theirs, ours)
    return name


def _is_head(name: str, head: Sequence[str]) -> bool:
    return any(name == h or name.startswith(f"{h}.") for h in head)


def _check_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in own.items():
        got, wanted = tuple(state[name].shape), tuple(tensor.shape)
        if got != wanted:
            msg = f"{where}: tensor '{name}' is {got}, the network wants {wanted}"
            raise DataError(msg)
