"""The commands that use a store: fit, predict, review, search, export."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.cli.common import check_somewhere, chosen_slides, each, names, say_left_out, show, target, the_store
from histostore.cli.progress import Line
from histostore.cli.workers import client_of, show_each, wants_workers
from histostore.errors import UsageError
from histostore.head_specs import FeatureSpec, LabelSpec, SplitSpec

if TYPE_CHECKING:
    import argparse

    from histostore.stages.fit import FitResult
    from histostore.stages.result import StageResult

TUNED = (
    FeatureSpec(),
    FeatureSpec(standardise="slide"),
    FeatureSpec(context_um=(200.0,), standardise="slide"),
    FeatureSpec(context_um=(400.0,), standardise="slide"),
    FeatureSpec(context_um=(200.0, 800.0), standardise="slide"),
)
"""What ``--tune-features`` lets the inner folds choose from."""


MAX_SIGMA_UM = 20_000.0


def fit(args: argparse.Namespace) -> None:
    """Train and score a head."""
    from histostore import tl
    from histostore.heads.registry import make, parse_options
    from histostore.stages.search import only_backbone

    store, report = the_store(args, writing=args.save is not None), target(args.report)
    protocol = target(args.protocol)
    backbone = args.backbone or only_backbone(store, args.tiles)
    features = (
        TUNED if args.tune_features else FeatureSpec(context_um=_sigmas(args.context_um), standardise=args.standardise)
    )
    where = args.where
    if args.min_genes:
        where = f"({where}) and n_genes >= {args.min_genes}" if where else f"n_genes >= {args.min_genes}"
    save = None if args.save is None else args.save or f"{args.head}-{backbone}"
    head = make(args.head, parse_options(args.set)) if args.set else args.head
    result = tl.fit(
        store, head, genes=args.genes, labels=_labels(args), groups=args.groups, per=args.per,
        tiles_per_slide=args.tiles_per_slide, pool=args.pool, region_share=args.region_share,
        split=SplitSpec.parse(args.split, seed=args.seed), backbone=backbone,
        tiles=args.tiles, slides=names(args.slides), where=where, features=features, target=args.target,
        min_counts=args.min_counts, allow_same_patient=args.allow_same_patient, seed=args.seed, save=save,
        replace=args.replace, progress=Line(),
    )  # fmt: skip
    if report is not None:
        from histostore.stages.pictures import fit_report

        fit_report(report, store, result)
    if protocol is not None:
        from histostore.stages.protocol import write_protocol

        write_protocol(protocol, result)
    value = result.evaluation.to_json() | {"left_out": dict(result.left_out), "head": result.name}
    value["slides_left_out"] = dict(result.data.view.left_out)
    say_left_out(result.data.view.note())
    show(value, _fit_text(result, args), args)


def _labels(args: argparse.Namespace) -> LabelSpec | None:
    if args.label is None:
        for option in ("positive", "negative", "ignore", "negatives_per_positive", "region_share"):
            if getattr(args, option) is not None:
                raise UsageError(f"--{option.replace('_', '-')} is of classes: name their column with --label")
        return None
    positive, negative, ignore = (_tuple(v) for v in (args.positive, args.negative, args.ignore))
    return LabelSpec(
        column=args.label, positive=positive, negative=negative, ignore=ignore,
        negatives_per_positive=args.negatives_per_positive,
    )  # fmt: skip


def _tuple(text: str | None) -> tuple[str, ...] | None:
    return tuple(names(text) or ()) or None


def _sigmas(text: str | None) -> tuple[float, ...]:
    try:
        found = tuple(float(v) for v in names(text) or ())
    except ValueError:
        found = (math.nan,)
    if not all(0 < v <= MAX_SIGMA_UM for v in found):
        raise UsageError(f"--context-um is {text!r}: give sigmas in µm, 0-{MAX_SIGMA_UM:g}, like 200,800")
    return found


def _fit_text(result: FitResult, args: argparse.Namespace) -> str:
    from histostore.heads.label_evaluation import LabelEvaluation
    from histostore.stages.pictures import score_table

    evaluation = result.evaluation
    if isinstance(evaluation, LabelEvaluation):
        what = f"classes of {args.label} ({', '.join(evaluation.classes)}), mean over held-out folds"
        wide = evaluation.summary
    else:
        what = f"{args.genes if result.spec.task == 'genes' else args.target}, mean Pearson r by held-out fold"
        if result.spec.bag is None:
            what += " (of a fold: the mean over its slides)"
        wide = score_table(evaluation)
        for metric in ("spearman", "mse", "r2"):
            wide[f"{metric} (mean)"] = evaluation.summary[metric]
    lines = [
        f"{args.head} on {what}",
        f"split: {evaluation.split_text}",
        wide.to_string(float_format=lambda v: f"{v:.3f}"),
    ]
    if isinstance(evaluation, LabelEvaluation):
        lines.append(f"confusion (rows: truth): {evaluation.confusion.tolist()}")
    lines += [f"  fold {f.name}: {_chosen(f.chosen)}" for f in evaluation.folds]
    counts = {**result.left_out, **evaluation.report.counts}
    lines += ["rows: " + ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)]
    lines += [f"note: {note}" for note in evaluation.report.notes]
    if result.ref is not None:
        lines.append(f"saved head '{result.name}' ({result.ref.digest[:8]})")
    return "\n".join(lines)


def _chosen(chosen: dict[str, Any]) -> str:
    features = chosen.get("features") or {}
    parts = [f"alpha {chosen['alpha']:g}"] if "alpha" in chosen else []
    parts += [f"threshold {chosen['threshold']:.3g}"] if "threshold" in chosen else []
    parts += [f"{chosen['interval']['covered']:.0%} in the 90 % interval"] if "interval" in chosen else []
    if features.get("context_um"):
        parts.append("context " + ", ".join(f"{v:g} µm" for v in features["context_um"]))
    parts.append(f"standardised per {features['standardise']}" if features.get("standardise") == "slide" else "as is")
    return ", ".join(parts)


def predict(args: argparse.Namespace) -> int:
    """Apply a saved head."""
    from histostore.stages.fit import load_head
    from histostore.stages.predict import check_names, write_predictions
    from histostore.stages.predict import predict as run

    store = the_store(args, writing=True)
    slides = chosen_slides(store, args)
    check_somewhere(store, slides, "tiles", args.tiles)
    files = _prediction_files(args, slides)
    if args.genes is not None:
        check_names(args.head, load_head(store, args.head)[0].names, names(args.genes))

    def one(slide: str) -> list[StageResult]:
        return [run(store, slide, args.head, tiles=args.tiles, replace=args.replace)]

    if wants_workers(args):
        with client_of(args) as client:
            from histostore.scale.run import predict_slides

            outcomes = predict_slides(
                client, store, slides, args.head, gpu=args.gpu_per_worker, progress=Line(), tiles=args.tiles,
                replace=args.replace,
            )  # fmt: skip
            worst = show_each(outcomes, len(slides), args)
    else:
        worst = each([(s, partial(one, s)) for s in slides], args)
    if worst:
        return worst
    for path, of in files:
        write_predictions(
            store, of, args.head, path, tiles=args.tiles, names=names(args.genes), overwrite=args.overwrite,
            say=say_left_out,
        )  # fmt: skip
        show({"written": str(path)}, f"wrote {path}", args)
    if args.picture is not None:
        from histostore.stages.prediction_maps import prediction_maps

        folder = Path(args.picture)
        for path in prediction_maps(store, slides, args.head, folder, tiles=args.tiles, names=names(args.genes)):
            show({"written": str(path)}, f"wrote {path}", args)
    return 0


def _prediction_files(args: argparse.Namespace, slides: list[str]) -> list[tuple[Path, list[str]]]:
    """Return the files of -o and the slides in each, checked before any work; ``{slide}`` stands for one file each."""
    from histostore.stages.predict import NAME_THEM, OF_ONE_IMAGE, file_format

    if args.output is None:
        return []
    form = file_format(Path(args.output))
    if "{slide}" in args.output:
        wanted = [(args.output.replace("{slide}", s), [s]) for s in slides]
    elif form in OF_ONE_IMAGE and len(slides) > 1:
        raise UsageError(
            f"{args.output}: {form} files are of one image, and there are {len(slides)} slides; {NAME_THEM}"
        )
    else:
        wanted = [(args.output, slides)]
    found = []
    for name, of in wanted:
        path = target(name, overwrite=args.overwrite)
        assert path is not None
        found.append((path, of))
    return found


def review(args: argparse.Namespace) -> None:
    """Write a round of review."""
    from histostore.stages.review import review as run

    store, folder = the_store(args), target(args.output)
    assert folder is not None
    found = run(
        store, args.head, k=args.k, per_slide=args.per_slide, uncertain=args.uncertain, of=args.of,
        slides=names(args.slides), tiles=args.tiles, again=args.again, name=args.name,
    )  # fmt: skip
    written = found.write(folder, per_slide=args.per_slide, overwrite=args.overwrite)
    counts = ", ".join(f"{n:,} {what}" for what, n in found.report.counts.items() if n)
    lines = [f"{len(found)} tiles to look at ({counts})", *(f"wrote {path}" for path in written)]
    lines.append(f"fill in its labels, then: histostore annotate {args.store} --review {written[0]}")
    value = {"tiles": len(found), "report": found.report.to_json(), "written": [str(p) for p in written]}
    show(value, "\n".join(lines), args)


def export(args: argparse.Namespace) -> None:
    """Write a cohort as AnnData."""
    from histostore.stages.export import check_target, write_adata
    from histostore.view import refuse_none, view

    store, path = the_store(args), check_target(args.output, overwrite=args.overwrite)
    rows = view(
        store, backbone=names(args.backbone), tiles=args.tiles, slides=names(args.slides), where=args.where,
        genes=args.genes,
    )  # fmt: skip
    refuse_none(rows, args.where)
    say_left_out(rows.note())
    adata = rows.to_adata(images=not args.no_images, counts=False if args.no_counts else None)
    write_adata(adata, path, overwrite=args.overwrite, say=say_left_out)
    left = dict(adata.uns["histostore"]["left_out"])
    said = ", ".join(f"{n} {what}" for what, n in left.items() if n)
    text = f"wrote {path}: {adata.n_obs:,} rows x {adata.n_vars:,} genes, {', '.join(adata.obsm)}"
    value = {"written": str(path), "n_obs": adata.n_obs, "n_vars": adata.n_vars, "left_out": left}
    show(value | {"slides_left_out": dict(rows.left_out)},
         text + (f"; left out: {said}" if said else ""), args)  # fmt: skip
