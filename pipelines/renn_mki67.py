"""RENN on TCGA-BRCA: MKI67 from whole slides, with a random intercept per tissue source site.

RENN_for_histopathology (turancan710, MIT): frozen Inception v3 features of up to 32 tiles a slide, averaged; ln TPM of
MKI67; four losses (nll, cor_1, cor_det and no random effects), batch sizes m of 2 to 150 rows of one site, ten seeds,
sixty epochs, 80 % of the sites to train.

Reproduced: tiles of 598 px at 20x with over 80 % tissue; Inception v3 at 299 px; 32 tiles a slide by seed, averaged;
ln TPM; slides without MKI67, site or tiles left out (and counted); the head of 256 and 64 units, AdamW, halving every
16 epochs; the four losses for the study of batch sizes, beside the exact one (``loss=em``); the table and the pictures
of the study from its own flat table.

What differs:

- Slides are read by region and never whole, colours stay RGB (the study's tiles are BGR read as RGB: a folder of them
  is turned back), and which tiles are drawn depends on seed, slide and tile alone.
- The number to compare is the exact likelihood of the held-out sites per row whatever the batch size; the study's rows
  of different m are different criteria, and only m = 150, where no site is cut, is the marginal likelihood.
- No epoch is chosen on the validation sites. Effects of sites are scored on slides that had no part in them: held-out
  sites get 0 and a wider interval, known sites are scored by five folds within sites.
- The study's table has no squared errors: those over m are drawn from a sweep of this recipe.

    histostore run pipelines/renn_mki67.py --store S --name exact
    histostore run pipelines/renn_mki67.py --set features=features.npz --set table=mki67_by_slide.csv --name cached
    histostore run pipelines/renn_mki67.py --store S --sweep loss=em,nll,cor_1,cor_det,no_re --sweep m=2,32,150
    python pipelines/renn_mki67.py renn_results_flat.csv [--pictures FOLDER]
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np
import pandas as pd

import histostore as hs
from histostore.backbones import load_backbone
from histostore.errors import DataError, HistostoreError, NotFoundError, UsageError, near
from histostore.heads.mixed.random_intercept import fit_random_intercept, nll
from histostore.io.renn_table import best_epochs, read_renn_table, run_means
from histostore.pl import sweep_boxes, sweep_curves, sweep_means
from histostore.recipes import Recipe, Results, check_backbone

if TYPE_CHECKING:
    from histostore.recipes import RunReport

M = "batch size m"
WITHIN, BETWEEN = "variance within sites", "variance between sites"


@dataclass(frozen=True)
class Settings:
    """What may be set."""

    features: str = ""
    """The study's features.npz, a folder of its tile h5 files, or "simulated" (a check of the code); none reads the
    store."""
    table: str = ""
    """With features: the study's CSV (file_id, tss_code, MKI67_tpm_unst)."""
    target: str = "MKI67_tpm_unst"
    """TPM: a metadata field of the store's slides, or a column of the table."""
    site: str = "tss_code"
    backbone: str = "inception_v3"
    px: int = 598
    mpp: float = 0.5
    min_tissue: float = 0.8
    tiles_per_slide: int = 32
    codec: Literal["jpeg", "lossless", "slide"] = "jpeg"
    loss: Literal["em", "nll", "cor_1", "cor_det", "no_re"] = "em"
    m: int = 150
    epochs: int = 60
    lr: float = 2.5e-5
    weight_decay: float = 1e-3
    hidden: tuple[int, ...] = (256, 64)
    scale: Literal["global", "features", "none"] = "none"
    seed: int = 0


@dataclass(frozen=True)
class Slides:
    """One row per slide."""

    X: np.ndarray
    y: np.ndarray
    """ln TPM."""
    site: np.ndarray


