"""Metrics against the epoch, over the runs of a folder: incremental learning, for example."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from common.plotting import figures
from common.plotting.figures import Row, line_rows
from common.plotting.metrics import LOGARITHMIC, WHOLE, visible_points
from common.plotting.runs import Group
from common.training.history import Series

# The number of epochs at which seeds are compared.
_NUM_EPOCHS = 1000


def draw_against_epochs(groups: Sequence[Group], flags: Mapping[str, Any]) -> tuple[Figure, list[Row]]:
    """Draws metrics against the epoch as the plotter's flags say: `values` of the groups are histories by metric.
    Returns the figure and its data.

    One metric: a line for each group. Several: a panel for each group, a line for each metric. Lines of several seeds
    are drawn as -statistic with a band, dashed and lighter where not all of their runs are in training. Raises
    ValueError if there are too many panels, or no finite values.
    """
    metrics = list(dict.fromkeys(name for group in groups for history in group.values for name in history))
    lines: list[tuple[str, str, list[Row]]] = []
    for group, metric in product(groups, metrics):
        panel, name = ("", group.name) if len(metrics) == 1 else (group.name, figures.metric_label(metric))
        if series := [history[metric] for history in group.values if metric in history]:
            lines.append((panel, name, line_rows("epoch", *values_at(series), flags["statistic"])))
    rows = [{"panel": panel, "name": name, **point} for panel, name, points in lines for point in points]
    if not rows:
        raise ValueError("no value is finite; give another metric")
    panels, names = (list(dict.fromkeys(each[column] for each in lines)) for column in (0, 1))
    if len(panels) > figures.MOST_PANELS:
        raise ValueError(
            f"there are {len(panels)} kinds of runs, and a panel is drawn for each if there are several metrics; give "
            f"one metric, or a folder of at most {figures.MOST_PANELS} kinds of runs"
        )
    figure, grid = figures.new_figure(len(panels), (3.0, 3.1), (1.2, 0), sharey=True)
    styles = dict(zip(names, figures.line_styles(len(names)), strict=True))
    # Of several metrics, the label is what they have in common: "singular value" of singular_value_0, ….
    kinds = {metric if len(metrics) == 1 else re.sub(r"_\d+$", "", metric) for metric in metrics}
    label = figures.metric_label(*kinds) if len(kinds) == 1 else "value"
    for axes, panel in zip(grid, panels, strict=True):
        for _, name, points in (line for line in lines if line[0] == panel):
            figures.draw_line(axes, points, "epoch", flags["statistic"], **styles[name])
        axes.set_title(figures.wrapped(panel, 34), fontsize="small")
        axes.set(xlabel="epoch", ylabel=label if axes.get_subplotspec().is_first_col() else "")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    positive = min(row[flags["statistic"]] for row in rows) > 0
    if positive and all(LOGARITHMIC.fullmatch(metric) for metric in metrics):
        grid[0].set_yscale("log")
    elif all(WHOLE.fullmatch(metric) for metric in metrics):
        grid[0].yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles = [Line2D([], [], **style, label=figures.wrapped(name, 34)) for name, style in styles.items()]
    if len(grid) > 1:
        figure.legend(handles=handles, loc="outside right upper", fontsize="x-small")
    else:
        figures.add_legends(figure, {grid[0]: handles}, 34, "x-small")
    figure.suptitle(flags["plot_title"] or "")
    seeds = [row["runs_in_all"] for row in rows]
    if max(seeds) > 1:
        dashed = "are still in training" if any(row["runs"] < row["runs_in_all"] for row in rows) else ""
        figures.add_caption(figure, flags["statistic"], seeds, dashed, len(grid))
    return figure, rows


def values_at(series: Sequence[Series]) -> tuple[np.ndarray, np.ndarray]:
    """Returns epochs (n,) and values (runs, n): each run's last value at or before the epoch, NaN before its first and
    after its last record. Values that are not finite are left out.
    """
    finite = [(epochs[kept], values[kept]) for epochs, values in series for kept in [np.isfinite(values)]]
    epochs = np.unique(np.concatenate([epochs for epochs, _ in finite]))
    if len(series) == 1:
        epochs = epochs[visible_points(*finite[0])]
    elif len(epochs) > _NUM_EPOCHS:
        epochs = epochs[np.unique(np.linspace(0, len(epochs) - 1, _NUM_EPOCHS).astype(np.int64))]
    found = np.full((len(series), len(epochs)), np.nan)
    for row, (own, values) in zip(found, finite, strict=True):
        if len(own):
            there = (epochs >= own[0]) & (epochs <= own[-1])
            row[there] = values[np.searchsorted(own, epochs[there], side="right") - 1]
    return epochs, found
