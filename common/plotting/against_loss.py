"""A metric of matrix factorization against the loss: Figure 1 of Razin & Cohen (2020), or any recorded metric."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.metrics import theory
from common.naming import scientific
from common.plotting.curves import Curve, NoBound
from common.plotting.figures import COLOURS, MARKERS, fit_legends, metric_label, require_drawable, wrapped
from common.plotting.histories import Group
from common.plotting.statistics import COLUMNS, draw_over_seeds, over_seeds
from common.plotting.thinning import visible_points

_COLOURS = LinearSegmentedColormap.from_list("iterations", ["#a9d6f5", "#2f7fc1", "#123a75", "#000000"])
# The number of losses at which seeds are compared.
_NUM_LOSSES = 161

# Theoretical bounds of metrics.
_LOWER = dict.fromkeys(("", "fro_e2e_norm", "nuc_e2e_norm", "singular_value_0"), theory.unobserved_entry)
_UPPER = dict.fromkeys(("singular_value_1", "distance_from_rank_1"), theory.distance_from_rank_1)
_UPPER["e2e_effective_rank"] = theory.effective_rank
# Metrics that decrease by orders of magnitude.
_LOGARITHMIC = re.compile(r"distance_from_rank_1|singular_value_[1-9]\d*")
# Below this, the axis of effective rank − 1 is linear: float32 does not resolve smaller differences from 1.
_SMALLEST_EXCESS = 1e-7
# A marker is moved to a larger loss, by at most this factor, if another is closer than this size in points.
_LARGEST_SHIFT, _MARKER_SIZE = 5.0, 5.5

Row = dict[str, str | float]


def require_bound(metric: str) -> None:
    """Raises NoBound if there is no theoretical bound for the metric."""
    if metric not in _LOWER | _UPPER:
        known = ", ".join(filter(None, _LOWER | _UPPER))
        raise NoBound(f"not known for {metric}, only for |unobserved entry|, {known}; leave it out")


def draw_against_loss(
    lines: Sequence[Group],
    title: str,
    min_loss: float,
    metric: str = "",
    show_bound: bool = False,
    statistic: str = "median",
) -> tuple[Figure, list[Row]]:
    """Draws the metric (|unobserved entry| if it is empty) down to `min_loss`. Returns the figure and its data.

    Curves are coloured by iteration on a common scale. Lines of several seeds are drawn as `statistic` with a band (see
    plotting/statistics.py), dashed and lighter where not all of their runs reach the loss. For the effective rank,
    figure and data show its excess over 1. Raises ValueError if all curves begin below `min_loss`.
    """
    if metric == "e2e_effective_rank":
        lines = [
            replace(line, runs=[replace(curve, values=np.maximum(curve.values - 1, 0)) for curve in line.runs])
            for line in lines
        ]
    curves = [curve for line in lines for curve in line.runs]
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
    markers: list[tuple[Axes, list[Group], list[Line2D]]] = []
    for axes, depth in zip(grid[0], depths, strict=True):
        panel = [line for line in lines if line.depth == depth]
        name = f"depth {depth}" if len(depths) > 1 else ""
        if of_seeds:
            handles, drawn = _draw_seeds(axes, panel, largest, min_loss, statistic)
        else:
            handles, drawn = _draw_curves(axes, panel, scale, min_loss)
            markers.append((axes, panel, handles[:]))
        rows += [{"panel": name, **row} for row in drawn]
        if show_bound:
            handles += _draw_bounds(axes, panel, largest, min_loss, metric)
        axes.set(xscale="log", xlim=(largest, min_loss), xlabel="loss", title=name)
        # Matplotlib hides names that begin with an underscore unless the labels are given as well.
        labels = [wrapped(handle.get_label(), 34 if of_seeds else 26) for handle in handles]
        style = {"loc": "best" if metric else "upper left", "fontsize": "x-small" if of_seeds else "small"}
        axes.legend(handles, labels, **style, handletextpad=0.4, borderpad=0.3, framealpha=0.7)
    if _LOGARITHMIC.fullmatch(metric):
        first.set_yscale("log")
    elif metric == "e2e_effective_rank":
        first.set_yscale("symlog", linthresh=_SMALLEST_EXCESS, linscale=0.5)
        first.set_ylim(-0.3 * _SMALLEST_EXCESS, 1.6 * first.get_ylim()[1])
    elif metric == "e2e_rank":
        first.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    first.set_ylabel("effective rank − 1" if metric == "e2e_effective_rank" else metric_label(metric))
    if len(depths) == 1:
        first.set_title(title or (f"depth {depths[0]}" if depths[0] else ""))
    else:
        figure.suptitle(title)
    if of_seeds:
        figure.supxlabel(wrapped(_caption(lines, min_loss, statistic), 50 * len(depths)), fontsize="x-small")
    else:
        bar = {"orientation": "horizontal", "label": "iterations", "aspect": 30}
        # Matplotlib's choice may begin below the scale and end above it.
        round_numbers = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=True).tick_values(0, scale.vmax)
        ticks = [1, *(tick for tick in round_numbers.tolist() if 1 < tick <= scale.vmax)]
        labels = [scientific(tick) for tick in ticks]
        figure.colorbar(ScalarMappable(scale, _COLOURS), ax=grid, **bar).set_ticks(ticks, labels=labels)
    if not metric:
        columns = ("value", *COLUMNS[statistic])
        highest = max(value for row in rows for name, value in row.items() if name in columns and value is not None)
        first.set_ylim(0, 1.05 * highest)
    if not fit_legends(figure, grid[0], avoid_lines=bool(metric)) and not metric:
        _make_room_for_legends(figure, grid[0])
    for panel in markers:
        _place_markers(*panel, min_loss)
    return figure, rows


def _caption(lines: Sequence[Group], min_loss: float, statistic: str) -> str:
    """Returns the caption for lines of several seeds."""
    text = over_seeds(statistic, [len(line.runs) for line in lines])
    if any(curve.losses.min() >= min_loss for line in lines for curve in line.runs):
        text += "; dashed: over those that reach the loss"
    return text


def _make_room_for_legends(figure: Figure, panels: Sequence[Axes]) -> None:
    """Raises the upper limit of the y axis, which the panels share, until no line is behind a legend."""
    require_drawable(figure)
    bottom, top = panels[0].get_ylim()
    for axes in panels:
        box = axes.get_legend().get_window_extent().padded(4).transformed(axes.transAxes.inverted())
        for points in (line.get_xydata() for line in axes.lines):
            x = axes.transAxes.inverted().transform(axes.transData.transform(points))[:, 0]
            top = max(top, points[x < box.x1, 1].max(initial=0) / box.y0)
    panels[0].set_ylim(bottom, top)


def _draw_bounds(axes: Axes, lines: Sequence[Group], largest: float, min_loss: float, metric: str) -> list[Line2D]:
    """Draws the theoretical bound of each problem, and returns the handle of the legend, if there is one.

    A bound holds until the determinant changes its sign. It is drawn while it holds for half of the runs of a line.
    """
    kind, bounds = ("lower", _LOWER) if metric in _LOWER else ("upper", _UPPER)
    problems: dict[tuple, list[Group]] = {}
    for line in lines:
        for problem in dict.fromkeys((curve.corner, curve.det_sign) for curve in line.runs):
            problems.setdefault(problem, []).append(line)
    signs = {sign for _, sign in problems}
    condition = "keeps its sign" if len(signs) > 1 else "> 0" if signs == {1} else "< 0"
    style = {"color": "0.45", "linestyle": (0, (4, 2)), "linewidth": 1.0, "zorder": 4}
    handles: list[Line2D] = []
    for (corner, _), of_problem in problems.items():
        losses = np.geomspace(largest, min_loss, _NUM_LOSSES)
        bound = bounds[metric](losses, *corner) - (metric == "e2e_effective_rank")
        holds = np.zeros(len(losses), dtype=bool)
        for line in of_problem:
            _, values = values_below(line.runs, largest, min_loss)
            kept = values >= bound if kind == "lower" else values <= bound
            holds |= 2 * kept.sum(axis=0) >= np.maximum(np.isfinite(values).sum(axis=0), 1)
        end = np.flatnonzero(holds).max(initial=-1) + 1
        if end:
            handles = axes.plot(losses[:end], bound[:end], **style, label=f"{kind} bound while det {condition}")
    return handles


def _draw_curves(
    axes: Axes, lines: Sequence[Group], scale: Normalize, min_loss: float
) -> tuple[list[Line2D], list[Row]]:
    """Draws the curve of each line. Returns its markers, still without points, and the points that are drawn."""
    handles, rows = [], []
    greys = plt.get_cmap("Greys")(np.linspace(0.4, 0.9, len(lines)))
    # Each curve is narrower than the one below it, so that the colours of coinciding curves are all visible.
    widths = np.linspace(2.8, 1.2, len(lines)) if len(lines) > 1 else [1.6]
    for index, (line, grey, width) in enumerate(zip(lines, greys, widths, strict=True)):
        curve = line.runs[0].down_to(min_loss)
        shown = visible_points(np.log10(curve.losses), curve.values)
        iterations, points = curve.iterations[shown], np.column_stack([curve.losses, curve.values])[shown]
        segments = np.stack([points[:-1], points[1:]], axis=1)
        style = {"cmap": _COLOURS, "norm": scale, "linewidths": width, "capstyle": "round", "zorder": 2}
        collection = LineCollection(segments, array=iterations[1:], **style)
        # Invisible: the legend avoids lines, but not collections.
        axes.plot(*points.T, linestyle="none")
        axes.add_collection(collection)
        style = {"marker": MARKERS[index % len(MARKERS)], "color": grey, "markersize": _MARKER_SIZE}
        style |= {"label": line.name, "linestyle": "none", "zorder": 3, "clip_on": False}
        # The layout takes a line without points to be in the corner of the figure.
        handles += axes.plot([], [], **style, in_layout=False)
        for iteration, (loss, value) in zip(iterations.tolist(), points.tolist(), strict=True):
            rows.append({"name": line.name, "iteration": iteration, "loss": loss, "value": value})
    return handles, rows


def _place_markers(axes: Axes, lines: Sequence[Group], markers: Sequence[Line2D], min_loss: float) -> None:
    """Sets the markers of each line: where its loss is first below 1.3 · 10⁻ʲ, or earlier if another is there."""
    pixels = _MARKER_SIZE * axes.figure.dpi / 72
    shifts = np.geomspace(1, _LARGEST_SHIFT, 30)
    powers = 10.0 ** -np.arange(1, 400)
    # The tolerance is for round-off in 10⁻ʲ.
    thresholds = 1.3 * powers[powers >= min_loss * (1 - 1e-9), None] * shifts
    placed = np.empty((0, 2))
    for line, marker in zip(lines, markers, strict=True):
        curve, own = line.runs[0], []
        for first in curve.first_below(thresholds):
            # Where the loss jumps, its first value below may be outside the axes.
            if first[0] == len(curve.losses) or curve.losses[first[0]] < min_loss:
                continue
            places = axes.transData.transform(np.column_stack([curve.losses[first], curve.values[first]]))
            distances = np.linalg.norm(places[:, None] - placed, axis=-1).min(axis=1, initial=np.inf)
            # The first that is free, or else the one with most room.
            chosen = (distances >= pixels).argmax() if distances.max() >= pixels else distances.argmax()
            own.append(first[chosen])
            placed = np.vstack([placed, places[chosen]])
        own = list(dict.fromkeys(own))
        marker.set_data(curve.losses[own], curve.values[own])
        marker.set_in_layout(bool(own))


def _draw_seeds(
    axes: Axes, lines: Sequence[Group], largest: float, min_loss: float, statistic: str
) -> tuple[list[Line2D], list[Row]]:
    """Draws a statistic over the curves of each line, with its band. Returns the legend's handles and the points."""
    handles, rows = [], []
    for index, line in enumerate(lines):
        losses, values = values_below(line.runs, largest, min_loss)
        name, num_runs = line.name, len(line.runs)
        left = sum(curve.losses.min() < min_loss for curve in line.runs)
        if left < num_runs:
            name += f"\n({left} of {num_runs} runs reach {scientific(min_loss)})"
        # Each line is narrower than the one below it, so that coinciding lines are all visible.
        style = {"color": COLOURS[index % len(COLOURS)], "linewidth": max(1.0, 3.4 - 0.8 * index), "zorder": 2}
        solid, points = draw_over_seeds(axes, "loss", losses, values, statistic, label=name, **style)
        handles += solid
        rows += [{"name": line.name, **point} for point in points]
    return handles, rows


def values_below(curves: Sequence[Curve], largest: float, min_loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns losses (n,) log-spaced from `largest` to `min_loss`, and values (curves, n): each curve's value at its
    first validation below each loss, NaN if there is none.
    """
    losses = np.geomspace(largest, min_loss, _NUM_LOSSES)
    values = np.full((len(curves), len(losses)), np.nan)
    for of_curve, curve in zip(values, curves, strict=True):
        first = curve.first_below(losses)
        there = first < len(curve.losses)
        of_curve[there] = curve.values[first[there]]
    return losses, values