def check(store: hs.Store | None, settings: Settings) -> None:
    """Refuse settings that cannot be, before anything is tiled."""
    if settings.features == "simulated":
        return
    if settings.features:
        obs, path = _table(settings), Path(settings.features)
        if not path.exists():
            raise NotFoundError(f"features '{path}': no such file or folder")
        if path.is_dir():
            check_backbone(None, settings.backbone)  # features are made outside a store
    else:
        store = _given(store)
        _tiles(settings)
        check_backbone(store, settings.backbone)
        obs = hs.get.slides(store)
    tpm, site = _values(obs, settings)
    _study_split(site[(tpm > 0) & (site != "")], settings.seed)


def run(store: hs.Store | None, settings: Settings, report: RunReport) -> Results:
    """Train on 80 % of the sites and score on the others; then five folds within sites."""
    with report.timed("data"):
        slides = _from_store(store, settings, report) if not settings.features else _from_files(settings, report)
    train, held = _study_split(slides.site, settings.seed)
    with report.timed("held-out sites"):
        head = _fit(settings, slides, train)
    error = slides.y[held] - head.predict(slides.X[held])[:, 0]
    s2_e, s2_b = float(head.s2_e_[0]), 0.0 if settings.loss == "no_re" else float(head.s2_b_[0])
    low, high = head.predict_interval(slides.X[held], level=0.9)
    alone = fit_random_intercept(slides.y[train], slides.site[train])
    bare = slides.y[held] - float(alone.coef[0])
    with report.timed("within sites"):
        known, constant = _within_sites(settings, slides)
    metrics: dict[str, float | int | str | None] = {
        "nll_held_out_sites": nll(error, slides.site[held], s2_e, s2_b) / len(held),
        "nll_without_image": nll(bare, slides.site[held], float(alone.s2_e), float(alone.s2_b)) / len(held),
        "mse_held_out_sites": float(np.mean(error**2)),
        "mse_held_out_sites_without_image": float(np.mean(bare**2)),
        "covered_by_90": float(np.mean((slides.y[held] >= low[:, 0]) & (slides.y[held] <= high[:, 0]))),
        "mse_within_sites": known,
        "mse_within_sites_without_image": constant,
        "s2_e": s2_e,
        "s2_b": s2_b,
        "slides": len(slides.y),
        "sites": len(np.unique(slides.site)),
    }
    for note in head.notes_:
        report.note(note)
    history = head.history_
    table = [
        {"loss": settings.loss, "m": settings.m, "seed": settings.seed, "epoch": k,
         "train": float(history["loss"][k]), "s2_e": float(history["s2_e"][k, 0]), "s2_b": float(history["s2_b"][k, 0])}
        for k in range(len(history["loss"]))
    ]  # fmt: skip
    sites = {"train": sorted(set(slides.site[train])), "held out": sorted(set(slides.site[held]))}
    return Results(metrics=metrics, table=table, protocol={"split": "80 % of the sites, by seed", "sites": sites})


def _fit(settings: Settings, slides: Slides, rows: np.ndarray) -> Any:
    head = hs.heads.RENN(
        settings.hidden, loss=settings.loss, batch_size=settings.m, epochs=settings.epochs, lr=settings.lr,
        weight_decay=settings.weight_decay, decay="halving", validation=0.0, scale=settings.scale, scale_target=False,
        seed=settings.seed,
    )  # fmt: skip
    return head.fit(slides.X[rows], slides.y[rows], groups=slides.site[rows])


def _within_sites(settings: Settings, slides: Slides) -> tuple[float, float]:
    """Return the squared error of five folds that all hold every site, with the image and with the sites alone."""
    fold = np.empty(len(slides.y), np.int64)
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(len(fold))
    order = order[np.argsort(slides.site[order], kind="stable")]
    fold[order] = np.arange(len(order)) % 5
    image, alone = np.empty(len(fold)), np.empty(len(fold))
    for k in range(5):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        image[test] = _fit(settings, slides, train).predict(slides.X[test], slides.site[test])[:, 0]
        alone[test] = fit_random_intercept(slides.y[train], slides.site[train]).predict(slides.site[test])
    return float(np.mean((slides.y - image) ** 2)), float(np.mean((slides.y - alone) ** 2))


