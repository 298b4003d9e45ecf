"""ST-Net: expression of 250 genes from the H&E of a spot, one patient held out at a time.

He et al., "Integrating spatial gene expression and breast tumour morphology via deep learning", Nature Biomedical
Engineering 4, 827-834 (2020), doi:10.1038/s41551-020-0578-x; code at github.com/bryanhe/ST-Net (43022c1).

Reproduced: a tile of 224 native pixels centred on every spot, spots whose tile crosses the border left out;
DenseNet121; the 250 genes of highest mean as ln((1 + c) / (G + sum c)) over all G genes; leave one patient out; Pearson
r per gene and patient, the sign test over patients with Holm's correction, and the error against the training mean's.

What differs:

- The network is frozen (ImageNet weights) and a ridge regression with grouped choice of its penalty sits on its cached
  embeddings; ST-Net trains all of DenseNet121 for up to 50 epochs, with flips and rotations.
- The gene panel, the mean and the penalty come from the training patients of each fold; ST-Net takes the gene list
  from all patients, the test patient among them.
- Spots without a tumour label are kept.

    histostore run pipelines/st_net.py --store stores/st_net --name densenet121
    histostore run pipelines/st_net.py --store stores/st_net --sweep backbone=densenet121,resnet50 --sweep seed=0,1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import histostore as hs
from histostore.heads.significance import sign_test
from histostore.recipes import Recipe, Results, check_fit

if TYPE_CHECKING:
    from histostore.recipes import RunReport

ALPHA = 0.1
"""Level of the sign test over patients with Holm's correction, as in ST-Net's code."""


@dataclass(frozen=True)
class Settings:
    """What may be set."""

    backbone: str = "densenet121"
    px: int = 224
    genes: str = "top-mean:250"
    target: str = "log-share"
    """ST-Net's; or log1p-cp10k, log1p."""
    head: str = "ridge"
    split: str = "leave-one-out:patient"
    allow_same_patient: bool = False
    """For sections of one patient, split by slide: their figures prove little, and the protocol says so."""
    min_counts: int = 0
    codec: str = "jpeg"
    """How tiles are kept: jpeg, lossless, or slide (no copy)."""
    seed: int = 0


def check(store: hs.Store, settings: Settings) -> None:
    """Refuse settings that cannot be, before anything is tiled."""
    check_fit(
        store, backbone=settings.backbone, head=settings.head, genes=settings.genes, target=settings.target,
        split=settings.split,
    )  # fmt: skip


def run(store: hs.Store, settings: Settings, report: RunReport) -> Results:
    """Tile, embed and score; what is there already is used."""
    tiles = f"st-net-{settings.px}"
    with report.timed("tile"):
        spec = hs.TileSpec.at_spots(px=settings.px, mpp="native", edge="drop")
        cut = hs.pp.tile(store, spec, name=tiles, pixels=hs.PixelSpec(codec=settings.codec))  # type: ignore[arg-type]
    for result in cut:
        for what, n in result.report.counts.items():
            report.count(f"tile: {what}", n)
    with report.timed("embed"):
        made = hs.tl.embed(store, settings.backbone, tiles=tiles, progress=report.progress)
    backbone = made[0].refs[0].name.rpartition("/")[2]
    with report.timed("fit"):
        result = hs.tl.fit(
            store, settings.head, genes=settings.genes, target=settings.target, split=settings.split,
            backbone=backbone, tiles=tiles, min_counts=settings.min_counts, seed=settings.seed,
            allow_same_patient=settings.allow_same_patient,
        )  # fmt: skip
    scores = result.evaluation
    for what, n in {**result.left_out, **scores.report.counts}.items():
        report.count(f"rows: {what}", n)
    for note in scores.report.notes:
        report.note(note)
    own = scores.genes[scores.genes["method"] == scores.method]
    # one correlation per patient: the mean over the patient's sections
    by_fold = own.groupby(["fold", "gene"])["pearson"].mean().unstack()
    everywhere = by_fold.dropna(axis="columns")
    signs = sign_test(by_fold.to_numpy())
    mse, mse_mean = scores.score(metric="mse"), scores.score("training mean", "mse")
    return Results(
        metrics={
            "pearson": scores.score(),
            "pearson_position": scores.score("position") if "position" in scores.summary.index else None,
            "spearman": scores.score(metric="spearman"),
            "mse": mse,
            "mse_training_mean": mse_mean,
            "mse_gain": 1 - mse / mse_mean,
            "genes_in_every_fold": everywhere.shape[1],
            "genes_positive_in_every_fold": int((everywhere > 0).all().sum()),
            "genes_consistent": int((signs.p_holm < ALPHA).sum()),
            "folds": len(scores.folds),
        },
        table=scores.slides.to_dict("records"),
        protocol=scores.to_json(),
    )


RECIPE = Recipe(
    name="st_net",
    citation="He et al., Nature Biomedical Engineering 4, 827-834 (2020), doi:10.1038/s41551-020-0578-x",
    settings=Settings,
    run=run,
    check=check,
    reproduces="224 px DenseNet121 tiles at spots, 250 genes of highest mean, leave one patient out, Pearson per gene",
    differs="frozen ImageNet network, ridge head; panel, mean and penalty from each fold's training patients",
    quick={"backbone": "testing", "px": 96, "genes": "top-mean:20", "codec": "slide"},
)
