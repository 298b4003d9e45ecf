"""Which models can be asked for by name, and is this one here? Answers without torch and without a network."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from histostore.backbones.cache import cached_file, hub_token, torch_cache
from histostore.backbones.records import KNOWN, ModelRecord
from histostore.errors import NotFoundError, near

__all__ = ["ENTRY_POINTS", "ModelRecord", "availability", "entry_points", "find", "known", "local_file", "not_known"]

ENTRY_POINTS = "histostore.backbones"
"""Entry-point group through which another package offers backbones."""


def known() -> tuple[ModelRecord, ...]:
    """Return the catalogue's records, packaged models first."""
    return KNOWN


def entry_points() -> dict[str, metadata.EntryPoint]:
    """Return what installed packages offer in the group ``histostore.backbones``, by name."""
    return {e.name: e for e in metadata.entry_points(group=ENTRY_POINTS)}


def find(name: str) -> ModelRecord | None:
    """Return the record of that name or alias (case does not count), or None."""
    wanted = name.lower()
    return next((r for r in KNOWN if wanted == r.name or wanted in r.aliases), None)


def not_known(name: str) -> NotFoundError:
    """Return the error for a name nobody knows, with the near ones."""
    names = [r.name for r in KNOWN] + list(entry_points())
    hint = near(name, names) or near(name, [alias for r in KNOWN for alias in r.aliases])
    msg = (
        f"unknown backbone '{name}'{hint or ';'} see `histostore models`, or give timm/NAME[.TAG], "
        f"torchvision/NAME[.WEIGHTS], file:WEIGHTS#timm/NAME or your own package.module:callable"
    )
    return NotFoundError(msg)


def local_file(record: ModelRecord) -> Path | None:
    """Return where the record's weights are on this machine, or None."""
    if record.file is None:
        return None
    if record.repository:
        return cached_file(record.repository, record.file)
    if record.package:
        return _packaged_file(record.package, record.file)
    path = torch_cache() / record.file
    return path if path.is_file() else None


def availability(record: ModelRecord) -> str:
    """Say whether a model can be used now.

    Returns
    -------
    str
        ``here``, ``needs download``, ``gated: needs token`` or ``needs package X``.
    """
    if record.file is None:
        return "here"
    if record.package and not _installed(record.package):
        return f"needs package {record.package}"
    if local_file(record):
        return "here"
    if record.package and not record.repository:
        return f"needs package {record.package}"
    return "gated: needs token" if record.gated and not hub_token() else "needs download"


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _packaged_file(package: str, file: str) -> Path | None:
    # read from the installed files' list: the package itself may not be importable (it pins an old torch)
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        return None
    for entry in files:
        if entry.name == file:
            path = Path(entry.locate())
            return path if path.is_file() else None
    return None
