"""Metrics against the epoch, over the runs of a folder: incremental learning, for example."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from common.plotting.figures import COLOURS, fit_legends, metric_label, wrapped
from common.plotting.histories import Group
from common.plotting.metrics import LOGARITHMIC, WHOLE
from common.plotting.statistics import draw_over_seeds, over_seeds
from common.plotting.thinning import visible_points
from common.training.history import Series

_MOST_PANELS, _COLUMNS_OF_PANELS = 12, 4
# The number of epochs at which seeds are compared.
_NUM_EPOCHS = 1000

Row = dict[str, Any]


def draw_against_epochs(groups: Sequence[Group], title: str, statistic: str = "median") -> tuple[Figure, list[Row]]:
    """Draws metrics against the epoch. Returns the figure and its data.

    One metric: a line for each group. Several: a panel for each group, a line for each metric. Lines of several seeds
    are drawn as `statistic` with a band, dashed and lighter where not all of their runs are in training. Raises
    ValueError if there are too many panels, or no finite values.
    """
    metrics = list(dict.fromkeys(name for group in groups for history in group.runs for name in history))
    # Panel → name of a line → series of each run.
    panels: dict[str, dict[str, list[Series]]] = {}
    for group in groups:
        for metric in metrics:
            series = [history[metric] for history in group.runs if metric in history]
            panel, name = ("", group.name) if len(metrics) == 1 else (group.name, metric_label(metric))
            if series:
                panels.setdefault(panel, {})[name] = series
    if len(panels) > _MOST_PANELS:
        raise ValueError(
            f"there are {len(panels)} kinds of runs, and a panel is drawn for each if there are several metrics; give "
            f"one metric, or a folder of at most {_MOST_PANELS} kinds of runs"
        )
    columns = min(len(panels), _COLUMNS_OF_PANELS)
    shape = -(-len(panels) // columns), columns
    size = (1.2 + 3.0 * columns, 3.1 * shape[0])
    figure, grid = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False, sharey=True)
    figure.get_layout_engine().set(wspace=0.06)
    rows: list[Row] = []
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    shades = COLOURS if len(names) <= len(COLOURS) else colormaps["viridis"](np.linspace(0, 0.95, len(names)))
    # Each line is narrower than the one below it, so that coinciding lines are all visible.
    widths = np.linspace(2.8, 1.2, len(names)) if len(names) > 1 else [1.6]
    handles: dict[str, Line2D] = {}
    for axes, (panel, lines) in zip(grid.flat, panels.items(), strict=False):
        for name, series in lines.items():
            index = names.index(name)
            style = {"color": shades[index], "linewidth": widths[index]}
            handles.setdefault(name, Line2D([], [], **style, label=wrapped(name, 34)))
            _, points = draw_over_seeds(axes, "epoch", *values_at(series), statistic, **style)
            rows += [{"panel": panel, "name": name, **point} for point in points]
        axes.set(xlabel="epoch", title=wrapped(panel, 34))
        axes.title.set_fontsize("small")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    style = {"fontsize": "x-small", "framealpha": 0.7}
    if len(panels) > 1:
        figure.legend(handles=handles.values(), loc="outside right upper", **style)
    else:
        grid[0, 0].legend(handles=handles.values(), **style)
    if not rows:
        raise ValueError("no value is finite; give another metric")
    _set_y_axis(grid[0, 0], metrics, [row[statistic] for row in rows])
    for axes in grid[:, 0]:
        axes.set_ylabel(metric_label(metrics[0]) if len(metrics) == 1 else "")
    figure.suptitle(title)
    seeds = [len(series) for lines in panels.values() for series in lines.values()]
    if max(seeds) > 1:
        text = over_seeds(statistic, seeds)
        if any(row["runs"] < row["runs_in_all"] for row in rows):
            text += "; dashed: over those that are still in training"
        figure.supxlabel(wrapped(text, 50 * columns), fontsize="x-small")
    fit_legends(figure, list(grid.flat[: len(panels)]), avoid_lines=True)
    return figure, rows


def _set_y_axis(axes: Axes, metrics: Sequence[str], values: Sequence[float]) -> None:
    """Makes the y axis, which the panels share, logarithmic for losses and errors, and integer for ranks."""
    if all(LOGARITHMIC.fullmatch(metric) for metric in metrics) and min(values) > 0:
        axes.set_yscale("log")
    elif all(WHOLE.fullmatch(metric) for metric in metrics):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


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
