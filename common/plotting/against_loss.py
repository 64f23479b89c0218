"""Figures against the loss: a metric of matrix factorization, as in Figure 1 of Razin & Cohen (2020), and the share of
runs that are on the theory's curve.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

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
from common.plotting.figures import Row, line_rows
from common.plotting.histories import Curve, NoBound
from common.plotting.metrics import visible_points
from common.plotting.runs import Group, number_of

_COLOURS = LinearSegmentedColormap.from_list("epochs", ["#a9d6f5", "#2f7fc1", "#123a75", "#000000"])
# The number of losses at which seeds are compared.
_NUM_LOSSES = 161
# The losses at which shares are taken, 20 in each decade.
_LOSSES = 10.0 ** (-np.arange(20, 6000) / 20)
# Theoretical bounds of metrics.
_LOWER = dict.fromkeys(("", "fro_e2e_norm", "nuc_e2e_norm", "singular_value_0"), theory.unobserved_entry)
_UPPER = dict.fromkeys(("singular_value_1", "distance_from_rank_1"), theory.distance_from_rank_1)
_UPPER["e2e_effective_rank"] = theory.effective_rank
# Metrics that decrease by orders of magnitude.
_LOGARITHMIC = re.compile(r"distance_from_rank_1|singular_value_[1-9]\d*")
# In place of a metric: the share of runs on the theory's curve.
ON_THE_CURVE = "on_the_curve"
# Below this, the axis of effective rank − 1 is linear: in float32, the round-off of the product's entries is as large.
_SMALLEST_EXCESS = 1e-7
# So that markers do not overlap, those of the k-th curve are at losses larger by the k-th of these factors.
_APART = 1.4 ** np.arange(6)


def require_bound(metric: str) -> None:
    """Raises NoBound if there is no theoretical bound for the metric."""
    if metric not in _LOWER | _UPPER:
        known = ", ".join(filter(None, _LOWER | _UPPER))
        raise NoBound(f"not known for {metric}, only for |unobserved entry|, {known}; leave it out")


def draw_against_loss(groups: Sequence[Group], flags: Mapping[str, Any]) -> tuple[Figure, list[Row]]:
    """Draws the metric -y (by default |unobserved entry|) down to -min_loss, as the plotter's flags say. `values` of
    the groups are curves. Returns the figure and its data.

    Curves are coloured by the epoch on a common scale. Lines of several seeds are drawn as -statistic with a band,
    dashed and lighter where not all of their runs reach the loss. For the effective rank, figure and data show its
    excess over 1. With ON_THE_CURVE, draws shares of runs; see `share_rows`. Raises ValueError if nothing is drawn.
    """
    metric, min_loss, statistic = "".join(flags["y"]), flags["min_loss"], flags["statistic"]
    of_excess, of_shares = metric == "e2e_effective_rank", metric == ON_THE_CURVE
    if of_excess:
        excess = [[replace(curve, values=np.maximum(curve.values - 1, 0)) for curve in each.values] for each in groups]
        groups = [replace(group, values=curves) for group, curves in zip(groups, excess, strict=True)]
    curves = [curve for group in groups for curve in group.values]
    largest = max(curve.losses.max() for curve in curves)
    if of_shares:
        largest, min_loss = _LOSSES[0], min_loss or min(curve.losses.min() for curve in curves)
    elif largest <= min_loss:
        raise ValueError(f"no loss is larger than {largest:g}; give a smaller one")
    of_seeds = len(curves) > len(groups) and not of_shares
    of_single = not of_seeds and not of_shares
    scale = Normalize(1, max(2, *(curve.down_to(min_loss).epochs[-1] for curve in curves)))
    names = list(dict.fromkeys(group.panel for group in groups))
    # Each panel of |unobserved entry| has its own scale: at depth 2, the entry is smaller by an order of magnitude.
    figure, panels = figures.new_figure(len(names), (3.1, 3.4 if of_single else 3.1), sharex=True, sharey=bool(metric))
    rows, handles = [], {}
    for axes, panel in zip(panels, names, strict=True):
        members = [group for group in groups if group.panel == panel]
        axes.set(xscale="log", xlim=(largest, min_loss), xlabel="loss", title=panel)
        handles[axes] = []
        for index, (group, style) in enumerate(zip(members, figures.line_styles(len(members)), strict=True)):
            if of_shares:
                points = share_rows(group.values, min_loss)
                too_few = "" if points else ", not all below loss 0.1"
                style["label"] = f"{group.name} ({number_of(len(group.values), 'run')}{too_few})"
                losses, shares = ([row[name] for row in points] for name in ("loss", "share"))
                handles[axes] += axes.plot(losses, shares, in_layout=bool(points), **style)
            elif of_seeds:
                points = line_rows("loss", *values_below(group.values, largest, min_loss), statistic)
                label, left = group.name, sum(curve.losses.min() < min_loss for curve in group.values)
                if left < len(group.values):
                    label += f"\n({left} of {len(group.values)} runs reach {scientific(min_loss)})"
                handles[axes].append(figures.draw_line(axes, points, "loss", statistic, label=label, **style))
            else:
                style["color"] = colormaps["Greys"](np.linspace(0.4, 0.9, len(members)))[index]
                points, markers = _draw_curve(axes, group, scale, min_loss, index, **style)
                handles[axes] += markers
            rows += [{"panel": panel if len(names) > 1 else "", "name": group.name, **point} for point in points]
        if flags["show_bound"]:
            handles[axes] += _draw_bounds(axes, members, largest, min_loss, metric)
        if not metric:
            top = axes.get_ylim()[1]
            # Curves that level off early leave no room for the legend below them.
            left = [curve.values[curve.losses**2 > largest * min_loss] for group in members for curve in group.values]
            axes.set_ylim(0, top * (1.6 if np.concatenate(left).max(initial=0) > top / 2 else 1))
    if not rows:
        raise ValueError("no line has a loss below 0.1; give runs that are trained longer, or a smaller -min_loss")
    first, title = panels[0], flags["plot_title"] or ""
    first.set_ylabel("effective rank − 1" if of_excess else figures.metric_label(metric))
    if of_shares:
        first.set(xlim=(largest, min(row["loss"] for row in rows)), ylim=(-0.03, 1.05))
    elif _LOGARITHMIC.fullmatch(metric):
        first.set_yscale("log")
    elif of_excess:
        first.set_yscale("symlog", linthresh=_SMALLEST_EXCESS, linscale=0.5)
        first.set_ylim(-0.3 * _SMALLEST_EXCESS, 1.6 * first.get_ylim()[1])
    else:
        first.ticklabel_format(axis="y", useOffset=False)
        if metric == "e2e_rank":
            first.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(names) > 1:
        figure.suptitle(title)
    elif title:
        first.set_title(title)
    if of_seeds:
        dashed = "reach the loss" if any(curve.losses.min() >= min_loss for curve in curves) else ""
        figures.add_caption(figure, statistic, [len(group.values) for group in groups], dashed, len(panels))
    elif of_single:
        # Matplotlib's choice may begin below the scale and end above it.
        round_numbers = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=True).tick_values(0, scale.vmax)
        ticks = [1, *(tick for tick in round_numbers.tolist() if 1 < tick <= scale.vmax)]
        bar = {"orientation": "horizontal", "label": "epochs", "aspect": 30}
        bar = figure.colorbar(ScalarMappable(scale, _COLOURS), ax=panels, **bar)
        bar.set_ticks(ticks, labels=[scientific(tick) for tick in ticks])
    # There is room above curves of |unobserved entry|.
    width, fontsize = (26, "small") if of_single else (34, "x-small")
    figures.add_legends(figure, handles, width, fontsize, 3 if metric else 6)
    return figure, rows


def share_rows(curves: Sequence[Curve], min_loss: float) -> list[Row]:
    """Returns the share of runs on the theory's curve at losses from 0.1 to `min_loss` or, if they do not all reach it,
    to the smallest loss that all runs reach that never leave the curve.

    A run leaves the curve at its first validation where |unobserved entry| is not above its lower bound, and does not
    come back. At a loss, it is on the curve if it falls below the loss before it leaves.
    """
    found = []
    for curve in curves:
        stays = np.cumsum(curve.values <= theory.unobserved_entry(curve.losses, *curve.corner)) == 0
        on = replace(curve, values=stays.astype(np.float64)).values_below(_LOSSES)
        found.append(on if stays[-1] else np.nan_to_num(on))
    shares = np.mean(found, axis=0)
    # The tolerance is for round-off in the losses.
    known = ~np.isnan(shares) & (min_loss * (1 - 1e-9) <= _LOSSES)
    points = zip(_LOSSES[known].tolist(), shares[known].tolist(), strict=True)
    return [{"loss": loss, "share": share, "runs": len(curves)} for loss, share in points]


def _draw_curve(axes: Axes, group: Group, scale: Normalize, min_loss: float, index: int, **style: Any) -> tuple:
    """Draws the curve of one run, and a marker where its loss is first below each 1.3 · 10⁻ʲ, times a factor that
    depends on the `index` of the line. Returns the curve's rows, and the handle of the legend.
    """
    curve = group.values[0].down_to(min_loss)
    shown = visible_points(np.log10(curve.losses), curve.values)
    epochs, losses, values = (each[shown] for each in (curve.epochs, curve.losses, curve.values))
    ends = np.column_stack([losses, values])
    colours = {"cmap": _COLOURS, "norm": scale, "linewidths": style.pop("linewidth"), "capstyle": "round"}
    axes.add_collection(LineCollection(np.stack([ends[:-1], ends[1:]], axis=1), array=epochs[1:], **colours))
    # Invisible: the legend avoids lines, but not collections.
    axes.plot(*ends[:: len(ends) // 200 + 1].T, linestyle="none")
    powers = 10.0 ** -np.arange(1, 300)
    # The tolerance is for round-off in 10⁻ʲ.
    thresholds = 1.3 * powers[powers >= min_loss * (1 - 1e-9)] * _APART[index % len(_APART)]
    at = np.unique(curve.first_below(thresholds))
    # Where the loss jumps, its first value below may be outside the axes.
    at = at[np.append(curve.losses, 0)[at] >= min_loss]
    # The layout takes a line without points to be in the corner of the figure.
    style |= {"markersize": 5.5, "linestyle": "none", "zorder": 3, "clip_on": False, "in_layout": len(at) > 0}
    style |= {"marker": figures.MARKERS[index % len(figures.MARKERS)], "label": group.name}
    points = zip(epochs.tolist(), losses.tolist(), values.tolist(), strict=True)
    rows = [{"epochs": at_epoch, "loss": loss, "value": value} for at_epoch, loss, value in points]
    return rows, axes.plot(curve.losses[at], curve.values[at], **style)


def _draw_bounds(axes: Axes, groups: Sequence[Group], largest: float, min_loss: float, metric: str) -> list[Line2D]:
    """Draws the theoretical bound of each problem, and returns the handle of the legend, if there is one.

    A bound holds until the determinant changes its sign. It is drawn while it holds for half of the runs of a group.
    """
    kind, bounds = ("lower", _LOWER) if metric in _LOWER else ("upper", _UPPER)
    lines: dict[tuple, np.ndarray] = {}
    for group in groups:
        losses, values = values_below(group.values, largest, min_loss)
        for corner in dict.fromkeys(curve.corner for curve in group.values):
            bound = bounds[metric](losses, *corner) - (metric == "e2e_effective_rank")
            kept = values >= bound if kind == "lower" else values <= bound
            holds = 2 * kept.sum(axis=0) >= np.maximum(np.isfinite(values).sum(axis=0), 1)
            end = np.flatnonzero(holds).max(initial=-1) + 1
            lines[corner] = max(lines.get(corner, bound[:0]), bound[:end], key=len)
    style = {"color": "0.45", "linestyle": (0, (4, 2)), "linewidth": 1.0, "zorder": 4}
    style["label"] = f"{kind} bound, det sign kept"
    drawn = [axes.plot(losses[: len(bound)], bound, **style) for bound in lines.values() if len(bound)]
    return drawn[-1] if drawn else []


def values_below(curves: Sequence[Curve], largest: float, min_loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns losses (n,) log-spaced from `largest` to `min_loss`, and values (curves, n): each curve's value at its
    first validation below each loss, NaN if there is none.
    """
    losses = np.geomspace(largest, min_loss, _NUM_LOSSES)
    return losses, np.array([curve.values_below(losses) for curve in curves])
