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

from common.cli import UserError, flag_error
from common.metrics import theory
from common.naming import scientific
from common.plotting.curves import Curve, Panel
from common.plotting.figures import MARKERS, require_drawable
from common.plotting.thinning import visible_points

_COLOURS = LinearSegmentedColormap.from_list("iterations", ["#a9d6f5", "#2f7fc1", "#123a75", "#000000"])
# Of many seeds: the colours of Okabe & Ito (2008), which the colour-blind can tell apart.
_OF_SEEDS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
# A marker is drawn where the loss first comes within this factor of a power of ten.
_MARKER_FACTOR = 1.3
# Losses at which the seeds are compared.
_NUM_LOSSES = 161

_LABELS = {
    "": "|unobserved entry|",
    "e2e_effective_rank": "effective rank",
    "e2e_rank": "rank",
    "fro_e2e_norm": "Frobenius norm",
    "nuc_e2e_norm": "nuclear norm",
    "distance_from_rank_1": "distance from rank 1",
}
_UNOBSERVED = ("lower bound", theory.unobserved_entry)
_BOUNDS: dict[str, tuple[str, Callable]] = {
    "": _UNOBSERVED,
    "fro_e2e_norm": _UNOBSERVED,
    "nuc_e2e_norm": _UNOBSERVED,
    "singular_value_0": _UNOBSERVED,
    "singular_value_1": ("upper bound", theory.distance_from_rank_1),
    "distance_from_rank_1": ("upper bound", theory.distance_from_rank_1),
    "e2e_effective_rank": ("upper bound", theory.effective_rank),
}
# These go down by orders of magnitude.
_LOGARITHMIC = re.compile(r"distance_from_rank_1|singular_value_[1-9]\d*")

Row = dict[str, str | float]


def require_bound(metric: str) -> None:
    """Raises UserError, naming -show_bound, where the theory has none for the metric."""
    if metric not in _BOUNDS:
        known = ", ".join(name for name in _BOUNDS if name)
        remedy = f"there is none for {metric}; leave it out, or give -y one of {known}, or none for |unobserved entry|"
        raise flag_error("show_bound", True, remedy)


def draw_against_loss(
    panels: Sequence[Panel], title: str, min_loss: float, metric: str = "", show_bound: bool = False
) -> tuple[Figure, list[Row]]:
    """Draws the metric (|unobserved entry| where it is empty) down to `min_loss`, and returns what is drawn as rows.

    Curves are coloured by iteration, on one scale for all; where there are several seeds, their median is drawn, and a
    band from the 25th to the 75th percentile. Raises UserError where all curves begin below `min_loss`.
    """
    largest = max(curve.losses.max() for panel in panels for line in panel.lines for curve in line)
    if largest <= min_loss:
        raise UserError(f"-min_loss {min_loss:g}: no loss is larger than {largest:g}; give a smaller one")
    of_seeds = any(len(line) > 1 for panel in panels for line in panel.lines)
    size = (3.1 * len(panels), 3.1 if of_seeds else 3.4)
    figure, grid = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False, sharey=True)
    figure.get_layout_engine().set(wspace=0.06)
    cut = [curve.down_to(min_loss) for panel in panels for line in panel.lines for curve in line]
    scale = Normalize(1, max(2, *(curve.iterations[-1] for curve in cut)))
    rows, highest = [], 0.0
    for axes, panel in zip(grid[0], panels, strict=True):
        if of_seeds:
            handles, drawn = _draw_seeds(axes, panel.lines, largest, min_loss)
        else:
            handles, drawn = _draw_curves(axes, [line[0] for line in panel.lines], scale, min_loss)
        highest = max([highest, *(max(value for name, value in row.items() if name in _VALUES) for row in drawn)])
        if show_bound:
            kind, bound = _BOUNDS[metric]
            losses = np.geomspace(largest, min_loss, _NUM_LOSSES)
            for corner in dict.fromkeys(curve.corner for line in panel.lines for curve in line):
                (dashes,) = axes.plot(losses, bound(losses, *corner), "--", color="#c03000", linewidth=0.9, zorder=4)
            handles.append(dashes)
            dashes.set_label(kind)
        rows += [{"panel": panel.title, **row} for row in drawn]
        axes.set_xscale("log")
        axes.set_xlim(largest, min_loss)
        axes.set_xlabel("loss")
        axes.set_title(panel.title)
        # Given both, matplotlib shows names that begin with an underscore, too.
        place = "best" if metric else "upper left"
        labels = [handle.get_label() for handle in handles]
        font = "x-small" if of_seeds else "small"
        legend = axes.legend(
            handles, labels, loc=place, fontsize=font, handletextpad=0.4, borderpad=0.3, framealpha=0.7
        )
        # Long names would make the layout shrink the axes until their legend is no wider than they are.
        legend.set_in_layout(False)
    if _LOGARITHMIC.fullmatch(metric):
        grid[0, 0].set_yscale("log")
    grid[0, 0].set_ylabel(_LABELS.get(metric, metric.replace("_", " ")))
    if len(panels) == 1 and not panels[0].title:
        grid[0, 0].set_title(title)
    else:
        figure.suptitle(title)
    if not of_seeds:
        bar = figure.colorbar(
            ScalarMappable(scale, _COLOURS), ax=grid, orientation="horizontal", label="iterations", aspect=30
        )
        ticks = np.linspace(scale.vmin, scale.vmax, 4)
        bar.set_ticks(ticks, labels=[_short(tick) for tick in ticks])
    if not metric:
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
    axes: Axes, curves: Sequence[Curve], scale: Normalize, min_loss: float
) -> tuple[list[Line2D], list[Row]]:
    """A line for each curve. What the legend shows, and the points that are drawn."""
    handles, rows = [], []
    greys = plt.get_cmap("Greys")(np.linspace(0.3, 0.85, len(curves)))
    for index, (whole, grey) in enumerate(zip(curves, greys, strict=True)):
        curve = whole.down_to(min_loss)
        shown = visible_points(np.log10(curve.losses), curve.values)
        points = np.column_stack([curve.losses, curve.values])[shown]
        segments = np.stack([points[:-1], points[1:]], axis=1)
        lines = LineCollection(segments, cmap=_COLOURS, norm=scale, linewidths=1.6, capstyle="round", zorder=2)
        lines.set_array(curve.iterations[shown][1:])
        # The legend looks for a place that is free of lines, and takes no collection of segments for one.
        axes.plot(*points.T, linestyle="none")
        axes.add_collection(lines)
        marked = _marked(curve, min_loss)
        (markers,) = axes.plot(
            curve.losses[marked],
            curve.values[marked],
            linestyle="none",
            marker=MARKERS[index % len(MARKERS)],
            color=grey,
            markersize=5.5,
            label=curve.name,
            zorder=3,
            clip_on=False,
        )
        # Without points, the layout takes it for one in the corner of the figure.
        markers.set_in_layout(bool(marked))
        handles.append(markers)
        numbers = zip(curve.iterations[shown].tolist(), *points.T.tolist(), strict=True)
        rows += [{"name": curve.name, "iteration": i, "loss": loss, "value": value} for i, loss, value in numbers]
    return handles, rows


