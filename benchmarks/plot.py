"""How the figures look: one style, colours that colour-blind readers tell apart, PNG files.

Drawn without a screen and without pyplot's global state. matplotlib comes with the extras `bench`
and `dev`; where it is missing, records and tables are as they are, and a line says why there is no
plot.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.report import Spread

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_PANEL_INCHES = (5.2, 3.9)
_DPI = 150
_TITLE_INCHES = 0.35
_LEGEND_INCHES = 1.8
_LEGEND_ROW_INCHES = 0.21
_NOTE_LINE_INCHES = 0.15
_TITLE_COLUMNS_PER_INCH = 9.5
_NOTE_COLUMNS_PER_INCH = 14
_FOOT_MARGIN_INCHES = 0.2
# Any: the names that matplotlib knows are a type of their own.
_STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.markersize": 6,
}
PAPER_GREY = "0.55"


class Look(NamedTuple):
    """How a method is drawn, in every figure alike.

    Args:
        colour: From Okabe & Ito's palette ("Color Universal Design", 2008), darker where one would
            be too pale on white.
        marker: matplotlib's.
        width: Of lines, in points.
    """

    colour: str
    marker: str
    width: float = 1.8


LOOKS = {
    # Wide, so that it is still seen below a method that does as well.
    "bp-fp32": Look("#000000", "o", 4.0),
    "bp-fp32-checkpoint": Look("#808080", "s"),
    "bp-int8": Look("#D55E00", "X"),
    "bp-int8-codes": Look("#E69F00", "P"),
    "bp-int8-strong": Look("#56B4E9", "^"),
    "bp-ui8": Look("#CC79A7", "v"),
    "bp-dai8": Look("#A89A00", "<"),
    "bp-gdai8-like": Look("#009E73", "D"),
    "ff-int8": Look("#0072B2", "*"),
    "ff-int8-two-pass": Look("#003A5C", "p"),
}
# For what is no method: the same palette in order.
SERIES = tuple(LOOKS[name] for name in ("ff-int8", "bp-int8", "bp-gdai8-like", "bp-ui8", "bp-fp32"))


def draw(
    path: Path,
    title: str,
    grid: tuple[int, int],
    paint: Callable[[list[Axes]], None],
    note: str = "",
    panel_inches: tuple[float, float] = _PANEL_INCHES,
) -> None:
    """A figure of panels in a PNG file; a line on standard error where matplotlib is missing.

    What the panels label is explained once, below them, but for panels that have a legend.

    Args:
        path: Replaced.
        title: Above all panels.
        grid: Rows and columns of panels.
        paint: Gets the panels, row by row.
        note: Below: where the figures come from.
        panel_inches: Width and height of a panel.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        todo = "pip install '.[bench]' in the checkout"
        print(f"no plot {path}: it needs matplotlib ({todo})", file=sys.stderr)
        return
    rows, columns = grid
    width = columns * panel_inches[0]
    lines = textwrap.wrap(note, int(_NOTE_COLUMNS_PER_INCH * width), break_on_hyphens=False)
    titles = textwrap.wrap(title, int(_TITLE_COLUMNS_PER_INCH * width), break_on_hyphens=False)
    with mpl.rc_context(_STYLE):
        engine = ConstrainedLayoutEngine()
        figure = Figure(dpi=_DPI, layout=engine)
        panels: list[Axes] = [*figure.subplots(rows, columns, squeeze=False).flat]
        paint(panels)
        labelled: dict[str, Artist] = {}
        for panel in panels:
            if panel.get_legend() is None:
                handles, labels = panel.get_legend_handles_labels()
                labelled = dict(zip(labels, handles, strict=True)) | labelled
        legend_rows = -(-len(labelled) // int(width / _LEGEND_INCHES))
        foot = legend_rows * _LEGEND_ROW_INCHES + len(lines) * _NOTE_LINE_INCHES
        foot += _FOOT_MARGIN_INCHES
        height = rows * panel_inches[1] + len(titles) * _TITLE_INCHES + foot
        figure.set_size_inches(width, height)
        engine.set(rect=(0.0, foot / height, 1.0, 1.0 - foot / height))
        figure.suptitle("\n".join(titles), fontsize=13, fontweight="bold")
        if labelled:
            figure.legend(
                [*labelled.values()],
                [*labelled],
                loc="upper center",
                bbox_to_anchor=(0.5, foot / height),
                ncols=-(-len(labelled) // legend_rows),
            )
        place = 0.5 * _FOOT_MARGIN_INCHES / height
        figure.text(0.5, place, "\n".join(lines), ha="center", fontsize=8, color="0.35")
        figure.savefig(path)
    print(f"plot: {path}", file=sys.stderr)


def curve(axes: Axes, x: Sequence[float], y: Sequence[Spread], label: str, look: Look) -> None:
    """Means joined by a line, in a band from the least to the largest.

    Args:
        axes: To draw in.
        x: Places.
        y: One a place.
        label: In the legend.
        look: Colour, marker and width.
    """
    axes.plot(
        x,
        [spread.mean for spread in y],
        color=look.colour,
        marker=look.marker,
        linewidth=look.width,
        markersize=4 + look.width,
        label=label,
    )
    low, high = [spread.low for spread in y], [spread.high for spread in y]
    axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)


def count_epochs(axes: Axes) -> None:
    """An axis of whole epochs, and one of accuracy."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epochs")
    axes.set_ylabel("test accuracy (%)")


def provenance(records: Sequence[dict[str, Any]]) -> str:
    """Commits, machine and threads of records, in one line for a figure's note."""
    commits = sorted({str(record["commit"]) for record in records})
    machines = sorted(
        {
            f"{record['machine']['cpu']}, threads {record['machine']['threads']}, "
            f"torch {record['machine']['torch']}"
            for record in records
        }
    )
    return f"commit {', '.join(commits)}; {'; '.join(machines)}"
