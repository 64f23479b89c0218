"""A metric of matrix factorization against the loss: Figure 1 of Razin & Cohen (2020), or any recorded metric."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.metrics import theory
from common.naming import scientific
from common.plotting import figures
from common.plotting.figures import COLUMNS, Row, line_rows, over_seeds
from common.plotting.histories import Curve, NoBound
from common.plotting.metrics import visible_points
from common.plotting.runs import Group, number_of

_COLOURS = LinearSegmentedColormap.from_list("epochs", ["#a9d6f5", "#2f7fc1", "#123a75", "#000000"])
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
# Markers of two curves that are nearer than this part of the y axis are set apart by this factor of the loss.
_NEAR, _APART = 0.04, 1.4


def require_bound(metric: str) -> None:
    """Raises NoBound if there is no theoretical bound for the metric."""
    if metric not in _LOWER | _UPPER:
        known = ", ".join(filter(None, _LOWER | _UPPER))
        raise NoBound(f"not known for {metric}, only for |unobserved entry|, {known}; leave it out")


def draw_against_loss(
    groups: Sequence[Group],
    title: str,
    min_loss: float,
    metric: str = "",
    show_bound: bool = False,
    statistic: str = "median",
) -> tuple[Figure, list[Row]]:
    """Draws the metric (|unobserved entry| if it is empty) down to `min_loss`: `values` of the groups are curves.
    Returns the figure and its data.

    Curves are coloured by the epoch on a common scale. Lines of several seeds are drawn as `statistic` with a band,
    dashed and lighter where not all of their runs reach the loss. For the effective rank, figure and data show its
    excess over 1. Raises ValueError if all curves begin below `min_loss`.
    """
    of_excess = metric == "e2e_effective_rank"
    if of_excess:
        excess = [[replace(curve, values=np.maximum(curve.values - 1, 0)) for curve in each.values] for each in groups]
        groups = [replace(group, values=curves) for group, curves in zip(groups, excess, strict=True)]
    curves = [curve for group in groups for curve in group.values]
    largest = max(curve.losses.max() for curve in curves)
    if largest <= min_loss:
        raise ValueError(f"no loss is larger than {largest:g}; give a smaller one")
    of_seeds = len(curves) > len(groups)
    if of_seeds:
        tables = [line_rows("loss", *values_below(group.values, largest, min_loss), statistic) for group in groups]
    else:
        tables = []
        for curve in (curve.down_to(min_loss) for curve in curves):
            shown = visible_points(np.log10(curve.losses), curve.values)
            columns = [each[shown].tolist() for each in (curve.epochs, curve.losses, curve.values)]
            points = zip(*columns, strict=True)
            tables.append([{"epochs": at, "loss": loss, "value": value} for at, loss, value in points])
    scale = Normalize(1, max(2, *(curve.down_to(min_loss).epochs[-1] for curve in curves)))
    depths = list(dict.fromkeys(group.depth for group in groups))
    figure, panels = figures.new_figure(len(depths), (3.1, 3.1 if of_seeds else 3.4), sharey=True)
    rows, handles = [], {}
    for axes, depth in zip(panels, depths, strict=True):
        members = [(group, table) for group, table in zip(groups, tables, strict=True) if group.depth == depth]
        name = f"depth {depth}" if len(depths) > 1 else ""
        rows += [{"panel": name, "name": group.name, **row} for group, table in members for row in table]
        axes.set(xscale="log", xlim=(largest, min_loss), xlabel="loss", title=name)
        handles[axes], styles = [], figures.line_styles(len(members))
        greys = colormaps["Greys"](np.linspace(0.4, 0.9, len(members)))
        for index, ((group, table), style) in enumerate(zip(members, styles, strict=True)):
            if of_seeds:
                label, left = group.name, sum(curve.losses.min() < min_loss for curve in group.values)
                if left < len(group.values):
                    label += f"\n({left} of {len(group.values)} runs reach {scientific(min_loss)})"
                handles[axes].append(figures.draw_line(axes, table, "loss", statistic, label=label, **style))
            else:
                points = np.array([(row["loss"], row["value"]) for row in table])
                segments = np.stack([points[:-1], points[1:]], axis=1)
                curve = {"cmap": _COLOURS, "norm": scale, "linewidths": style["linewidth"], "capstyle": "round"}
                axes.add_collection(LineCollection(segments, array=[row["epochs"] for row in table[1:]], **curve))
                # Invisible: the legend avoids lines, but not collections.
                axes.plot(*points[:: len(points) // 200 + 1].T, linestyle="none")
                marker = {"marker": figures.MARKERS[index % len(figures.MARKERS)], "color": greys[index]}
                # The layout takes a line without points to be in the corner of the figure.
                marker |= {"markersize": 5.5, "linestyle": "none", "zorder": 3, "clip_on": False, "in_layout": False}
                handles[axes] += axes.plot([], [], label=group.name, **marker)
        if show_bound:
            handles[axes] += _draw_bounds(axes, [group for group, _ in members], largest, min_loss, metric)
    first = panels[0]
    if not metric:
        columns = {"value", *COLUMNS[statistic]}
        values = [(row["loss"], row[name] or 0) for row in rows for name in columns & row.keys()]
        highest = max(value for _, value in values)
        # Curves that level off early leave no room for the legend below them.
        early = any(value > highest / 2 and loss**2 > largest * min_loss for loss, value in values)
        first.set_ylim(0, highest * (1.7 if early else 1.05))
    elif _LOGARITHMIC.fullmatch(metric):
        first.set_yscale("log")
    elif of_excess:
        first.set_yscale("symlog", linthresh=_SMALLEST_EXCESS, linscale=0.5)
        first.set_ylim(-0.3 * _SMALLEST_EXCESS, 1.6 * first.get_ylim()[1])
    elif metric == "e2e_rank":
        first.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    first.set_ylabel("effective rank − 1" if of_excess else figures.metric_label(metric))
    if len(depths) == 1:
        first.set_title(title or (f"depth {depths[0]}" if depths[0] else ""))
    else:
        figure.suptitle(title)
    if of_seeds:
        caption = over_seeds(statistic, [len(group.values) for group in groups])
        if any(curve.losses.min() >= min_loss for curve in curves):
            caption += "; dashed: over those that reach the loss"
        figure.supxlabel(figures.wrapped(caption, 50 * len(depths)), fontsize="x-small")
    else:
        # Matplotlib's choice may begin below the scale and end above it.
        round_numbers = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=True).tick_values(0, scale.vmax)
        ticks = [1, *(tick for tick in round_numbers.tolist() if 1 < tick <= scale.vmax)]
        bar = {"orientation": "horizontal", "label": "epochs", "aspect": 30}
        bar = figure.colorbar(ScalarMappable(scale, _COLOURS), ax=panels, **bar)
        bar.set_ticks(ticks, labels=[scientific(tick) for tick in ticks])
        for axes, depth in zip(panels, depths, strict=True):
            _set_markers(axes, [group.values[0] for group in groups if group.depth == depth], handles[axes], min_loss)
    width, fontsize = (34, "x-small") if of_seeds else (26, "small")
    # There is room above curves of |unobserved entry|.
    figures.add_legends(figure, handles, width, fontsize, most_lines=3 if metric else 6)
    return figure, rows


def draw_on_the_curve(groups: Sequence[Group], title: str, min_loss: float = 0.0) -> tuple[Figure, list[Row]]:
    """Draws the share of runs on the theory's curve against the loss, from 0.1 to `min_loss` or less far: `values` of
    the groups are curves of |unobserved entry| with their observations. Returns the figure and its data.

    A run leaves the curve at its first validation where |unobserved entry| is not above its lower bound, and does not
    come back. At a loss, it is on the curve if it falls below the loss before it leaves. A line ends at the smallest
    loss that all runs reach that never leave. Raises ValueError if that is 0.1 or more for all lines.
    """
    depths = list(dict.fromkeys(group.depth for group in groups))
    figure, panels = figures.new_figure(len(depths), (3.1, 3.1), sharex=True, sharey=True)
    rows, handles = [], {}
    for axes, depth in zip(panels, depths, strict=True):
        name, members = f"depth {depth}" if len(depths) > 1 else "", [group for group in groups if group.depth == depth]
        handles[axes] = []
        for group, style in zip(members, figures.line_styles(len(members)), strict=True):
            bounds = [theory.unobserved_entry(curve.losses, *curve.corner) for curve in group.values]
            off = [np.flatnonzero(curve.values <= bound) for curve, bound in zip(group.values, bounds, strict=True)]
            left = [each[0] if len(each) else len(bound) for each, bound in zip(off, bounds, strict=True)]
            lowest = [curve.losses.min() for curve in group.values]
            end = max([loss for each, loss in zip(off, lowest, strict=True) if not len(each)], default=min(lowest))
            # 20 losses a decade.
            losses = 10.0 ** (-np.arange(20, 20 * 400) / 20)
            losses = losses[(losses > end) & (losses >= min_loss * (1 - 1e-9))]
            on = [curve.first_below(losses) < index for curve, index in zip(group.values, left, strict=True)]
            shares = np.mean(on, axis=0).tolist()
            label = f"{group.name} ({number_of(len(on), 'run')})"
            handles[axes] += axes.plot(losses, shares, label=label, in_layout=bool(shares), **style)
            points = zip(losses.tolist(), shares, strict=True)
            rows += [
                {"panel": name, "name": group.name, "loss": loss, "share": share, "runs": len(on)}
                for loss, share in points
            ]
        axes.set(xscale="log", xlabel="loss", title=name)
    if not rows:
        raise ValueError("no line has a loss below 0.1; give runs that are trained longer, or a smaller -min_loss")
    panels[0].set(xlim=(0.1, min(row["loss"] for row in rows)), ylim=(-0.03, 1.05), ylabel="share of runs on the curve")
    if len(panels) == 1:
        panels[0].set_title(title or (f"depth {depths[0]}" if depths[0] else ""))
    else:
        figure.suptitle(title)
    figures.add_legends(figure, handles, 34, "x-small", most_lines=4)
    return figure, rows


def _set_markers(axes: Axes, curves: Sequence[Curve], markers: Sequence[Line2D], min_loss: float) -> None:
    """Sets the markers of each curve: where its loss is first below 1.3 · 10⁻ʲ, or earlier by a part of a decade for
    each of the curves before it that are at the same place.
    """
    powers = 10.0 ** -np.arange(1, 400)
    # The tolerance is for round-off in 10⁻ʲ.
    thresholds = 1.3 * powers[powers >= min_loss * (1 - 1e-9)]
    to_axes = axes.transData + axes.transAxes.inverted()
    before = np.empty((0, len(thresholds)))
    for curve, marker in zip(curves, markers, strict=False):
        heights = to_axes.transform(np.column_stack([thresholds, curve.values_below(thresholds)]))[:, 1]
        index = curve.first_below(thresholds * _APART ** (np.abs(before - heights) < _NEAR).sum(axis=0))
        before = np.vstack([before, heights])
        # Where the loss jumps, its first value below may be outside the axes.
        index = np.unique(index[np.append(curve.losses, 0)[index] >= min_loss])
        marker.set_data(curve.losses[index], curve.values[index])
        marker.set_in_layout(len(index) > 0)


def _draw_bounds(axes: Axes, groups: Sequence[Group], largest: float, min_loss: float, metric: str) -> list[Line2D]:
    """Draws the theoretical bound of each problem, and returns the handle of the legend, if there is one.

    A bound holds until the determinant changes its sign. It is drawn while it holds for half of the runs of a group.
    """
    kind, bounds = ("lower", _LOWER) if metric in _LOWER else ("upper", _UPPER)
    problems: dict[tuple, list[Group]] = {}
    for group in groups:
        for problem in dict.fromkeys((curve.corner, curve.det_sign) for curve in group.values):
            problems.setdefault(problem, []).append(group)
    signs = {sign for _, sign in problems}
    condition = "keeps its sign" if len(signs) > 1 else "> 0" if signs == {1} else "< 0"
    handles: list[Line2D] = []
    for (corner, _), of_problem in problems.items():
        losses = np.geomspace(largest, min_loss, _NUM_LOSSES)
        bound = bounds[metric](losses, *corner) - (metric == "e2e_effective_rank")
        holds = np.zeros(len(losses), dtype=bool)
        for group in of_problem:
            _, values = values_below(group.values, largest, min_loss)
            kept = values >= bound if kind == "lower" else values <= bound
            holds |= 2 * kept.sum(axis=0) >= np.maximum(np.isfinite(values).sum(axis=0), 1)
        end = np.flatnonzero(holds).max(initial=-1) + 1
        if end:
            style = {"color": "0.45", "linestyle": (0, (4, 2)), "linewidth": 1.0, "zorder": 4}
            handles = axes.plot(losses[:end], bound[:end], **style, label=f"{kind} bound while det {condition}")
    return handles


def values_below(curves: Sequence[Curve], largest: float, min_loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns losses (n,) log-spaced from `largest` to `min_loss`, and values (curves, n): each curve's value at its
    first validation below each loss, NaN if there is none.
    """
    losses = np.geomspace(largest, min_loss, _NUM_LOSSES)
    return losses, np.array([curve.values_below(losses) for curve in curves])
