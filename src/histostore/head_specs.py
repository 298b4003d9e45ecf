"""What a head is asked to do: which targets, which rows are held out, what it sees. Frozen values with a digest."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Number
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from histostore.errors import UsageError, near
from histostore.specs import SpecBase, require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelSpec(SpecBase):
    """Which genes a head predicts; chosen on the training rows only.

    ``top-variance:K`` ranks by the variance of log1p counts per 10,000, ``top-mean:K`` by their mean, ``hvg:K`` and
    ``hvg:K:FLAVOR`` are scanpy's, ``all:SHARE`` are the genes seen in more than that share of the training rows;
    otherwise a comma-separated list of ids or symbols.
    """

    rule: Literal["top-variance", "top-mean", "hvg", "all", "list"]
    k: int | None = None
    share: float | None = None
    flavor: Literal["seurat", "cell_ranger", "seurat_v3"] | None = None
    genes: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, text: str | tuple[str, ...] | list[str]) -> PanelSpec:
        """Return the panel that a command-line text or a list of genes means."""
        if not isinstance(text, str):
            return cls(rule="list", genes=_listed(text))
        rule, _, rest = text.partition(":")
        if rule in ("top-variance", "top-mean", "hvg"):
            count, _, flavor = rest.partition(":")
            require(count.isdigit() and int(count) > 0, f"panel '{text}' needs a positive count, like {rule}:50")
            require(not flavor or rule == "hvg", f"panel '{text}': only hvg takes a flavor")
            require(
                flavor in ("", "seurat", "cell_ranger", "seurat_v3"),
                f"panel '{text}': flavor is seurat, cell_ranger or seurat_v3",
            )
            return cls(rule=rule, k=int(count), flavor=flavor or ("seurat" if rule == "hvg" else None))  # type: ignore[arg-type]
        if rule == "all":
            try:
                share = float(rest or 0.0)
            except ValueError:
                share = -1.0
            require(0 <= share < 1, f"panel '{text}': give the share of rows, like all:0.05")
            return cls(rule="all", share=share)
        require(":" not in text, f"unknown panel '{text}'{near(rule, ('top-variance', 'top-mean', 'hvg', 'all'))}")
        return cls(rule="list", genes=_listed([g.strip() for g in text.split(",") if g.strip()]))

    def __str__(self) -> str:
        if self.rule == "list":
            return ",".join(self.genes or ())
        tail = [str(v) for v in (self.k, self.share, self.flavor) if v is not None]
        return ":".join([self.rule, *tail])


def _listed(genes: Sequence[Any]) -> tuple[str, ...]:
    wrong = [g for g in genes if not isinstance(g, str)]
    require(not wrong, f"genes are named by ids or symbols, and {wrong[:1]} is no text")
    require(len(genes) > 0, "an empty list of genes: name one, or give a rule, like top-variance:50")
    return tuple(genes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSpec(SpecBase):
    """How rows are held out. `by` is an obs column: rows of one value are never on both sides.

    ``stratified-kfold`` is the exception: `by` is what the folds shall hold alike (a centre, a class), and patients
    stay whole. ``spatial-block`` cuts every slide into squares, which are dealt to folds; training rows nearer to a
    test row than the buffer are left out.
    """

    rule: Literal["leave-one-out", "group-kfold", "stratified-kfold", "spatial-block"]
    by: str = "patient"
    n: int | None = None
    """Folds, of all rules but leave-one-out."""
    seed: int = 0
    allow_same_patient: bool = False
    """Permit the same patient on both sides (a split by slide of one patient): said in the report."""
    block_um: float | None = None
    """Edge of the squares of ``spatial-block``."""
    buffer_um: float | None = None
    """Training rows of the same slide within this distance of a test row are left out (``spatial-block``)."""

    def __post_init__(self) -> None:
        require(self.rule in SPLITS, f"split rule is '{self.rule}', not {', '.join(SPLITS)}")
        require(self.n is None or self.n > 1, f"{self.n} folds: give 2 or more")
        for name, value in (("block_um", self.block_um), ("buffer_um", self.buffer_um)):
            require(value is None or (math.isfinite(value) and value >= 0), f"{name} is {value}: give µm, 0 or more")
        require(self.rule != "spatial-block" or bool(self.block_um), "spatial-block needs block_um, its edge in µm")

    @classmethod
    def parse(cls, text: str, **options: Any) -> SplitSpec:
        """Return the split that a text means.

        ``leave-one-out:slide``, ``group-kfold:5:patient``, ``stratified-kfold:5:centre``, or
        ``spatial-block:5:1000:200``: 5 folds of squares of 1,000 µm with a buffer of 200 µm.
        """
        rule, *rest = text.split(":")
        if rule == "leave-one-out" and len(rest) <= 1:
            return cls(rule="leave-one-out", by=rest[0] if rest else "patient", **options)
        n = int(rest[0]) if rest and rest[0].isdigit() else 0
        if rule in ("group-kfold", "stratified-kfold") and len(rest) == 2 and n > 1:
            return cls(rule=rule, n=n, by=rest[1], **options)  # type: ignore[arg-type]
        if rule == "spatial-block" and len(rest) in (2, 3) and n > 1:
            try:
                edge, buffer = float(rest[1]), float(rest[2]) if len(rest) == 3 else 0.0
            except ValueError:
                edge = math.nan
            if edge > 0:
                return cls(rule="spatial-block", by="slide", n=n, block_um=edge, buffer_um=buffer, **options)
        msg = f"unknown split '{text}': use leave-one-out:COLUMN, group-kfold:N:COLUMN, stratified-kfold:N:COLUMN or "
        raise UsageError(msg + f"spatial-block:N:UM[:BUFFER]{near(rule, SPLITS)}")

    def __str__(self) -> str:
        if self.rule == "spatial-block":
            return f"spatial-block:{self.n}:{self.block_um:g}:{self.buffer_um or 0:g}"
        return ":".join(str(v) for v in (self.rule, self.n, self.by) if v is not None)


SPLITS = ("leave-one-out", "group-kfold", "stratified-kfold", "spatial-block")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec(SpecBase):
    """What a head sees of the embeddings."""

    context_um: tuple[float, ...] = ()
    """Own embedding, joined by the Gaussian mean of the neighbours' at each of these sigmas (µm, same slide)."""
    standardise: Literal["none", "slide"] = "none"
    """``slide``: zero mean and unit variance per slide, from the slide's own rows (no labels used)."""
    position: bool = False
    """Join the prediction of the position-only baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSpec(SpecBase):
    """Which classes rows have, from one obs column (labels of spots, ``region_<name>`` of polygons, metadata).

    Values are compared as text: numbers and booleans are taken as the text that they print as (``1``, ``True``).
    """

    column: str
    positive: tuple[str, ...] | None = None
    """Values that are the positive class, told from the others; None keeps every value as a class of its own."""
    negative: tuple[str, ...] | None = None
    """With `positive`: the only values that are negatives, like the class of the region that was looked at. All other
    rows are ignored. None takes every row that has a value."""
    ignore: tuple[str, ...] | None = None
    """Values that say nothing."""
    negatives_per_positive: float | None = None
    """Keep this many negatives per positive on each slide, drawn by the head's seed."""

    def __post_init__(self) -> None:
        for name in ("positive", "negative", "ignore"):
            object.__setattr__(self, name, _as_texts(name, getattr(self, name)))
        require(self.negative is None or self.positive is not None, "negative classes need positive ones beside them")
        share = self.negatives_per_positive
        require(share is None or (self.positive is not None and share > 0),
                "negatives_per_positive needs positive classes and a number above zero")  # fmt: skip


