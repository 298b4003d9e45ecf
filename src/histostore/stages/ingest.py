"""A slide comes in: its image is recorded, its spots, counts and labels are joined by id and committed at once."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.content.regions import read_annotations, write_regions
from histostore.content.tables import read_counts, read_points, write_counts, write_labels, write_points
from histostore.errors import ConflictError, DataError, SlideError, UsageError
from histostore.ids import check_slug
from histostore.io.align import align, check_on_image, check_orientation
from histostore.io.check import describe_counts
from histostore.io.mpp import mpp_from_pitch, resolve_mpp
from histostore.io.obs import join_obs, read_obs_table
from histostore.io.obs import read_points as read_given_points
from histostore.io.st import read_spots, read_st
from histostore.progress import Progress, Silent, Stopwatch
from histostore.slides import open_slide
from histostore.slides.folder import FolderSlide
from histostore.slides.remote import checked_address, is_remote, remote_digest, remote_state
from histostore.slides.source import source_bytes, source_digest
from histostore.specs import MaskSpec, SpecBase
from histostore.stages.image_folder import check_folder, points_of_images
from histostore.stages.label_columns import LABELS, SPOTS, same_but_hidden, settled, without_known
from histostore.stages.metadata import as_texts, check_fields, write_meta
from histostore.stages.moved_source import THUMBNAIL_PX, move_source, write_source
from histostore.stages.result import StageResult, outcome
from histostore.stages.source import mpp_of
from histostore.stages.twins import Twins
from histostore.tables import Report
from histostore.tiles.mask import tissue_mask
from histostore.units import mpp_of_magnification

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.io.geojson import Annotations
    from histostore.io.sheet import Sample
    from histostore.protocols import Slide
    from histostore.store.groups import Group
    from histostore.store.manifest import Ref
    from histostore.store.store import Store
    from histostore.tables import Counts, Points


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSpec(SpecBase):
    """How strict ingest is."""

    min_match: float = 0.9
    """Share of the counts' rows that must have a spot, 0-1."""
    drop_off_image: bool = False
    """Leave out spots that lie outside the image instead of refusing."""
    allow_normalised: bool = False
    """Take values that are no counts."""
    allow_off_tissue: bool = False
    """Take spots of which more than 20 % lie off the tissue."""
    force_mpp: bool = False
    """Believe the given mpp although the file or the spot pitch contradicts it."""
    targeted: bool = False
    """The counts (Visium, AnnData) are of a targeted panel: a gene they lack was not measured, and is no 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_match <= 1:
            raise UsageError(f"min_match is {self.min_match:g}, outside 0-1")


@dataclass(slots=True)
class _Assay:
    """What the readers found beside the image."""

    points: Points | None = None
    counts: Counts | None = None
    spot_diameter_px: float | None = None
    obs: pd.DataFrame | None = None
    along: tuple[str, ...] = ()
    """Columns of `obs` that came along with the counts, and that nobody asked for by name."""
    report: Report = field(default_factory=Report)


def ingest(
    store: Store,
    sample: Sample,
    spec: IngestSpec | None = None,
    *,
    twins: Twins | None = None,
    progress: Progress | None = None,
) -> StageResult:
    """Bring one slide in.

    Writes ``source/image``, ``meta/meta``, and where the sample has them ``points/spots``, ``expression/counts``,
    ``labels/obs`` and ``regions/<file>``, in one commit. Everything is checked before the first byte is written.
    Another slide with the same image or counts is noted, and said by `progress`; `twins` is what looks for it, one for
    all slides that are brought in together (by default it looks anew).

    Raises
    ------
    SlideError
        The image cannot be used, or its mpp is missing or contradicted.
    AlignmentError
        Spots, counts and image do not belong together.
    ConflictError
        The slide is there with another image or other counts: a re-scan is a new slide.
    """
    spec, watch, progress = spec or IngestSpec(), Stopwatch(), progress or Silent()
    progress.say(f"ingest {sample.slide}")
    fields, unset = as_texts(sample.meta)
    sample = replace(sample, meta=fields)
    annotations = _check_names(sample)
    away = is_remote(sample.image)
    path = checked_address(str(sample.image)) if away else Path(sample.image).absolute()
    check_folder(sample, path)
    state = remote_state(str(path)) if away else None
    with watch.timed("read"), open_slide(path) as image:
        assay = _read_assay(store, sample, spec, image)
        if assay.obs is not None:
            drawn = regions_name(sample.geojson, sample.slide) if sample.geojson is not None else None
            assay.obs, left = settled(store, sample.slide, assay.obs, assay.along, fields=fields, regions=drawn)
            assay.report = assay.report.merged(left)
        mpp, origin, notes = _mpp_of(sample, image, assay, spec)
        notes += tuple(f"metadata '{name}' has no value: left out" for name in unset)
        if annotations is not None:
            notes += annotations.notes + annotations.off_image(image.size_px)
        report = assay.report.merged(Report({}, notes))
        if assay.points is not None and not sample.image_folder:
            with naming(_spot_file(sample), path):
                keep, off = check_on_image(assay.points, image.size_px, drop=spec.drop_off_image)
            if not keep.all():
                assay.points = _taken(assay.points, keep)
                assay.obs = assay.obs[keep] if assay.obs is not None else None
            mask = tissue_mask(image, MaskSpec(), mpp=mpp)
            with naming(_spot_file(sample), path):
                placed = check_orientation(assay.points, mask.contains, image.size_px, force=spec.allow_off_tissue)
            report = report.merged(off).merged(placed)
            if assay.counts is not None:
                with naming(sample.st_counts or _spot_file(sample), _spot_file(sample)):
                    _, matched = align(assay.points, assay.counts, min_match=spec.min_match)
                report = report.merged(matched).merged(describe_counts(assay.counts))
        thumbnail = image.thumbnail(THUMBNAIL_PX)
        about = _about(path, image)
    with watch.timed("digest"):
        if state is not None:
            about["sha256"], now = remote_digest(str(path))
            if now != state:
                raise SlideError(f"{path} changed while it was read; ingest it again")
            # checked by this version from now on, and byte for byte only where it differs
            about["bytes"], about["version"] = state
        else:
            about["sha256"], about["bytes"] = source_digest(path), source_bytes(path)
    _refuse_conflicts(store, sample.slide, about, mpp, assay)
    with watch.timed("write"):
        refs = [write_source(store, sample.slide, about, thumbnail)]
        meta, kept = _meta(store, sample, mpp, origin)
        refs.append(meta)
        report = report.merged(kept)
        written, kept = _write_assay(store, sample, assay)
        refs += written
        report = report.merged(kept)
        if sample.geojson is not None and annotations is not None:
            name = regions_name(sample.geojson, sample.slide)
            refs.append(write_regions(store, sample.slide, name, sample.geojson, annotations))
        try:
            commit = store.commit(sample.slide, refs)
        except ConflictError as error:
            error.add_note("labels and polygons that change are brought in by annotate")
            raise
        moved = move_source(store, sample.slide, refs[0])
        report = report.merged(Report({}, moved))
    shared = (twins or Twins(store)).notes(sample.slide, refs)
    for note in shared:
        progress.say(note)
    report = report.merged(Report({}, shared))
    done = outcome(commit, resumed=False) if commit.added else "written" if moved else "already there"
    rows = len(assay.points) if assay.points is not None else 0
    return StageResult(
        slide=sample.slide, stage="ingest", refs=tuple(refs), done=done, rows=rows, report=report, seconds=watch.seconds
    )


@contextmanager
def naming(*files: object) -> Iterator[None]:
    """Add the files to what is wrong with their contents."""
    try:
        yield
    except DataError as error:
        error.add_note(", ".join(dict.fromkeys(str(file) for file in files)))
        raise


def _spot_file(sample: Sample) -> Path | None:
    return sample.st_spots or sample.visium or sample.anndata or sample.points


def _check_names(sample: Sample) -> Annotations | None:
    """Check all that a slide's own names and polygons can be refused for, before any work; return the polygons."""
    check_slug(sample.slide, "slide id")
    check_fields(sample.slide, sample.meta)
    if sample.geojson is None:
        return None
    regions_name(sample.geojson, sample.slide)
    return read_annotations(sample.geojson)


