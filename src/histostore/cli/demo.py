"""The whole job on a synthetic cohort whose truth is known."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from histostore.cli.common import show
from histostore.cli.progress import Line
from histostore.errors import ConflictError
from histostore.head_specs import FeatureSpec
from histostore.specs import TileSpec

if TYPE_CHECKING:
    import argparse

MARK = "samples.csv"
MADE = ("cohort", "store", "demo.h5ad", "report.html")
PX = 112


def demo(args: argparse.Namespace) -> None:
    """Make a cohort and take it through every stage, to a table and one HTML report."""
    folder = Path(args.output)
    if folder.exists() and any(folder.iterdir()) and not (folder / "cohort" / MARK).exists():
        raise ConflictError(f"{folder} is not empty and no demo; choose another folder with -o")
    for name in MADE:  # a demo of before; nothing else in the folder is touched
        shutil.rmtree(folder / name, ignore_errors=True)
        if (folder / name).is_file():
            (folder / name).unlink()
    begun, line = time.perf_counter(), Line()

    def step(text: str) -> None:
        line.say(f"[{time.perf_counter() - begun:5.1f} s] {text}")

    step("importing")
    import histostore as hs
    from histostore.heads.evaluate import Evaluation
    from histostore.stages.export import write_adata
    from histostore.stages.pictures import appendix, fit_sections, score_table, search_section, tile_picture
    from histostore.testing.cohort import write_cohort

    step("a synthetic cohort: 3 patients, 2 slides each, 300 genes with known truth")
    cohort = write_cohort(folder / "cohort", seed=args.seed)
    store = hs.create(folder / "store", name="demo")
    step("ingest: images, spots, counts, polygons")
    hs.pp.ingest(store, sheet=cohort.sheet)
    step("tile: one at every spot, and a grid")
    hs.pp.tile(store, TileSpec.at_spots(px=PX))
    hs.pp.tile(store, "A1", TileSpec.grid(um=PX * cohort.mpp, min_tissue=0.8))
    step(f"embed with {args.backbone}")
    hs.tl.embed(store, args.backbone, tiles="spots", progress=line)
    step("fit ridge, one patient held out at a time, beside baselines without an image")
    features = [FeatureSpec(), FeatureSpec(standardise="slide")]
    result = hs.tl.fit(
        store, "ridge", genes="top-variance:50", split="leave-one-out:patient", features=features, save="demo-ridge"
    )
    step("predict, search, export")
    hs.tl.predict(store, "demo-ridge")
    spot = str(hs.get.obs(store, slides=["A1"], tiles="spots")["barcode"].iloc[0])
    hits = hs.tl.search(
        store, slide="A1", spot=spot, k=11, exclude_same="patient", columns=("patient", "region_annotations")
    )
    adata = result.data.view.to_adata()
    write_adata(adata, folder / "demo.h5ad")
    step("report")
    assert isinstance(result.evaluation, Evaluation)
    scores = score_table(result.evaluation)
    found = _recovered(result, cohort.morphology_genes)
    sections = [
        *fit_sections(result, adata),
        search_section(hits, "Search: look-alikes on other patients"),
        hs.report.Section(
            title="Tiles", figures={f"{n} of A1": tile_picture(store, "A1", n) for n in ("spots", "grid")}
        ),
    ]
    report = hs.report.write_report(
        folder / "report.html", title="histostore demo", store=store.name,
        subtitle="synthetic cohort with known truth", sections=sections, appendix=appendix(store, result),
    )  # fmt: skip
    lines = [
        "mean Pearson r over 50 genes by held-out patient",
        scores.to_string(float_format=lambda v: f"{v:.3f}"),
        f"{found['of_panel']} genes on a panel follow the image in truth: mean r {found['r_morphology']:.2f}",
        f"{found['others']} genes on a panel do not: mean r {found['r_others']:.2f}",
        f"AnnData {folder / 'demo.h5ad'}, report {report}, store {store.uri}; {time.perf_counter() - begun:.0f} s",
    ]
    show({"scores": scores.to_dict("index"), "truth": found, "report": str(report)}, "\n".join(lines), args)


def _recovered(result: object, morphology: dict[str, str]) -> dict[str, float]:
    evaluation = result.evaluation  # type: ignore[attr-defined]
    table = evaluation.genes[evaluation.genes["method"] == evaluation.method]
    means = table.groupby("gene")["pearson"].mean()
    known = means.index.isin(list(morphology))
    return {
        "of_panel": int(known.sum()),
        "others": int((~known).sum()),
        "r_morphology": float(means[known].mean()),
        "r_others": float(means[~known].mean()),
    }
