"""A synthetic spatial transcriptomics cohort with known truth: files as ST v1 and QuPath write them."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pandas as pd
import shapely
from scipy import ndimage
from skimage import measure

from histostore.errors import UsageError
from histostore.testing.slides import FACTORS, TruthMaps, synthetic_histology, write_pyramid_tiff

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PITCH_UM = 200.0
"""Centre-to-centre distance of ST v1 spots."""
MPP = 2.0
PITCH_PX = round(PITCH_UM / MPP)
JITTER_PX = 4.0
JPEG_QUALITY = 92
MEAN_DEPTH = 4000.0
"""Counts per spot of a patient of middling library size."""
OVERDISPERSION = 0.05
"""Variance beyond Poisson: var = mean + 0.05 mean^2."""
MORPHOLOGY_SHARE = 0.2
PLACE_SHARE = 0.1
CENTRES = ("north", "south")
SHEET_COLUMNS = ("slide", "image", "mpp", "st_counts", "st_spots", "obs", "geojson", "patient", "centre")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTruth:
    """One slide of a cohort: its files and what is true of its spots."""

    name: str
    patient: str
    image: Path
    counts: Path
    spots: Path
    obs: Path
    geojson: Path
    spot_ids: tuple[str, ...]
    """In the order of the spot file: column x row of the array, ``7x12``."""
    xy: NDArray[np.float64]
    """``(n, 2)`` centres in pixels."""
    latents: NDArray[np.float32]
    """``(n, 3)``, in the order of `histostore.testing.slides.FACTORS`."""
    in_tumour: NDArray[np.bool_]
    """``(n,)`` whether the centre lies in the polygon "tumour"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Paths and truth of what `write_cohort` wrote."""

    folder: Path
    sheet: Path
    truth: Path
    slides: tuple[SlideTruth, ...]
    genes: tuple[str, ...]
    morphology_genes: dict[str, str]
    """Gene to the latent factor that it follows."""
    place_genes: tuple[str, ...]
    """Genes that follow the position on the array and nothing one can see."""
    mpp: float = MPP
    pitch_px: int = PITCH_PX


@dataclass(frozen=True, slots=True)
class _Genes:
    names: tuple[str, ...]
    share: NDArray[np.float64]
    """``(g,)`` expected share of a spot's counts."""
    on_latents: NDArray[np.float64]
    """``(g, 3)`` log fold change per unit of a latent."""
    on_place: NDArray[np.float64]
    """``(g, 2)`` log fold change over half the array in x and in y."""


