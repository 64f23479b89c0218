"""Reconstruction error and CP rank against the number of observations: Figure 2 of Razin & Cohen (2020)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.files import load_json
from common.plotting import figures
from common.plotting.figures import COLUMNS, MARKERS, Row, summary
from common.plotting.runs import named_lines, read_each, require_tensor_run
from common.recorded_runs import TENSOR_METRICS, RecordedRun, is_number
from common.tensor_files import is_float_tensor, load_tensors

# tab10 without red, the colour of the ground truth, and purple, which is close to blue.
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
_LINES = ("--", "-", "-.")
# The distance between the error bars of the first and the last initialization at one number of observations, as a part
# of the axis.
_SPREAD = 0.025

# A finished run, and its results: "error" and "rank" (None if not known) of "model" and "memorizer", the rank of the
# "targets", and the "target" itself (None if there is no file).
Result = tuple[RecordedRun, dict[str, Any]]


def read_results(directory: str) -> tuple[list[Result], list[str]]:
    """Returns the results of the finished experiments in a directory, of this project or of the original code, and a
    line of text for everything that is left out.

    Raises ValueError if there are no results, or if the experiments' targets differ.
    """
    results, left_out = read_each(directory, require_tensor_run, _read_result)
    first = None
    for run, result in results:
        for name in ("model", "memorizer"):
            if result[f"{name}_rank"] is None and result["targets_rank"] is not None:
                left_out.append(f"{run.path.name}: the rank of the {name} was not found; left out of the ranks")
        # With -random_target, each seed has a target of its own.
        target = None if run.values.get("random_target") else result["target"]
        if target is not None:
            first = first or (run.path.name, target)
            if target.shape != first[1].shape or not torch.allclose(target, first[1], equal_nan=True):
                names = f"{first[0]} and {run.path.name}"
                raise ValueError(f"{names} have different targets; give experiments of one target")
    return results, sorted(left_out)


def _read_result(run: RecordedRun) -> dict[str, Any]:
    """Returns the results of a finished run. Raises ValueError if the run is to be skipped."""
    try:
        metrics = load_json(run.path / TENSOR_METRICS)
    except FileNotFoundError:
        raise ValueError("not finished; -resume continues it") from None
    if run.status.get("stop_reason") == "diverged":
        raise ValueError("diverged")
    if run.values.get("num_samples") is None:
        raise ValueError("damaged: the number of samples is neither in run_params.json nor in the folder's name")
    result: dict[str, Any] = {"target": None}
    for name in ("model", "memorizer", "targets"):
        # The original code writes -1 if no rank was found.
        rank = metrics.get(f"{name}_tensor_rank")
        result[f"{name}_rank"] = int(rank) if is_number(rank, 0, 1e9) else None
        result[f"{name}_error"] = error = metrics.get(f"{name}_reconstruction_error")
        if name != "targets" and not is_number(error, 0):
            raise ValueError("damaged or diverged: a reconstruction error is not a number")
    path = run.path / "targets_tensor.pt"
    try:
        result["target"] = load_tensors(path) if path.exists() else None
        if result["target"] is not None and not is_float_tensor(result["target"]):
            raise ValueError("holds no tensor of floating-point numbers")
    except (OSError, ValueError) as error:
        raise ValueError(f"damaged: {path.name} {error}") from None
    return result


def summarize(results: Sequence[Result], statistic: str = "median") -> list[Row]:
    """Returns a row for each method and number of samples: linear, then initialization stds from large to small.

    Runs that differ in anything but number of samples and seed are different methods. Linear depends only on the
    observed entries, so it has one repetition for each number of samples of a dataset, or of a seed's random target.
    """
    stds = {run.path: run.values.get("init_std") for run, _ in results}
    results = sorted(results, key=lambda each: (stds[each[0].path] is None, -(stds[each[0].path] or 0)))
    lines = [("memorizer", "linear", results)]
    lines += [("model", *line) for line in named_lines(results, without=("num_samples",))]
    rows = []
    for source, method, members in lines:
        for num_samples in sorted({run.values["num_samples"] for run, _ in members}):
            repetitions: dict[Any, list[dict[str, Any]]] = {}
            for run, result in members:
                random = run.values.get("random_target")
                target = run.values.get("random_seed") if random else run.inputs.get("dataset_path")
                if run.values["num_samples"] == num_samples:
                    repetitions.setdefault(run.path if source == "model" else target, []).append(result)
            row: Row = {"method": method, "num_samples": num_samples}
            for quantity in ("error", "rank"):
                values = [[result[f"{source}_{quantity}"] for result in same] for same in repetitions.values()]
                known = ([value for value in same if value is not None] for same in values)
                # The original code's ranks of one tensor may differ; their median is the repetition's.
                medians = [np.median(same) for same in known if same]
                (numbers,) = summary(np.array(medians)[:, None], statistic) if medians else [[None] * 3]
                row |= {f"{quantity}_{name}": value for name, value in zip(COLUMNS[statistic], numbers, strict=True)}
            rows.append({**row, "repetitions": len(repetitions)})
    return rows


def table(rows: Sequence[Row], statistic: str = "median") -> str:
    """Returns rows as lines of text: the statistic and, in brackets, the ends of its band."""
    width = max(len(row["method"]) for row in rows)
    lines = [f"{'# of observations':>17}  {'method':<{width}}  {'error':<31}  {'rank':<18}  repetitions"]
    for row in sorted(rows, key=lambda row: row["num_samples"]):
        cells = []
        for quantity, form in (("error", ".3e"), ("rank", "g")):
            low, middle, high = (row[f"{quantity}_{name}"] for name in COLUMNS[statistic])
            band = "" if low is None else f" [{low:{form}}, {high:{form}}]"
            cells.append("-" if middle is None else f"{middle:{form}}{band}")
        start = f"{row['num_samples']:>17}  {row['method']:<{width}}"
        lines.append(f"{start}  {cells[0]:<31}  {cells[1]:<18}  {row['repetitions']:>11}")
    return "\n".join(lines)


def draw_tensor_completion(results: Sequence[Result], flags: Mapping[str, Any]) -> tuple[Figure, list[Row]]:
    """Draws reconstruction error and rank against the number of observations, as the plotter's flags say; no panel of
    ranks if none is known. Initializations are shifted a little from each other along x. Returns the figure and its
    data; see `summarize`.
    """
    statistic = flags["statistic"]
    rows = summarize(results, statistic)
    ranks = [result["targets_rank"] for _, result in results if result["targets_rank"] is not None]
    target_rank = max(set(ranks), key=ranks.count) if ranks else None
    target = next((result["target"] for _, result in results if result["target"] is not None), None)
    title = ""
    if target is not None:
        of_rank = "" if target_rank is None else f" rank {target_rank}"
        title = f"{'x'.join(map(str, target.shape))} (order {target.dim()}){of_rank} tensor completion"
    quantities = ["error", "rank"] if any(row[f"rank_{statistic}"] is not None for row in rows) else ["error"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    # All but linear are shifted.
    spread = _SPREAD * np.ptp([row["num_samples"] for row in rows]) * (len(methods) > 2)
    shifts = [0, *np.linspace(-spread / 2, spread / 2, len(methods) - 1)]
    figure, panels = figures.new_figure(len(quantities), (2.815, 2.95))
    whole_numbers = {"nbins": 6, "steps": [1, 2, 5, 10], "integer": True}
    for axes, quantity in zip(panels, quantities, strict=True):
        handles = []
        for index, (method, shift) in enumerate(zip(methods, shifts, strict=True)):
            own = [row for row in rows if row["method"] == method and row[f"{quantity}_{statistic}"] is not None]
            if own:
                columns = [[row[f"{quantity}_{name}"] for row in own] for name in COLUMNS[statistic]]
                low, middle, high = np.array(columns, dtype=np.float64)
                style = {"color": _COLOURS[index % len(_COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
                style |= {"linestyle": _LINES[index % len(_LINES)], "markersize": 4.5, "linewidth": 1.4, "capsize": 2}
                samples = [row["num_samples"] + shift for row in own]
                handles.append(axes.errorbar(samples, middle, [middle - low, high - middle], label=method, **style))
                handles[-1].lines[2][0].set_alpha(0.6)
        axes.set_xlabel("# of observations")
        axes.xaxis.set_major_locator(MaxNLocator(**whole_numbers))
    panels[0].set(yscale="log", ylabel="reconstruction error")
    if len(panels) > 1:
        if target_rank is not None:
            handles.append(panels[1].axhline(target_rank, color="red", linewidth=3, label="ground truth", zorder=1))
        panels[1].yaxis.set_major_locator(MaxNLocator(**whole_numbers))
        panels[1].set(ylim=(0, None), ylabel="rank")
    figures.add_legends(figure, {panels[-1]: handles}, 26, "small")
    figure.suptitle(flags["plot_title"] or title)
    seeds = [row["repetitions"] for row in rows if row["method"] != "linear"]
    if max(seeds, default=1) > 1:
        figure.set_figheight(figure.get_figheight() + 0.2)
        figures.add_caption(figure, statistic, seeds, "", 2)
    return figure, rows
