"""Networks without their classifier, from timm and torchvision, with or without weights."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import timm
import timm.layers
import torch
import torchvision
from torch import nn

from histostore.backbones.records import ModelRecord
from histostore.errors import MissingDependencyError, NotFoundError, UsageError, near

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.backbones.records import Option

VERSIONS = {"timm": timm.__version__, "torchvision": torchvision.__version__}


class Network(NamedTuple):
    """A feature extractor and the names of the classifier tensors it does without."""

    module: nn.Module
    head: tuple[str, ...]
    dim: int


def timm_record(name: str) -> ModelRecord:
    """Return the record of any timm model, ``NAME`` or ``NAME.TAG``; its own default weights without a tag."""
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        msg = f"timm has no model '{arch}'{near(arch, timm.list_models())}"
        raise NotFoundError(msg)
    tagged = timm.list_models(f"{arch}.*", pretrained=True)
    if tag and name not in tagged:
        msg = f"timm's {arch} has no weights '{tag}'; there are: {', '.join(tagged) or 'none'}"
        raise NotFoundError(msg)
    config = timm.get_pretrained_cfg(name)
    if config is None:
        msg = f"timm keeps no preprocessing for '{name}': use package.module:callable and say it there"
        raise NotFoundError(msg)
    channels, height, width = config.input_size
    if channels != 3 or height != width:
        msg = f"timm's {name} takes {channels} x {height} x {width} images: histology tiles are square RGB"
        raise UsageError(msg)
    tag = tag or config.tag or ""
    return ModelRecord(
        name=arch,
        source=f"timm:{arch}.{tag}" if tag else f"timm:{arch}",
        dim=0,
        input_px=height,
        licence=config.license,
        url=f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else (config.origin_url or ""),
        paper=str(config.paper_ids or ""),
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        arch=f"timm/{arch}.{tag}" if tag else f"timm/{arch}",
        repo=config.hf_hub_id,
        file=(config.hf_hub_filename or "model.safetensors") if config.hf_hub_id else None,
    )


def torchvision_record(name: str) -> ModelRecord:
    """Return the record of any torchvision classifier, ``NAME`` or ``NAME.WEIGHTS`` (its default without)."""
    arch, _, tag = name.partition(".")
    classifiers = torchvision.models.list_models(module=torchvision.models)
    if arch not in classifiers:
        msg = f"torchvision has no classifier '{arch}'{near(arch, classifiers)}"
        raise NotFoundError(msg)
    offered = torchvision.models.get_model_weights(arch)
    if tag and tag not in offered.__members__:
        msg = f"torchvision's {arch} has no weights '{tag}'; there are: {', '.join(offered.__members__)}"
        raise NotFoundError(msg)
    weights = offered[tag] if tag else offered.DEFAULT
    shown = weights.transforms()
    return ModelRecord(
        name=arch,
        source=f"torchvision:{arch}.{weights.name}",
        dim=0,
        input_px=int(shown.crop_size[0]),
        licence=weights.meta.get("license") or "BSD-3-Clause (torchvision; ImageNet's own terms apply to the images)",
        url=str(weights.meta.get("recipe", "")),
        mean=tuple(shown.mean),
        std=tuple(shown.std),
        interpolation="bicubic" if shown.interpolation.value == "bicubic" else "bilinear",
        arch=f"torchvision/{arch}.{weights.name}",
        file=weights.url.rsplit("/", 1)[-1],
    )


def bare(record: ModelRecord, *, seed: int | None = None) -> Network:
    """Return a record's network with fresh weights: those of `seed`, where one is given.

    The state of torch's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if seed is None else seed)
        library, _, name = record.arch.partition("/")
        if library == "timm":
            return _bare_timm(name, dict(record.arch_options))
        if library == "torchvision":
            return _bare_torchvision(name)
    msg = f"the network '{record.arch}' of {record.name} comes with its weights only"
    raise UsageError(msg)


def pretrained(record: ModelRecord, path: Path) -> Network:
    """Return a timm or torchvision network with the weights that its own library keeps in `path`.

    Their loaders know the renamed and re-cut tensors of old files, so they are used for files from their own
    sources; other files go through `histostore.backbones.weights`.
    """
    library, _, name = record.arch.partition("/")
    if library == "timm":
        overlay = {"file": str(path), "hf_hub_id": None, "url": None}
        module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
        return Network(module, _timm_head(module), _timm_dim(module))
    arch, _, tag = name.partition(".")
    module = torchvision.models.get_model(arch, weights=tag, progress=False)
    return _behead(module, arch)


def from_own_package(record: ModelRecord, path: Path) -> Network:
    """Return the image tower of CONCH through its authors' package."""
    try:
        library = importlib.import_module("conch.open_clip_custom")
    except ImportError:
        msg = f"backbone '{record.name}' needs the package {record.package}: {record.install}"
        raise MissingDependencyError(msg) from None
    model = library.create_model_from_pretrained(record.arch.partition("/")[2], str(path), return_transform=False)
    return Network(_ImageTower(model), (), record.dim)


class _ImageTower(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.model.encode_image(x, proj_contrast=False, normalize=False)  # type: ignore[operator]
        return features


def _bare_timm(name: str, options: dict[str, Option]) -> Network:
    arguments: dict[str, Any] = dict(options)
    if isinstance(layer := arguments.get("mlp_layer"), str):
        arguments["mlp_layer"] = getattr(timm.layers, layer)
    module = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    return Network(module, _timm_head(module), _timm_dim(module))


def _timm_dim(module: Any) -> int:
    # what the head-less forward gives is wider than num_features where a model ends in a projection
    return int(getattr(module, "head_hidden_size", None) or module.num_features)


def _timm_head(module: Any) -> tuple[str, ...]:
    head = module.pretrained_cfg.get("classifier") or ()
    return (head,) if isinstance(head, str) else tuple(head)


def _bare_torchvision(name: str) -> Network:
    arch = name.partition(".")[0]
    # these two warn unless told how to initialise; both read their input differently with their own weights
    extra = {"init_weights": True, "transform_input": True} if arch in ("inception_v3", "googlenet") else {}
    return _behead(torchvision.models.get_model(arch, weights=None, **extra), arch)


def _behead(module: nn.Module, arch: str) -> Network:
    """Replace the last linear layer of a classifier by nothing."""
    top, last = list(module.named_children())[-1]
    inside = {f"{top}.{n}".rstrip("."): m for n, m in last.named_modules() if isinstance(m, nn.Linear)}
    if not inside:
        msg = f"torchvision's {arch} does not end in a linear classifier: use a timm model instead"
        raise UsageError(msg)
    path, linear = list(inside.items())[-1]
    module.set_submodule(path, nn.Identity())
    auxiliary = [n for n, _ in module.named_children() if re.fullmatch(r"(?i)aux\w*", n)]
    for name in auxiliary:  # extra classifiers for training
        module.set_submodule(name, nn.Identity())
    return Network(module, (path, *auxiliary), linear.in_features)
