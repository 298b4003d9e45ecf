"""A backbone learns on: the network, the head on top of it and the loop. Arrays in, a network and its curves out."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from histostore.backbones.augment import augmented, draw
from histostore.backbones.blocks import Block, last_blocks, training_mode, unfreeze
from histostore.backbones.finetune_task import Task, head_of
from histostore.backbones.torch_backbone import torch_threads
from histostore.errors import DataError, UsageError
from histostore.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.backbones.finetune_spec import FinetuneSpec
    from histostore.backbones.torch_backbone import TorchBackbone
    from histostore.progress import Progress

    type Rows = NDArray[np.int64]
    type Read = Callable[[Rows], NDArray[np.uint8]]
    type State = dict[str, torch.Tensor]


class Keeper(Protocol):
    """Where a run leaves its state after each epoch, whole or not at all."""

    def load(self) -> bytes | None:
        """Return what was saved last, None where nothing was."""
        ...

    def save(self, data: bytes) -> None:
        """Keep it in place of what was there."""
        ...


@dataclass(slots=True)
class Curves:
    """What happened, epoch by epoch."""

    train_loss: list[float] = field(default_factory=list)
    """Mean over the training tiles as they were varied, while the weights moved."""
    validation_loss: list[float] = field(default_factory=list)
    validation_score: list[float] = field(default_factory=list)
    """Classes: balanced accuracy. Values: 1 - MSE / MSE of the training mean, mean over targets."""
    begun_at: float = float("nan")
    """Validation loss before the first step."""
    best_epoch: int = 0
    """From 1: the epoch whose weights were kept."""
    settled: bool = False
    """Whether `patience` ended it, and not `max_epochs`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Curves:
        """Return the curves that `to_json` wrote."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a run learned."""

    backbone: TorchBackbone
    """With the tuned weights and still the parent's spec."""
    head: State
    curves: Curves
    blocks: tuple[str, ...]
    """Names of the blocks that learned."""
    resumed: bool


