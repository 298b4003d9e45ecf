"""How all pictures look: figures, colours, scale bars, saving."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, AuxTransformBox, TextArea, VPacker
from matplotlib.patches import Rectangle

from histostore.errors import StorageError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Eight colours that people with any common colour blindness tell apart (Okabe and Ito 2008)."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
"""Beside the colours, for those who see none."""

MISSING = "#6E6E6E"
"""Colour of what has no value."""

INK = "#222222"
FAINT = "#8A8A8A"
DPI = 150
TITLE, LABEL, SMALL = 12.0, 10.5, 9.0
"""Font sizes in points, legible when a picture is printed at half its size."""


def new_figure(width: float, height: float, *, dpi: int = DPI) -> Figure:
    """Return an empty white figure of so many inches, unknown to pyplot."""
    return Figure(figsize=(width, height), dpi=dpi, facecolor="white", layout="constrained")


def finish(figure: Figure, save: Path | None) -> Figure:
    """Write the figure where wanted, at its own resolution, and return it."""
    if save is None:
        return figure
    try:
        figure.savefig(save, dpi="figure")
    except ValueError as error:
        msg = f"cannot save a picture as '{save}': {error}"
        raise UsageError(msg) from error
    except OSError as error:
        msg = f"cannot write '{save}': {error.strerror or error}; choose a folder that exists and can be written"
        raise StorageError(msg) from error
    return figure


def categorical(n: int) -> list[str]:
    """Return `n` colours: Okabe-Ito, then its lighter and its darker shades, then from the start again."""

    def shade(colour: str, towards: float, share: float) -> str:
        red, green, blue = (c + (towards - c) * share for c in to_rgb(colour))
        return to_hex((red, green, blue))

    lighter = [shade(c, 1.0, 0.5) for c in OKABE_ITO]
    darker = [shade(c, 0.0 if c != "#000000" else 1.0, 0.45) for c in OKABE_ITO]
    colours = [*OKABE_ITO, *lighter, *darker]
    return [colours[i % len(colours)] for i in range(n)]


def bare(ax: Axes) -> None:
    """Take the frame and the ticks of an axes away: an image needs none."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def light(ax: Axes) -> None:
    """Keep only the left and bottom frame of a chart, small and grey."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(FAINT)
    ax.tick_params(labelsize=SMALL, colors=INK, color=FAINT)


def nice_length(limit: float) -> float:
    """Return the longest of 1, 2, 5 times a power of ten that is at most `limit`."""
    power = 10.0 ** math.floor(math.log10(limit))
    return max(step for step in (power, 2 * power, 5 * power) if step <= limit * (1 + 1e-9))


def scale_bar(ax: Axes, um_per_unit: float) -> None:
    """Draw a scale bar into the lower left corner of an image.

    Parameters
    ----------
    ax
        Its limits must be final: the bar is in data units.
    um_per_unit
        Microns per data unit (the mpp of the drawn frame).
    """
    left, right = ax.get_xlim()
    um = nice_length(0.25 * abs(right - left) * um_per_unit)
    text = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
    # the bar is as long as the data say, its thickness is in points whatever the zoom
    bar = AuxTransformBox(ax.transData)
    bar.add_artist(Rectangle((0, 0), um / um_per_unit, 0, edgecolor=INK, linewidth=2.5, gid="scale-bar"))
    label = TextArea(text, textprops={"fontsize": SMALL, "color": INK})
    box = AnchoredOffsetbox(
        "lower left", child=VPacker(children=[label, bar], align="center", pad=0, sep=2), pad=0.35, borderpad=0.5
    )
    box.patch.set(facecolor="white", alpha=0.85, edgecolor="none")
    box.set_zorder(5)
    ax.add_artist(box)


def shorten(text: str, limit: int) -> str:
    """Return the text, its middle left out where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    keep = limit - 1
    return f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"


def plain(text: object) -> str:
    """Return a name as text that matplotlib prints as it is (``$`` would start mathematics)."""
    return str(text).replace("$", r"\$")


def cells(count: int, columns: int) -> tuple[int, int]:
    """Return (rows, columns) of a grid that holds `count` panels."""
    columns = max(1, min(columns, count))
    return math.ceil(count / columns), columns


def check_lengths(what: str, got: int, want: int, of: str) -> None:
    """Raise `UsageError` where a list does not go with another."""
    if got != want:
        msg = f"{got} {what} for {want} {of}; give one each"
        raise UsageError(msg)