def write_cohort(
    folder: Path,
    *,
    n_patients: int = 3,
    slides_per_patient: int = 2,
    spots: int = 150,
    genes: int = 300,
    px: int = 2000,
    seed: int = 0,
) -> Cohort:
    """Write a small cohort: images, ST v1 counts and spots, clusters, polygons, a sheet and the truth.

    Of the genes a fifth (``MORPH…``) follow what the picture shows, a tenth (``PLACE…``) only the position on the
    array, the rest (``NOISE…``) nothing. Counts are gamma-Poisson; patients differ in stain and library size. The
    last slide is an Aperio-like pyramid (``.svs``), all others are JPEG at quality 92; 2 µm per pixel, so spots lie
    100 px apart.

    Parameters
    ----------
    folder
        Made where it is not there.
    n_patients, slides_per_patient
        Slides are ``A1``, ``A2``, ``B1``, …; at most 26 patients.
    spots
        Spots per slide, about: as many as lie on tissue.
    genes
        Genes measured; a file lists those it has counts of.
    px
        Edge of the images.
    seed
        Fixes every byte of the tables and every pixel.
    """
    sites = (px // PITCH_PX - 1) ** 2
    if not 1 <= n_patients <= 26 or slides_per_patient < 1 or genes < 10 or not 1 <= spots <= 0.9 * sites:
        msg = f"{n_patients} patients, {spots} spots, {genes} genes: 1-26, 1-{int(0.9 * sites)} at {px} px, at least 10"
        raise UsageError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, 1))
    panel = _draw_genes(genes, rng)
    slides: list[SlideTruth] = []
    for p in range(n_patients):
        stain = (float(rng.uniform(0.8, 1.2)), float(rng.uniform(0.8, 1.2)))
        depth = MEAN_DEPTH * float(rng.lognormal(0, 0.4))
        for s in range(slides_per_patient):
            name, last = f"{chr(65 + p)}{s + 1}", (p, s) == (n_patients - 1, slides_per_patient - 1)
            image, maps = synthetic_histology(
                px, px, seed=seed * 1009 + p * 101 + s, tissue_share=spots / (px // PITCH_PX) ** 2, stain=stain
            )
            slides.append(
                _write_slide(folder, name, image, maps, panel, depth, np.random.default_rng((seed, 2, p, s)), svs=last)
            )
    sheet = _write_sheet(folder, slides)
    groups = {
        g: FACTORS[int(np.argmax(np.abs(b)))] for g, b in zip(panel.names, panel.on_latents, strict=True) if b.any()
    }
    place = tuple(g for g, b in zip(panel.names, panel.on_place, strict=True) if b.any())
    truth = _write_truth(folder, slides, panel, seed)
    return Cohort(
        folder=folder,
        sheet=sheet,
        truth=truth,
        slides=tuple(slides),
        genes=panel.names,
        morphology_genes=groups,
        place_genes=place,
    )


def _draw_genes(n: int, rng: np.random.Generator) -> _Genes:
    seen, placed = round(n * MORPHOLOGY_SHARE), round(n * PLACE_SHARE)
    names = [f"MORPH{i:03d}" for i in range(seen)] + [f"PLACE{i:03d}" for i in range(placed)]
    names += [f"NOISE{i:03d}" for i in range(n - seen - placed)]
    share = rng.lognormal(0, 1.2, n)
    # genes with a signal are expressed well enough to show it; the rest go down to hardly ever seen
    share[: seen + placed] = rng.lognormal(0.5, 0.5, seen + placed)
    share[-max(1, n // 20) :] *= 1e-3
    on_latents, on_place = np.zeros((n, len(FACTORS))), np.zeros((n, 2))
    signs = rng.choice((-1.0, 1.0), n)
    for i in range(seen):
        on_latents[i, i % len(FACTORS)] = signs[i] * rng.uniform(0.5, 0.9)
    for i in range(seen, seen + placed):
        on_place[i, i % 2] = signs[i] * rng.uniform(0.6, 1.0)
    return _Genes(tuple(names), share / share.sum(), on_latents, on_place)


def _draw_counts(
    panel: _Genes, latents: NDArray[np.float32], place: NDArray[np.float64], depth: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return ``(n, g)`` gamma-Poisson counts."""
    log_fold = np.clip(latents, -2.5, 2.5) @ panel.on_latents.T + place @ panel.on_place.T
    spot_depth = depth * rng.lognormal(0, 0.25, len(latents))
    mean = spot_depth[:, None] * panel.share * np.exp(log_fold)
    return rng.poisson(mean * rng.gamma(1 / OVERDISPERSION, OVERDISPERSION, mean.shape))


def _write_slide(
    folder: Path,
    name: str,
    image: NDArray[np.uint8],
    maps: TruthMaps,
    panel: _Genes,
    depth: float,
    rng: np.random.Generator,
    *,
    svs: bool,
) -> SlideTruth:
    px = image.shape[0]
    array, xy = _place_spots(px, maps, rng)
    latents = maps.at(xy)
    counts = _draw_counts(panel, latents, xy / (px / 2) - 1, depth, rng)
    region, tumour = _polygons(maps)
    files = {k: folder / f"{name}.{k}" for k in ("counts.tsv.gz", "spots.tsv", "clusters.tsv.gz", "geojson")}
    ids = [f"{x}x{y}" for x, y in array.tolist()]
    table = pd.DataFrame(counts, index=ids, columns=list(panel.names))
    # as the real files: only genes that were seen, rows in their own order
    table.loc[sorted(ids), (counts > 0).any(axis=0)].to_csv(files["counts.tsv.gz"], sep="\t", compression=GZIP)
    offset = (xy - (array - 0.5) * PITCH_PX) / PITCH_PX
    frame = pd.DataFrame({"x": array[:, 0], "y": array[:, 1]})
    frame["new_x"], frame["new_y"] = np.round(array[:, 0] + offset[:, 0], 3), np.round(array[:, 1] + offset[:, 1], 3)
    frame["pixel_x"], frame["pixel_y"], frame["selected"] = xy[:, 0], xy[:, 1], 1
    frame.to_csv(files["spots.tsv"], sep="\t", index=False)
    clusters = pd.DataFrame({"patient_id": name[0], "ids": name, "label": np.digitize(latents[:, 0], (-0.7, 0.0, 0.7))})
    clusters = clusters.join(frame[["x", "y", "pixel_x", "pixel_y"]])
    clusters.index = pd.Index([f"{a}x{b}" for a, b in xy.tolist()])
    clusters.to_csv(files["clusters.tsv.gz"], sep="\t", compression=GZIP)
    files["geojson"].write_text(_geojson({"region": region, "tumour": tumour}))
    return SlideTruth(
        name=name,
        patient=name[0],
        image=_write_image(folder, name, image, svs=svs),
        counts=files["counts.tsv.gz"],
        spots=files["spots.tsv"],
        obs=files["clusters.tsv.gz"],
        geojson=files["geojson"],
        spot_ids=tuple(ids),
        xy=xy,
        latents=latents,
        in_tumour=np.asarray(shapely.contains_xy(tumour, xy[:, 0], xy[:, 1])),
    )


GZIP: dict[str, Any] = {"method": "gzip", "mtime": 1}
"""A fixed time in the header, so that the same seed gives the same bytes."""


def _write_image(folder: Path, name: str, image: NDArray[np.uint8], *, svs: bool) -> Path:
    if svs:
        return write_pyramid_tiff(folder / f"{name}.svs", image, mpp=MPP, quality=JPEG_QUALITY, vendor="aperio")
    path = folder / f"{name}.jpg"
    path.write_bytes(imagecodecs.jpeg_encode(image, level=JPEG_QUALITY))
    return path


def _place_spots(px: int, maps: TruthMaps, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return array positions (from 1) and pixel centres of the spots on tissue, in random order."""
    n = px // PITCH_PX
    # the outermost sites are left out: half a pitch to the edge is too little for a tile
    array = np.stack(np.meshgrid(np.arange(2, n), np.arange(2, n)), axis=-1).reshape(-1, 2)
    xy = np.round((array - 0.5) * PITCH_PX + rng.uniform(-JITTER_PX, JITTER_PX, array.shape), 2)
    keep = np.flatnonzero(maps.on_tissue(xy))
    keep = rng.permutation(keep)
    return array[keep], xy[keep]


def _polygons(maps: TruthMaps) -> tuple[shapely.Polygon, shapely.Polygon]:
    """Return the annotated region (a box around the tissue, less a margin) and the tumour (where cells crowd)."""
    rows, columns = np.flatnonzero(maps.tissue.any(axis=1)), np.flatnonzero(maps.tissue.any(axis=0))
    inset = 2
    low = np.array([columns[0] + inset, rows[0] + inset]) * maps.step_px
    high = np.array([columns[-1] + 1 - inset, rows[-1] + 1 - inset]) * maps.step_px
    region = shapely.box(*(float(v) for v in (*low, *high)))
    crowded = maps.tissue & (maps.latents[0] > np.quantile(maps.latents[0][maps.tissue], 0.6))
    parts, _ = ndimage.label(np.pad(ndimage.binary_opening(crowded, iterations=2), 1))
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    contours = measure.find_contours(ndimage.binary_fill_holes(largest).astype(float), 0.5)  # type: ignore[no-untyped-call]
    outline = max(contours, key=len)
    # contours are (row, column) of a padded map, at the centres of its squares
    ring = (outline[:, ::-1] - 1 + 0.5) * maps.step_px
    tumour = shapely.intersection(shapely.Polygon(ring).simplify(maps.step_px / 2).buffer(0), region)
    if tumour.geom_type != "Polygon":
        tumour = max(tumour.geoms, key=lambda part: part.area)
    return region, tumour


def _geojson(polygons: dict[str, shapely.Polygon]) -> str:
    """Return polygons as QuPath exports annotations."""
    colours = {"region": [128, 128, 128], "tumour": [200, 0, 0]}
    features = [
        {
            "type": "Feature",
            "id": f"00000000-0000-4000-8000-{i:012d}",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[round(c, 1) for c in xy] for xy in part.exterior.coords]],
            },
            "properties": {
                "objectType": "annotation",
                "classification": {"name": name, "color": colours[name]},
            },
        }
        for i, (name, part) in enumerate(polygons.items())
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


def _write_sheet(folder: Path, slides: list[SlideTruth]) -> Path:
    path = folder / "samples.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(SHEET_COLUMNS)
        for slide in slides:
            files = [f.name for f in (slide.counts, slide.spots, slide.obs, slide.geojson)]
            centre = CENTRES[(ord(slide.patient) - 65) % len(CENTRES)]
            writer.writerow([slide.name, slide.image.name, MPP, *files, slide.patient, centre])
    return path


def _write_truth(folder: Path, slides: list[SlideTruth], panel: _Genes, seed: int) -> Path:
    value = {
        "seed": seed,
        "mpp": MPP,
        "pitch_px": PITCH_PX,
        "factors": list(FACTORS),
        "genes": {
            name: {"share": share, "on_latents": latent.tolist(), "on_place": place.tolist()}
            for name, share, latent, place in zip(
                panel.names, panel.share.tolist(), panel.on_latents, panel.on_place, strict=True
            )
        },
        "slides": {
            slide.name: {
                "patient": slide.patient,
                "latents": dict(zip(slide.spot_ids, slide.latents.round(4).tolist(), strict=True)),
                "in_tumour": [i for i, t in zip(slide.spot_ids, slide.in_tumour.tolist(), strict=True) if t],
            }
            for slide in slides
        },
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(value))
    return path