def _study_split(site: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of 80 % of the sites and of the others, as the study draws them: sites in order of appearance."""
    names = list(dict.fromkeys(site.tolist()))
    random.Random(seed).shuffle(names)
    train = np.isin(site, names[: int(0.8 * len(names))])
    if train.all() or not train.any():
        raise DataError(f"{len(names)} sites cannot be split 80 to 20: bring slides of more sites")
    return np.flatnonzero(train), np.flatnonzero(~train)


def _from_store(store: hs.Store | None, settings: Settings, report: RunReport) -> Slides:
    store = _given(store)
    tiles = f"renn-{settings.px}@{settings.mpp:g}"
    hs.pp.tile(store, _tiles(settings), name=tiles, pixels=hs.PixelSpec(codec=settings.codec))
    made = hs.tl.embed(store, settings.backbone, tiles=tiles, progress=report.progress)
    rows = store.view(backbone=made[0].refs[0].name.rpartition("/")[2], tiles=tiles)
    X, used = hs.tl.pool(rows, tiles=settings.tiles_per_slide, seed=settings.seed)
    obs = hs.get.slides(store)
    return _usable(np.asarray(X), np.array(used) > 0, obs.reindex(list(rows.slides)), settings, report)


def _given(store: hs.Store | None) -> hs.Store:
    if store is None:
        raise UsageError("give --store, or --set features=FILE and --set table=CSV")
    return store


def _tiles(settings: Settings) -> hs.TileSpec:
    return hs.TileSpec.grid(px=settings.px, mpp=settings.mpp, min_tissue=settings.min_tissue)


def _table(settings: Settings) -> pd.DataFrame:
    """Return the study's CSV by file."""
    if not Path(settings.table).is_file():
        raise NotFoundError(f"table '{settings.table}': no such file; features need the study's CSV")
    # a site's code may be "NA": nothing but an empty cell is missing
    table = pd.read_csv(settings.table, dtype=str, keep_default_na=False)
    if "file_id" not in table:
        raise DataError(f"{settings.table} has no column 'file_id' (there are {', '.join(map(str, table.columns))})")
    return table.set_index("file_id", drop=False)


def _from_files(settings: Settings, report: RunReport) -> Slides:
    if settings.features == "simulated":
        return _simulated(settings.seed)
    table = _table(settings)
    path = Path(settings.features)
    if path.is_dir():
        found = {f: _tiles_of(path / f"{f}.h5", f, settings) for f in table.index if (path / f"{f}.h5").exists()}
        net = load_backbone(settings.backbone)
        found = {f: net.embed(tiles).mean(0) for f, tiles in found.items() if len(tiles)}
    else:
        with np.load(path, allow_pickle=False) as archive:
            found = {f: archive[f] for f in table.index if f in archive.files}
    if not found:
        raise DataError(f"{path} holds none of the {len(table)} slides of {settings.table}")
    width = len(next(iter(found.values())))
    X = np.array([found.get(f, np.full(width, np.nan)) for f in table.index], dtype=np.float32)
    return _usable(X, np.isfinite(X).all(1), table, settings, report)


def _tiles_of(path: Path, file_id: str, settings: Settings) -> np.ndarray:
    """Return the drawn tiles ``(k, px, px, 3)`` RGB of one of the study's files, whose colours are turned round."""
    with h5py.File(path) as file:
        tiles = file[file_id]["tiles"] if file_id in file else file["tiles"]
        rng = np.random.default_rng([settings.seed, *file_id.encode()])
        rows = np.sort(rng.permutation(len(tiles))[: settings.tiles_per_slide])
        return np.ascontiguousarray(tiles[rows][..., ::-1])


def _usable(X: np.ndarray, embedded: np.ndarray, obs: pd.DataFrame, settings: Settings, report: RunReport) -> Slides:
    tpm, site = _values(obs, settings)
    reasons = {"without tiles": ~embedded, f"without {settings.target}": ~(tpm > 0), "without a site": site == ""}
    good = ~np.any(list(reasons.values()), axis=0)
    for reason, rows in reasons.items():
        report.count(reason, int(rows.sum()))
    report.count("slides used", int(good.sum()))
    return Slides(X[good].astype(np.float32), np.log(tpm[good]), site[good].astype(str))


def _values(obs: pd.DataFrame, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Return TPM, NaN where there is none, and the site, empty where there is none, of each slide."""
    for name in (settings.target, settings.site):
        if name not in obs:
            known = list(map(str, obs.columns))
            raise DataError(f"no column '{name}' among {', '.join(known)}{near(name, known)}")
    tpm = pd.to_numeric(obs[settings.target].replace("", np.nan), errors="coerce").to_numpy(dtype=float)
    return tpm, obs[settings.site].fillna("").astype(str).to_numpy(dtype=object)


def _simulated(seed: int) -> Slides:
    rng = np.random.default_rng(seed)
    site = np.array([f"S{j:02d}" for j in rng.integers(0, 15, 240)])
    X = rng.normal(size=(240, 16)).astype(np.float32)
    effect = dict(zip(np.unique(site), rng.normal(scale=0.5, size=15), strict=True))
    return Slides(X, 3 + 0.5 * X[:, 0] + np.array([effect[s] for s in site]) + rng.normal(size=240), site)


def summarise(csv: Path) -> pd.DataFrame:
    """Return the study's table: best epoch of each run, averaged over the ten runs of every loss and m."""
    return run_means(read_renn_table(csv))


def redraw(csv: Path, folder: Path) -> list[Path]:
    """Draw the study's pictures into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    epochs = read_renn_table(csv)
    best = best_epochs(epochs)
    made = []

    def path(name: str) -> Path:
        made.append(folder / f"{name}.png")
        return made[-1]

    for value, name, skip in (
        ("train", "training loss per row", 3),
        ("validation", "validation loss per row", 3),
        ("s2_e", WITHIN, 0),
        ("s2_b", BETWEEN, 0),
    ):
        sweep_curves(epochs, value, name=name, title=f"RENN, {name}", skip=skip, save=path(f"{value}_by_epoch"))
    for value, name in (
        ("train", "training loss per row"),
        ("validation", "validation loss per row"),
        ("s2_e", WITHIN),
        ("s2_b", BETWEEN),
        ("epoch", "epoch, from 0"),
    ):
        title = f"RENN, {name} at the best epoch" if value != "epoch" else "RENN, epoch of the lowest validation loss"
        sweep_boxes(best, value, name=name, x_name=M, title=title, save=path(f"{value}_best"))
    sweep_means(
        best, "validation", name="validation loss per row", x_name=M, title="RENN, validation loss at the best epoch",
        save=path("validation_over_m"),
    )  # fmt: skip
    return made


def main(arguments: list[str] | None = None) -> int:
    """Print the table; draw the pictures where a folder is given."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("csv", type=Path, help="renn_results_flat.csv")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    given = parser.parse_args(arguments)
    try:
        print(summarise(given.csv).to_string(float_format=lambda v: f"{v:.4f}"))  # noqa: T201
        if given.pictures is not None:
            print(f"{len(redraw(given.csv, given.pictures))} pictures in {given.pictures}")  # noqa: T201
    except HistostoreError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


RECIPE = Recipe(
    name="renn_mki67",
    citation="turancan710, RENN_for_histopathology (2025), github.com/turancan710/RENN_for_histopathology",
    settings=Settings,
    run=run,
    check=check,
    reproduces="598 px tiles at 20x, Inception v3, 32 tiles a slide averaged, ln TPM, sites as effects, 4 losses",
    differs="exact likelihood at any batch size; no epoch chosen on validation; effects scored on other slides",
    published={"nll_held_out_sites": 1.467, "nll_without_image": 1.4949},
    needs_store=False,
    quick={"features": "simulated", "epochs": 12, "lr": 3e-3, "hidden": (16,), "m": 16},
)


if __name__ == "__main__":
    sys.exit(main())
