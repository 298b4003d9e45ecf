"""A backbone tuned on the tiles of a store: read from the pixels groups batch by batch, kept as a new backbone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.backbones import catalog
from histostore.backbones.tuned import BACKBONES, KIND, RECORD, WEIGHTS, load_for, load_tuned, tuned_record
from histostore.content.tables import content_digest
from histostore.errors import ConflictError, UsageError
from histostore.head_specs import SplitSpec
from histostore.heads.splits import folds, leaks, patients_known
from histostore.ids import check_slug
from histostore.specs import BackboneSpec
from histostore.stages.result import outcome
from histostore.stages.tile_targets import TilePixels, TileTargets, groups_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histostore.backbones.finetune import Tuned
    from histostore.backbones.finetune_spec import FinetuneSpec
    from histostore.backbones.torch_backbone import TorchBackbone
    from histostore.progress import Progress
    from histostore.protocols import Backbone
    from histostore.stages.tile_targets import Rows, Targets
    from histostore.store.groups import GroupWriter
    from histostore.store.manifest import Ref
    from histostore.store.store import Store

HEAD = "head.safetensors"
CHECKPOINT = "checkpoint.safetensors"
"""Working state of an attempt: not declared, so sealing removes it."""


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """A tuned backbone and what it was made of."""

    name: str
    ref: Ref
    backbone: Backbone
    record: Mapping[str, Any]
    """What is kept beside the weights: parent, spec, rows, split, curves (see `tuned_record`)."""
    done: str
    """``written``, ``resumed``, ``already there`` (a no-op) or ``kept another writer's``."""
    left_out: Mapping[str, int]
    """Rows that were not used, by reason."""

    @property
    def curves(self) -> Mapping[str, Any]:
        """Losses and scores by epoch, and which epoch was kept."""
        found: Mapping[str, Any] = self.record["curves"]
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        keys = ("parent", "backbone_digest", "blocks", "split", "rows", "curves")
        return {"backbone": self.name, "done": self.done, "digest": self.ref.digest,
                "left_out": dict(self.left_out)} | {k: self.record[k] for k in keys}  # fmt: skip