def _refuse_conflicts(store: Store, slide: str, about: Mapping[str, Any], mpp: float, assay: _Assay) -> None:
    """Refuse before the first byte what the commit would refuse: a slide that is there with other content."""
    there = store.manifest(slide)
    if there.deleted or not there.number:
        return

    def differs(kind: str, name: str, same: Callable[[Group], bool]) -> bool:
        ref = there.get(kind, name)
        return ref is not None and not same(store.group(ref))

    known_mpp = mpp_of(store, there) if there.get("meta", "meta") is not None else mpp
    new_points, new_counts = assay.points, assay.counts
    checks: dict[str, bool] = {
        f"another image than {about['uri']}": differs(
            "source", "image", lambda g: bool(g.attrs["sha256"] == about["sha256"])
        ),
        f"{known_mpp:g} mpp, not {mpp:g},": known_mpp != mpp,
        "other spots": new_points is not None
        and differs("points", "spots", lambda g: _same_points(read_points(g), new_points)),
        "other counts": new_counts is not None
        and differs("expression", "counts", lambda g: _same_counts(read_counts(g), new_counts)),
    }
    found = [what for what, wrong in checks.items() if wrong]
    if found:
        raise ConflictError(
            f"slide '{slide}' is there with {' and '.join(found)}; a re-scan or another section is a new slide: "
            "ingest it under another id"
        )


