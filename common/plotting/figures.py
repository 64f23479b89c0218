"""Showing and saving figures and their data."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox, ScaledTranslation

from common.cli import print_line
from common.files import csv_bytes, write_atomically

MARKERS = "ov^Ds1^h"
# Lines over seeds: the colours of Okabe & Ito (2008), which colour-blind readers can distinguish.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")

# Labels of the metrics whose label is not their name.
_LABELS = {
    "": "|unobserved entry|",
    "fro_e2e_norm": "Frobenius norm",
    "nuc_e2e_norm": "nuclear norm",
    "e2e_effective_rank": "effective rank",
    "e2e_rank": "rank",
}
# The largest height of a legend, relative to its axes.
_HIGHEST_LEGEND = 0.6
# Inches below the axes for tick labels and label.
_BELOW_AXES = 0.45


def has_screen() -> bool:
    """Returns whether pyplot can open windows."""
    # Asked for its backend, matplotlib chooses the first that works, which is Agg without a screen.
    backend = matplotlib.get_backend().lower()
    return backend in {name.lower() for name in backend_registry.list_builtin(BackendFilter.INTERACTIVE)}


class NotDrawable(Exception):
    """A text of a figure is not valid."""


def require_drawable(figure: Figure) -> None:
    """Raises NotDrawable if a text of the figure is not valid."""
    try:
        figure.draw_without_rendering()
    except ValueError as error:
        reason = str(error).strip().splitlines()[-1][:80]
        raise NotDrawable(f"it or a name is not valid mathematical text ({reason}); write \\$ for a dollar") from None


def metric_label(metric: str) -> str:
    """Returns the label of a metric; "" is the unobserved entry's absolute value."""
    return _LABELS.get(metric, metric.replace("_", " "))


def wrapped(label: str, width: int) -> str:
    """Returns a label of a legend in lines of at most `width` characters, broken after commas where this suffices;
    mathematical text as it is.
    """
    if "$" in label:
        return label
    lines = []
    for line in label.split("\n"):
        # Textwrap does not break at no-break spaces.
        parts = [part.replace(" ", "\xa0") if len(part) < width else part for part in line.split(", ")]
        lines += textwrap.wrap(", ".join(parts), width)
    return "\n".join(lines).replace("\xa0", " ")


def fit_legends(figure: Figure, panels: Sequence[Axes], avoid_lines: bool) -> bool:
    """Moves the legends of the panels below them if one is too high for its panel or, with `avoid_lines`, covers a
    line. Returns whether it did so.

    The figure gets higher by as much. Raises NotDrawable if a text of the figure is not valid.
    """
    legends = [axes.get_legend() for axes in panels if axes.get_legend()]
    # Otherwise the layout shrinks the axes to make room for long names.
    for legend in legends:
        legend.set_in_layout(False)
    require_drawable(figure)
    heights = [legend.get_window_extent().height for legend in legends]
    too_high = [
        height > _HIGHEST_LEGEND * legend.axes.bbox.height for height, legend in zip(heights, legends, strict=True)
    ]
    covers = [
        avoid_lines and _crosses(line, legend.get_window_extent()) for legend in legends for line in legend.axes.lines
    ]
    if not any(too_high + covers):
        return False
    for legend in legends:
        legend.set_loc("upper center")
        below = ScaledTranslation(0, -_BELOW_AXES, figure.dpi_scale_trans)
        legend.set_bbox_to_anchor((0.5, 0), transform=legend.axes.transAxes + below)
        legend.set_in_layout(True)
    figure.set_figheight(figure.get_figheight() + max(heights) / figure.dpi)
    return True


def _crosses(line: Line2D, box: Bbox) -> bool:
    """Returns whether a line goes through a box, in pixels."""
    path = line.get_path()
    return len(path) > 0 and bool(line.get_transform().transform_path(path).intersects_bbox(box, filled=False))


def _save(path: str, write: Callable[[Path], None]) -> None:
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), write)
        print_line(f"saved {Path(path)}")


def save_data(rows: Sequence[Mapping[str, object]], path: str) -> None:
    """Saves the data of a figure as CSV, with a column for each key; does nothing if `path` is empty."""
    _save(path, lambda temporary: temporary.write_bytes(csv_bytes(rows, list(rows[0]))))


def save_and_show(figure: Figure, save_plot_to: str) -> None:
    """Saves the figure (250 dpi, tight) if a path is given, and opens a window if there is a screen."""
    _save(save_plot_to, lambda temporary: figure.savefig(temporary, dpi=250, bbox_inches="tight"))
    if has_screen():
        plt.show()
    plt.close(figure)