def finetune(
    store: Store,
    spec: FinetuneSpec,
    *,
    targets: Targets,
    save_as: str,
    tiles: str | None = None,
    slides: Sequence[str] | None = None,
    where: str | None = None,
    backbone: Backbone | None = None,
    device: str = "auto",
    threads: int | None = None,
    read_threads: int = 1,
    allow_mpp: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> FinetuneResult:
    """Train the last blocks of a backbone on stored tiles and keep the result as ``backbones/<save_as>``.

    The state is kept after each epoch; a run that was killed goes on after its last epoch and ends as it would have.
    A second call is a no-op. Memory holds a few batches of tiles, never all.

    Parameters
    ----------
    targets
        An obs column, or columns of numbers; or a Series or DataFrame indexed by ``<slide>:<point>``, joined by id.
        Text is classes, numbers are values, unless ``spec.task`` says otherwise.
    save_as
        The new backbone's name, and that of its embeddings.
    tiles
        Which tile set; may be left out where there is one.
    slides, where
        Which rows may be used at all; ``spec.test`` names groups that must not be.
    backbone
        The loaded parent, in place of loading ``spec.backbone`` (its digest counts, not its name).
    read_threads
        Threads that decode tiles; they change no value.
    allow_mpp
        Permit tiles of another resolution than the parent declares, or of different ones.

    Raises
    ------
    NotFoundError
        No such tiles, column or group; or the tiles' pixels were not stored.
    DataError
        Targets are missing, not finite, or of one class only.
    UsageError
        Nothing can be held out, a class would be missing from training, the network has not so many blocks, or the
        name is that of a known model.
    ConflictError
        The name is taken by another run.
    """
    _check_name(save_as)
    data = TileTargets.of(store, spec, targets, tiles, slides, where)
    cut = _Cut.of(spec, data)
    parent = backbone if backbone is not None else load_for(store, spec.backbone, device=device, threads=threads)
    mpp = data.check_mpp(parent, allow=allow_mpp)
    identity = {"finetune": spec.to_json() | {"backbone": parent.spec.source}, "parent": parent.spec.digest}
    inputs = data.inputs()
    old = store.manifest(BACKBONES).get(KIND, save_as)
    if old is not None and old.digest == store.digest(KIND, spec=identity, inputs=inputs):
        made = load_tuned(store, save_as, device=device, threads=threads)
        return FinetuneResult(save_as, old, made, tuned_record(store, save_as), "already there", data.left_out)
    if old is not None and not replace:
        raise ConflictError(
            f"backbone '{save_as}' is there from another run; give another name, or replace to move the name"
        )
    learner = _trainable(parent, spec)
    with store.begin(BACKBONES, KIND, save_as, spec=identity, inputs=inputs, engine=parent.engine()) as writer:
        if writer.sealed is None:
            _train(writer, spec, data, cut, learner, save_as, mpp, read_threads, progress)
        ref, resumed = writer.sealed, writer.resumed
    assert ref is not None
    done = outcome(store.commit(BACKBONES, [ref], replace=replace), resumed=resumed)
    made = load_tuned(store, save_as, device=device, threads=threads)
    return FinetuneResult(save_as, ref, made, tuned_record(store, save_as), done, data.left_out)


def _check_name(name: str) -> None:
    check_slug(name, "backbone name")
    if catalog.find(name) is not None or name == "testing":
        raise UsageError(f"'{name}' is the name of a known backbone; give the tuned one another")


def _trainable(parent: Backbone, spec: FinetuneSpec) -> TorchBackbone:
    """Refuse before anything is written what cannot be trained, or not be made again from its weights."""
    from histostore.backbones.blocks import last_blocks
    from histostore.backbones.torch_backbone import TorchBackbone

    if not isinstance(parent, TorchBackbone) or parent.rebuild is None:
        raise UsageError(
            f"backbone '{parent.spec.name}' cannot be fine-tuned: give a timm, torchvision or own torch network, "
            "without dihedral averaging"
        )
    last_blocks(parent.network, spec.blocks, name=parent.spec.name)
    return parent


def _train(
    writer: GroupWriter, spec: FinetuneSpec, data: TileTargets, cut: _Cut, parent: TorchBackbone, name: str, mpp: float,
    read_threads: int, progress: Progress | None,
) -> None:  # fmt: skip
    from safetensors.torch import save

    from histostore.backbones.finetune import tune
    from histostore.backbones.weights import sha256_of_state

    n_classes = len(data.classes) if data.classes is not None else None
    with TilePixels(data.rows, read_threads) as pixels:
        tuned = tune(
            parent, pixels.read, data.y, cut.train, cut.held, spec,
            n_classes=n_classes, keeper=_Checkpoint(writer), progress=progress,
        )  # fmt: skip
    state = {k: v.cpu().contiguous() for k, v in tuned.backbone.network.state_dict().items()}
    own = parent.spec.to_json() | {
        "name": name,
        "source": f"tuned:{parent.spec.source.removeprefix('tuned:')}",
        "weights_sha256": sha256_of_state(state),
        "mpp": mpp,
    }
    made = BackboneSpec.from_json(own)
    record = _record(made, parent, spec, data, cut, tuned)
    writer.put_file(WEIGHTS, save({k: v.clone() for k, v in state.items()}))
    writer.put_file(HEAD, save(tuned.head))
    writer.put_file(RECORD, json.dumps(record, indent=1, allow_nan=False).encode())
    about = {k: record[k] for k in ("backbone", "backbone_digest", "parent", "split", "patients", "trained_on")}
    writer.seal(rows=len(cut.train), attrs=about)


def _record(
    made: BackboneSpec, parent: TorchBackbone, spec: FinetuneSpec, data: TileTargets, cut: _Cut, tuned: Tuned
) -> dict[str, Any]:
    old = parent.spec
    return {
        "backbone": made.to_json(),
        "backbone_digest": made.digest,
        "rebuild": dict(parent.rebuild or {}),
        "parent": {"name": old.name, "source": old.source, "digest": old.digest, "weights_sha256": old.weights_sha256},
        "spec": spec.to_json(),
        "blocks": list(tuned.blocks),
        "classes": list(data.classes) if data.classes is not None else None,
        "columns": list(data.columns),
        "split": cut.text,
        "groups": {"by": spec.by, "train": cut.train_groups, "validation": cut.held_groups, "test": list(spec.test)},
        "patients": sorted(set(data.obs["patient"].dropna().astype(str))) if patients_known(data.obs) else None,
        "rows": {"train": len(cut.train), "validation": len(cut.held)},
        "left_out": dict(data.left_out),
        "trained_on": _trained_on(data, cut),
        "curves": tuned.curves.to_json(),
    }


@dataclass(slots=True)
class _Checkpoint:
    """The working state of an attempt: replaced whole after each epoch, gone once the group is sealed."""

    writer: GroupWriter

    @property
    def _key(self) -> str:
        return f"{self.writer.prefix}/{CHECKPOINT}"

    def load(self) -> bytes | None:
        try:
            return self.writer.files.get(self._key)
        except FileNotFoundError:
            return None

    def save(self, data: bytes) -> None:
        self.writer.files.put(self._key, data)


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """Which rows are trained on and which are held out for validation: whole groups."""

    train: Rows
    held: Rows
    train_groups: list[str]
    held_groups: list[str]
    text: str

    @classmethod
    def of(cls, spec: FinetuneSpec, data: TileTargets) -> _Cut:
        keys = data.obs[spec.by].astype(str).to_numpy(dtype=object)
        n = min(spec.folds, max(2, len(np.unique(keys))))
        split = SplitSpec(
            rule="group-kfold", n=n, by=spec.by, seed=spec.seed, allow_same_patient=spec.allow_same_patient
        )
        made = folds(split, data.obs)
        start = int(np.random.default_rng(spec.seed).integers(len(made)))
        for fold in [*made[start:], *made[:start]]:
            if data.classes is None or len(np.unique(data.y[fold.train])) == len(data.classes):
                break
        else:
            raise UsageError(
                f"whichever {spec.by} is held out for validation, a class is missing from training: "
                f"classes {', '.join(data.classes or ())} must each be met in two values of '{spec.by}'"
            )
        held = sorted(set(keys[fold.test]))
        text = f"validation on {spec.by} {', '.join(held)}, never trained on"
        if shared := leaks(data.obs.iloc[fold.train], data.obs.iloc[fold.test]).get("patient"):
            text += f"; same patient on both sides ({', '.join(shared)})"
        elif not patients_known(data.obs):
            text += "; patients not known: the same patient may be on both sides"
        return cls(fold.train, fold.test, sorted(set(keys[fold.train])), held, text)


def _trained_on(data: TileTargets, cut: _Cut) -> dict[str, Any]:
    """Return the rows that were trained and validated on, by slide."""
    slide = data.obs["slide"].to_numpy(dtype=object)
    ids = data.obs.index.to_numpy(dtype=object)
    found: dict[str, Any] = {}
    for part in data.rows.parts:
        sides: dict[str, Any] = {}
        for side, rows in (("train", cut.train), ("validation", cut.held)):
            mine = sorted(ids[rows[slide[rows] == part.slide]])
            if mine:
                sides[side] = {"n": len(mine), "digest": content_digest(mine)[:32]}
        if sides:
            found[part.slide] = sides | {"groups": groups_of(part)}
    return found
