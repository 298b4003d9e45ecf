"""Settings that cannot be, told before the first stage: tiling and embedding may take hours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.backbones import preflight
from histostore.errors import DataError, NotFoundError, UsageError, near
from histostore.head_specs import UNITS, PanelSpec, SplitSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from histostore.store.store import Store


def check_fit(store: Store, *, backbone: str, head: Any, genes: str, target: str, split: str) -> None:
    """Refuse what `tl.embed` and `tl.fit` of genes would refuse, as far as names and counts alone tell.

    Nothing is loaded but the names of genes; of a backbone it is asked whether its weights can be had.

    Raises
    ------
    NotFoundError
        There is no such backbone, head, gene or column; near names are suggested.
    UsageError
        The panel, split or target cannot be read; more genes are wanted than there are.
    DataError
        No slide has counts.
    """
    if isinstance(head, str):
        from histostore.heads.registry import make  # brings scikit-learn

        make(head)
    if target not in UNITS:
        raise UsageError(f"target is '{target}', not {', '.join(UNITS)}{near(target, UNITS)}")
    panel = PanelSpec.parse(genes)
    _check_column(store, SplitSpec.parse(split).by)
    _check_genes(store, panel)
    if store.manifest("@backbones").get("backbones", backbone) is None:
        preflight(backbone)


def _check_genes(store: Store, panel: PanelSpec) -> None:
    """Look for a panel's genes slide by slide, until all are found."""
    wanted, known, counted = set(panel.genes or ()), dict[str, None](), False
    for slide_names in _symbols(store):
        counted = True
        known |= dict.fromkeys(slide_names)
        if wanted <= known.keys() and (panel.k or 0) <= len(known):
            return
    if not counted:
        raise DataError("no slide has counts: ingest some with counts before genes are predicted")
    missing = [g for g in panel.genes or () if g not in known]
    if missing:
        raise NotFoundError(f"no gene '{missing[0]}' among {len(known):,} of these slides{near(missing[0], known)}")
    raise UsageError(f"panel '{panel}' wants {panel.k} genes and there are {len(known):,}")


def _symbols(store: Store) -> Iterator[list[str]]:
    for slide in store.slides():
        for ref in store.slide(slide).of_kind("expression"):
            group = store.group(ref)
            symbols, ids = (group.read(f"var/{name}").tolist() for name in ("symbols", "gene_ids"))
            # a symbol that repeats has its id appended
            repeat = len(set(symbols)) < len(symbols)
            yield [*symbols, *(f"{s}-{g}" for s, g in zip(symbols, ids, strict=True))] if repeat else symbols


def _check_column(store: Store, name: str) -> None:
    """Refuse a column that no slide has; those of polygons and calls are made as they are read."""
    if name in ("slide", "library_id") or name.startswith(("region_", "call_", "p_")):
        return
    known: dict[str, None] = {"slide": None}
    for slide in store.slides():
        manifest = store.slide(slide)
        known |= dict.fromkeys(store.header(manifest.find("meta", "meta"))["attrs"]["fields"])
        for ref in manifest.of_kind("labels"):
            attrs = store.header(ref)["attrs"]
            known |= dict.fromkeys([*attrs["numeric_columns"], *attrs["code_columns"]])
        if name in known:
            return
    raise UsageError(f"no column '{name}' to split by (there are {', '.join(known)}){near(name, known)}")
