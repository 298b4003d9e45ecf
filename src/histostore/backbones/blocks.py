"""Which parts of a network learn, and which stay as they are: any timm, torchvision or own network, cut into blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from histostore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONTAINERS = (nn.Sequential, nn.ModuleList)
MOST = 0.8
"""A child that holds more than this share of all weights is the trunk, and is cut too."""


class Block(NamedTuple):
    """One block in the order of the forward pass."""

    modules: tuple[str, ...]
    """Names of its modules; a normalisation belongs to the block before it."""
    loose: tuple[str, ...] = ()
    """Names of tensors that lie outside every module of a block (class token, positions): part of the first block."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.modules[0] or "the network"


def blocks_of(network: nn.Module) -> list[Block]:
    """Cut a network into blocks: its children in order, lists of children taken apart.

    A residual or transformer block is one block: ResNet-50 has 17 (stem and 16), a ViT-B 13. Children are taken in the
    order of registration, which is that of the forward pass in timm and torchvision.
    """
    total = _weights(network)
    groups: list[list[str]] = []
    for path, module in _parts(network, "", total):
        if not any(True for _ in module.state_dict()):
            continue
        if groups and _only_norms(module):
            groups[-1].append(path)
        else:
            groups.append([path])
    inside = [f"{path}." for group in groups for path in group]
    loose = tuple(k for k in network.state_dict() if not any(k.startswith(p) or p == "." for p in inside))
    return [Block(tuple(g), loose if i == 0 else ()) for i, g in enumerate(groups)]


def last_blocks(network: nn.Module, wanted: int | str, *, name: str) -> list[Block]:
    """Return the last blocks of a network, or all.

    Raises
    ------
    UsageError
        It has not so many.
    """
    found = blocks_of(network)
    if wanted == "all":
        return found
    if not isinstance(wanted, int) or not 1 <= wanted <= len(found):
        names = ", ".join(b.name for b in found[-3:])
        many = f"{len(found)} (the last are {names}); give 1-{len(found)} or 'all'"
        msg = f"blocks is {wanted!r}: backbone '{name}' has {many}"
        raise UsageError(msg)
    return found[-wanted:]


def unfreeze(network: nn.Module, blocks: Sequence[Block]) -> list[str]:
    """Let the parameters of some blocks learn and no others; return the state's tensors that may change."""
    network.eval().requires_grad_(False)
    parameters = dict(network.named_parameters())
    for block in blocks:
        for path in block.modules:
            network.get_submodule(path).requires_grad_(True)
        for key in block.loose:
            if key in parameters:
                parameters[key].requires_grad_(True)
    inside = tuple(f"{path}." if path else "" for block in blocks for path in block.modules)
    loose = {key for block in blocks for key in block.loose}
    return [k for k in network.state_dict() if k in loose or k.startswith(inside)]


def training_mode(network: nn.Module, blocks: Sequence[Block], *, frozen_statistics: bool) -> None:
    """Put some blocks in training mode and everything else in evaluation mode.

    Batch normalisation outside the blocks keeps its statistics, and inside them where `frozen_statistics`.
    """
    network.eval()
    for block in blocks:
        for path in block.modules:
            network.get_submodule(path).train()
    if frozen_statistics:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _parts(module: nn.Module, prefix: str, total: int) -> Iterator[tuple[str, nn.Module]]:
    children = [(n, c) for n, c in module.named_children() if any(True for _ in c.state_dict())]
    if not children:
        yield prefix, module
        return
    for name, child in children:
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, CONTAINERS) or _weights(child) > MOST * total:
            yield from _parts(child, path, total)
        else:
            yield path, child


def _weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _only_norms(module: nn.Module) -> bool:
    owners = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    return bool(owners) and all("norm" in type(m).__name__.lower() for m in owners)
