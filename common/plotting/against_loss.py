"""A metric of matrix factorization against the loss: the paper's |unobserved entry| (Razin & Cohen 2020, Figure 1), and
any other that was recorded.
"""

import re
from collections.abc import Callable, Sequence

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
# Lines of many seeds: the colours of Okabe & Ito (2008), which the colour-blind can tell apart.
_OF_SEEDS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
# Losses at which the seeds are compared.
_NUM_LOSSES = 161

# Metric → label, and what the theory bounds it by.
_METRICS: dict[str, tuple[str, str, Callable | None]] = {
    "": ("|unobserved entry|", "lower bound", theory.unobserved_entry),
    "fro_e2e_norm": ("Frobenius norm", "lower bound", theory.unobserved_entry),
    "nuc_e2e_norm": ("nuclear norm", "lower bound", theory.unobserved_entry),
    "singular_value_0": ("singular value 0", "lower bound", theory.unobserved_entry),
    "singular_value_1": ("singular value 1", "upper bound", theory.distance_from_rank_1),
    "distance_from_rank_1": ("distance from rank 1", "upper bound", theory.distance_from_rank_1),
    "e2e_effective_rank": ("effective rank", "upper bound", theory.effective_rank),
    "e2e_rank": ("rank", "", None),
}
# These go down by orders of magnitude.
_LOGARITHMIC = re.compile(r"distance_from_rank_1|singular_value_[1-9]\d*")

Row = dict[str, str | float]


def require_bound(metric: str) -> None:
    """Raises NoBound if the theory has none for the metric."""
    if metric not in _METRICS or not _METRICS[metric][2]:
        known = ", ".join(name for name, (_, _, bound) in _METRICS.items() if name and bound)
        raise NoBound(f"there is none for {metric}, but for |unobserved entry| and {known}; leave it out")


def draw_against_loss(
    lines: Sequence[Line], title: str, min_loss: float, metric: str = "", show_bound: bool = False
) -> tuple[Figure, list[Row]]:
    """Draws the metric (|unobserved entry| if it is empty) down to `min_loss`. Returns the figure, and its data rows.

    Curves are coloured by iteration, on one scale for all. If there are several seeds, their median is drawn, and a
    band from the 25th to the 75th percentile. Raises ValueError if all curves begin below `min_loss`.
    """
    curves = [curve for line in lines for curve in line.curves]
    largest = max(curve.losses.max() for curve in curves)
    if largest <= min_loss:
        raise ValueError(f"no loss is larger than {largest:g}; give a smaller one")
    depths, of_seeds = list(dict.fromkeys(line.depth for line in lines)), len(curves) > len(lines)
    size = (3.1 * len(depths), 3.1 if of_seeds else 3.4)
    figure, grid = plt.subplots(1, len(depths), figsize=size, layout="constrained", squeeze=False, sharey=True)
    figure.get_layout_engine().set(wspace=0.06)
    scale = Normalize(1, max(2, *(curve.down_to(min_loss).iterations[-1] for curve in curves)))
    rows: list[Row] = []
    for axes, depth in zip(grid[0], depths, strict=True):
        panel, name = [line for line in lines if line.depth == depth], f"depth {depth}" if len(depths) > 1 else ""
        if of_seeds:
            handles, drawn = _draw_seeds(axes, panel, largest, min_loss)
        else:
            handles, drawn = _draw_curves(axes, panel, scale, min_loss)
        rows += [{"panel": name, **row} for row in drawn]
        if show_bound:
            _, kind, bound = _METRICS[metric]
            losses = np.geomspace(largest, min_loss, _NUM_LOSSES)
            for corner in dict.fromkeys(curve.corner for line in panel for curve in line.curves):
                (dashes,) = axes.plot(losses, bound(losses, *corner), "--", color="#c03000", linewidth=0.9, zorder=4)
            handles.append(dashes)
            dashes.set_label(kind)
        axes.set(xscale="log", xlim=(largest, min_loss), xlabel="loss", title=name)
        # With both given, matplotlib shows names that begin with an underscore, too.
        labels = [handle.get_label() for handle in handles]
        style = {"loc": "best" if metric else "upper left", "fontsize": "x-small" if of_seeds else "small"}
        legend = axes.legend(handles, labels, **style, handletextpad=0.4, borderpad=0.3, framealpha=0.7)
        # With long names, the layout would shrink the axes until their legend fits beside them.
        legend.set_in_layout(False)
    if _LOGARITHMIC.fullmatch(metric):
        grid[0, 0].set_yscale("log")
    grid[0, 0].set_ylabel(_METRICS[metric][0] if metric in _METRICS else metric.replace("_", " "))
    if len(depths) == 1:
        grid[0, 0].set_title(title)
    else:
        figure.suptitle(title)
    if not of_seeds:
        bar = {"orientation": "horizontal", "label": "iterations", "aspect": 30}
        ticks = np.linspace(scale.vmin, scale.vmax, 4)
        # 3300000 as 3.3e6
        labels = [f"{tick:.1e}".replace("e+0", "e").replace("e+", "e") for tick in ticks]
        figure.colorbar(ScalarMappable(scale, _COLOURS), ax=grid, **bar).set_ticks(ticks, labels=labels)
    if not metric:
        highest = max(value for row in rows for name, value in row.items() if name in ("value", "upper_quartile"))
        grid[0, 0].set_ylim(0, 1.05 * highest)
        _make_room_for_legends(figure, grid[0])
    return figure, rows


