"""The similarity of tasks as a matrix, ordered so that clusters stand along the diagonal, framed."""

from __future__ import annotations

import io
import itertools

import numpy as np
from markupsafe import Markup

from pipeline.extras import needs
from pipeline.report.charts import INK, MUTED, STYLE, inline
from pipeline.results import TaskClusters

with needs("pipeline"):
    import matplotlib as mpl
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

# Of an image, which cannot take the page's colours; its transparency lets the paper shine through by day and night.
_LIKE, _OPPOSITE = "#d9541e", "#6d8a98"
_MOST_NUMBERS = 12  # tasks up to which each cell says its value


def similarity_chart(title: str, clusters: TaskClusters) -> Markup:
    """Draw cosines from -1 (blue) over 0 (blank) to 1 (red) as an inline SVG element.

    Args:
        title: what it shows, for those who do not see it.
        clusters: the tasks and what was found about them.
    """
    order = np.array(clusters.order)
    values = np.array(clusters.similarity)[np.ix_(order, order)]
    names, own = [clusters.tasks[row] for row in order], [clusters.cluster[row] for row in order]
    count = len(names)
    with mpl.rc_context({**STYLE, "axes.grid": False, "axes.spines.bottom": False}):
        side = 2.6 + 0.3 * min(count, 24)
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(_shade(values), interpolation="nearest")
        size = max(3.0, min(9.0, 150 / count))
        axes.set_yticks(range(count), names, fontsize=size)
        axes.set_xticks(range(count), names, fontsize=size, rotation=90)
        axes.tick_params(length=0)
        if count <= _MOST_NUMBERS:
            for row, column in itertools.product(range(count), repeat=2):
                text = f"{values[row, column]:.2f}".replace("0.", ".")
                axes.text(
                    column, row, text, ha="center", va="center", fontsize=7, color=INK if row != column else MUTED
                )
        start = 0
        for _, group in itertools.groupby(own):
            length = len(list(group))
            frame = Rectangle((start - 0.5, start - 0.5), length, length, fill=False, edgecolor=INK, linewidth=1.6)
            frame.set_clip_on(False)
            axes.add_patch(frame)
            start += length
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline(buffer.getvalue(), title)


def _shade(values: np.ndarray) -> np.ndarray:
    """Turn cosines (n, n) into colours (n, n, 4): the hue by the sign, the opacity by the size."""
    shades = np.empty((*values.shape, 4))
    shades[..., :3] = np.where(values[..., None] >= 0, to_rgb(_LIKE), to_rgb(_OPPOSITE))
    shades[..., 3] = 0.9 * np.abs(values)
    return shades
