"""Settings that cannot be, told before the first stage: tiling and embedding may take hours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.backbones import preflight
from histostore.errors import DataError, NotFoundError, UsageError, near
from histostore.genes import GeneNames
from histostore.head_specs import UNITS, PanelSpec, SplitSpec
from histostore.part import CALL, PROBABILITY, REGION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from histostore.head_specs import LabelSpec
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
    _check_split(store, split)
    _check_genes(store, panel)
    check_backbone(store, backbone)


def check_labels(store: Store, *, backbone: str, labels: LabelSpec, split: str) -> None:
    """Refuse what `tl.embed` and `tl.fit` of classes would refuse, as far as the headers of groups tell.

    Raises
    ------
    NotFoundError
        There is no such backbone, column or class; near names are suggested.
    UsageError
        The split cannot be read, or is by a column that no slide has.
    DataError
        Every class is a positive one.
    """
    _check_split(store, split)
    _check_classes(store, labels)
    check_backbone(store, backbone)


def check_backbone(store: Store | None, backbone: str) -> None:
    """Refuse a backbone that `tl.embed` would refuse: neither one of the store's nor one whose weights can be had."""
    if store is None or store.manifest("@backbones").get("backbones", backbone) is None:
        preflight(backbone)


def _check_genes(store: Store, panel: PanelSpec) -> None:
    """Look for a panel's genes slide by slide, until all are found."""
    missing, known, counted = list(panel.genes or ()), dict[str, str](), False
    for names in _gene_names(store):
        counted = True
        known |= zip(names.ids, names.symbols, strict=True)
        for gene in [g for g in missing if g in names]:
            names.place(gene)  # one that several genes are called by is refused
            missing.remove(gene)
        if not missing and (panel.k or 0) <= len(known):
            return
    if not counted:
        raise DataError("no slide has counts: ingest some with counts before genes are predicted")
    if missing:
        some = near(missing[0], known.values())
        raise NotFoundError(f"no gene '{missing[0]}' among {len(known):,} of these slides{some}")
    raise UsageError(f"panel '{panel}' wants {panel.k} genes and there are {len(known):,}")


def _gene_names(store: Store) -> Iterator[GeneNames]:
    for slide in store.slides():
        for ref in store.slide(slide).of_kind("expression"):
            group = store.group(ref)
            yield GeneNames(*(group.read(f"var/{name}").tolist() for name in ("gene_ids", "symbols")))


def _check_split(store: Store, split: str) -> None:
    """Refuse a split by a column that no slide has; those of polygons and calls are made as they are read."""
    name = SplitSpec.parse(split).by
    if name in ("slide", "library_id") or name.startswith((REGION, CALL, PROBABILITY)):
        return
    known: dict[str, None] = {"slide": None}
    for columns in _columns(store):
        known |= dict.fromkeys(c for c in columns if not c.startswith(REGION))
        if name in known:
            return
    raise UsageError(f"no column '{name}' to split by (there are {', '.join(known)}){near(name, known)}")


def _check_classes(store: Store, labels: LabelSpec) -> None:
    """Refuse a column that no slide has, and classes that it has on none."""
    name, known, values = labels.column, dict[str, None](), dict[str, None]()
    if name.startswith((CALL, PROBABILITY)):
        return
    for columns in _columns(store):
        known |= dict.fromkeys(columns)
        if columns.get(name, ()) is None:
            return  # numbers: which ones there are is told by reading them alone
        values |= dict.fromkeys(columns.get(name) or ())
    if name not in known:
        raise NotFoundError(f"no column '{name}' of labels{near(name, known)}; there are {', '.join(known)}")
    for value in (*(labels.positive or ()), *(labels.negative or ()), *(labels.ignore or ())):
        if value not in values:
            raise NotFoundError(f"no row has {name} '{value}'{near(value, values)}; there are {', '.join(values)}")
    if labels.positive and not values.keys() - {*labels.positive, *(labels.ignore or ())}:
        raise DataError(f"no row of {name} is negative: there are {', '.join(values)} alone")


def _columns(store: Store) -> Iterator[Mapping[str, list[str] | None]]:
    """Yield the columns of each slide's metadata, labels and polygons, with their values; numbers of labels without."""
    for slide in store.slides():
        manifest = store.slide(slide)
        fields = store.header(manifest.find("meta", "meta"))["attrs"]["fields"]
        columns: dict[str, list[str] | None] = {k: [str(v)] if v not in (None, "") else [] for k, v in fields.items()}
        for ref in manifest.of_kind("labels"):
            attrs = store.header(ref)["attrs"]
            columns |= {**dict.fromkeys(attrs["numeric_columns"]), **attrs["categories"]}
        columns |= {f"{REGION}{r.name}": [*store.header(r)["attrs"]["classes"]] for r in manifest.of_kind("regions")}
        yield columns
