"""Features in Parquet: columns ``slide``, ``x``, ``y``, ``f0``, ``f1``, … Needs pyarrow.

A file that histostore wrote says in its metadata (key ``histostore``, JSON) what x and y are: centres in level-0
pixels, and the tiles' edge and the slide's µm per pixel beside them. A file of another maker says nothing of that.
"""

from __future__ import annotations

import importlib
import json
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import DataError, MissingDependencyError
from histostore.io.feature_table import TileFeatures, check_rows, plain, positive

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

KEY = b"histostore"


def parquet_slides(path: Path) -> list[str] | None:
    """Return the slides that a file has rows of, in order; None where it has no column ``slide``."""
    pq = _parquet()
    try:
        with pq.ParquetFile(path) as file:
            if "slide" not in file.schema_arrow.names:
                return None
            found = file.read(columns=["slide"]).column("slide").to_pylist()
    except (_arrow().ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    return list(dict.fromkeys(str(s) for s in found))


def read_parquet(path: Path, slide: str | None = None) -> TileFeatures:
    """Read the rows of one slide; of a file with several, `slide` says of which.

    Raises
    ------
    MissingDependencyError
        pyarrow is not installed.
    DataError
        The file is damaged, lacks x, y or f0…, has missing values, types that differ, or rows of several slides.
    """
    pq = _parquet()
    try:
        table = pq.read_table(path)
    except (_arrow().ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    names = set(table.column_names)
    d = next(i for i in range(len(names) + 1) if f"f{i}" not in names)
    lacking = [n for n in ("x", "y", "f0") if n not in names]
    if lacking:
        raise DataError(f"{path} has no column {', '.join(lacking)}; it needs x, y, f0, f1, …")
    strange = sorted(names - {"slide", "x", "y"} - {f"f{i}" for i in range(d)})
    if strange:
        raise DataError(
            f"{path} has columns that are not known ({', '.join(strange[:5])}); keep slide, x, y, f0, f1, …"
        )
    table = _rows_of(table, path, slide)
    types = {str(table.schema.field(f"f{i}").type) for i in range(d)}
    if len(types) > 1:
        raise DataError(f"{path}: f0…f{d - 1} are of several types ({', '.join(sorted(types))}); make them one")
    columns = [_column(table, f"f{i}", path) for i in range(d)]
    coords = np.column_stack([_column(table, "x", path), _column(table, "y", path)])
    features, coords, _ = check_rows(np.column_stack(columns), coords, path)
    about = _about(table, path)
    size = about.get("size_px")
    px = positive(about.get("tile_px"), "tile_px", path)
    return TileFeatures(
        tool="parquet", container="parquet", features=features, coords=coords, unit="px",
        anchor="centre" if about.get("anchor") == "centre" else None, edge=positive(about.get("edge"), "edge", path),
        tile_px=int(px) if px else None, slide_mpp=positive(about.get("slide_mpp"), "slide_mpp", path),
        size_px=(int(size[0]), int(size[1])) if isinstance(size, list) and len(size) == 2 else None,
        encoder=about.get("encoder") or {}, attrs={"file": about},
    )  # fmt: skip


def parquet_bytes(table: TileFeatures, slide: str) -> bytes:
    """Return the file of one slide."""
    pa, pq = _arrow(), _parquet()
    columns = {"slide": pa.array([slide] * len(table)), "x": table.coords[:, 0], "y": table.coords[:, 1]}
    columns |= {f"f{i}": np.ascontiguousarray(table.features[:, i]) for i in range(table.features.shape[1])}
    about = json.dumps(table.attrs.get("file", {})).encode()
    out = BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({KEY: about} if table.attrs.get("file") else None), out)
    return out.getvalue()


def _rows_of(table: Any, path: Path, slide: str | None) -> Any:
    if "slide" not in table.column_names:
        return table
    of = np.array([str(s) for s in table.column("slide").to_pylist()], dtype=object)
    known = list(dict.fromkeys(of.tolist()))
    if slide is None or slide not in known:
        if len(known) == 1 and slide is None:
            return table
        wanted = "say which slide" if slide is None else f"none is of slide '{slide}'"
        raise DataError(f"{path} has rows of slides {', '.join(known[:5])}: {wanted}")
    return table.filter(_arrow().array(of == slide))


def _column(table: Any, name: str, path: Path) -> NDArray[Any]:
    found = table.column(name)
    if found.null_count:
        raise DataError(f"{path}: {found.null_count} values of '{name}' are missing; leave such rows out")
    return np.asarray(found.to_numpy())


def _about(table: Any, path: Path) -> dict[str, Any]:
    packed = (table.schema.metadata or {}).get(KEY)
    try:
        found = plain(json.loads(packed)) if packed is not None else {}
    except ValueError:
        raise DataError(f"{path}: its metadata '{KEY.decode()}' is no JSON; it was not written by histostore") from None
    return found if isinstance(found, dict) else {}


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is no whole Parquet file ({str(error).splitlines()[0]}); copy it again")


def _arrow() -> Any:
    return _need("pyarrow")


def _parquet() -> Any:
    return _need("pyarrow.parquet")


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError("Parquet needs pyarrow: pip install pyarrow") from error
