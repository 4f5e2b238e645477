"""Curves over frames as PNG pictures, by matplotlib, which is an extra of the package."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np

from nova_jax.errors import NovaError

COLUMNS = 4  # of panels


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve of a panel.

    Attributes:
      x, y: its points, two sequences of one length.
      label: what the legend says; nothing for a line in the background.
      band: lower and upper ends of a band around it, each as long as `y`.
      style: matplotlib's line style.
    """

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    label: str = ""
    band: tuple[np.ndarray, np.ndarray] | None = None
    style: str = "-"


def encode_plot(
    panels: Mapping[str, Sequence[Line]],
    title: str,
    x_label: str,
    shown: Mapping[str, tuple[float, float]],
    *,
    mark: tuple[float, str] | None = None,
) -> bytes:
    """Draws panels side by side and returns the bytes of a PNG file. No display is used.

    Args:
      panels: lines by what is on the y axis.
      title: stands above all panels.
      x_label: of all x axes.
      shown: what the y axis of each panel shows at least, so that little change looks little.
      mark: where a vertical line stands, and what it says.

    Raises:
      NovaError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise NovaError("plots need matplotlib; pip install 'nova_jax[plots]'") from error
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    size = (max(8, 4.2 * columns), max(4.5, 3 * rows))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (y_label, lines) in zip(grid, panels.items(), strict=False):
        for line in lines:
            background = {"color": "0.8", "linewidth": 0.7, "zorder": 1}
            look = {"label": line.label} if line.label else background
            (drawn,) = axes.plot(line.x, line.y, line.style, **look)
            if line.band is not None:
                shade = {"color": drawn.get_color(), "alpha": 0.2, "linewidth": 0}
                axes.fill_between(line.x, *line.band, **shade)
        if mark is not None:
            axes.axvline(mark[0], color="0.4", linestyle=":", label=mark[1])
        axes.set(title=y_label, xlabel=x_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.update_datalim([(line.x[0], y) for y in shown[y_label]])
        axes.autoscale_view()
    for axes in grid[len(panels) :]:
        axes.remove()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
