"""Reconstruction error and CP rank against the number of observations: Figure 2 of Razin & Cohen (2020)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.files import load_json
from common.naming import scientific
from common.plotting.figures import MARKERS, fit_legends, wrapped
from common.plotting.folders import OF_MATRICES, read_each
from common.plotting.statistics import COLUMNS, cells, over_seeds, summary
from common.recorded_runs import TENSOR_METRICS, RecordedRun, canonical, compared, is_number, labels
from common.tensor_files import is_float_tensor, load_tensors

# tab10 without red, the colour of the ground truth, and purple, which is close to blue.
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
_LINES = ("--", "-", "-.")
_GROUND_TRUTH = "ground truth"
# The distance between the error bars of the first and the last initialization at one number of observations, as a part
# of the axis.
_SPREAD = 0.025

# A method at one number of observations: a statistic of error and rank (None if not known) over the repetitions.
Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """Results of one finished experiment."""

    run: RecordedRun
    num_samples: int
    init_std: float | None
    errors: dict[str, float]  # of "model" and "memorizer"
    ranks: dict[str, int | None]  # of "model", "memorizer" and "targets"; None if not known
    target: torch.Tensor | None


def read_results(directory: str) -> tuple[list[Result], list[str]]:
    """Returns the results of the finished experiments in a directory, of this project or of the original code, and a
    line of text for everything that is left out.

    Raises ValueError if there are no results, or if the experiments' targets differ.
    """
    found, left_out = read_each(directory, _read_result)
    results = [result for _, result in found]
    for result in results:
        for name in ("model", "memorizer"):
            if result.ranks[name] is None and result.ranks["targets"] is not None:
                left_out.append(f"{result.run.path.name}: the rank of the {name} was not found; left out of the ranks")
    first, *others = [result for result in results if result.target is not None] or [None]
    for other in others:
        if other.target.shape != first.target.shape or not torch.allclose(other.target, first.target):
            folders = f"{first.run.path.name} and {other.run.path.name}"
            raise ValueError(f"{folders} have different targets; give experiments of one target")
    return results, sorted(left_out)


def require_tensor_run(run: RecordedRun) -> None:
    """Raises ValueError if a run is no tensor completion experiment."""
    if "depth" in run.parameters:
        raise ValueError(OF_MATRICES)
    if "num_samples" not in run.parameters and not (run.path / TENSOR_METRICS).exists():
        raise ValueError("no tensor completion experiment")


def names_of_groups(runs: Sequence[RecordedRun]) -> list[str]:
    """Returns the names of groups of runs: the initialization, and the other parameters in which they differ."""
    stds = [run.values.get("init_std") for run in runs]
    bases = ["model" if std is None else f"tf, factor init {scientific(std)}" for std in stds]
    return labels(runs, bases, shown=("init_std",))


def _read_result(run: RecordedRun) -> Result:
    """Returns the results of a finished run. Raises ValueError if the run is to be skipped."""
    folder = run.path
    require_tensor_run(run)
    try:
        metrics = load_json(folder / TENSOR_METRICS)
    except FileNotFoundError:
        raise ValueError("not finished") from None
    if run.status.get("stop_reason") == "diverged":
        raise ValueError("diverged")
    named = re.search(r"_samples_(\d+)(?:_init_([\d.]+(?:e[+-]?\d+)?))?", folder.name) or [None] * 3
    num_samples, init_std = run.parameters.get("num_samples") or named[1], run.values.get("init_std", named[2])
    if num_samples is None:
        raise ValueError("damaged: the number of samples is neither in run_params.json nor in the folder's name")
    errors = {name: metrics.get(f"{name}_reconstruction_error") for name in ("model", "memorizer")}
    if not all(is_number(error, 0) for error in errors.values()):
        raise ValueError("damaged or diverged: a reconstruction error is not a number")
    # The original code writes -1 if no rank was found.
    ranks = {name: metrics.get(f"{name}_tensor_rank") for name in ("model", "memorizer", "targets")}
    ranks = {name: int(rank) if is_number(rank, 0, 1e9) else None for name, rank in ranks.items()}
    target_path = folder / "targets_tensor.pt"
    try:
        target = load_tensors(target_path) if target_path.exists() else None
        if target is not None and not is_float_tensor(target):
            raise ValueError("holds no tensor of floating-point numbers")
    except (OSError, ValueError) as error:
        raise ValueError(f"damaged: {target_path.name} {error}") from None
    return Result(run, int(num_samples), init_std if init_std is None else float(init_std), errors, ranks, target)


def summarize(results: Sequence[Result], statistic: str = "median") -> list[Row]:
    """Returns a row for each method and number of samples: linear, then initialization stds from large to small.

    Runs that differ in anything but number of samples and seed are different methods. Linear depends only on the
    observed entries, the first of the dataset, so it has one repetition for each dataset and number of samples.
    """
    lines: dict[str, list[Result]] = {}
    results = sorted(results, key=lambda each: (each.init_std is None, -(each.init_std or 0)))
    parameters = compared([result.run for result in results], without=("num_samples", "init_std"))
    for result, each in zip(results, parameters, strict=True):
        lines.setdefault(canonical([result.init_std, each]), []).append(result)
    first = [members[0] for members in lines.values()]
    bases = ["model" if each.init_std is None else f"tf, factor init {scientific(each.init_std)}" for each in first]
    names = labels([each.run for each in first], bases, shown=("num_samples", "init_std"))
    methods = [("linear", "memorizer", results)]
    methods += [(name, "model", members) for name, members in zip(names, lines.values(), strict=True)]
    rows = []
    for method, source, members in methods:
        for num_samples in sorted({result.num_samples for result in members}):
            repeated = [result for result in members if result.num_samples == num_samples]
            # The original code's ranks of one tensor may differ; their median is the repetition's.
            groups: dict[Any, list[Result]] = {}
            for index, result in enumerate(repeated):
                key = index if source == "model" else result.run.inputs.get("dataset_path")
                groups.setdefault(key, []).append(result)
            row: Row = {"method": method, "num_samples": num_samples}
            for quantity in ("error", "rank"):
                values = [[getattr(result, f"{quantity}s")[source] for result in group] for group in groups.values()]
                known = [[value for value in of_group if value is not None] for of_group in values]
                medians = [np.median(of_group) for of_group in known if of_group]
                (numbers,) = cells(*summary(np.array(medians)[:, None], statistic)) if medians else [[None] * 3]
                row |= {f"{quantity}_{name}": value for name, value in zip(COLUMNS[statistic], numbers, strict=True)}
            rows.append({**row, "repetitions": len(groups)})
    return rows


def table(rows: Sequence[Row], statistic: str = "median") -> str:
    """Returns rows as lines of text: the statistic and, in brackets, the ends of its band."""

    def cell(row: Row, quantity: str, form: str) -> str:
        low, middle, high = (row[f"{quantity}_{name}"] for name in COLUMNS[statistic])
        band = "" if low is None else f" [{low:{form}}, {high:{form}}]"
        return "-" if middle is None else f"{middle:{form}}{band}"

    width = max(len(row["method"]) for row in rows)
    lines = [f"{'# of observations':>17}  {'method':<{width}}  {'error':<31}  {'rank':<18}  repetitions"]
    for row in sorted(rows, key=lambda row: row["num_samples"]):
        start = f"{row['num_samples']:>17}  {row['method']:<{width}}  {cell(row, 'error', '.3e'):<31}"
        lines.append(f"{start}  {cell(row, 'rank', 'g'):<18}  {row['repetitions']:>11}")
    return "\n".join(lines)


def draw_tensor_completion(
    rows: Sequence[Row], target_rank: int | None, title: str, statistic: str = "median"
) -> Figure:
    """Draws reconstruction error and rank against the number of observations; no panel of ranks if none is known."""
    with_ranks = any(row[f"rank_{statistic}"] is not None for row in rows)
    width = 5.63 if with_ranks else 2.95
    figure, panels = plt.subplots(1, 1 + with_ranks, figsize=(width, 2.95), layout="constrained", squeeze=False)
    whole_numbers = {"nbins": 6, "steps": [1, 2, 5, 10], "integer": True}
    for axes, quantity in zip(panels[0], ("error", "rank"), strict=False):
        known = [row for row in rows if row[f"{quantity}_{statistic}"] is not None]
        _draw_lines(axes, known, [f"{quantity}_{name}" for name in COLUMNS[statistic]])
        axes.set_xlabel("# of observations")
        axes.xaxis.set_major_locator(MaxNLocator(**whole_numbers))
    panels[0, 0].set(yscale="log", ylabel="reconstruction error")
    last = panels[0, -1]
    if with_ranks:
        if target_rank is not None:
            last.axhline(target_rank, color="red", linewidth=3, label=_GROUND_TRUTH, zorder=1)
        last.yaxis.set_major_locator(MaxNLocator(**whole_numbers))
        last.set(ylim=(0, None), ylabel="rank")
    # Matplotlib lists handles without error bars first: here the ground truth, which belongs at the end.
    handles = sorted(zip(*last.get_legend_handles_labels(), strict=True), key=lambda pair: pair[1] == _GROUND_TRUTH)
    handles, names = zip(*handles, strict=True)
    last.legend(handles, [wrapped(name, 26) for name in names], fontsize="small", borderaxespad=1.2)
    figure.suptitle(title)
    seeds = [row["repetitions"] for row in rows if row["method"] != "linear"]
    if max(seeds, default=1) > 1:
        figure.set_figheight(figure.get_figheight() + 0.2)
        figure.supxlabel(over_seeds(statistic, seeds), fontsize="x-small")
    fit_legends(figure, [last], avoid_lines=True)
    return figure


def _draw_lines(axes: Axes, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Draws a line for each method, with error bars: `columns` hold lower end, middle and upper end. All but
    linear are shifted a little from each other along x.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    shifted = [method for method in methods if method != "linear"]
    places = np.linspace(-0.5, 0.5, len(shifted)) if len(shifted) > 1 else [0]
    spread = _SPREAD * np.ptp([row["num_samples"] for row in rows])
    shifts = dict(zip(shifted, spread * np.asarray(places), strict=True))
    for index, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        low, middle, high = (np.array([row[name] for row in own], dtype=np.float64) for name in columns)
        style = {"color": _COLOURS[index % len(_COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 4.5}
        style |= {"linestyle": _LINES[index % len(_LINES)], "linewidth": 1.4, "capsize": 2, "zorder": 2}
        samples = np.array([row["num_samples"] for row in own]) + shifts.get(method, 0)
        drawn = axes.errorbar(samples, middle, [middle - low, high - middle], label=method, **style)
        plt.setp(drawn.lines[2], alpha=0.6)


def default_title(results: Sequence[Result]) -> str:
    """Returns the shape, order and rank of the target as a title; "" if no result has the target."""
    target = next((result.target for result in results if result.target is not None), None)
    if target is None:
        return ""
    rank = common_target_rank(results)
    shape = "x".join(map(str, target.shape))
    return f"{shape} (order {target.dim()}){'' if rank is None else f' rank {rank}'} tensor completion"


def common_target_rank(results: Sequence[Result]) -> int | None:
    """Returns the rank of the target in most of the results, None if it is in none."""
    ranks = [result.ranks["targets"] for result in results if result.ranks["targets"] is not None]
    return max(set(ranks), key=ranks.count) if ranks else None