def _draw_seeds(
    axes: Axes, lines: Sequence[Sequence[Curve]], largest: float, min_loss: float
) -> tuple[list[Line2D], list[Row]]:
    """Median and quartiles over the curves of each line. What the legend shows, and the points that are drawn."""
    handles, rows = [], []
    for index, curves in enumerate(lines):
        losses, values = values_below(curves, largest, min_loss)
        reached = np.isfinite(values).sum(axis=0)
        some = reached > 0
        low, median, high = np.nanpercentile(values[:, some], (25, 50, 75), axis=0)
        name, missing = curves[0].name, sum(not curve.reaches(min_loss) for curve in curves)
        if missing:
            name += f"\n({missing} of {len(curves)} not at {scientific(min_loss)})"
        colour = _OF_SEEDS[index % len(_OF_SEEDS)]
        # Lines that lie on one another show all the same: each is narrower than the one below.
        axes.fill_between(losses[some], low, high, color=colour, alpha=0.2, linewidth=0, zorder=1)
        (line,) = axes.plot(
            losses[some], median, color=colour, linewidth=max(1.0, 3.4 - 0.8 * index), label=name, zorder=2
        )
        handles.append(line)
        numbers = zip(losses[some], low, median, high, reached[some], strict=True)
        names = ("loss", "lower_quartile", "median", "upper_quartile", "runs_there")
        rows += [
            {"name": curves[0].name, **dict(zip(names, map(float, row), strict=True)), "runs": len(curves)}
            for row in numbers
        ]
    return handles, rows


# The columns that stand on the vertical axis.
_VALUES = ("value", "upper_quartile")


def values_below(curves: Sequence[Curve], largest: float, min_loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Losses (n,) from `largest` down to `min_loss`, log-spaced, and each curve's value (curves, n) at its first
    validation below them; NaN where it never got there.
    """
    losses = np.geomspace(largest, min_loss, _NUM_LOSSES)
    values = np.full((len(curves), len(losses)), np.nan)
    for of_curve, curve in zip(values, curves, strict=True):
        lowest_so_far = np.minimum.accumulate(curve.losses)
        first = np.searchsorted(-lowest_so_far, -losses, side="right")
        there = first < len(lowest_so_far)
        of_curve[there] = curve.values[first[there]]
    return losses, values


def _marked(curve: Curve, min_loss: float) -> list[int]:
    """Where the loss first comes below 1.3 · 10⁻ʲ, for j = 1, 2, … while 10⁻ʲ ≥ min_loss."""
    marked = []
    power = 1
    # min_loss is 1e-4, for example, which 10 ** -4 only approximates.
    while 10.0**-power >= min_loss * (1 - 1e-9):
        below = np.flatnonzero(curve.losses < _MARKER_FACTOR * 10.0**-power)
        marked.extend(below[:1])
        power += 1
    return marked


def _short(number: float) -> str:
    """3300000 as 3.3e6."""
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
