"""Heads from the cache: trained and scored on a view, saved with what they were trained on, and never near a pixel."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load, save

from histostore.backbones.tuned import seen_by
from histostore.content.tables import content_digest
from histostore.errors import ConflictError, NotFoundError, UsageError, near
from histostore.heads.evaluate import cross_validate
from histostore.heads.fitted import FittedHead, classifier, fit_final, fit_final_labels
from histostore.heads.label_evaluation import cross_validate_labels
from histostore.heads.panels import library_size
from histostore.heads.registry import check_task
from histostore.ids import check_slug
from histostore.specs import digest_of
from histostore.stages.columns_read import COLUMNS, FIELDS, columns_read, names_read, other_columns, same_columns
from histostore.stages.training_data import Training, training_data
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histostore.field_of_view import FieldOfView
    from histostore.head_specs import HeadSpec
    from histostore.heads.evaluate import Evaluation
    from histostore.heads.label_evaluation import LabelEvaluation
    from histostore.progress import Progress
    from histostore.store.groups import Group, GroupWriter
    from histostore.store.manifest import Ref
    from histostore.store.store import Store

HEADS = "@heads"
STATE = "state.safetensors"
HEAD = "head.json"


@dataclass(frozen=True, slots=True)
class FitResult:
    """A head's held-out scores, and the head itself where it was saved."""

    spec: HeadSpec
    evaluation: Evaluation | LabelEvaluation
    head: FittedHead | None
    ref: Ref | None
    name: str | None
    left_out: Mapping[str, int]
    """Rows that were left out before the head saw them (no counts, where, no label)."""
    data: Training
    """What it was scored on, row by row."""