def _make_room_for_legends(figure: Figure, panels: Sequence[Axes]) -> None:
    """Raises the top of the axes, which the panels share, until no line runs behind a legend in the upper left."""
    require_drawable(figure)
    bottom, top = panels[0].get_ylim()
    for axes in panels:
        box = axes.get_legend().get_window_extent().padded(4).transformed(axes.transAxes.inverted())
        for line in axes.lines:
            if line.get_linestyle() == "--":
                continue
            points = line.get_xydata()
            beside = axes.transAxes.inverted().transform(axes.transData.transform(points))[:, 0] < box.x1
            if beside.any():
                top = max(top, points[beside, 1].max() / box.y0)
    panels[0].set_ylim(bottom, top)


def _draw_curves(
    axes: Axes, lines: Sequence[Line], scale: Normalize, min_loss: float
) -> tuple[list[Line2D], list[Row]]:
    """Draws the curve of each line. Returns the handles of the legend, and the points that are drawn."""
    handles, rows = [], []
    greys = plt.get_cmap("Greys")(np.linspace(0.3, 0.85, len(lines)))
    for index, (line, grey) in enumerate(zip(lines, greys, strict=True)):
        curve = line.curves[0].down_to(min_loss)
        shown = visible_points(np.log10(curve.losses), curve.values)
        points = np.column_stack([curve.losses, curve.values])[shown]
        segments = np.stack([points[:-1], points[1:]], axis=1)
        collection = LineCollection(segments, cmap=_COLOURS, norm=scale, linewidths=1.6, capstyle="round", zorder=2)
        collection.set_array(curve.iterations[shown][1:])
        # The legend avoids lines, but not collections of segments.
        axes.plot(*points.T, linestyle="none")
        axes.add_collection(collection)
        # A marker where the loss is first below 1.3 · 10⁻ʲ; 1e-4, for example, is not exactly 10 ** -4.
        powers = 10.0 ** -np.arange(1, 400)
        below = [np.flatnonzero(curve.losses < 1.3 * power) for power in powers[powers >= min_loss * (1 - 1e-9)]]
        marked = [indices[0] for indices in below if len(indices)]
        style = {"marker": MARKERS[index % len(MARKERS)], "color": grey, "markersize": 5.5, "linestyle": "none"}
        (markers,) = axes.plot(
            curve.losses[marked], curve.values[marked], **style, label=line.name, zorder=3, clip_on=False
        )
        # The layout would place a line without points in the corner of the figure.
        markers.set_in_layout(bool(marked))
        handles.append(markers)
        numbers = zip(curve.iterations[shown].tolist(), *points.T.tolist(), strict=True)
        rows += [{"name": line.name, "iteration": i, "loss": loss, "value": value} for i, loss, value in numbers]
    return handles, rows


def _draw_seeds(axes: Axes, lines: Sequence[Line], largest: float, min_loss: float) -> tuple[list[Line2D], list[Row]]:
    """Draws median and quartiles over the curves of each line. Returns the handles of the legend, and the points."""
    handles, rows = [], []
    for index, line in enumerate(lines):
        losses, values = values_below(line.curves, largest, min_loss)
        reached = np.isfinite(values).sum(axis=0)
        some = reached > 0
        low, median, high = np.nanpercentile(values[:, some], (25, 50, 75), axis=0)
        name, missing = line.name, sum(not (curve.losses < min_loss).any() for curve in line.curves)
        if missing:
            name += f"\n({missing} of {len(line.curves)} not at {scientific(min_loss)})"
        colour = _OF_SEEDS[index % len(_OF_SEEDS)]
        axes.fill_between(losses[some], low, high, color=colour, alpha=0.2, linewidth=0, zorder=1)
        # Each line is narrower than the one below, so that lines in the same place are all seen.
        width = max(1.0, 3.4 - 0.8 * index)
        handles += axes.plot(losses[some], median, color=colour, linewidth=width, label=name, zorder=2)
        columns = ("loss", "lower_quartile", "median", "upper_quartile", "runs_there")
        for numbers in zip(losses[some], low, median, high, reached[some], strict=True):
            row = dict(zip(columns, map(float, numbers), strict=True))
            rows.append({"name": line.name, **row, "runs": len(line.curves)})
    return handles, rows


def values_below(curves: Sequence[Curve], largest: float, min_loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Losses (n,) from `largest` down to `min_loss`, log-spaced, and each curve's value (curves, n) at its first
    validation below them; NaN where it never gets there.
    """
    losses = np.geomspace(largest, min_loss, _NUM_LOSSES)
    values = np.full((len(curves), len(losses)), np.nan)
    for of_curve, curve in zip(values, curves, strict=True):
        lowest_so_far = np.minimum.accumulate(curve.losses)
        first = np.searchsorted(-lowest_so_far, -losses, side="right")
        there = first < len(lowest_so_far)
        of_curve[there] = curve.values[first[there]]
    return losses, values
