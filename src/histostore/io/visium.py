"""Visium: what Space Ranger leaves in ``outs`` (versions 1 and 2+, and the bins of Visium HD).

Positions name columns ``pxl_row_in_fullres`` (y) and ``pxl_col_in_fullres`` (x); points are (x, y).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from histostore.errors import AlignmentError, DataError, MissingDependencyError
from histostore.io.check import (
    check_not_empty,
    check_point_ids,
    check_xy,
    first_few,
)
from histostore.io.delimited import first_file, read_delimited, read_text
from histostore.io.tenx import read_10x
from histostore.tables import Points

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.tables import Counts

PITCH_UM = 100.0
SPOT_UM = 55.0

POSITION_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
MAX_OFF_TISSUE = 0.1
"""Space Ranger's filtered matrix is what lies under tissue; a larger share that does not is another slide's."""

_HD_BARCODE = re.compile(r"s_(\d{3})um_\d+_\d+(-\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisiumExtras:
    """What a Space Ranger folder says beside points and counts."""

    matrix: str
    """Path of the matrix that was read, relative to the folder: says whether it was filtered or raw."""
    filtered: bool
    scalefactors: Mapping[str, float]
    """As in scalefactors_json.json; empty where there is none."""
    hires: Path | None
    lowres: Path | None
    notes: tuple[str, ...] = ()

    @property
    def spot_diameter_px(self) -> float | None:
        """Spot diameter in level-0 pixels; Space Ranger's value stands for 65 µm, not for the nominal 55.

        None for Visium HD, which has square bins.
        """
        return None if "bin_size_um" in self.scalefactors else self.scalefactors.get("spot_diameter_fullres")

    @property
    def mpp(self) -> float | None:
        """Microns per level-0 pixel, where the folder says so itself (Visium HD)."""
        return self.scalefactors.get("microns_per_pixel")


def read_visium(
    outs: str | Path,
    *,
    matrix: Literal["filtered", "raw"] | None = None,
    whole_transcriptome: bool = True,
    allow_normalised: bool = False,
) -> tuple[Points, Counts, VisiumExtras]:
    """Read a Space Ranger output folder.

    Parameters
    ----------
    outs
        The folder that holds ``spatial/`` and ``*_feature_bc_matrix[.h5]``.
    matrix
        Which matrix; None takes the filtered one where it is there, else the raw one. Of an h5 file and an mtx
        folder the h5 is read.
    whole_transcriptome
        False for targeted panels, where an absent gene was not measured.
    allow_normalised
        Take values that are not counts.

    Returns
    -------
    points
        All spots of the positions file (in tissue or not), in its order.
    counts
        All barcodes of the matrix, in its order.
    extras
        Scale factors, pictures, the matrix chosen, notes.

    Raises
    ------
    DataError
        A file is absent or is not what Space Ranger writes.
    AlignmentError
        More than a tenth of the filtered barcodes are off tissue: the positions are those of another slide.
    """
    outs = Path(outs)
    if not outs.is_dir():
        msg = f"{outs} is no folder; give Space Ranger's outs"
        raise DataError(msg)
    points = read_positions(_positions_file(outs / "spatial"))
    source, filtered = _choose_matrix(outs, matrix)
    counts = read_10x(source, whole_transcriptome=whole_transcriptome, allow_normalised=allow_normalised)
    notes = [f"counts from {source.relative_to(outs)}"]
    if filtered:
        notes += _check_filtered(points, counts, source)
    spatial = outs / "spatial"
    extras = VisiumExtras(
        matrix=str(source.relative_to(outs)),
        filtered=filtered,
        scalefactors=read_scalefactors(spatial / "scalefactors_json.json"),
        hires=_if_file(spatial / "tissue_hires_image.png"),
        lowres=_if_file(spatial / "tissue_lowres_image.png"),
        notes=tuple(notes),
    )
    return points, counts, extras


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _positions_file(spatial: Path) -> Path:
    names = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
    found = first_file(spatial, [*names, *(f"{name}.gz" for name in names[1:])])
    if found is None:
        msg = f"{spatial} holds none of {', '.join(names)}; give the folder that holds spatial/"
        raise DataError(msg)
    return found


def _choose_matrix(outs: Path, wanted: str | None) -> tuple[Path, bool]:
    for kind in ("filtered", "raw") if wanted is None else (wanted,):
        name = f"{kind}_feature_bc_matrix"
        for source in (outs / f"{name}.h5", outs / name):
            if source.exists():
                return source, kind == "filtered"
    msg = f"{outs} holds no {wanted or 'filtered or raw'}_feature_bc_matrix (folder or .h5)"
    raise DataError(msg)


def read_positions(path: str | Path) -> Points:
    """Read ``tissue_positions_list.csv`` (no header), ``tissue_positions.csv`` (header) or ``.parquet``.

    Returns
    -------
    Points
        One per barcode, with `in_tissue` and array positions. Assay ``visium``, or ``visium-hd`` where the
        barcodes are those of square bins.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        barcodes, columns = _parquet_columns(path)
    else:
        headless = read_text(path).partition("\n")[0].split(",")[0].strip() != "barcode"
        table = read_delimited(path, header=POSITION_COLUMNS if headless else None)
        barcodes = table.column("barcode")
        columns = {name: table.floats(name) for name in POSITION_COLUMNS[1:]}
    check_not_empty(barcodes, "spots", path)
    check_point_ids(barcodes, path)
    xy = np.column_stack([columns["pxl_col_in_fullres"], columns["pxl_row_in_fullres"]]).astype(np.float64)
    check_xy(xy, barcodes, path)
    in_tissue = np.asarray(columns["in_tissue"])
    if not np.isin(in_tissue, (0, 1)).all():
        row = int(np.argmin(np.isin(in_tissue, (0, 1))))
        msg = f"{path} row {row + 1}: in_tissue is {in_tissue[row]:g}, neither 0 nor 1"
        raise DataError(msg)
    bin_um = _HD_BARCODE.fullmatch(barcodes[0])
    return Points(
        ids=tuple(barcodes),
        xy=xy,
        in_tissue=in_tissue.astype(bool),
        array_row=np.asarray(columns["array_row"]).astype(np.int32),
        array_col=np.asarray(columns["array_col"]).astype(np.int32),
        assay="visium-hd" if bin_um else "visium",
        pitch_um=float(bin_um[1]) if bin_um else PITCH_UM,
        spot_um=float(bin_um[1]) if bin_um else SPOT_UM,
    )