def _as_texts(name: str, values: Any) -> Any:
    """Return the values of a column as the texts that labels are compared as."""
    if values is None or isinstance(values, str):
        return values
    given = tuple(values) if isinstance(values, Iterable) else (values,)
    # numpy's numbers are registered as such, its booleans are not
    wrong = [v for v in given if not (isinstance(v, str | Number) or type(v).__name__ == "bool")]
    require(not wrong, f"{name} holds {wrong[:1]}: give the values of the column, texts or numbers")
    return tuple(v if isinstance(v, str) else str(v) for v in given)


@dataclass(frozen=True, slots=True, kw_only=True)
class BagSpec(SpecBase):
    """One row per slide, made of its tiles."""

    tiles: int | None = None
    """Tiles drawn per slide, by the head's seed; None takes all."""
    pool: Literal["mean", "tiles"] = "mean"
    """The tiles' mean, or the drawn tiles side by side for a head that weighs them itself."""

    def __post_init__(self) -> None:
        require(self.tiles is None or self.tiles > 0, f"{self.tiles} tiles per slide: give 1 or more")
        require(self.pool in ("mean", "tiles"), f"pool is '{self.pool}', not mean or tiles")
        require(self.pool == "mean" or self.tiles is not None, "pool 'tiles' needs how many are drawn per slide")


