"""What a worker keeps between the tasks of a run: the store, backbones, and the images of the last slides."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from histostore.backbones.tuned import load_for
from histostore.errors import SpecMismatchError
from histostore.stages.embed_batch import FREE, rest_of
from histostore.stages.source import open_source
from histostore.store.store import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.heads.fitted import FittedHead
    from histostore.protocols import Backbone, Slide
    from histostore.scale.task import Context
    from histostore.specs import BackboneSpec
    from histostore.stages.index_codes import Encoding
    from histostore.store.manifest import Manifest
    from histostore.store.store import Store

IMAGES = 2
"""Slides that a thread of a worker holds open."""
BACKBONES = 4

_local = threading.local()
_loading = threading.Lock()
_trained: dict[tuple[str, str], Any] = {}
"""The trained index of this process, by run and sha256."""


@dataclass(frozen=True, slots=True)
class BackboneCall:
    """How a backbone is loaded, on any machine."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> BackboneCall:
        """Return the call with these options of `load_for`."""
        return cls(name, tuple(sorted(options.items())))


@dataclass(frozen=True, slots=True)
class Described:
    """A backbone as the first worker that loaded it tells: all others must have the same."""

    call: BackboneCall
    spec: BackboneSpec
    engine: Mapping[str, Any]

    @property
    def batch(self) -> int:
        """Tiles per forward pass."""
        return int(self.engine[FREE])

    def with_batch(self, batch: int) -> Described:
        """Return the same with another batch: that of a group which another run began."""
        return replace(self, engine={**self.engine, FREE: batch})


@dataclass(slots=True)
class Kept:
    """One run's belongings in one thread of a worker; images are not shared between threads."""

    run: str
    store: Store
    _images: OrderedDict[tuple[str, int], tuple[Slide, ExitStack]] = field(default_factory=OrderedDict)

    def image(self, manifest: Manifest, threads: int) -> Slide:
        """Return the image of a slide, opened once; the longest unused is closed."""
        key = (manifest.owner, threads)
        if key not in self._images:
            while len(self._images) >= IMAGES:
                self._images.popitem(last=False)[1][1].close()
            stack = ExitStack()
            image = stack.enter_context(open_source(self.store, manifest, workers=threads))
            self._images[key] = image, stack
        self._images.move_to_end(key)
        return self._images[key][0]

    def backbone(self, call: BackboneCall) -> Backbone:
        """Return a backbone, loaded once per process and run."""
        with _loading:
            return _backbone(self.run, self.store.uri, call)

    def backbone_like(self, described: Described) -> Backbone:
        """Return a backbone, refused where it is not the one that the run's embeddings are made with.

        Raises
        ------
        SpecMismatchError
            Its weights, preprocessing or engine are others.
        """
        backbone = self.backbone(described.call)
        if backbone.spec.digest != described.spec.digest:
            raise SpecMismatchError(
                f"backbone '{described.call.name}' is {backbone.spec.digest[:8]} on this worker and "
                f"{described.spec.digest[:8]} on the first one; give all workers the same weights"
            )
        mine, first = rest_of(backbone.engine()), rest_of(described.engine)
        if mine != first:
            differ = ", ".join(f"{k} {mine.get(k)} (first worker {v})" for k, v in first.items() if mine.get(k) != v)
            raise SpecMismatchError(
                f"backbone '{described.call.name}' runs on another engine on this worker: {differ}; "
                "use workers of one kind, or --device cpu"
            )
        return backbone

    def head(self, name: str, digest: str) -> FittedHead:
        """Return a saved head, loaded once per process and run.

        Raises
        ------
        SpecMismatchError
            The name has moved to another head since the run began.
        """
        with _loading:
            return _head(self.run, self.store.uri, name, digest)

    def trained(self, encoding: Encoding) -> Any:
        """Return the trained index of an encoding, read once per process and run. Errors as of `Encoding.trained`."""
        key = (self.run, encoding.sha256)
        with _loading:
            if key not in _trained:
                _trained.clear()  # an index that was tried and found wanting is not needed again
                _trained[key] = encoding.trained(self.store.files)
            return _trained[key]

    def close(self) -> None:
        """Close the images."""
        while self._images:
            self._images.popitem()[1][1].close()


def kept_for(context: Context) -> Kept:
    """Return what this thread keeps for a run; that of an earlier run is let go.

    Raises
    ------
    NotFoundError
        There is no store at its path on this machine.
    SpecMismatchError
        There is another one.
    """
    kept: Kept | None = getattr(_local, "kept", None)
    if kept is None or kept.run != context.run:
        if kept is not None:
            kept.close()
        store = open_store(context.uri)
        if store.uuid != context.uuid:
            raise SpecMismatchError(f"the store at {context.uri} is another one on this worker than on the client")
        kept = _local.kept = Kept(context.run, store)
    return kept


@lru_cache(maxsize=BACKBONES)
def _backbone(run: str, uri: str, call: BackboneCall) -> Backbone:
    del run  # part of the key: another run may mean other weights by the same name
    return load_for(open_store(uri), call.name, **dict(call.options))


@lru_cache(maxsize=BACKBONES)
def _head(run: str, uri: str, name: str, digest: str) -> FittedHead:
    del run  # part of the key
    from histostore.stages.fit import load_head  # scikit-learn and scipy.stats, which other tasks do without

    fitted, group = load_head(open_store(uri), name)
    if group.ref.digest != digest:
        raise SpecMismatchError(
            f"head '{name}' was {digest[:8]} when this run began and is {group.ref.digest[:8]} now: "
            "it was fitted again meanwhile; run predict again"
        )
    return fitted
