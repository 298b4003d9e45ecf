"""Sections to one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from histostore.errors import UsageError
from histostore.report.tables import page_table
from histostore.staged import write_text

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from histostore.report.section import Section
    from histostore.report.tables import PageTable

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class _Picture:
    caption: str
    base64: str
    width: int | None
    """Width on the page in CSS pixels (96 an inch); None shows each pixel as one."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A section as the template takes it."""

    id: str
    title: str
    paragraphs: tuple[str, ...]
    warnings: tuple[str, ...]
    tables: tuple[PageTable, ...]
    pictures: tuple[_Picture, ...]
    notes: tuple[str, ...]


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    sections: Sequence[Section],
    store: str = "",
    subtitle: str = "",
    warnings: Sequence[str] = (),
    appendix: Mapping[str, Any] | None = None,
    digits: int = 3,
) -> Path:
    """Write a report as one HTML file that needs nothing else: no network, no scripts, light and dark.

    Everything given is taken as text and escaped; slides may be called what they like. Equal input gives equal
    bytes: the file holds no time and no random ids.

    Parameters
    ----------
    path
        Where to; replaced whole, or left as it was.
    store
        Name of the store, shown above the title.
    warnings
        A banner at the top of the page (the split's, above all).
    appendix
        Digests, engine, versions: plain JSON, shown folded at the end.
    digits
        Decimals of the floats in tables.

    Raises
    ------
    UsageError
        The appendix is no JSON, the bytes of a figure are no PNG, or there is no such folder.
    StorageError
        The disk refuses; what was there stays as it was.
    """
    environment = Environment(
        loader=PackageLoader("histostore.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        subtitle=subtitle,
        store=store,
        warnings=list(warnings),
        parts=[_part(number, section, digits) for number, section in enumerate(sections, start=1)],
        appendix=_json(appendix),
    )
    return write_text(Path(path), [page], overwrite=True)


def _part(number: int, section: Section, digits: int) -> _Part:
    return _Part(
        id=f"section-{number}",
        title=section.title,
        paragraphs=tuple(p.strip() for p in re.split(r"\n\s*\n", section.text) if p.strip()),
        warnings=tuple(section.warnings),
        tables=tuple(page_table(caption, frame, digits=digits) for caption, frame in section.tables.items()),
        pictures=tuple(_picture(caption, figure) for caption, figure in section.figures.items()),
        notes=tuple(section.notes),
    )


def _picture(caption: str, figure: Figure | bytes) -> _Picture:
    width = None
    if isinstance(figure, bytes):
        png = figure
    else:
        # a contact sheet (100 dpi) is shown pixel by pixel, a chart at its size in inches, sharp on any screen
        width = round(figure.get_figwidth() * 96) if figure.dpi > 120 else None
        buffer = io.BytesIO()
        # no Software entry: it would change the bytes with every release of matplotlib
        figure.savefig(buffer, format="png", dpi="figure", metadata={"Software": None})
        png = buffer.getvalue()
    if not png.startswith(PNG_SIGNATURE):
        msg = f"the bytes of figure '{caption}' are no PNG; give a matplotlib Figure or a PNG file's bytes"
        raise UsageError(msg)
    return _Picture(caption, base64.b64encode(png).decode("ascii"), width)


def _json(appendix: Mapping[str, Any] | None) -> str:
    if not appendix:
        return ""
    try:
        return json.dumps(dict(appendix), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        msg = f"the appendix is no plain JSON ({error}); give str, numbers, lists and dicts"
        raise UsageError(msg) from error
