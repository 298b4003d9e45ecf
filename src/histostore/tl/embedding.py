"""From tiles to embeddings: apply backbones, and tune them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from histostore.backbones.finetune_spec import AugmentSpec, FinetuneSpec
from histostore.backbones.tuned import load_for
from histostore.inventory import chosen_slides
from histostore.stages.embed import embed as _embed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distributed import Client

    from histostore.backbones.engines import Engine
    from histostore.progress import Progress
    from histostore.protocols import Backbone
    from histostore.stages.finetune import FinetuneResult
    from histostore.stages.result import StageResult
    from histostore.store.store import Store


def embed(
    store: Store,
    backbone: str | Backbone | Sequence[str | Backbone],
    *,
    slides: str | Sequence[str] | None = None,
    tiles: str | None = None,
    engine: Engine = "torch",
    client: Client | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[StageResult]:
    """Embed tiles with one or more backbones: a no-op where it is done, resumed where it was cut short.

    Backbones given by name run on `engine`, ``torch`` or ``openvino``; the latter's embeddings are named
    ``NAME+openvino`` and never joined with torch's. Options as in `histostore.stages.embed.embed`.
    With the `client` of a dask cluster its workers do it, shard by shard, to the same bytes (one engine); a slide that
    fails does not stop the others, and its error is raised after they are done.
    """
    chosen = chosen_slides(store, slides)
    wanted: list[Any] = list(backbone) if isinstance(backbone, list | tuple) else [backbone]
    if client is not None:
        from histostore.scale.run import collected, embed_slides, names_only  # brings dask.distributed

        calls = names_only(wanted, engine=engine)
        outcomes = embed_slides(client, store, chosen, calls, tiles=tiles, progress=progress, **options)
        return collected(outcomes, chosen)
    loaded: list[Backbone] = [load_for(store, b, engine=engine) if isinstance(b, str) else b for b in wanted]
    return [r for s in chosen for r in _embed(store, s, loaded, tiles=tiles, progress=progress, **options)]


def finetune(
    store: Store,
    backbone: str | Backbone,
    targets: Any,
    *,
    save: str,
    tiles: str | None = None,
    slides: Sequence[str] | None = None,
    where: str | None = None,
    device: str = "auto",
    read_threads: int = 1,
    allow_mpp: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> FinetuneResult:
    """Train the last blocks of a backbone on stored tiles: a new backbone, with a digest of its own.

    Parameters
    ----------
    backbone
        The parent: a name, or a loaded backbone.
    targets
        An obs column of classes, columns of numbers, or a Series or DataFrame by ``<slide>:<point>``.
    save
        Name of the new backbone, which `embed` then takes.
    options
        Fields of `FinetuneSpec` (``blocks``, ``by``, ``test``, ``lr``, …) and of `AugmentSpec` (``blur``, ``hue``, …).
    """
    from histostore.stages.finetune import finetune as run

    fields = {f.name for f in dataclasses.fields(AugmentSpec)}
    augment = AugmentSpec.from_json({k: options.pop(k) for k in list(options) if k in fields})
    name = backbone if isinstance(backbone, str) else backbone.spec.name
    spec = FinetuneSpec.from_json({"backbone": name, "augment": augment.to_json(), **options})
    return run(
        store, spec, targets=targets, save_as=save, tiles=tiles, slides=slides, where=where,
        backbone=None if isinstance(backbone, str) else backbone, device=device, read_threads=read_threads,
        allow_mpp=allow_mpp, replace=replace, progress=progress,
    )  # fmt: skip