def tune(
    parent: TorchBackbone,
    read: Read,
    y: NDArray[Any],
    train: Rows,
    held: Rows,
    spec: FinetuneSpec,
    *,
    n_classes: int | None = None,
    keeper: Keeper | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Train the last blocks of a copy of a backbone, with a head on top, and keep the epoch that is best on `held`.

    Parameters
    ----------
    parent
        Is left as it was.
    read
        Returns the tiles of some rows, ``(k, px, px, 3)`` uint8 RGB; called from one other thread.
    y
        ``(n,)`` int64 classes 0..n_classes-1, or ``(n, t)`` finite values.
    train, held
        Disjoint rows, numbers into `y` and for `read`.
    n_classes
        None for values.
    keeper
        Where to keep the state after each epoch; a run that finds one there goes on from it, and ends as it would have.

    Raises
    ------
    UsageError
        The network has not so many blocks, or fewer than two rows to learn from, or none held out.
    DataError
        The loss became NaN or infinite, or a target is constant over the training rows.

    Notes
    -----
    The same seed gives the same bits on one engine. What is drawn for a tile depends on (seed, epoch, row) alone, and
    dropout on (seed, epoch), so a run that was cut and resumed has the same curves and weights.
    """
    if len(train) < 2 or not len(held):
        msg = f"{len(train)} tiles to train on and {len(held)} for validation: give 2 and 1 or more"
        raise UsageError(msg)
    run = _Run.prepared(parent, read, y, train, held, spec, n_classes)
    resumed = run.resume(keeper)
    report = progress or Silent()
    report.start(f"finetune {parent.spec.name}", spec.max_epochs, done=run.epoch, unit="epochs")
    with torch_threads(parent.threads), run.backbone.flags():
        if not resumed:
            run.curves.begun_at = run.validate()[0]
        while run.epoch < spec.max_epochs and not run.curves.settled:
            run.one_epoch()
            if keeper is not None:
                keeper.save(run.state())
            report.advance(1)
    report.finish()
    run.restore_best()
    return Tuned(run.backbone, run.head_state(), run.curves, tuple(b.name for b in run.blocks), resumed)


@dataclass(slots=True, eq=False)
class _Run:
    backbone: TorchBackbone
    head: nn.Sequential
    blocks: list[Block]
    moving: list[str]
    """Tensors of the network's state that may change."""
    task: Task
    read: Read
    train: Rows
    held: Rows
    spec: FinetuneSpec
    optimiser: torch.optim.AdamW
    curves: Curves = field(default_factory=Curves)
    epoch: int = 0
    best: State = field(default_factory=dict)

    @classmethod
    def prepared(
        cls, parent: TorchBackbone, read: Read, y: NDArray[Any], train: Rows, held: Rows, spec: FinetuneSpec,
        n_classes: int | None,
    ) -> _Run:  # fmt: skip
        backbone = parent.copy()
        blocks = last_blocks(backbone.network, spec.blocks, name=parent.spec.name)
        moving = unfreeze(backbone.network, blocks)
        task = Task.of(y, train, n_classes, balanced=spec.class_weight == "balanced", device=backbone.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            head = head_of((parent.spec.dim, *spec.hidden, task.n_out))
        head = head.to(backbone.device)
        return cls(
            backbone, head, blocks, moving, task, read, train, held, spec, _optimiser(backbone.network, head, spec)
        )

    def one_epoch(self) -> None:
        """Train on every training tile once, then look at the validation tiles."""
        number = self.epoch + 1
        spec, total = self.spec, 0.0
        order = np.random.default_rng((spec.seed, number)).permutation(self.train)
        network = self.backbone.network
        with _seeded((spec.seed, number), self.backbone.device):
            training_mode(network, self.blocks, frozen_statistics=spec.batch_norm == "frozen")
            self.head.train()
            for rows, tiles in _ahead(self.read, _batches(order, spec.batch)):
                pixels = self.backbone.upload(tiles)
                pixels = augmented(pixels, draw(spec.augment, rows, seed=spec.seed, epoch=number), spec.augment)
                self.optimiser.zero_grad(set_to_none=True)
                loss = self.task.losses(self._predict(pixels), rows, weighted=True).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimiser.step()
                total += float(loss.detach()) * len(rows)
            network.eval()
        self._note(number, total / len(order))

    def _note(self, number: int, train_loss: float) -> None:
        loss, score = self.validate() if np.isfinite(train_loss) else (train_loss, 0.0)
        if not np.isfinite(loss):
            msg = f"the loss became {loss} in epoch {number}: give a smaller lr than {self.spec.lr:g}"
            raise DataError(msg)
        curves = self.curves
        curves.train_loss.append(train_loss)
        curves.validation_loss.append(loss)
        curves.validation_score.append(score)
        if loss < min(curves.validation_loss[:-1], default=np.inf):
            curves.best_epoch, self.best = number, _on_cpu(self._weights())
        curves.settled = number - curves.best_epoch >= self.spec.patience
        self.epoch = number

    def validate(self) -> tuple[float, float]:
        """Return the mean loss and the score over the rows held out, tiles as they are."""
        self.backbone.network.eval()
        self.head.eval()
        losses, outputs = [], []
        with torch.inference_mode():
            for rows, tiles in _ahead(self.read, _batches(self.held, self.spec.batch, least=1)):
                out = self._predict(self.backbone.upload(tiles).float())
                losses.append(self.task.losses(out, rows, weighted=False).float().cpu().double().sum().item())
                outputs.append(out.float().cpu().numpy())
        return sum(losses) / len(self.held), self.task.score(np.concatenate(outputs), self.held)

    def _predict(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.backbone.forward(self.backbone.prepare(pixels)).float()
        out: torch.Tensor = self.head(features)
        return out

    def head_state(self) -> State:
        """Return the head's tensors, and how its outputs become values."""
        state = _on_cpu(self.head.state_dict())
        return state | _on_cpu(self.task.scale)

    def _weights(self) -> State:
        state = self.backbone.network.state_dict()
        return {f"net.{k}": state[k] for k in self.moving} | {f"head.{k}": v for k, v in self.head.state_dict().items()}

    def _set_weights(self, state: Mapping[str, torch.Tensor]) -> None:
        own = self.backbone.network.state_dict()
        own.update({k[4:]: v for k, v in state.items() if k.startswith("net.")})
        self.backbone.network.load_state_dict(own)
        self.head.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("head.")})

    def restore_best(self) -> None:
        """Put the weights of the best epoch back; nothing learns any more."""
        self._set_weights(self.best)
        self.backbone.network.eval().requires_grad_(False)

    def state(self) -> bytes:
        """Return all that the next epoch depends on, as safetensors."""
        tensors = {f"now.{k}": v for k, v in self._weights().items()} | {f"best.{k}": v for k, v in self.best.items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{k}": torch.as_tensor(v) for k, v in moments.items()}
        note = {"epoch": self.epoch, "curves": self.curves.to_json()}
        tensors["note"] = torch.frombuffer(bytearray(json.dumps(note).encode()), dtype=torch.uint8)
        return save(_on_cpu(tensors))

    def resume(self, keeper: Keeper | None) -> bool:
        """Go on from what `keeper` has; return whether it had anything."""
        data = keeper.load() if keeper is not None else None
        if data is None:
            return False
        tensors = load(data)
        note = json.loads(tensors.pop("note").numpy().tobytes())
        self.epoch, self.curves = note["epoch"], Curves.from_json(note["curves"])
        self._set_weights({k[4:]: v for k, v in tensors.items() if k.startswith("now.")})
        self.best = {k[5:]: v for k, v in tensors.items() if k.startswith("best.")}
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, number, name = key.split(".")
                moments.setdefault(int(number), {})[name] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        return True


def _optimiser(network: nn.Module, head: nn.Module, spec: FinetuneSpec) -> torch.optim.AdamW:
    learning = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "lr": spec.lr, "weight_decay": spec.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "lr": spec.lr, "weight_decay": 0.0},
        {"params": list(head.parameters()), "lr": spec.head_lr, "weight_decay": spec.weight_decay},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]])


def _batches(order: Rows, size: int, *, least: int = 2) -> list[Rows]:
    """Cut rows into batches; a last one of fewer than `least` joins the one before (batch norm needs two)."""
    cuts = list(range(size, len(order), size))
    if cuts and len(order) - cuts[-1] < least:
        cuts.pop()
    return np.split(order, cuts)


def _ahead(read: Read, batches: Sequence[Rows]) -> Iterator[tuple[Rows, NDArray[np.uint8]]]:
    """Read the next batch while this one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(read, batches[0])
        for rows, after in zip(batches, [*batches[1:], None], strict=True):
            tiles = waiting.result()
            if after is not None:
                waiting = pool.submit(read, after)
            yield rows, tiles


@contextlib.contextmanager
def _seeded(seed: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Let dropout draw from `seed` inside, and afterwards as if nothing had happened."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield


def _on_cpu(state: Mapping[str, torch.Tensor]) -> State:
    """Return copies that share no memory and no layout with a network."""
    return {k: v.detach().to("cpu", copy=True).contiguous().clone() for k, v in state.items()}