type Unit = Literal["log1p-cp10k", "log1p", "log-share", "counts"]
UNITS: tuple[str, ...] = get_args(Unit.__value__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec(SpecBase):
    """One head to train: the estimator, its options, what it predicts and what it is fed.

    It predicts one of three: genes (`panel`, in the unit `target`), numbers (`columns`) or classes (`labels`).
    """

    head: str
    options: tuple[tuple[str, Any], ...] = ()
    panel: PanelSpec | None = None
    target: Unit = "log1p-cp10k"
    """Of genes: log(1 + counts per 10,000), log(1 + counts), ST-Net's log((1 + count) / (genes + library)), counts."""
    columns: tuple[str, ...] | None = None
    """Numeric obs columns or metadata fields."""
    labels: LabelSpec | None = None
    bag: BagSpec | None = None
    """One row per slide instead of one per tile."""
    groups: tuple[str, ...] | None = None
    """Obs columns of the random effects, for heads that have some."""
    split: SplitSpec
    features: tuple[FeatureSpec, ...] = (FeatureSpec(),)
    """More than one: chosen by inner folds."""
    min_counts: int = 0
    """Rows with fewer counts are not trained or scored on (counted in the report)."""
    seed: int = 0

    def __post_init__(self) -> None:
        given = [v is not None for v in (self.panel, self.columns, self.labels)]
        require(sum(given) == 1, "a head predicts genes, columns or labels: give one of the three")
        require(self.target in UNITS, f"target is '{self.target}', not {', '.join(UNITS)}{near(self.target, UNITS)}")

    @property
    def task(self) -> Literal["genes", "columns", "labels"]:
        """What is predicted."""
        if self.panel is not None:
            return "genes"
        return "columns" if self.columns is not None else "labels"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the spec that `to_json` wrote, the specs inside it included."""
        plain = dict(value)
        for name, kind in (("panel", PanelSpec), ("split", SplitSpec), ("labels", LabelSpec), ("bag", BagSpec)):
            if plain.get(name) is not None:
                plain[name] = kind.from_json(plain[name])
        plain["features"] = tuple(FeatureSpec.from_json(f) for f in plain.get("features", [{}]))
        options = plain.get("options", ())
        plain["options"] = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in options)
        # a class with slots is made anew by its decorator: the bare super() would mean the one before
        return super(HeadSpec, cls).from_json(plain)


def LeaveOneOut(by: str = "patient", **options: Any) -> SplitSpec:
    """Return the split that holds out one value of an obs column at a time."""
    return SplitSpec(rule="leave-one-out", by=by, **options)


def GroupKFold(by: str, n: int = 5, **options: Any) -> SplitSpec:
    """Return the split in `n` folds, the rows of one value of an obs column always together."""
    return SplitSpec(rule="group-kfold", by=by, n=n, **options)


def StratifiedKFold(by: str, n: int = 5, **options: Any) -> SplitSpec:
    """Return the split in `n` folds that hold every value of an obs column alike, patients whole."""
    return SplitSpec(rule="stratified-kfold", by=by, n=n, **options)


def SpatialBlocks(block_um: float, n: int = 5, *, buffer_um: float = 0.0, **options: Any) -> SplitSpec:
    """Return the split of every slide into squares of `block_um`, dealt to `n` folds."""
    return SplitSpec(rule="spatial-block", by="slide", n=n, block_um=block_um, buffer_um=buffer_um, **options)
