"""Maps: a metric of runs, at the end or at a loss, over the grid of two parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import escape
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common.cli import Parameters, flag_errors
from common.datasets.tensor_completion import load_tensor_completion
from common.metrics import theory
from common.naming import scientific, span
from common.plotting.figures import MOST_COLUMNS, MOST_PANELS, metric_label, new_figure, wrapped
from common.plotting.histories import NotRecorded, corner_of, entry_of, load_curve, read_history
from common.plotting.map_axes import TENSOR_FACTS, Axis, text_of, theory_line
from common.plotting.runs import checkpoint_of, number_of, read_each, report_skipped
from common.plotting.statistics import Row
from common.recorded_runs import TENSOR_METRICS, RecordedRun, canonical, compared, final_metrics, newest_checkpoint

# |unobserved entry| divided by its theoretical lower bound at the loss of the run; see metrics/theory.py.
RATIO_TO_BOUND = "ratio_to_bound"
# Metrics that differ by orders of magnitude are coloured on a logarithmic scale from this ratio on.
_LOG_COLOURS_RATIO = 100
_GREY = 0.8


@dataclass(frozen=True)
class MapRun:
    """A run of a map."""

    values: dict[str, Any]  # its parameters, and what was read from its dataset
    compared: dict[str, Any]  # the parameters that tell runs apart; input files by their digests
    finished: bool
    diverged: bool
    value: float | None  # of the metric; None if the run did not finish, diverged or did not reach the loss


def map_figure(
    parameters: Parameters,
    require: Callable[[RecordedRun], None],
    measure: Callable[[RecordedRun], float | None],
) -> tuple[Figure, list[Row]]:
    """Returns the map that a plotter's flags ask for, and its data. Raises as `read_map_runs` does, and UserError if a
    parameter is not recorded, or if the map cannot be drawn.
    """
    names, title = tuple(parameters["map"]), parameters["plot_title"] or ""
    runs, skipped = read_map_runs(parameters["experiments_dir"], require, measure, names)
    found = f"{number_of(len(runs), 'experiment')}, {sum(run.finished for run in runs)} of them finished"
    report_skipped(f"{found}, {number_of(len(skipped), 'folder')} skipped", skipped, parameters["list_skipped"])
    values = parameters.values
    shown = Shown(values["metric"] or "", values["statistic"], values.get("at_loss"), values["above"], values["below"])
    with flag_errors("map", names):
        return draw_map(runs, names, shown, title, values["map_counts"])


def read_map_runs(
    directory: str,
    require: Callable[[RecordedRun], None],
    measure: Callable[[RecordedRun], float | None],
    names: Sequence[str],
) -> tuple[list[MapRun], list[str]]:
    """Returns the runs in a directory, and a line of text for each folder that is skipped. Unfinished and diverged
    runs are included, without a value.

    `measure` returns the value of a finished run. `names` are the parameters of the map: if one is of `TENSOR_FACTS`,
    these facts of its target tell runs apart instead of the dataset. Raises as `read_each` does.
    """
    with_facts = bool(set(names) & set(TENSOR_FACTS))

    def read(run: RecordedRun) -> tuple[dict[str, Any], bool, bool, float | None]:
        facts = _tensor_facts(run.parameters.get("dataset_path") or "") if with_facts else {}
        diverged = run.status.get("stop_reason") == "diverged"
        # The original code recorded no status.
        finished = bool(run.status.get("finished", newest_checkpoint(run.path) or (run.path / TENSOR_METRICS).exists()))
        value = measure(run) if finished and not diverged else None
        return facts, finished, diverged, None if value is None or not np.isfinite(value) else value

    found, skipped = read_each(directory, require, read)
    runs = []
    for (run, (facts, *rest)), known in zip(found, compared([run for run, _ in found]), strict=True):
        known = {name: value for name, value in known.items() if not (facts and name == "dataset_path")}
        runs.append(MapRun({**run.values, **facts}, {**known, **facts}, *rest))
    return runs, skipped


def measure_matrix(
    run: RecordedRun, metric: str, entry: tuple[int, int] | None = None, at_loss: float | None = None
) -> float | None:
    """Returns the `metric` ("" for |entry|, by default of the unobserved entry; RATIO_TO_BOUND) of a run of matrix
    factorization at its end or, with `at_loss`, at the first validation with at most this loss; None if there is none.

    Raises ValueError, NotRecorded and NoBound.
    """
    row, col = entry_of(run, entry)
    of_entry = metric in ("", RATIO_TO_BOUND)
    name = f"e2e_{row}_{col}_value" if of_entry else metric
    final = final_metrics(run) if at_loss is None else {}
    if {name, "sse_loss_div_2"} <= final.keys():
        loss, value = final["sse_loss_div_2"], final[name]
    else:
        curve = load_curve(checkpoint_of(run), run, "" if of_entry else metric, entry)
        reached = np.flatnonzero(curve.losses <= (np.inf if at_loss is None else at_loss))
        if not len(reached):
            return None
        index = reached[-1 if at_loss is None else 0]
        loss, value = curve.losses[index], curve.values[index]
    if loss is None or value is None:
        return None
    if metric == RATIO_TO_BOUND:
        value = abs(value) / theory.unobserved_entry(np.array(loss), *corner_of(run, row, col)[0])
    return float(abs(value) if of_entry else value)


def measure_tensor(run: RecordedRun, metric: str) -> float | None:
    """Returns the final value of `metric` of a run of tensor completion. Raises ValueError and NotRecorded."""
    final = final_metrics(run)
    # In the results, the metrics of the model have its name.
    for name in (metric, f"model_{metric}"):
        if name in final:
            return final[name]
    checkpoint = newest_checkpoint(run.path)
    if not checkpoint:
        raise NotRecorded(f"{metric} was not recorded; give one of {', '.join(final)}")
    try:
        return float(read_history(checkpoint, run, [escape(metric)])[metric].values[-1])
    except NotRecorded as error:
        raise NotRecorded(", ".join([str(error), *final])) from None


@lru_cache(maxsize=4096)
def _tensor_facts(path: str) -> dict[str, Any]:
    """Returns the rank with which a dataset's target was made, the dimension of its modes (2x3x4 if they differ), and
    its order. Raises ValueError if the dataset cannot be read.
    """
    if not path:
        raise ValueError("records no dataset, which has the rank and the shape of its target")
    try:
        dataset = load_tensor_completion(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"its dataset {path:.200} cannot be read ({error!s:.200})") from None
    shape = tuple(dataset.target_tensor.shape)
    dimension = shape[0] if len(set(shape)) == 1 else "x".join(map(str, shape))
    return {"target_rank": dataset.target_cp_rank, "dimension": dimension, "order": len(shape)}


@dataclass(frozen=True)
class Shown:
    """What the colours of a map show."""

    metric: str  # "" for |unobserved entry|
    statistic: str = "median"
    at_loss: float | None = None
    above: float | None = None  # share of runs with a larger metric
    below: float | None = None  # share of runs with a smaller one

    @property
    def of_share(self) -> bool:
        return self.above is not None or self.below is not None

    def label(self, most_runs: int) -> str:
        """Returns the label of the colours if the largest cell has `most_runs` runs."""
        text = "|unobserved entry| / lower bound" if self.metric == RATIO_TO_BOUND else metric_label(self.metric)
        if self.of_share:
            sign, limit = (">", self.above) if self.above is not None else ("<", self.below)
            text = f"share of runs with {text} {sign}\xa0{limit:g}"
        elif most_runs > 1:
            text = f"{self.statistic} {text}"
        return text if self.at_loss is None else f"{text} at\xa0loss\xa0{scientific(self.at_loss)}"

    def row(self, runs: Sequence[MapRun]) -> Row:
        """Returns value and numbers of runs of a cell. "valid" counts the runs with a value. In shares, the other
        finished runs, such as those that diverged, count as runs whose metric is not above or below the limit.
        """
        values, finished = [run.value for run in runs if run.value is not None], sum(run.finished for run in runs)
        if self.of_share:
            low, high = (-np.inf if self.above is None else self.above), (np.inf if self.below is None else self.below)
            value = sum(low < each < high for each in values) / finished if finished else None
        else:
            value = float(getattr(np, self.statistic)(values)) if values else None
        return {"value": value, "runs": len(runs), "finished": finished, "valid": len(values)}


def panels_of(runs: Sequence[MapRun], names: Sequence[str]) -> list[tuple[str, list[MapRun]]]:
    """Returns title and runs of each panel. Runs that would share a cell, but differ in more than their seed, are in
    different panels. Raises ValueError if a run lacks a parameter of `names`, or if there are too many panels.
    """
    for name in names:
        if not all(name in run.values for run in runs):
            known = {each for run in runs for each in run.values} - {"experiment_name", "random_seed", "output_dir"}
            varying = sorted(each for each in known if len({canonical(run.values.get(each)) for run in runs}) > 1)
            text = f"{name} is not recorded of all runs; the parameters in which they differ are"
            raise ValueError(f"{text}: {', '.join(varying) or 'none'}")
    found: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        cell = canonical([run.values[name] for name in names])
        for name in run.compared.keys() - set(names):
            found.setdefault((cell, name), set()).add(canonical(run.compared[name]))
    differing = sorted({name for (_, name), values in found.items() if len(values) > 1})
    panels: dict[str, tuple[str, list[MapRun]]] = {}
    for run in runs:
        title = ", ".join(f"{name} {text_of(name, run.values.get(name))}" for name in differing)
        key = canonical([run.compared.get(name) for name in differing])
        panels.setdefault(key, (title, []))[1].append(run)
    if len(panels) > MOST_PANELS:
        raise ValueError(
            f"the runs differ in {', '.join(differing)} as well, which takes {len(panels)} maps; give a folder with at "
            f"most {MOST_PANELS} combinations of the other parameters"
        )
    return list(panels.values())


def draw_map(
    runs: Sequence[MapRun], names: Sequence[str], shown: Shown, title: str, counts: bool = False
) -> tuple[Figure, list[Row]]:
    """Draws a map over two parameters, and with `counts` the number of runs in each cell. Returns the figure, and a row
    for each cell.

    Cells without a finished run are white; cells whose runs have no value (see `MapRun`) are grey in maps of a
    statistic. Where theory has a line, it is drawn (see map_axes.py). Raises as `panels_of` does.
    """
    members = panels_of(runs, names)
    x, y = (Axis(name, [run.values[name] for run in runs]) for name in names)
    tables = []
    for panel, of_panel in members:
        cells: dict[str, list[MapRun]] = {}
        for run in of_panel:
            cells.setdefault(canonical([run.values[name] for name in names]), []).append(run)
        grid = [{"panel": panel, x.name: i, y.name: j} for j in y.values for i in x.values]
        tables.append([row | shown.row(cells.get(canonical([row[x.name], row[y.name]]), [])) for row in grid])
    rows = [row for table in tables for row in table]
    values = [row["value"] for row in rows if row["value"] is not None]
    norm = Normalize(0, 1)
    if values and not shown.of_share:
        is_log = min(values) > 0 and max(values) / min(values) >= _LOG_COLOURS_RATIO
        norm = (LogNorm if is_log else Normalize)(min(values), max(values))

    figure, panels = new_figure(len(tables), (3.0, 2.9), (1.2, 0.7), sharex=True, sharey=True)
    handles = {}
    for axes, (panel, of_panel), table in zip(panels, members, tables, strict=True):
        columns = [[np.nan if row[name] is None else row[name] for row in table] for name in ("value", "finished")]
        value, finished = np.array(columns, dtype=np.float64).reshape(2, len(y.values), len(x.values))
        lost = np.isnan(value) & (finished > 0)
        axes.pcolormesh(x.edges, y.edges, np.where(lost, _GREY, np.nan), cmap="gray", vmin=0, vmax=1)
        mesh = axes.pcolormesh(x.edges, y.edges, value, norm=norm, cmap="viridis")
        if lost.any():
            reached = "" if shown.at_loss is None else " or did not reach the loss"
            handles["grey"] = Patch(color=str(_GREY), label=f"all runs diverged{reached}")
        if not finished.all():
            handles["white"] = Patch(facecolor="white", edgecolor="0.6", label="no finished run")
        for row in table if counts else ():
            colour = "black" if row["value"] is None or norm(row["value"]) > 0.6 else "white"
            text = str(row["runs"]) if row["finished"] == row["runs"] else f"{row['finished']}/{row['runs']}"
            place = {"ha": "center", "va": "center", "fontsize": "x-small"}
            i, j = x.values.index(row[x.name]), y.values.index(row[y.name])
            axes.text(x.places[i], y.places[j], text if row["runs"] else "", color=colour, **place)
        if line := theory_line([run.values for run in of_panel], x, y):
            *points, label = line
            (handles["line"],) = axes.plot(*points, color="red", linewidth=2, label=label)
        x.draw(axes, "x")
        y.draw(axes, "y")
        axes.set_title(wrapped(panel, 40), fontsize="small")
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(y.name.replace("_", " "))
    # A panel above an empty place has no panel below it that shows its ticks and label.
    for axes in panels[-MOST_COLUMNS:]:
        axes.set_xlabel(x.name.replace("_", " "))
        axes.tick_params(labelbottom=True)
    sizes = [row["finished"] for row in rows]
    figure.colorbar(mesh, ax=panels, label=wrapped(shown.label(max(sizes)), 42))
    figure.suptitle(title)

    kind = "shares" if shown.of_share else f"{shown.statistic}s"
    caption = "a run in each cell"
    if max(sizes) > 1:
        caption = f"{kind} of {span([size for size in sizes if size])} runs"
    diverged = sum(run.diverged for run in runs)
    missed = sum(run.finished and not run.diverged and run.value is None for run in runs)
    lost = [f"{diverged} diverged"] * bool(diverged)
    lost += [f"{missed} {'have no such value' if shown.at_loss is None else 'did not reach the loss'}"] * bool(missed)
    if lost:
        what = "counted as not " + ("above" if shown.above is not None else "below") if shown.of_share else "left out"
        caption += f"; {' and '.join(lost)}: {what}"
    unfinished = sum(not run.finished for run in runs)
    caption += f"; without {unfinished} that are not finished" if unfinished else ""
    caption += ("; numbers: runs" + (", finished / all" if unfinished else "")) if counts else ""
    columns = min(len(panels), MOST_COLUMNS)
    style = {"loc": "outside lower center", "fontsize": "x-small", "title_fontsize": "x-small", "frameon": False}
    caption = wrapped(caption, 20 + 50 * columns)
    figure.legend(handles=handles.values(), title=caption, ncols=len(handles) if columns > 1 else 1, **style)
    return figure, rows