def _same_points(old: Points, new: Points) -> bool:
    return old.ids == new.ids and bool(np.array_equal(old.xy, new.xy))


def _same_counts(old: Counts, new: Counts) -> bool:
    parts = ("indptr", "indices", "data")
    same = all(np.array_equal(getattr(old.matrix, p), getattr(new.matrix, p)) for p in parts)
    return same and (old.ids, old.gene_ids) == (new.ids, new.gene_ids)


def regions_name(path: Path, slide: str) -> str:
    """Return the name that polygons get from their file; one name on all slides where files are named after them."""
    stem = path.name.split(".")[0]
    return "annotations" if stem == slide else check_slug(stem, "regions name (the file's)")


def _taken(points: Points, keep: NDArray[np.bool_]) -> Points:
    def some(values: Any) -> Any:
        return values[keep] if values is not None else None

    return replace(
        points,
        ids=tuple(i for i, k in zip(points.ids, keep, strict=True) if k),
        xy=points.xy[keep],
        in_tissue=some(points.in_tissue),
        array_row=some(points.array_row),
        array_col=some(points.array_col),
    )


def _meta(store: Store, sample: Sample, mpp: float, origin: str) -> tuple[Ref, Report]:
    """Return the slide's metadata group: the one that is there, or a first version."""
    there = store.manifest(sample.slide)
    old = there.get("meta", "meta") if not there.deleted else None
    if old is None:
        return write_meta(store, sample.slide, sample.meta, mpp=mpp, origin=origin, mag=sample.mag), Report()
    attrs = store.group(old).attrs
    changed = [k for k, v in sample.meta.items() if attrs["fields"].get(k) != v]
    notes = (f"metadata is there already; {', '.join(changed)} not changed: use annotate",) if changed else ()
    return old, Report({}, notes)


