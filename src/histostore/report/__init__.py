"""One HTML file that tells what was done, how well it went and with what: no links, no scripts, nothing to fetch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histostore.report.evaluation import evaluation_section
    from histostore.report.html import write_report
    from histostore.report.section import Section

__all__ = ["Section", "evaluation_section", "write_report"]

_HOME = {"Section": "section", "evaluation_section": "evaluation", "write_report": "html"}


def __getattr__(name: str) -> Any:
    # jinja2, pandas and matplotlib are for those who write a report
    if name not in _HOME:
        msg = f"module '{__name__}' has no attribute '{name}'"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
