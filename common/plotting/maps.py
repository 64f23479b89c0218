"""Maps: a final metric over the grid of two parameters."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from common.cli import Parameters, flag_errors
from common.naming import span
from common.plotting.figures import wrapped
from common.plotting.folders import number_of, report_skipped
from common.plotting.map_cells import Axis, Row, Shown, cells_of, panels_of, require_parameters, row_of
from common.plotting.map_runs import MapRun, Measure, read_map_runs
from common.plotting.map_theory import theory_line
from common.recorded_runs import RecordedRun

# Metrics that differ by orders of magnitude are coloured on a logarithmic scale from this ratio on.
_LOG_COLOURS_RATIO = 100
_WITHOUT_VALUE = "0.8"


def map_figure(
    parameters: Parameters, require: Callable[[RecordedRun], None], measure: Measure
) -> tuple[Figure, list[Row]]:
    """Returns the map that a plotter's flags ask for, and its data. Raises as `read_map_runs`
    does, and UserError if a parameter is not recorded, or if the map cannot be drawn.
    """
    names, title = tuple(parameters["map"]), parameters["plot_title"] or ""
    runs, skipped = read_map_runs(parameters["experiments_dir"], require, measure, names)
    found = f"{number_of(len(runs), 'experiment')}, {sum(run.finished for run in runs)} of them finished"
    report_skipped(f"{found}, {number_of(len(skipped), 'folder')} skipped", skipped, parameters["list_skipped"])
    values = parameters.values
    shown = Shown(values["metric"] or "", values["statistic"], values.get("at_loss"), values["above"], values["below"])
    with flag_errors("map", names):
        require_parameters(runs, names)
        return draw_map(runs, names, shown, title, values["map_counts"])


def draw_map(
    runs: Sequence[MapRun], names: tuple[str, str], shown: Shown, title: str, counts: bool = False
) -> tuple[Figure, list[Row]]:
    """Draws a map over two parameters, which each run has, and with `counts` the number of runs in each cell. Returns
    the figure, and a row for each cell.

    Cells without a finished run are white; cells whose runs have no value (see `MapRun`) are grey in maps of a
    statistic. Where theory has a line, it is drawn (see map_theory.py). Raises ValueError if there are too many panels.
    """
    panels = panels_of(runs, names)
    x, y = (Axis(name, [run.values[name] for run in runs]) for name in names)
    columns = min(len(panels), 4)
    shape = -(-len(panels) // columns), columns
    size = (1.2 + 3.0 * columns, 0.7 + 2.9 * shape[0])
    figure, grid = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True)
    cells = {panel: cells_of(members, x, y) for panel, members in panels.items()}
    rows = [
        {"panel": panel, x.name: x.values[i], y.name: y.values[j], **row_of(of_cell, shown)}
        for panel, of_panel in cells.items()
        for (i, j), of_cell in of_panel.items()
    ]
    norm = _norm([row["value"] for row in rows if row["value"] is not None], shown)
    colours, handles = colormaps["viridis"], {}
    for axes, (panel, of_panel) in zip(grid.flat, cells.items(), strict=False):
        image = np.full((len(y.values), len(x.values)), np.nan)
        for (i, j), members in of_panel.items():
            row = row_of(members, shown)
            if row["value"] is not None:
                image[j, i] = row["value"]
            elif row["finished"]:
                box = [x.edges[i : i + 2], y.edges[j : j + 2]]
                axes.fill_between(box[0], *box[1], color=_WITHOUT_VALUE, linewidth=0)
                handles["grey"] = Patch(color=_WITHOUT_VALUE, label=f"all runs {_not_valid(shown)}")
            else:
                handles["white"] = Patch(facecolor="white", edgecolor="0.6", label="no finished run")
            if counts:
                colour = "black" if row["value"] is None or norm(row["value"]) > 0.6 else "white"
                text = str(row["runs"]) if row["finished"] == row["runs"] else f"{row['finished']}/{row['runs']}"
                place = {"ha": "center", "va": "center", "fontsize": "x-small"}
                axes.text(x.places[i], y.places[j], text if row["runs"] else "", color=colour, **place)
        mesh = axes.pcolormesh(x.edges, y.edges, np.ma.masked_invalid(image), norm=norm, cmap=colours)
        for which, axis in (("x", x), ("y", y)):
            axis.draw(axes, which)
        if line := theory_line(panels[panel], x, y):
            points, label = line
            handles["line"] = Line2D([], [], color="red", linewidth=2, label=label)
            axes.plot(*points, color="red", linewidth=2)
        axes.set_title(wrapped(panel, 40), fontsize="small")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    figure.colorbar(mesh, ax=grid, label=wrapped(shown.label, 42))
    for axes in grid.flat[: len(panels)]:
        axes.label_outer()
    # A panel above an empty place has no panel below it that shows its ticks and label.
    for axes in grid.flat[max(len(panels) - columns, 0) : len(panels)]:
        axes.set_xlabel(x.name.replace("_", " "))
        axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel(y.name.replace("_", " "))
    figure.suptitle(title)
    style = {"loc": "outside lower center", "fontsize": "x-small", "title_fontsize": "x-small", "frameon": False}
    caption = wrapped(_caption(runs, cells, shown, counts), 20 + 50 * columns)
    figure.legend(handles=handles.values(), title=caption, ncols=len(handles) if columns > 1 else 1, **style)
    return figure, rows


def _norm(values: Sequence[float], shown: Shown) -> Normalize:
    """Returns the scale of the colours: 0 to 1 for shares, logarithmic for positive values of several magnitudes."""
    if shown.of_share or not values:
        return Normalize(0, 1)
    low, high = min(values), max(values)
    if low > 0 and high / low >= _LOG_COLOURS_RATIO:
        return LogNorm(low, high)
    return Normalize(low, high)


def _not_valid(shown: Shown) -> str:
    return "diverged" if shown.at_loss is None else "diverged or did not reach the loss"


def _caption(runs: Sequence[MapRun], cells: Mapping[str, Mapping], shown: Shown, counts: bool) -> str:
    """Returns the caption: the runs per cell, and how runs without a value are treated."""
    sizes = [sum(run.finished for run in members) for of_panel in cells.values() for members in of_panel.values()]
    kind = "shares" if shown.of_share else f"{shown.statistic}s"
    text = f"{kind} of {span([size for size in sizes if size] or [0])} runs" if max(sizes) > 1 else "a run in each cell"
    diverged = sum(run.diverged for run in runs)
    missed = sum(run.finished and not run.diverged and run.value is None for run in runs)
    lost = [f"{diverged} diverged"] * bool(diverged)
    if missed:
        lost.append(f"{missed} {'have no such value' if shown.at_loss is None else 'did not reach the loss'}")
    if lost:
        what = "counted as not " + ("above" if shown.above is not None else "below") if shown.of_share else "left out"
        text += f"; {' and '.join(lost)}: {what}"
    if unfinished := sum(not run.finished for run in runs):
        text += f"; without {unfinished} that are not finished"
    return text + ("; numbers: runs" + (", finished / all" if unfinished else "") if counts else "")
