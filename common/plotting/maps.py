"""Maps: a metric of runs, at the end or at a loss, over the grid of two parameters."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from common.cli import Parameters, flag_errors
from common.metrics.theory import oscillation_rates
from common.naming import scientific, span
from common.plotting.figures import MOST_COLUMNS, MOST_PANELS, Row, metric_label, new_figure, wrapped
from common.plotting.histories import RATIO_TO_BOUND
from common.plotting.runs import Found, is_finished, number_of, observed_problem, read_each, report
from common.recorded_runs import RecordedRun, canonical, compared, differing_names, is_number

_MOST_TICKS = 14
# Metrics that differ by orders of magnitude are coloured on a logarithmic scale from this ratio on.
_LOG_COLOURS_RATIO = 100


def map_figure(
    parameters: Parameters, require: Callable[[RecordedRun], None], measure: Callable[[RecordedRun], float | None]
) -> tuple[Figure, list[Row]]:
    """Returns the map that a plotter's flags ask for, and its data. `measure` returns the value of a run that finished
    and did not diverge. Raises as `read_each` does, and UserError if the map cannot be drawn.
    """

    def read(run: RecordedRun) -> float | None:
        value = measure(run) if is_finished(run) and run.status.get("stop_reason") != "diverged" else None
        return None if value is None or not np.isfinite(value) else value

    found, skipped = read_each(parameters["experiments_dir"], require, read)
    counts = f"{number_of(len(found), 'experiment')}, {sum(is_finished(run) for run, _ in found)} of them finished"
    report(f"{counts}, {number_of(len(skipped), 'folder')} skipped", skipped, parameters["list_skipped"])
    with flag_errors("map", parameters["map"]):
        return draw_map(found, parameters.values)


def draw_map(found: Sequence[Found], flags: Mapping[str, Any]) -> tuple[Figure, list[Row]]:
    """Draws a map of the values of runs over two parameters, as a plotter's flags say. Returns the figure, and a row
    for each cell: its value, and the numbers of runs, of finished runs and of runs with a value.

    In shares, finished runs without a value, such as those that diverged, count as runs whose metric is not above or
    below the limit. Cells have the same size. Where theory has a line, it is drawn. Raises ValueError if a run lacks a
    parameter, or if there are too many panels.
    """
    names, statistic, metric, at_loss = flags["map"], flags["statistic"], flags["metric"] or "", flags.get("at_loss")
    above, below = flags["above"], flags["below"]
    of_share = above is not None or below is not None
    members = _panels(found, names)
    x, y = (_values_of(found, name) for name in names)
    tables = []
    for panel, of_panel in members:
        cells: dict[str, list[Found]] = {}
        for run, value in of_panel:
            cells.setdefault(canonical([run.values[name] for name in names]), []).append((run, value))
        tables.append([])
        for at_y, at_x in product(y, x):
            cell = cells.get(canonical([at_x, at_y]), [])
            values = [value for _, value in cell if value is not None]
            finished = sum(is_finished(run) for run, _ in cell)
            inside = [(above is None or each > above) and (below is None or each < below) for each in values]
            share = sum(inside) / finished if finished else None
            value = share if of_share else float(getattr(np, statistic)(values)) if values else None
            row = {"panel": panel, names[0]: at_x, names[1]: at_y, "value": value}
            tables[-1].append({**row, "runs": len(cell), "finished": finished, "valid": len(values)})
    rows = [row for table in tables for row in table]

    known = [row["value"] for row in rows if row["value"] is not None]
    norm = Normalize(0, 1)
    if known and not of_share:
        is_log = min(known) > 0 and max(known) / min(known) >= _LOG_COLOURS_RATIO
        norm = (LogNorm if is_log else Normalize)(min(known), max(known))
    figure, panels = new_figure(len(tables), (3.0, 2.9), (1.2, 0.7), sharex=True, sharey=True)
    notes, lost = [], "diverged" if at_loss is None else "diverged or did not reach the loss"
    lost += " or have no bound at their loss" if metric == RATIO_TO_BOUND and at_loss is None else ""
    for axes, (panel, of_panel), table in zip(panels, members, tables, strict=True):
        columns = [[np.nan if row[name] is None else row[name] for row in table] for name in ("value", "finished")]
        value, finished = np.array(columns, dtype=np.float64).reshape(2, len(y), len(x))
        axes.pcolormesh(np.where(finished > 0, 0.8, np.nan), cmap="gray", vmin=0, vmax=1)
        mesh = axes.pcolormesh(value, norm=norm, cmap="viridis")
        if (np.isnan(value) & (finished > 0)).any():
            notes.append(f"grey: all runs {lost}")
        if not finished.all():
            notes.append("white: no finished run")
        for row, (j, i) in zip(table, np.ndindex(value.shape), strict=True) if flags["map_counts"] else ():
            colour = "black" if row["value"] is None or norm(row["value"]) > 0.6 else "white"
            text = str(row["runs"] or "") if row["finished"] == row["runs"] else f"{row['finished']}/{row['runs']}"
            axes.text(i + 0.5, j + 0.5, text, color=colour, ha="center", va="center", fontsize="x-small")
        lines, label = _theory_lines([run for run, _ in of_panel], names, x, y)
        for line, style in zip(lines, ("-", "--", ":"), strict=False):
            axes.plot(*line, color="red", linewidth=2, linestyle=style)
        notes += [f"red: {label}"] * bool(lines)
        for axis, name, places in ((axes.xaxis, names[0], x), (axes.yaxis, names[1], y)):
            every = -(-len(places) // _MOST_TICKS)
            texts = [_text(name, place) for place in places[::every]]
            if any("e-" in text for text in texts) and all(map(is_number, places)):
                texts = [scientific(place) for place in places[::every]]
            size = "medium" if len(texts) < 10 else "small"
            axis.set_ticks(np.arange(0.5, len(places), every), labels=texts, fontsize=size)
            if axis is axes.xaxis and sum(map(len, texts)) > 28:
                axis.set_tick_params(rotation=45 if max(map(len, texts)) < 9 else 90)
        axes.set_title(wrapped(panel, 40), fontsize="small")
        axes.set_ylabel(names[1].replace("_", " ") if axes.get_subplotspec().is_first_col() else "")
    # A panel above an empty place has no panel below it that shows its ticks and label.
    for axes in panels[-MOST_COLUMNS:]:
        axes.set_xlabel(names[0].replace("_", " "))
        axes.tick_params(labelbottom=True)

    sizes = [row["finished"] for row in rows]
    label = "|unobserved entry| / lower bound" if metric == RATIO_TO_BOUND else metric_label(metric)
    caption = "a run in each cell"
    if max(sizes) > 1:
        caption = f"{'shares' if of_share else f'{statistic}s'} of {span([size for size in sizes if size])} runs"
    if of_curve := metric == RATIO_TO_BOUND and above == 1:
        label = "share of runs on the curve"
    elif of_share:
        # No line begins with the sign or the number.
        limit = f"<\xa0{below:g}" if above is None else f">\xa0{above:g}"
        label = f"share of runs with {label}\xa0{limit}"
    elif max(sizes) > 1:
        label = f"{statistic} {label}"
    label += "" if at_loss is None else f" at loss {scientific(at_loss)}"
    figure.colorbar(mesh, ax=panels, label=wrapped(label, 42))
    figure.suptitle(flags["plot_title"] or "")
    if number := sum(row["finished"] - row["valid"] for row in rows):
        limit = "on the curve" if of_curve else "below" if above is None else "above"
        what = f"counted as not {limit}" if of_share else "left out"
        caption += f"; {number} {lost}: {what}"
    unfinished = len(found) - sum(sizes)
    caption += f"; without {unfinished} that are not finished" if unfinished else ""
    caption += f"; numbers: runs{', finished / all' if unfinished else ''}" if flags["map_counts"] else ""
    caption = "; ".join(dict.fromkeys([caption, *notes]))
    figure.supxlabel(wrapped(caption, 20 + 50 * min(len(panels), MOST_COLUMNS)), fontsize="x-small")
    return figure, rows


def _panels(found: Sequence[Found], names: Sequence[str]) -> list[tuple[str, list[Found]]]:
    """Returns title and runs of each panel. Runs that would share a cell, but differ in more than their seed, are in
    different panels. Raises ValueError if a run lacks a parameter of `names`, or if there are too many panels.
    """
    runs = [run for run, _ in found]
    for name in names:
        if not all(name in run.values for run in runs):
            known = {each for run in runs for each in run.values} - {"experiment_name", "random_seed", "output_dir"}
            varying = sorted(each for each in known if len({canonical(run.values.get(each)) for run in runs}) > 1)
            text = f"{name} is not recorded of all runs; the parameters in which they differ are"
            raise ValueError(f"{text}: {', '.join(varying) or 'none'}")
    cells: dict[str, list[RecordedRun]] = {}
    for run in runs:
        cells.setdefault(canonical([run.values[name] for name in names]), []).append(run)
    differing = sorted({name for cell in cells.values() for name in differing_names(cell)} - set(names))
    panels: dict[str, tuple[str, list[Found]]] = {}
    for (run, value), parameters in zip(found, compared(runs), strict=True):
        title = ", ".join(f"{name} {_text(name, run.values.get(name))}" for name in differing)
        key = canonical([parameters.get(name) for name in differing])
        panels.setdefault(key, (title, []))[1].append((run, value))
    if len(panels) > MOST_PANELS:
        raise ValueError(
            f"the runs differ in {', '.join(differing)} as well, which takes {len(panels)} maps; give a folder with at "
            f"most {MOST_PANELS} combinations of the other parameters"
        )
    return list(panels.values())


def _values_of(found: Sequence[Found], name: str) -> list[Any]:
    """Returns the values of a parameter in the order of the axis."""
    values = {canonical(run.values[name]): run.values[name] for run, _ in found}.values()
    return sorted(values, key=None if all(map(is_number, values)) else lambda value: _text(name, value))


def _text(name: str, value: Any) -> str:
    """Returns the value of a parameter as text."""
    if name == "dataset_path":
        return Path(value).stem
    if isinstance(value, float):
        return f"{value:g}" if 0.01 <= abs(value) < 1000 or not value else scientific(value)
    return value if isinstance(value, str) and value else json.dumps(value)


def _theory_lines(
    runs: Sequence[RecordedRun], names: Sequence[str], x: Sequence[Any], y: Sequence[Any]
) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Returns the points, in cells, of the lines that theory predicts for runs with these parameters, and their label.
    `x` and `y` are the values of the parameters `names` on the axes.

    num_samples and target_tensor_cp_rank or mode_dim_size of random targets: the number of free parameters of a tensor
    of CP rank r, r (Σ d_k − N + 1), if all targets agree in the rest. A CP decomposition has r Σ d_k numbers, of which
    each component can be rescaled in N − 1 ways. lr and depth: where gradient descent on a product of equal numbers
    oscillates, has period 4 and diverges (see `theory.oscillation_rates`), if the matrices are 1×1, and all runs plain
    gradient descent.
    """
    is_first = names[1] in ("num_samples", "depth")
    (first, second), (a, b) = (names, (x, y)) if is_first else (names[::-1], (y, x))
    facts = "target_tensor_cp_rank", "mode_dim_size", "order"
    if second == "num_samples" and first in facts[:2] and all(run.values.get("random_target") for run in runs):
        known = {name: runs[0].values[name] for name in facts}
        others = [run.values[name] - known[name] for run in runs for name in facts if name != first]
        if any(others) or min(known.values()) < 1:
            return [], ""
        known[first] = np.linspace(a[0], a[-1], 200)
        rank, dim, order = known.values()
        numbers = rank * (order * dim - order + 1)
        inside = (numbers >= b[0]) & (numbers <= b[-1])
        lines = [(_places(known[first][inside], a), _places(numbers[inside], b))]
        label = f"free parameters, {'r(d₁ + d₂ + d₃ − 2)' if order == 3 else 'r(Σd − N + 1)'}"
    elif (first, second) == ("lr", "depth"):
        plain = all(run.values.get("optimizer") in (None, "gd") and not run.values.get("weight_decay") for run in runs)
        try:
            problems = {canonical(observed_problem(run)[::2]) for run in runs if plain}
        except (OSError, ValueError):
            return [], ""
        shape, observations = json.loads(problems.pop()) if len(problems) == 1 else (None, None)
        if shape != [1, 1] or not observations:
            return [], ""
        rates = np.array([oscillation_rates(depth) / abs(observations[0]) ** (2 - 2 / depth) for depth in b])
        # A segment for each depth.
        ends = np.arange(len(b))[:, None] + [0, 1, np.nan]
        lines = [(np.repeat(_places(each, a), 3), ends.ravel()) for each in rates.T]
        label = "2 / sharpness at the minimum (solid), period 4 (dashed), divergence (dotted)"
    else:
        return [], ""
    return lines if is_first else [line[::-1] for line in lines], label


def _places(numbers: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Returns where numbers are on an axis with positive `values` in the middle of its cells."""
    return np.interp(np.log(numbers), np.log(values), np.arange(len(values)) + 0.5)