def fit(
    store: Store,
    spec: HeadSpec,
    *,
    backbone: str,
    tiles: str | None = None,
    slides: Sequence[str] | None = None,
    where: str | None = None,
    region_share: float | None = None,
    in_memory: int | None = None,
    save_as: str | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> FitResult:
    """Score a head on held-out rows; with `save_as` also train it on all rows and keep it as ``heads/<name>``.

    The saved head holds its weights (safetensors), its panel, spec and split, the scores, and the digests of every
    group and the rows it was trained on, so that it can tell when it is stale.

    Parameters
    ----------
    region_share
        For labels of polygons: the share of a tile that one must cover; by default it must hold the tile's centre.
    in_memory
        Bytes of embeddings (as float32) up to which they are loaded; beyond, ridge, MLP and the training mean go over
        them block by block and other heads are refused. By default 1 GiB for heads that stream and 4 GiB for others.

    Raises
    ------
    UsageError
        The split would put one patient on both sides and the spec does not permit it.
    """
    check_task(spec.head, spec.task)
    _refuse_unused(spec)
    if save_as is not None:
        check_slug(save_as, "head name")
    data = training_data(
        store, spec, backbone=backbone, tiles=tiles, slides=slides, where=where, region_share=region_share,
        in_memory=in_memory,
    )  # fmt: skip
    spec = data.named(spec)
    if save_as is not None and not replace:
        _refuse_taken(store, save_as, spec, data, where)
    evaluation = _evaluate(spec, data, progress)
    if note := _seen_by_backbone(store, data):
        report = evaluation.report.merged(Report(notes=(note,)))
        evaluation = dataclasses.replace(evaluation, report=report)
    head, ref = None, None
    if save_as is not None:
        head = _train(spec, data, progress)
        ref = _save(store, save_as, head, evaluation, data, where, replace=replace)
    return FitResult(spec, evaluation, head, ref, save_as, dict(data.report.counts), data)


def _refuse_unused(spec: HeadSpec) -> None:
    """Refuse options that nothing would look at."""
    if spec.min_counts and spec.task != "genes":
        raise UsageError(f"min_counts is {spec.min_counts} and no genes are predicted: choose rows by where (n_counts)")
    if spec.task == "labels" and spec.groups:
        raise UsageError(f"classes have no random effects: leave out groups ({', '.join(spec.groups)})")
    if spec.task == "labels" and any(f.position for f in spec.features):
        raise UsageError("position is joined to predicted numbers, and classes are asked for: leave it out")


def _seen_by_backbone(store: Store, data: Training) -> str | None:
    """Say which slides and patients that are scored here the backbone itself was tuned on."""
    seen = seen_by(store, _embedding_attrs(data)["backbone_digest"])
    shared = []
    for column, names in seen.items():
        if column in data.obs and (both := sorted(names & set(data.obs[column].astype(str)))):
            shared.append(f"{column} {', '.join(both[:5])}{' …' if len(both) > 5 else ''}")
    return f"the backbone was tuned on {'; '.join(shared)}: scores there are too good" if shared else None


def _evaluate(spec: HeadSpec, data: Training, progress: Progress | None) -> Evaluation | LabelEvaluation:
    if spec.task != "labels":
        return cross_validate(spec, progress=progress, **data.arrays(spec))
    return cross_validate_labels(
        classifier(spec, data.classes), X=data.X, labels=data.labels, obs=data.obs, split=spec.split,
        features=spec.features, library=library_size(data.genes.matrix) if data.genes is not None else None,
        seed=spec.seed,
    )  # fmt: skip


def _train(spec: HeadSpec, data: Training, progress: Progress | None) -> FittedHead:
    if spec.task != "labels":
        return fit_final(spec, progress=progress, **data.arrays(spec))
    return fit_final_labels(spec, X=data.X, labels=data.labels, obs=data.obs, classes=data.classes)


def _save(
    store: Store,
    name: str,
    head: FittedHead,
    evaluation: Evaluation | LabelEvaluation,
    data: Training,
    where: str | None,
    *,
    replace: bool,
) -> Ref:
    arrays, meta = head.to_state()
    identity, _ = _identity(head.spec, data)
    read = _columns(head.spec, data, where)
    about = {
        "backbone": data.view.backbones[0],
        "backbone_digest": identity["backbone"],
        "tiles": _embedding_attrs(data)["tiles"],
        "field": list(_field(data)),
        "genes": list(head.names),
        "task": head.spec.task,
        "where": where,
        "split": evaluation.split_text,
        "method": evaluation.method,
        "pearson" if head.spec.task != "labels" else "auroc": _finite(evaluation.score()),
        "trained_on": {slide: one | read[slide] for slide, one in _trained_on(data).items()},
    }
    with _begin(store, name, head.spec, data, read) as writer:
        if writer.sealed is None:
            writer.put_file(STATE, save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
            document = {"head": meta, "evaluation": evaluation.to_json()}
            writer.put_file(HEAD, json.dumps(document, indent=1, allow_nan=False).encode())
        ref = writer.seal(rows=len(data.X), attrs=about)
    store.commit(HEADS, [ref], replace=replace)
    return ref


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _embedding_attrs(data: Training) -> Mapping[str, Any]:
    part = data.view.parts[0]
    return part.group(part.embeddings[data.view.backbones[0]]).attrs


def _trained_on(data: Training) -> dict[str, dict[str, Any]]:
    return {p.slide: _rows_of(p.slide, data) | {"groups": _groups_of(p)} for p in data.view.parts}


def _field(data: Training) -> FieldOfView:
    """Return the field of view of the tiles that a head was trained on: the first that tells its resolution."""
    fields = [p.field for p in data.view.parts if len(p)]
    return next((f for f in fields if f.mpp is not None), fields[0])


def _identity(spec: HeadSpec, data: Training) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a head is (spec and inputs of its digest): known before it is trained."""
    inputs = {slide: one["groups"] | {"rows": one["digest"]} for slide, one in _trained_on(data).items()}
    if (targets := data.target_digest()) is not None:
        inputs["targets"] = {"digest": targets}
    return {"head": spec.to_json(), "backbone": _embedding_attrs(data)["backbone_digest"]}, inputs


def _columns(spec: HeadSpec, data: Training, where: str | None) -> dict[str, dict[str, Any]]:
    names = names_read(spec, where)
    return {part.slide: columns_read(part, names) for part in data.view.parts}


def _with_columns(inputs: Mapping[str, Any], read: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the inputs of a head that was trained before on the same rows, when their columns were others."""
    return {**inputs, "@columns": digest_of({slide: [one[COLUMNS], one[FIELDS]] for slide, one in read.items()})}


def _begin(
    store: Store, name: str, spec: HeadSpec, data: Training, read: Mapping[str, Mapping[str, Any]]
) -> GroupWriter:
    """Start a head's group; one of other columns (groups, split) is not taken for it, be its digest the same."""
    identity, inputs = _identity(spec, data)
    exact = _with_columns(inputs, read)
    old = store.manifest(HEADS).get("heads", name)
    if old is None or old.digest != store.digest("heads", spec=identity, inputs=exact):
        writer = store.begin(HEADS, "heads", name, spec=identity, inputs=inputs)
        if writer.sealed is None or _same_columns(store, writer.sealed, read):
            return writer
    return store.begin(HEADS, "heads", name, spec=identity, inputs=exact)


def _same_columns(store: Store, ref: Ref, read: Mapping[str, Mapping[str, Any]]) -> bool:
    return same_columns(store.header(ref)["attrs"]["trained_on"], read)


def _refuse_taken(store: Store, name: str, spec: HeadSpec, data: Training, where: str | None) -> None:
    """Refuse before training what the commit would refuse after it."""
    old = store.manifest(HEADS).get("heads", name)
    if old is None:
        return
    identity, inputs = _identity(spec, data)
    read = _columns(spec, data, where)
    if old.digest == store.digest("heads", spec=identity, inputs=_with_columns(inputs, read)):
        return
    other = old.digest != store.digest("heads", spec=identity, inputs=inputs)
    if other or not _same_columns(store, old, read):
        what = "spec or other rows" if other else "metadata or labels of the same rows"
        raise ConflictError(
            f"head '{name}' is there with another {what}; give another name, or --replace to move the name"
        )


def _rows_of(slide: str, data: Training) -> dict[str, Any]:
    ids = sorted(data.obs.index[data.obs["slide"] == slide])
    return {"n": len(ids), "digest": content_digest(ids)[:32]}


def _groups_of(part: Any) -> dict[str, str]:
    refs = [*part.embeddings.values(), part.expression, part.points]
    return {r.key: r.digest for r in refs if r is not None}


def find_head(store: Store, name: str) -> Ref:
    """Return a saved head's group; near names are suggested where there is none."""
    manifest = store.manifest(HEADS)
    ref = manifest.get("heads", name)
    if ref is None:
        known = [r.name for r in manifest.of_kind("heads")]
        have = f"there are {', '.join(known)}" if known else "none is saved; use fit with --save"
        raise NotFoundError(f"no head '{name}' in {store.uri}{near(name, known)}; {have}")
    return ref


def load_head(store: Store, name: str) -> tuple[FittedHead, Group]:
    """Load a saved head and the group that says what it was trained on."""
    group = store.group(find_head(store, name))
    document = json.loads(group.bytes(HEAD))
    return FittedHead.from_state(load(group.bytes(STATE)), document["head"]), group


def stale(store: Store, group: Group) -> list[str]:
    """Say what changed since a head was trained: slides gone, groups that their names no longer mean, or metadata."""
    changed = []
    there = set(store.slides())
    for slide, one in group.attrs["trained_on"].items():
        if slide not in there:
            changed.append(f"slide '{slide}' is gone")
            continue
        manifest = store.manifest(slide)
        now = {key: manifest.entries.get(key) for key in one["groups"]}
        others = [key for key, digest in one["groups"].items() if (ref := now[key]) is None or ref.digest != digest]
        others += other_columns(store, manifest, one)
        changed += [f"{what} of slide '{slide}' is another now" for what in others]
    return changed
