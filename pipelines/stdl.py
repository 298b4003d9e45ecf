"""STDL: expression from the H&E of a spot, for one gene, K genes, or all genes through NMF or an autoencoder.

Roy-Rubin, STDL-Project (github.com/Roy-Rubin/STDL-Project, bae689e), after ST-Net; Visium breast cancer block A, and
ST-Net's data.

Reproduced: a square tile the size of a spot at every spot; log1p of raw counts; one gene (CRISP3), the K genes of
highest variance, or all genes through 10 factors of a non-negative matrix factorisation or of an autoencoder whose
decoder gives the genes back; the training mean beside them, and the reconstruction from the true factors as their
ceiling; the seed's own measure, the Frobenius norm of the error over the number of entries, beside the mean squared
error.

What differs:

- A frozen pretrained network and ridge on its cached embeddings, in colour; STDL trains a convolutional network from
  nothing on grey patches, with an augmentation whose flips were rotations.
- Genes, factors and the penalty are fitted on training spots alone; a new spot is expressed in their basis by
  non-negative least squares. STDL filters genes by the test counts and factorises the test matrix anew.
- Spots without counts are left out and counted, never labelled 0; rows are joined by id.
- A measure that shrinks with the number of spots cannot be compared across sizes: the mean squared error and the
  correlation are what to read.

    histostore run pipelines/stdl.py --store S --set task=nmf --name nmf10
    histostore run pipelines/stdl.py --store S --sweep task=one,k,nmf,ae
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import histostore as hs
from histostore.recipes import Recipe, Results, check_fit

if TYPE_CHECKING:
    from histostore.recipes import RunReport


@dataclass(frozen=True)
class Settings:
    """What may be set."""

    task: Literal["one", "k", "nmf", "ae"] = "one"
    gene: str = "CRISP3"
    """Of task one."""
    k: int = 10
    """Genes of task k; factors of the others."""
    expressed: float = 0.05
    """Tasks nmf and ae: genes seen in more than this share of the training spots."""
    hidden: str = "100x50"
    """Widths of the autoencoder before its factors; STDL's largest net had 100,000, 10,000 and 5,000."""
    backbone: str = "densenet121"
    um: float = 100.0
    """Edge of a tile in µm."""
    target: str = "log1p"
    split: str = "leave-one-out:patient"
    allow_same_patient: bool = False
    min_counts: int = 0
    codec: str = "jpeg"
    seed: int = 0


def check(store: hs.Store, settings: Settings) -> None:
    """Refuse settings that cannot be, before anything is tiled."""
    check_fit(
        store, backbone=settings.backbone, head=_head(settings), genes=_genes(settings), target=settings.target,
        split=settings.split,
    )  # fmt: skip


def run(store: hs.Store, settings: Settings, report: RunReport) -> Results:
    """Tile, embed and score; what is there already is used."""
    tiles = f"stdl-{settings.um:g}um"
    with report.timed("tile"):
        spec = hs.TileSpec.at_spots(um=settings.um, mpp="native")
        hs.pp.tile(store, spec, name=tiles, pixels=hs.PixelSpec(codec=settings.codec))  # type: ignore[arg-type]
    with report.timed("embed"):
        made = hs.tl.embed(store, settings.backbone, tiles=tiles, progress=report.progress)
    with report.timed("fit"):
        result = hs.tl.fit(
            store, _head(settings), genes=_genes(settings), target=settings.target, split=settings.split,
            backbone=made[0].refs[0].name.rpartition("/")[2], tiles=tiles, min_counts=settings.min_counts,
            allow_same_patient=settings.allow_same_patient, seed=settings.seed,
        )  # fmt: skip
    scores = result.evaluation
    for what, n in {**result.left_out, **scores.report.counts}.items():
        report.count(f"rows: {what}", n)
    for note in scores.report.notes:
        report.note(note)
    metrics: dict[str, Any] = {
        "pearson": scores.score(),
        "mse": scores.score(metric="mse"),
        "mse_training_mean": scores.score("training mean", "mse"),
        "genes": int(np.mean([len(f.genes) for f in scores.folds])),
        "folds": len(scores.folds),
    }
    for name, method in (("distance", scores.method), ("distance_training_mean", "training mean")):
        metrics[name] = float(np.mean([_distance(f.truth, f.predictions[method]) for f in scores.folds]))
    if settings.task in ("nmf", "ae"):
        metrics["mse_ceiling"] = _ceiling(result, settings)
    return Results(metrics=metrics, table=scores.slides.to_dict("records"), protocol=scores.to_json())


def _head(settings: Settings) -> Any:
    if settings.task in ("one", "k"):
        return "ridge"
    decoder = f"nmf:{settings.k}" if settings.task == "nmf" else f"autoencoder:{settings.hidden}x{settings.k}"
    return hs.heads.Decoded("ridge", decoder, seed=settings.seed)


def _genes(settings: Settings) -> str:
    if settings.task == "one":
        return settings.gene
    return f"top-variance:{settings.k}" if settings.task == "k" else f"all:{settings.expressed:g}"


def _distance(truth: np.ndarray, guess: np.ndarray) -> float:
    """Return the seed's measure: ‖truth − guess‖ over the number of entries."""
    return float(np.linalg.norm(truth - guess) / truth.size)


def _ceiling(result: Any, settings: Settings) -> float:
    """Return the error that is left when the factors of the held-out spots are known, in the training spots' basis."""
    from histostore.heads.decoders import parse_decoder
    from histostore.heads.panels import targets

    counts, symbols = result.data.genes.matrix, {g: i for i, g in enumerate(result.data.genes.symbols)}
    seen = np.sort(np.concatenate([f.rows for f in result.evaluation.folds]))
    errors = []
    for fold in result.evaluation.folds:
        columns = np.array([symbols[g] for g in fold.genes])
        train = np.setdiff1d(seen, fold.rows)
        decoder = parse_decoder(_head(settings).decoder, seed=settings.seed)
        decoder.fit(targets(counts[train], columns, settings.target), groups=result.data.obs["slide"].to_numpy()[train])
        errors.append(float(np.mean((decoder.reconstruct(fold.truth) - fold.truth) ** 2)))
    return float(np.mean(errors))


RECIPE = Recipe(
    name="stdl",
    citation="Roy-Rubin, STDL-Project, github.com/Roy-Rubin/STDL-Project (2021), after He et al. 2020",
    settings=Settings,
    run=run,
    check=check,
    reproduces="spot-sized tiles, log1p counts, one gene, K genes, all genes through NMF or an autoencoder",
    differs="frozen pretrained network and ridge; everything fitted on training spots alone; 8 true symmetries unused",
    quick={"task": "nmf", "k": 3, "backbone": "testing", "um": 192.0, "codec": "slide", "expressed": 0.5},
)
