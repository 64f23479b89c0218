"""What all figures share: panels, lines over seeds, labels and legends."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from common.naming import span

# A point of a line, a cell of a map, or a method at a number of observations: what is drawn and written to the CSV.
Row = dict[str, Any]

# The columns of each statistic in tables: lower end of the band, middle, upper end of the band.
COLUMNS = {"median": ("lower_quartile", "median", "upper_quartile"), "mean": ("lower_95", "mean", "upper_95")}
_BANDS = {"median": "quartiles", "mean": "95% confidence interval"}

MARKERS = "ov^Ds1^h"
# The colours of Okabe & Ito (2008), which colour-blind readers can distinguish, and grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442", "#999999")
# Labels of the metrics whose label is not their name.
_LABELS = {"": "|unobserved entry|", "fro_e2e_norm": "Frobenius norm", "nuc_e2e_norm": "nuclear norm"}
_LABELS |= {"e2e_effective_rank": "effective rank", "e2e_rank": "rank", "on_the_curve": "share of runs on the curve"}
MOST_PANELS, MOST_COLUMNS = 12, 4


@cache
def has_screen() -> bool:
    """Returns whether pyplot can open windows."""
    from matplotlib import pyplot as plt

    try:
        # Asked for its backend, matplotlib chooses the first that works, which is Agg without a screen.
        plt.switch_backend(matplotlib.get_backend())
    except ImportError:  # the user asked for one that does not work here
        return False
    return matplotlib.get_backend().lower() in map(str.lower, backend_registry.list_builtin(BackendFilter.INTERACTIVE))


def metric_label(metric: str) -> str:
    """Returns the label of a metric; "" is the unobserved entry's absolute value."""
    return _LABELS.get(metric, metric.replace("_", " "))


def wrapped(label: str, width: int) -> str:
    """Returns a label in lines of at most `width` characters, broken after commas where this suffices; mathematical
    text as it is.
    """
    if "$" in label:
        return label
    lines = [line.split(", ") for line in label.split("\n")]
    # Textwrap does not break at no-break spaces.
    kept = [[part.replace(" ", "\xa0" if len(part) < width else " ") for part in parts] for parts in lines]
    return "\n".join(textwrap.fill(", ".join(parts), width) for parts in kept).replace("\xa0", " ")


