"""Line charts as SVG that sits inside the page and takes its colours, and so its light and dark look, from its CSS."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from pipeline.extras import needs

with needs("pipeline"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

# Colours that matplotlib draws with, and the CSS variables put in their place.
_COLOURS = {
    "#000001": "--ink",
    "#000002": "--muted",
    "#000003": "--rule",
    "#000004": "--pretrained",
    "#000005": "--finetuned",
    **{f"#00001{number}": f"--system-{number}" for number in range(5)},
}
# What the page sets these variables to by day.
_DAY = {
    "--ink": "#1d2629",
    "--muted": "#65737a",
    "--rule": "#e2ded5",
    "--pretrained": "#6d8a98",
    "--finetuned": "#d9541e",
    "--system-0": "#65737a",
    "--system-1": "#d9541e",
    "--system-2": "#1f6f8b",
    "--system-3": "#8a5a9e",
    "--system-4": "#3f7d3a",
}
INK, MUTED, RULE, PRETRAINED, FINETUNED, *SYSTEMS = _COLOURS
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.parse_math": False,
    "svg.hashsalt": "eft",  # the same data gives the same page
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


@dataclass(frozen=True)
class Line:
    """One line: x and y of equal length, and an interval around y. A `faint` one is background, without a legend."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    label: str = ""
    faint: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Level:
    """A horizontal level with an interval, e.g. a zero-shot score."""

    y: float
    low: float
    high: float
    colour: str
    label: str


def line_chart(
    title: str,
    x_label: str,
    lines: Sequence[Line],
    levels: Sequence[Level] = (),
    scores: bool = True,
    small: bool = False,
) -> Markup:
    """Draw lines over one axis as an inline SVG element.

    Args:
        title: what it shows, for those who do not see it.
        x_label: of the horizontal axis, with its unit.
        lines: in drawing order.
        levels: drawn behind the lines, across the whole width.
        scores: the vertical axis is a score, from 0 to 1; otherwise it fits the data, logarithmic where all is positive
            and spans more than a factor of 20.
        small: for grids of many charts.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.1, 2.1) if small else (5.6, 3), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel(x_label)
        for level in levels:
            axes.axhspan(level.low, level.high, color=level.colour, alpha=0.14, linewidth=0)
            axes.axhline(level.y, color=level.colour, linestyle=(0, (4, 3)), linewidth=1.4, label=level.label)
        for line in lines:
            _draw(axes, line)
        _scale(axes, lines, scores)
        axes.xaxis.set_major_locator(MaxNLocator(3 if small else 5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="best", handlelength=1.4)
        return _as_markup(figure, title)


def timeline_chart(
    title: str,
    x_label: str,
    rows: Mapping[str, Sequence[tuple[float, float]]],
    end: float,
    marks: Sequence[tuple[float, str]],
) -> Markup:
    """Draw one row per name, with a bar over each of its spans, as an inline SVG element.

    Args:
        title: what it shows, for those who do not see it.
        x_label: of the horizontal axis, with its unit.
        rows: by name, from top to bottom: first and last x of each span.
        end: of the axis, which begins at 0.
        marks: x and label of vertical lines through all rows.
    """
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(5.6, 0.9 + 0.22 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel(x_label)
        for row, spans in enumerate(rows.values()):
            axes.axhline(row, color=RULE, linewidth=0.8, zorder=0)
            axes.broken_barh([(first, last - first) for first, last in spans], (row - 0.3, 0.6), color=FINETUNED)
        for x, label in marks:
            axes.axvline(x, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
            axes.text(x, 1.01, label, transform=axes.get_xaxis_transform(), color=MUTED, fontsize=9, ha="center")
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, max(end, 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        return _as_markup(figure, title)


def share_chart(title: str, x_label: str, x: Sequence[float], rows: Sequence[str], shares: np.ndarray) -> Markup:
    """Draw one panel per column of a share, time to the right and a row per name: the darker, the larger the share.

    Args:
        title: what it shows, for those who do not see it.
        x_label: of the horizontal axes, with its unit.
        x: (times,) positions, ascending; each stands for the time since the one before.
        rows: names of the rows.
        shares: (times, rows, panels) in [0, 1]; NaN where nothing is known, which stays empty.
    """
    panels = shares.shape[2]
    across = min(panels, 4)
    down = -(-panels // across)
    red, green, blue = (int(_DAY["--finetuned"][i : i + 2], 16) / 255 for i in (1, 3, 5))
    edges = [2 * x[0] - x[1] if len(x) > 1 else 0.0, *x]
    with mpl.rc_context({**STYLE, "axes.grid": False, "xtick.labelsize": 8, "ytick.labelsize": 8}):
        height = down * (0.15 * len(rows) + 0.35) + 0.4
        figure = Figure(figsize=(10.5, height), layout="constrained")
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for panel, axes in enumerate(grid.flat):
            if panel >= panels:
                axes.axis("off")
                continue
            known = np.nan_to_num(shares[:, :, panel].T)
            columns = _regular(edges, known)  # an image has columns of one width
            picture = np.empty((*columns.shape, 4))
            picture[..., :3] = red, green, blue
            picture[..., 3] = columns
            extent = (max(edges[0], 0.0), edges[-1], len(rows) - 0.5, -0.5)
            axes.imshow(picture, aspect="auto", interpolation="none", extent=extent)
            axes.set_title(f"expert {panel}", fontsize=9.5, color=INK, loc="left")
            axes.set_yticks(range(len(rows)), rows)
            axes.set_yticks([row - 0.5 for row in range(1, len(rows))], minor=True)
            axes.grid(axis="y", which="minor", color=RULE, linewidth=0.6)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(_short))
        figure.supxlabel(x_label, fontsize=10, color=MUTED)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline(buffer.getvalue(), title)


def _regular(edges: Sequence[float], values: np.ndarray, columns: int = 200) -> np.ndarray:
    """Resample values (rows, times), of which column i reaches from edge i to edge i + 1, at even steps."""
    first = max(edges[0], 0.0)
    middles = first + (np.arange(columns) + 0.5) / columns * (edges[-1] - first)
    return values[:, np.clip(np.searchsorted(edges, middles) - 1, 0, values.shape[1] - 1)]


def as_file(chart: Markup) -> str:
    """Return a chart as an SVG file of its own, which every viewer shows, with the page's colours by day."""
    svg = str(chart)
    for variable, colour in _DAY.items():
        svg = svg.replace(f"var({variable})", colour)
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return svg.replace("<svg ", f'<svg {spaces} style="background: white; font-family: sans-serif" ', 1) + "\n"


