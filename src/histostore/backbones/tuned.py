"""Backbones that were fine-tuned and kept in a store: found by name, loaded with their weights and record."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from histostore.backbones.dihedral import SUFFIX as DIHEDRAL
from histostore.backbones.engines import SUFFIX as OPENVINO
from histostore.backbones.engines import Engine, check_engine, converted_spec, device_for
from histostore.backbones.load import finished, load_backbone
from histostore.backbones.names import STORE
from histostore.errors import NotFoundError, UsageError, near
from histostore.specs import BackboneSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.protocols import Backbone
    from histostore.store.groups import Group
    from histostore.store.manifest import Ref
    from histostore.store.store import Store

BACKBONES = "@backbones"
KIND = "backbones"
WEIGHTS = "weights.safetensors"
RECORD = "backbone.json"


def tuned_names(store: Store) -> list[str]:
    """Return the names of a store's own backbones."""
    return [r.name for r in store.manifest(BACKBONES).of_kind(KIND)]


def find_tuned(store: Store, name: str) -> Ref:
    """Return a tuned backbone's group; near names are suggested where there is none."""
    ref = store.manifest(BACKBONES).get(KIND, name)
    if ref is None:
        known = tuned_names(store)
        have = f"there are {', '.join(known)}" if known else "none was fine-tuned here; run finetune"
        raise NotFoundError(f"no backbone '{name}' in {store.uri}{near(name, known)}; {have}")
    return ref


def tuned_record(store: Store, name: str) -> Mapping[str, Any]:
    """Return what is known of a tuned backbone.

    Returns
    -------
    dict
        ``backbone`` (its spec), ``rebuild``, ``parent``, ``spec``, ``classes`` or ``columns``, ``blocks``, ``curves``,
        ``split`` and ``groups`` (values of the split's column that were trained on, validated on and kept for testing),
        and ``trained_on`` (rows and digests by slide).
    """
    record: dict[str, Any] = json.loads(_group(store, name).bytes(RECORD))
    return record


def seen_by(store: Store, digest: str) -> dict[str, set[str]]:
    """Return the slides and patients whose tiles a backbone was tuned on, by the digest that its embeddings carry.

    On any engine, averaged over the symmetries or not. Parents that were tuned in the same store count. Empty for any
    other backbone. A head that is scored on such a slide is scored on what its features have seen.
    """
    found: dict[str, set[str]] = {"slide": set(), "patient": set()}
    own = [store.group(ref).attrs for ref in store.manifest(BACKBONES).of_kind(KIND)]
    by_digest = {digest: attrs for attrs in own for digest in _digests(BackboneSpec.from_json(attrs["backbone"]))}
    while attrs := by_digest.pop(digest, None):
        found["slide"] |= set(attrs["trained_on"])
        found["patient"] |= set(attrs["patients"] or ())
        digest = attrs["parent"]["digest"]
    return found


def load_tuned(
    store: Store,
    name: str,
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: Any = "auto",
    dihedral: bool = False,
    engine: Engine = "torch",
    compile_with: str | None = None,
) -> Backbone:
    """Load a tuned backbone of a store.

    Options as in `load_backbone`.

    Raises
    ------
    NotFoundError
        The store has none of that name; near names are given.
    CorruptionError
        Its weights are not those that were committed.
    """
    check_engine(engine, device=device, precision=precision, compile_with=compile_with)
    group = _group(store, name)
    record = json.loads(group.bytes(RECORD))
    data = group.bytes(WEIGHTS)
    from safetensors.torch import load

    from histostore.backbones.torch_loader import rebuilt

    spec = BackboneSpec.from_json(record["backbone"])
    backbone = rebuilt(
        record["rebuild"], load(data), spec, device=device_for(engine, device), threads=threads, precision=precision,
        compile_with=compile_with,
    )  # fmt: skip
    return finished(backbone, engine=engine, dihedral=dihedral)


def load_for(store: Store, name: str, **options: Any) -> Backbone:
    """Load a backbone by any name: ``store:NAME`` or the bare name of one of the store's own, else as `load_backbone`.

    The names of embeddings work too: ``NAME+openvino`` and ``NAME+dihedral`` are NAME with that option.

    Raises
    ------
    UsageError
        One of the store's own was asked for with other weights.
    """
    own = tuned_names(store)
    for suffix, option in ((DIHEDRAL, {"dihedral": True}), (OPENVINO, {"engine": "openvino"})):
        if name.endswith(suffix) and name.removeprefix(STORE) not in own:
            name, options = name.removesuffix(suffix), options | option
    short = name.removeprefix(STORE)
    if short == name and short not in own:
        return load_backbone(name, **options)
    for taken in ("checkpoint", "allow_pickle"):
        if options.pop(taken, None):
            raise UsageError(f"backbone '{name}' brings its own weights: no {taken}")
    return load_tuned(store, short, **options)


def _digests(spec: BackboneSpec) -> list[str]:
    """Return the digests of all embeddings that a network's weights can make."""
    return [
        replace(engine, dihedral=dihedral).digest
        for engine in (spec, converted_spec(spec))
        for dihedral in (False, True)
    ]


def _group(store: Store, name: str) -> Group:
    return store.group(find_tuned(store, name))