def _read_assay(store: Store, sample: Sample, spec: IngestSpec, image: Slide) -> _Assay:
    kinds = [k for k in ("st_spots", "visium", "anndata", "points") if getattr(sample, k) is not None]
    if len(kinds) > 1:
        raise UsageError(f"slide '{sample.slide}' has {' and '.join(kinds)}: give one source of spots")
    if sample.st_counts is not None and sample.st_spots is None:
        raise UsageError(f"slide '{sample.slide}' has st_counts without st_spots: give the spot file too")
    assay = _Assay()
    if sample.st_spots is not None and sample.st_counts is not None:
        assay.points, assay.counts = read_st(sample.st_counts, sample.st_spots, allow_normalised=spec.allow_normalised)
    elif sample.st_spots is not None:  # a slide to predict
        assay.points = read_spots(sample.st_spots)
    elif sample.visium is not None:
        from histostore.io.visium import read_visium

        assay.points, assay.counts, extras = read_visium(
            sample.visium, whole_transcriptome=not spec.targeted, allow_normalised=spec.allow_normalised
        )
        assay.spot_diameter_px = extras.spot_diameter_px
        assay.report = assay.report.merged(Report({}, extras.notes))
    elif sample.anndata is not None:
        from histostore.io.adata import read_anndata, read_obs
        from histostore.stages.anndata_labels import labels_of, own_names

        assay.points, assay.counts, taken = read_anndata(
            sample.anndata, whole_transcriptome=not spec.targeted, allow_normalised=spec.allow_normalised
        )
        obs = read_obs(sample.anndata)
        there = store.manifest(sample.slide)
        known = there.get("points", SPOTS) if not there.deleted else None
        renamed = Report()
        if known is None or read_points(store.group(known)).ids != assay.points.ids:  # as they came in before
            assay.points, assay.counts, renamed = own_names(assay.points, assay.counts, obs, sample.slide)
        assay.obs, found = labels_of(obs, assay.points.ids)
        assay.along = tuple(assay.obs.columns) if assay.obs is not None else ()
        assay.report = assay.report.merged(taken).merged(renamed).merged(found)
    elif sample.points is not None:
        assay.points = read_given_points(sample.points)
    elif isinstance(image, FolderSlide):
        assay.points, assay.obs, assay.report = points_of_images(image)
    if sample.obs is not None:
        if assay.points is None:
            raise UsageError(f"slide '{sample.slide}' has obs but no spots to join it to")
        with naming(sample.obs):
            table, joined = join_obs(assay.points, read_obs_table(sample.obs))
        table, left = without_known(table, assay.points, sample.slide, sample.meta)
        assay.along = tuple(c for c in assay.along if c not in table.columns)
        if assay.obs is not None and sample.anndata is not None:
            assay.obs = assay.obs.assign(**table)  # what a file says that was named is what counts
        else:
            assay.obs = table if assay.obs is None else table.assign(**assay.obs)
        labels = {f"labels {what.replace('_', ' ')}": n for what, n in joined.counts.items()}
        assay.report = assay.report.merged(Report(labels, joined.notes)).merged(left)
    return assay


def _mpp_of(sample: Sample, image: Slide, assay: _Assay, spec: IngestSpec) -> tuple[float, str, tuple[str, ...]]:
    given = sample.mpp
    if sample.mag is not None:
        if given is not None:
            raise UsageError(f"slide '{sample.slide}' has mpp and mag: give one of them")
        given = mpp_of_magnification(sample.mag)
    pitch = mpp_from_pitch(assay.points) if assay.points is not None else None
    try:
        return resolve_mpp(
            given=given, file=image.mpp, pitch=pitch, spot_diameter_px=assay.spot_diameter_px, force=spec.force_mpp
        )
    except DataError as error:
        error.add_note(f"slide '{sample.slide}', {sample.image}")
        raise


def _about(path: Path | str, image: Slide) -> dict[str, Any]:
    keep = {k: v for k, v in image.properties.items() if len(str(v)) <= 200}
    return {
        "uri": str(path),
        "filename": path.name if isinstance(path, Path) else path.partition("?")[0].rstrip("/").rpartition("/")[2],
        "reader": image.reader,
        "width": image.size_px[0],
        "height": image.size_px[1],
        "file_mpp": image.mpp,
        "downsamples": list(image.downsamples),
        "properties": dict(sorted(keep.items())[:60]),
    }


def _write_assay(store: Store, sample: Sample, assay: _Assay) -> tuple[list[Ref], Report]:
    refs: list[Ref] = []
    report = Report()
    if assay.points is not None:
        points_ref = write_points(store, sample.slide, SPOTS, assay.points)
        refs.append(points_ref)
        if assay.obs is not None:
            labels = write_labels(store, sample.slide, LABELS, assay.obs, points_ref)
            there = store.manifest(sample.slide)
            old = there.get("labels", LABELS) if not there.deleted else None
            if old is not None and same_but_hidden(store, old, labels):
                labels = old
            elif sample.obs is None and assay.along and old is not None and old.digest != labels.digest:
                labels, report = (
                    old,
                    Report({}, (f"labels '{LABELS}' are there already: not changed by the file's obs",)),
                )
            refs.append(labels)
    if assay.counts is not None:
        refs.append(write_counts(store, sample.slide, "counts", assay.counts))
    return refs, report
