"""What all figures share: panels, styles of lines, labels, legends, and saving of figures and their data."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from common.cli import print_line
from common.files import csv_bytes, write_atomically

MARKERS = "ov^Ds1^h"
# Lines over seeds: the colours of Okabe & Ito (2008), which colour-blind readers can distinguish.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")

# Labels of the metrics whose label is not their name.
_LABELS = {
    "": "|unobserved entry|",
    "fro_e2e_norm": "Frobenius norm",
    "nuc_e2e_norm": "nuclear norm",
    "e2e_effective_rank": "effective rank",
    "e2e_rank": "rank",
}
MOST_PANELS, MOST_COLUMNS = 12, 4
# A legend with more lines of text stands below its panel.
_MOST_LINES_INSIDE = 6
# Inches: of the labels between a panel and the legend below it, and of a line of a legend.
_BELOW_PANEL, _LINE_OF_LEGEND = 0.45, 0.15


@cache
def has_screen() -> bool:
    """Returns whether pyplot can open windows."""
    from matplotlib import pyplot as plt

    try:
        # Asked for its backend, matplotlib chooses the first that works, which is Agg without a screen.
        plt.switch_backend(matplotlib.get_backend())
    except ImportError:  # the user asked for one that does not work here
        return False
    interactive = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    return matplotlib.get_backend().lower() in {name.lower() for name in interactive}


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
    """Returns a label in lines of at most `width` characters, broken after commas where this suffices; mathematical
    text as it is.
    """
    if "$" in label:
        return label
    lines = []
    for line in label.split("\n"):
        # Textwrap does not break at no-break spaces.
        parts = [part.replace(" ", "\xa0") if len(part) < width else part for part in line.split(", ")]
        lines += textwrap.wrap(", ".join(parts), width)
    return "\n".join(lines).replace("\xa0", " ")


def new_figure(
    number: int, panel: tuple[float, float], margins: tuple[float, float] = (0, 0), **shared: bool
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a number of panels, at most four side by side. Sizes of a panel and of the margins are
    widths and heights in inches. `shared` are sharex and sharey.
    """
    make = Figure
    if has_screen():  # only figures of pyplot can be shown
        from matplotlib import pyplot as plt

        make = plt.figure
    columns = min(number, MOST_COLUMNS)
    rows = -(-number // columns)
    size = (margins[0] + panel[0] * columns, margins[1] + panel[1] * rows)
    figure = make(figsize=size, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    for axes in grid.flat[number:]:
        axes.remove()
    return figure, list(grid.flat[:number])


def line_styles(number: int) -> list[dict]:
    """Returns the colour and width of lines. Each is narrower than the one below it, so that coinciding lines are all
    visible.
    """
    colours = _COLOURS if number <= len(_COLOURS) else colormaps["viridis"](np.linspace(0, 0.95, number))
    widths = np.linspace(2.8, 1.2, number) if number > 1 else [1.6]
    return [{"color": colour, "linewidth": width} for colour, width in zip(colours, widths, strict=False)]


def add_legends(figure: Figure, handles: Mapping[Axes, Sequence[Artist]], width: int, **style: str) -> None:
    """Adds the legend of each panel, with labels of at most `width` characters a line: inside if all legends have few
    lines, otherwise below, for which the figure becomes higher.
    """
    labels = {axes: [wrapped(handle.get_label(), width) for handle in each] for axes, each in handles.items()}
    lines = max(sum(label.count("\n") + 1 for label in each) for each in labels.values())
    is_below = lines > _MOST_LINES_INSIDE
    if is_below:
        figure.set_figheight(figure.get_figheight() + _LINE_OF_LEGEND * (lines + 1))
    for axes, of_panel in handles.items():
        below = axes.transAxes + ScaledTranslation(0, -_BELOW_PANEL, figure.dpi_scale_trans)
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below} if is_below else {}
        # Matplotlib hides names that begin with an underscore unless the labels are given as well.
        legend = axes.legend(of_panel, labels[axes], handletextpad=0.4, borderpad=0.3, framealpha=0.7, **place, **style)
        # Otherwise the layout would shrink the axes to make room for long names.
        legend.set_in_layout(is_below)


def save_and_show(figure: Figure, rows: Sequence[Mapping], save_plot_to: str, save_data_to: str) -> None:
    """Saves the rows of a figure as CSV, with a column for each key, and the figure (250 dpi, tight), if paths are
    given, and opens a window if there is a screen.
    """
    picture = io.BytesIO()
    if save_plot_to:
        form = Path(save_plot_to).suffix[1:].lower()
        figure.savefig(picture, format=form, dpi=250, bbox_inches="tight")
    for path, content in ((save_data_to, csv_bytes(rows, list(rows[0]))), (save_plot_to, picture.getvalue())):
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(path), content)
            print_line(f"saved {Path(path)}")
    if has_screen():
        from matplotlib import pyplot as plt

        plt.show()
        plt.close(figure)