def new_figure(
    number: int, panel: tuple[float, float], margins: tuple[float, float] = (0, 0), **shared: bool
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a number of panels, at most four side by side. Sizes of a panel and of the margins are
    widths and heights in inches. `shared` are sharex and sharey.
    """
    make = Figure
    if has_screen():  # only figures of pyplot can be shown
        from matplotlib.pyplot import figure as make
    rows, columns = -(-number // MOST_COLUMNS), min(number, MOST_COLUMNS)
    size = (margins[0] + panel[0] * columns, margins[1] + panel[1] * rows)
    figure = make(figsize=size, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    for axes in grid.flat[number:]:
        axes.remove()
    return figure, list(grid.flat[:number])


def line_styles(number: int) -> list[dict[str, Any]]:
    """Returns the colour and width of lines. Each is narrower than the one below it, so that coinciding lines are all
    visible.
    """
    colours = _COLOURS if number <= len(_COLOURS) else colormaps["viridis"](np.linspace(0, 0.95, number))
    widths = np.linspace(3.0, max(1.0, 3.6 - 0.6 * number), number) if number > 1 else [1.6]
    return [{"color": colour, "linewidth": width} for colour, width in zip(colours, widths, strict=False)]


def add_caption(figure: Figure, statistic: str, seeds: Sequence[int], dashed: str, panels: int) -> None:
    """Adds the caption of lines with a statistic and band over these numbers of seeds. `dashed` says which runs dashed
    lines are over, "" if there are none.
    """
    text = f"{statistic}, {_BANDS[statistic]} over {span(seeds)} seeds"
    text += f"; dashed: over those that {dashed}" if dashed else ""
    figure.supxlabel(wrapped(text, 50 * min(panels, MOST_COLUMNS)), fontsize="x-small")


def line_rows(x_name: str, x: np.ndarray, values: np.ndarray, statistic: str) -> list[Row]:
    """Returns the rows of a line: a statistic of values (runs, n) at each `x` (n,) where they are not all NaN, with the
    number of runs that have a value, and of all runs.
    """
    runs = np.isfinite(values).sum(axis=0)
    columns = (x_name, *COLUMNS[statistic], "runs", "runs_in_all")
    points = zip(x[runs > 0].tolist(), summary(values[:, runs > 0], statistic), runs[runs > 0].tolist(), strict=True)
    return [dict(zip(columns, (at, *numbers, left, len(values)), strict=True)) for at, numbers, left in points]


def summary(values: np.ndarray, statistic: str) -> list[list[float | None]]:
    """Returns lower end, middle and upper end of a statistic of each column of values (runs, n), of which NaN are left
    out; None for an end that does not exist.

    "median": with the 25th and the 75th percentile. "mean": with the 95% confidence interval from Student's
    distribution, mean ± t s / √k, where s is the standard deviation of k values; it does not exist if k is 1.
    """
    if not values.shape[1]:
        return []
    if statistic == "median":
        found = np.nanpercentile(values, (25, 50, 75), axis=0)
    else:
        counts, mean = np.isfinite(values).sum(axis=0), np.nanmean(values, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / (counts - 1))
        half = np.array([student_t(count - 1) for count in counts.tolist()]) * (deviation / np.sqrt(counts))
        found = np.array([mean - half, mean, mean + half])
    return [[None if value != value else value for value in column] for column in found.T.tolist()]


@lru_cache(maxsize=4096)
def student_t(degrees: int) -> float:
    """Returns the t for which a variable of Student's distribution lies between −t and t with probability 0.95; NaN if
    ν = 0. With t = √ν tan θ, the density of θ in (0, π/2) is proportional to cos(θ)^(ν − 1).
    """
    if not degrees:
        return np.nan
    # For many degrees of freedom, the density is narrow: its width is about 1 / √ν.
    theta = np.linspace(0, min(np.pi / 2, 8 / np.sqrt(degrees)), 20_001)
    density = np.cos(theta) ** (degrees - 1)
    cumulative = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(degrees) * np.tan(np.interp(0.95 * cumulative[-1], cumulative, theta)))


def draw_line(axes: Axes, rows: Sequence[Row], x_name: str, statistic: str, **style: Any) -> Line2D:
    """Draws the rows of a line, with its band. Returns the solid part.

    Where some runs have no value, the line is dashed: which runs are left may bend it.
    """
    columns = [[row[name] for row in rows] for name in (x_name, *COLUMNS[statistic])]
    x, low, middle, high = np.array(columns, dtype=np.float64)
    complete = next((index for index, row in enumerate(rows) if row["runs"] < row["runs_in_all"]), len(rows))
    everyone, fewer = slice(complete), slice(max(complete - 1, 0), None)
    for part, alpha in ((everyone, 0.2), (fewer, 0.07)):
        axes.fill_between(x[part], low[part], high[part], color=style["color"], alpha=alpha, linewidth=0, zorder=1)
    # The layout takes a line without points to be in the corner of the figure.
    (solid,) = axes.plot(x[everyone], middle[everyone], in_layout=bool(complete), **style)
    if complete < len(x):
        axes.plot(x[fewer], middle[fewer], **{**style, "linestyle": "--"})
    return solid


def add_legends(
    figure: Figure, handles: Mapping[Axes, Sequence[Any]], width: int, fontsize: str, most_lines: int = 6
) -> None:
    """Adds the legend of each panel, with labels of at most `width` characters a line: inside if all legends have at
    most `most_lines` lines, otherwise below, for which the figure becomes higher.
    """
    labels = {axes: [wrapped(handle.get_label(), width) for handle in each] for axes, each in handles.items()}
    lines = max(sum(label.count("\n") + 1 for label in each) for each in labels.values())
    style = {"loc": "best", "fontsize": fontsize, "handletextpad": 0.4, "borderpad": 0.3, "framealpha": 0.7}
    if lines > most_lines:
        figure.set_figheight(figure.get_figheight() + 0.15 * (lines + 1))
        style |= {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
    for axes, of_panel in handles.items():
        if lines > most_lines:
            # Below the labels of the axis.
            style["bbox_transform"] = axes.transAxes + ScaledTranslation(0, -0.45, figure.dpi_scale_trans)
        # Matplotlib hides names that begin with an underscore unless the labels are given as well.
        legend = axes.legend(of_panel, labels[axes], **style)
        # Otherwise the layout would shrink the axes to make room for long names.
        legend.set_in_layout(lines > most_lines)