def _as_markup(figure: Figure, title: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline(buffer.getvalue(), title)


def _draw(axes: Axes, line: Line) -> None:
    if line.faint:
        axes.plot(line.x, line.y, color=line.colour, alpha=0.45, linewidth=1.1)
        return
    if line.low:
        axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.13, linewidth=0)
    axes.plot(
        line.x,
        line.y,
        color=line.colour,
        linewidth=2.2,
        solid_capstyle="round",
        marker="o" if len(line.x) < 15 else None,
        markersize=4.5,
        label=line.label or None,
    )


def _scale(axes: Axes, lines: Sequence[Line], scores: bool) -> None:
    if scores:
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        return
    values = [value for line in lines for value in line.y]
    if values and min(values) > 0 and max(values) / min(values) > 20:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))


def _short(value: float, _position: int | None = None) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def inline(svg: str, title: str) -> Markup:
    """Make a figure as matplotlib wrote it part of the page: its colours become the page's variables."""
    body = svg[svg.index("<svg") :].split(">", 1)[1]
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box, "matplotlib gives every figure a viewBox"
    body = re.sub(r"<(metadata|style).*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # the same in every figure, and an id must be unique in a page
    body = re.sub(r"font-family: [^;]*; ", "", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    for colour, variable in _COLOURS.items():
        body = body.replace(colour, f"var({variable})")
    return Markup(f'<svg {view_box[0]} class="chart" role="img" aria-label="{escape(title)}">' + body)
