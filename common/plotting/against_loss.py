"""A metric of matrix factorization against the loss: Figure 1 of Razin & Cohen (2020), or any recorded metric."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.metrics import theory
from common.naming import scientific
from common.plotting.curves import Curve, Line, NoBound
from common.plotting.figures import MARKERS, require_drawable
from common.plotting.thinning import visible_points

_COLOURS = LinearSegmentedColormap.from_list("iterations", ["#a9d6f5", "#2f7fc1", "#123a75", "#000000"])
# Lines of many seeds: the colours of Okabe & Ito (2008), which colour-blind readers can distinguish.
_OF_SEEDS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
# The number of losses at which seeds are compared.
_NUM_LOSSES = 161

# Labels of the metrics whose label is not their name.
_LABELS = {
    "": "|unobserved entry|",
    "fro_e2e_norm": "Frobenius norm",
    "nuc_e2e_norm": "nuclear norm",
    "e2e_effective_rank": "effective rank",
    "e2e_rank": "rank",
}
# Theoretical bounds of metrics.
_LOWER = dict.fromkeys(("", "fro_e2e_norm", "nuc_e2e_norm", "singular_value_0"), theory.unobserved_entry)
_UPPER = dict.fromkeys(("singular_value_1", "distance_from_rank_1"), theory.distance_from_rank_1)
_UPPER["e2e_effective_rank"] = theory.effective_rank
# Metrics that decrease by orders of magnitude.
_LOGARITHMIC = re.compile(r"distance_from_rank_1|singular_value_[1-9]\d*")

Row = dict[str, str | float]


def require_bound(metric: str) -> None:
    """Raises NoBound if there is no theoretical bound for the metric."""
    if metric not in _LOWER | _UPPER:
        known = ", ".join(filter(None, _LOWER | _UPPER))
        raise NoBound(f"there is none for {metric}, but for |unobserved entry| and {known}; leave it out")


def draw_against_loss(
    lines: Sequence[Line], title: str, min_loss: float, metric: str = "", show_bound: bool = False
) -> tuple[Figure, list[Row]]:
    """Draws the metric (|unobserved entry| if it is empty) down to `min_loss`. Returns the figure and its data.

    Curves are coloured by iteration on a common scale. Lines of several seeds are drawn as the median with a band from
    the 25th to the 75th percentile. Raises ValueError if all curves begin below `min_loss`.
    """
    curves = [curve for line in lines for curve in line.curves]
    largest = max(curve.losses.max() for curve in curves)
    if largest <= min_loss:
        raise ValueError(f"no loss is larger than {largest:g}; give a smaller one")
    depths, of_seeds = list(dict.fromkeys(line.depth for line in lines)), len(curves) > len(lines)
    size = (3.1 * len(depths), 3.1 if of_seeds else 3.4)
    figure, grid = plt.subplots(1, len(depths), figsize=size, layout="constrained", squeeze=False, sharey=True)
    figure.get_layout_engine().set(wspace=0.06)
    first = grid[0, 0]
    scale = Normalize(1, max(2, *(curve.down_to(min_loss).iterations[-1] for curve in curves)))
    rows: list[Row] = []
    for axes, depth in zip(grid[0], depths, strict=True):
        panel = [line for line in lines if line.depth == depth]
        name = f"depth {depth}" if len(depths) > 1 else ""
        if of_seeds:
            handles, drawn = _draw_seeds(axes, panel, largest, min_loss)
        else:
            handles, drawn = _draw_curves(axes, panel, scale, min_loss)
        rows += [{"panel": name, **row} for row in drawn]
        if show_bound:
            label, bound = ("lower bound", _LOWER) if metric in _LOWER else ("upper bound", _UPPER)
            style = {"color": "#c03000", "linestyle": "--", "linewidth": 0.9, "zorder": 4, "label": label}
            losses = np.geomspace(largest, min_loss, _NUM_LOSSES)
            for corner in dict.fromkeys(curve.corner for line in panel for curve in line.curves):
                dashes = axes.plot(losses, bound[metric](losses, *corner), **style)
            handles += dashes
        axes.set(xscale="log", xlim=(largest, min_loss), xlabel="loss", title=name)
        # Matplotlib hides names that begin with an underscore unless the labels are given as well.
        labels = [handle.get_label() for handle in handles]
        style = {"loc": "best" if metric else "upper left", "fontsize": "x-small" if of_seeds else "small"}
        legend = axes.legend(handles, labels, **style, handletextpad=0.4, borderpad=0.3, framealpha=0.7)
        # Otherwise the layout shrinks the axes to make room for long names.
        legend.set_in_layout(False)
    if _LOGARITHMIC.fullmatch(metric):
        first.set_yscale("log")
    first.set_ylabel(_LABELS.get(metric, metric.replace("_", " ")))
    if len(depths) == 1:
        first.set_title(title)
    else:
        figure.suptitle(title)
    if not of_seeds:
        bar = {"orientation": "horizontal", "label": "iterations", "aspect": 30}
        ticks = np.linspace(scale.vmin, scale.vmax, 4)
        labels = [f"{tick:.1e}".replace("e+0", "e").replace("e+", "e") for tick in ticks]  # 3.3e6
        figure.colorbar(ScalarMappable(scale, _COLOURS), ax=grid, **bar).set_ticks(ticks, labels=labels)
    if not metric:
        highest = max(value for row in rows for name, value in row.items() if name in ("value", "upper_quartile"))
        first.set_ylim(0, 1.05 * highest)
        _make_room_for_legends(figure, grid[0])
    return figure, rows


def _make_room_for_legends(figure: Figure, panels: Sequence[Axes]) -> None:
    """Raises the upper limit of the y axis, which the panels share, until no line is behind a legend."""
    require_drawable(figure)
    bottom, top = panels[0].get_ylim()
    for axes in panels:
        box = axes.get_legend().get_window_extent().padded(4).transformed(axes.transAxes.inverted())
        for points in (line.get_xydata() for line in axes.lines if line.get_linestyle() != "--"):
            x = axes.transAxes.inverted().transform(axes.transData.transform(points))[:, 0]
            top = max(top, points[x < box.x1, 1].max(initial=0) / box.y0)
    panels[0].set_ylim(bottom, top)


def _draw_curves(
    axes: Axes, lines: Sequence[Line], scale: Normalize, min_loss: float
) -> tuple[list[Line2D], list[Row]]:
    """Draws the curve of each line. Returns the handles of the legend and the points that are drawn."""
    handles, rows = [], []
    greys = plt.get_cmap("Greys")(np.linspace(0.3, 0.85, len(lines)))
    for index, (line, grey) in enumerate(zip(lines, greys, strict=True)):
        curve = line.curves[0].down_to(min_loss)
        shown = visible_points(np.log10(curve.losses), curve.values)
        iterations, points = curve.iterations[shown], np.column_stack([curve.losses, curve.values])[shown]
        segments = np.stack([points[:-1], points[1:]], axis=1)
        style = {"cmap": _COLOURS, "norm": scale, "linewidths": 1.6, "capstyle": "round", "zorder": 2}
        collection = LineCollection(segments, array=iterations[1:], **style)
        # Invisible: the legend avoids lines, but not collections.
        axes.plot(*points.T, linestyle="none")
        axes.add_collection(collection)
        # A marker where the loss is first below 1.3 · 10⁻ʲ. The tolerance is for round-off in 10⁻ʲ.
        powers = 10.0 ** -np.arange(1, 400)
        below = [curve.losses < 1.3 * power for power in powers[powers >= min_loss * (1 - 1e-9)]]
        marked = [each.argmax() for each in below if each.any()]
        style = {"marker": MARKERS[index % len(MARKERS)], "color": grey, "markersize": 5.5, "linestyle": "none"}
        style |= {"label": line.name, "zorder": 3, "clip_on": False}
        # The layout takes a line without points to be in the corner of the figure.
        handles += axes.plot(curve.losses[marked], curve.values[marked], **style, in_layout=bool(marked))
        for iteration, (loss, value) in zip(iterations.tolist(), points.tolist(), strict=True):
            rows.append({"name": line.name, "iteration": iteration, "loss": loss, "value": value})
    return handles, rows


def _draw_seeds(axes: Axes, lines: Sequence[Line], largest: float, min_loss: float) -> tuple[list[Line2D], list[Row]]:
    """Draws median and quartiles over the curves of each line. Returns the handles of the legend and the points."""
    handles, rows = [], []
    for index, line in enumerate(lines):
        losses, values = values_below(line.curves, largest, min_loss)
        reached = np.isfinite(values).sum(axis=0)
        losses, values, reached = losses[reached > 0], values[:, reached > 0], reached[reached > 0]
        low, median, high = np.nanpercentile(values, (25, 50, 75), axis=0)
        name, missing = line.name, sum(curve.losses.min() >= min_loss for curve in line.curves)
        if missing:
            name += f"\n({missing} of {len(line.curves)} not at {scientific(min_loss)})"
        colour = _OF_SEEDS[index % len(_OF_SEEDS)]
        axes.fill_between(losses, low, high, color=colour, alpha=0.2, linewidth=0, zorder=1)
        # Each line is narrower than the one below it, so that coinciding lines are all visible.
        width = max(1.0, 3.4 - 0.8 * index)
        handles += axes.plot(losses, median, color=colour, linewidth=width, label=name, zorder=2)
        columns = ("loss", "lower_quartile", "median", "upper_quartile", "runs_there")
        for numbers in np.column_stack([losses, low, median, high, reached]).tolist():
            row = dict(zip(columns, numbers, strict=True))
            rows.append({"name": line.name, **row, "runs": len(line.curves)})
    return handles, rows


def values_below(curves: Sequence[Curve], largest: float, min_loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns losses (n,) log-spaced from `largest` to `min_loss`, and values (curves, n): each curve's value at its
    first validation below each loss, NaN if there is none.
    """
    losses = np.geomspace(largest, min_loss, _NUM_LOSSES)
    values = np.full((len(curves), len(losses)), np.nan)
    for of_curve, curve in zip(values, curves, strict=True):
        lowest_so_far = np.minimum.accumulate(curve.losses)
        first = np.searchsorted(-lowest_so_far, -losses, side="right")
        there = first < len(lowest_so_far)
        of_curve[there] = curve.values[first[there]]
    return losses, values