def _parquet_columns(path: Path) -> tuple[list[str], dict[str, Any]]:
    try:
        # pyarrow is no dependency: only Visium HD has parquet
        import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError:
        msg = f"{path} needs pyarrow: pip install pyarrow"
        raise MissingDependencyError(msg) from None
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        msg = f"{path} is no parquet file: {str(error).splitlines()[0]}"
        raise DataError(msg) from None
    missing = [name for name in POSITION_COLUMNS if name not in table.column_names]
    if missing:
        msg = f"{path} has no column {first_few(missing)}; it has {first_few(table.column_names, 8)}"
        raise DataError(msg)
    columns = {name: table[name].to_numpy().astype(np.float64) for name in POSITION_COLUMNS[1:]}
    return [str(barcode) for barcode in table["barcode"].to_pylist()], columns


def read_scalefactors(path: str | Path) -> dict[str, float]:
    """Return the numbers of ``scalefactors_json.json``; an absent file gives an empty dict."""
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_text(path, max_bytes=1 << 20))
    except (json.JSONDecodeError, RecursionError):
        msg = f"{path} is no JSON; copy it again"
        raise DataError(msg) from None
    if not isinstance(content, dict):
        msg = f"{path} holds no JSON object"
        raise DataError(msg)
    factors = {str(k): float(v) for k, v in content.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    for name, value in factors.items():
        if not math.isfinite(value) or value <= 0:
            msg = f"{path} field '{name}' is {value}, not a positive number"
            raise DataError(msg)
    return factors


def _check_filtered(points: Points, counts: Counts, source: Path) -> list[str]:
    inside = dict(zip(points.ids, points.in_tissue, strict=True)) if points.in_tissue is not None else {}
    known = [barcode for barcode in counts.ids if barcode in inside]
    off = [barcode for barcode in known if not inside[barcode]]
    if len(off) > MAX_OFF_TISSUE * max(1, len(known)):
        msg = (
            f"{source}: {len(off)} of {len(known)} filtered barcodes are off tissue in the positions file "
            f"({first_few(off)}): positions of another slide? pass matrix='raw' to read regardless"
        )
        raise AlignmentError(msg)
    return [f"{len(off)} filtered barcodes are off tissue in the positions file"] if off else []
