"""The paper's figure of tensor completion: reconstruction error and rank against the number of observations (Razin &
Cohen 2020, Figure 2), from the folders of the experiments.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.cli import flag_error
from common.files import load_json
from common.naming import scientific
from common.plotting.figures import MARKERS
from common.run_files import is_number, run_parameters, stop_reason
from common.tensor_files import NotPlainData, is_plain_tensor, load_plain

# tab10 without red, which is the ground truth's, and purple, which is too close to blue.
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
_LINES = ("--", "-", "-.")
_LINEAR, _GROUND_TRUTH = "linear", "ground truth"


@dataclass(frozen=True)
class Result:
    """One finished experiment. Ranks are None where they are not known. `run` tells it from others; None in results of
    the original code, which did not record its seeds.
    """

    folder: str
    num_samples: int
    init_std: float | None
    model_error: float
    memorizer_error: float
    model_rank: int | None
    memorizer_rank: int | None
    target_rank: int | None
    target: torch.Tensor | None
    run: tuple | None


@dataclass(frozen=True)
class Summary:
    """A method at one number of observations: quartiles (25th, 50th, 75th percentile) of error and rank over its
    repetitions; of the rank None where there is none.
    """

    method: str
    num_samples: int
    error: np.ndarray
    rank: np.ndarray | None
    repetitions: int


def read_results(directory: str) -> tuple[list[Result], list[str]]:
    """The results of every finished experiment in a directory, of this project or of the original code, and a line for
    everything that was left out.

    Raises UserError, naming -experiments_dir, where there is none, or where their targets differ.
    """
    results, left_out = [], []
    for folder in sorted(path for path in Path(directory).glob("[!.]*") if path.is_dir()):
        try:
            result = _read_result(folder)
        except ValueError as error:
            left_out.append(f"{folder.name}: {error}")
            continue
        again = [each for each in results if each.run and each.run == result.run]
        if again:
            left_out.append(f"{folder.name}: is {again[0].folder} run again, with the same seed")
            continue
        results.append(result)
        for name, rank in (("model", result.model_rank), ("memorizer", result.memorizer_rank)):
            if rank is None and result.target_rank is not None:
                left_out.append(f"{folder.name}: the rank of the {name} was not found; left out of the ranks")
    if not results:
        reason = f"; passed over: {left_out[0]}" if left_out else ""
        raise flag_error(
            "experiments_dir", directory, f"holds no finished experiment{reason}; give a folder of such folders"
        )
    targets = [result for result in results if result.target is not None]
    for result in targets[1:]:
        first = targets[0]
        if result.target.shape != first.target.shape or not torch.allclose(result.target, first.target):
            problem = f"{first.folder} and {result.folder} have different targets; give experiments of one target"
            raise flag_error("experiments_dir", directory, problem)
    return results, left_out


def _read_result(folder: Path) -> Result:
    """Raises ValueError that says why the folder is passed over."""
    try:
        parameters = run_parameters(folder)
    except FileNotFoundError:
        parameters = {}
    try:
        metrics = load_json(folder / "tensor_rank_and_reconstruction_metrics.json")
    except FileNotFoundError:
        raise ValueError("not finished" if "num_samples" in parameters else "no tensor completion experiment") from None
    if stop_reason(parameters) == "diverged":
        raise ValueError("diverged")
    named = re.search(r"_samples_(\d+)(?:_init_([\d.]+(?:e[+-]?\d+)?))?", folder.name)
    num_samples, init_std = parameters.get("num_samples"), parameters.get("init_std")
    if num_samples is None and named:
        num_samples = int(named[1])
    if init_std is None and named and named[2]:
        init_std = float(named[2])
    if num_samples is None:
        raise ValueError("damaged: the number of samples is neither in run_params.json nor in the folder's name")
    errors = [metrics.get(f"{name}_reconstruction_error") for name in ("model", "memorizer")]
    if not all(is_number(error) and error >= 0 for error in errors):
        raise ValueError("damaged or diverged: a reconstruction error is not a number")
    ranks = [_rank(metrics.get(f"{name}_tensor_rank")) for name in ("model", "memorizer", "targets")]
    target_path = folder / "targets_tensor.pt"
    try:
        target = load_plain(target_path) if target_path.exists() else None
    except (OSError, NotPlainData) as error:
        raise ValueError(f"damaged: {target_path.name} {error}") from None
    if target is not None and not is_plain_tensor(target):
        raise ValueError(f"damaged: {target_path.name} holds no tensor of floating-point numbers")
    told = ("dataset_path", "random_seed", "dtype", "lr", "use_adaptive_lr", "epochs", "stop_on_zero_loss_tol")
    run = (num_samples, init_std, *map(parameters.get, told)) if "provenance" in parameters else None
    return Result(folder.name, num_samples, init_std, *errors, *ranks, target, run)


def _rank(value: object) -> int | None:
    """A rank of a file: the original code has -1 where none was found."""
    return int(value) if is_number(value) and 0 <= value < 1e9 else None


def summarize(results: Sequence[Result]) -> list[Summary]:
    """Summaries of all methods: linear, then initialization stds from large to small; each by number of samples."""
    stds = sorted({result.init_std for result in results}, key=lambda std: (std is None, -(std or 0)))
    methods = [(_LINEAR, results, "memorizer")]
    for std in stds:
        label = "model" if std is None else f"tf, init {scientific(std)}"
        methods.append((label, [result for result in results if result.init_std == std], "model"))
    summaries = []
    for method, members, source in methods:
        for num_samples in sorted({result.num_samples for result in members}):
            repeated = [result for result in members if result.num_samples == num_samples]
            errors = [getattr(result, f"{source}_error") for result in repeated]
            ranks = [getattr(result, f"{source}_rank") for result in repeated]
            ranks = [rank for rank in ranks if rank is not None]
            quartiles = (25, 50, 75)
            rank = np.percentile(ranks, quartiles) if ranks else None
            summaries.append(Summary(method, num_samples, np.percentile(errors, quartiles), rank, len(repeated)))
    return summaries


def table(summaries: Sequence[Summary]) -> str:
    """What is drawn, in lines of text: median and, in brackets, the 25th and 75th percentile."""
    lines = [f"{'# of observations':>17}  {'method':<16}  {'error':<31}  {'rank':<18}  repetitions"]
    for summary in sorted(summaries, key=lambda each: each.num_samples):
        low, median, high = summary.error
        error = f"{median:.3e} [{low:.3e}, {high:.3e}]"
        rank = "-"
        if summary.rank is not None:
            rank = "{1:g} [{0:g}, {2:g}]".format(*summary.rank)
        lines.append(
            f"{summary.num_samples:>17}  {summary.method:<16}  {error:<31}  {rank:<18}  {summary.repetitions:>11}"
        )
    return "\n".join(lines)


def rows(summaries: Sequence[Summary]) -> list[dict[str, object]]:
    """What is drawn, in columns."""
    columns = []
    for each in summaries:
        row: dict[str, object] = {"method": each.method, "num_samples": each.num_samples}
        for name, quartiles in (("error", each.error), ("rank", each.rank)):
            for place, label in enumerate(("lower_quartile", "median", "upper_quartile")):
                row[f"{name}_{label}"] = "" if quartiles is None else float(quartiles[place])
        columns.append({**row, "repetitions": each.repetitions})
    return columns


def draw_tensor_completion(summaries: Sequence[Summary], target_rank: int | None, title: str) -> Figure:
    """Two panels against the number of observations: reconstruction error and rank, or the first alone where no rank
    is known.
    """
    with_ranks = any(summary.rank is not None for summary in summaries)
    width = 5.63 if with_ranks else 2.95
    figure, panels = plt.subplots(1, 1 + with_ranks, figsize=(width, 2.95), layout="constrained", squeeze=False)
    errors = panels[0, 0]
    _draw_lines(errors, [(each.method, each.num_samples, each.error) for each in summaries])
    errors.set_yscale("log")
    errors.set_ylabel("reconstruction error")
    if with_ranks:
        ranks = panels[0, 1]
        _draw_lines(ranks, [(each.method, each.num_samples, each.rank) for each in summaries if each.rank is not None])
        if target_rank is not None:
            ranks.axhline(target_rank, color="red", linewidth=3, label=_GROUND_TRUTH, zorder=1)
        ranks.set_ylim(bottom=0)
        ranks.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        ranks.set_ylabel("rank")
    for axes in panels.flat:
        axes.set_xlabel("# of observations")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    # Matplotlib would list the ground truth, which has no error bars, first.
    handles, labels = panels[0, -1].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: labels[index] == _GROUND_TRUTH)
    panels[0, -1].legend([handles[i] for i in order], [labels[i] for i in order], fontsize="small", borderaxespad=1.2)
    figure.suptitle(title)
    return figure


def _draw_lines(axes: Axes, points: Sequence[tuple[str, int, np.ndarray]]) -> None:
    """A line for each method, of (method, number of samples, quartiles)."""
    for index, method in enumerate(dict.fromkeys(method for method, _, _ in points)):
        samples = [num_samples for each, num_samples, _ in points if each == method]
        low, median, high = np.array([quartiles for each, _, quartiles in points if each == method]).T
        _, _, bars = axes.errorbar(
            samples,
            median,
            yerr=[median - low, high - median],
            label=method,
            color=_COLOURS[index % len(_COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle=_LINES[index % len(_LINES)],
            markersize=4.5,
            linewidth=1.4,
            capsize=2,
            zorder=2,
        )
        for bar in bars:
            bar.set_alpha(0.6)


def common_target_rank(results: Sequence[Result]) -> int | None:
    """The rank of the target that most of the results report."""
    ranks = [result.target_rank for result in results if result.target_rank is not None]
    return max(set(ranks), key=ranks.count) if ranks else None
