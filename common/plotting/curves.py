"""Metric-versus-loss curves from checkpoints of matrix factorization experiments."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.datasets.matrix_sensing import load_matrix_sensing
from common.naming import scientific
from common.recorded_runs import (
    RecordedRun,
    canonical,
    differing_names,
    labels,
    newest_checkpoint,
    read_run,
    read_runs,
    without_repeats,
)
from common.tensor_files import load_dictionary
from common.training.history import metrics_of_evaluator

_INITIALIZATION = ("lr", "weight_init_type", "init_alpha", "use_balanced_init")


class NotRecorded(ValueError):
    """An experiment did not record the metric or the entry."""


class NoBound(ValueError):
    """There is no bound for an experiment, or for a metric."""


@dataclass(frozen=True)
class Curve:
    """One experiment: loss and metric (n,) after `iterations` (n,) gradient steps."""

    iterations: np.ndarray
    losses: np.ndarray
    values: np.ndarray
    # The observations a, b and z of a 2×2 problem with one unobserved entry (see metrics/theory.py), if asked for.
    corner: tuple[float, float, float] | None = None

    def down_to(self, min_loss: float) -> "Curve":
        """The curve, cut after its first loss below `min_loss`."""
        below = np.flatnonzero(self.losses < min_loss)
        end = below[0] + 1 if len(below) else len(self.losses)
        return replace(self, iterations=self.iterations[:end], losses=self.losses[:end], values=self.values[:end])


@dataclass(frozen=True)
class Line:
    """A line of a figure: curves of runs that differ only in their seed. Lines of different depth have panels of their
    own; 0 if the depth is not known.
    """

    name: str
    depth: int
    curves: list[Curve]


@dataclass(frozen=True)
class Wanted:
    """What is read of an experiment: a metric, or |entry| if it is empty."""

    metric: str = ""
    entry: tuple[int, int] | None = None  # None: the unobserved one
    corner: bool = False  # whether the observations are read, too


def load_curve(path: str, wanted: Wanted = Wanted()) -> Curve:
    """The curve of a checkpoint file, of this project or of the original code. Loss and metric are paired by epoch.

    Raises NotRecorded and NoBound; OSError, and ValueError if the file is something else.
    """
    run = read_run(Path(path).parent.parent)
    row, col = entry = wanted.entry or tuple(run.parameters.get("unobserved_entry") or (0, 0))
    metric = wanted.metric or f"e2e_{row}_{col}_value"
    content = load_dictionary(path)
    try:
        evaluators = {**content["train_evaluator"], **content["val_evaluator"]}
        recorded = [str(name) for name in evaluators]
        chosen = {"loss": evaluators["sse_loss_div_2"], "metric": evaluators.get(metric, evaluators["sse_loss_div_2"])}
        loss, values = metrics_of_evaluator(chosen, np.dtype(np.float64)).values()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"is not a checkpoint of a matrix factorization ({error!r}); give one") from None
    if metric not in evaluators and wanted.metric:
        raise NotRecorded(f"was not recorded; give one of {', '.join(recorded)}")
    if metric not in evaluators:
        known = ", ".join(name for name in recorded if re.fullmatch(r"e2e_\d+_\d+_value", name)) or "no entry"
        raise NotRecorded(f"only {known} was recorded; give a run with -tracked_e2e_value_of {row} {col}")
    epochs, at_loss, at_value = np.intersect1d(loss.epochs, values.epochs, return_indices=True)
    losses, values = loss.values[at_loss], values.values[at_value]
    usable = np.isfinite(losses) & np.isfinite(values) & (losses > 0)
    if not usable.any():
        raise ValueError("has no epoch with both loss and metric; give one that has")
    values = values[usable] if wanted.metric else np.abs(values[usable])
    return Curve(epochs[usable] + 1, losses[usable], values, _corner(run, *entry) if wanted.corner else None)


def _corner(run: RecordedRun, row: int, col: int) -> tuple[float, float, float]:
    """The observations a, b and z around an entry. Raises NoBound if the experiment is of another kind."""
    path, num_samples = run.parameters.get("dataset_path"), run.parameters.get("num_samples")
    try:
        dataset = load_matrix_sensing(path or "").first(num_samples or 1)
    except (OSError, ValueError) as error:
        problem = (
            f"its dataset {path:.200} cannot be read ({error!s:.200})" if path else "no run_params.json names them"
        )
        raise NoBound(f"needs the observations of {run.path}, but {problem}; leave it out") from None
    observed = dataset.observed_entries
    if dataset.shape != (2, 2) or observed is None or len(observed) != 3 or 2 * row + col in observed:
        raise NoBound(f"is known for 2x2 matrices with one unobserved entry, and {run.path} is another; leave it out")
    values = dict(zip(observed.tolist(), dataset.observations.tolist(), strict=True))
    a, b, z = values[2 * row + 1 - col], values[2 * (1 - row) + col], values[2 * (1 - row) + 1 - col]
    if not a * b:
        raise NoBound(f"does not exist for {run.path}, which observes 0 beside the unobserved entry; leave it out")
    return a, b, z


def read_lines(directory: str, wanted: Wanted) -> tuple[list[Line], list[str]]:
    """The lines of every finished experiment in a directory, of this project or of the original code, by depth, and a
    line of text for each folder that is skipped.

    Raises ValueError if there is no curve; if all fail, as the first does.
    """
    runs, skipped = read_runs(directory)
    problems = {run.path.name: _problem(run) for run in runs}
    skipped += [f"{name}: {problem}" for name, problem in problems.items() if problem]
    runs, repeats = without_repeats([run for run in runs if not problems[run.path.name]])
    skipped += repeats
    grouped: dict[str, tuple[RecordedRun, list[Curve]]] = {}
    first_error: ValueError | None = None
    for run in runs:
        checkpoint = newest_checkpoint(run.path)
        try:
            curve = load_curve(str(checkpoint), wanted)
        except (OSError, ValueError) as error:
            kind = ValueError if isinstance(error, OSError) else type(error)
            first_error = first_error or kind(f"{checkpoint.name}: {error}")
            skipped.append(f"{run.path.name}: {checkpoint.name}: {error}")
            continue
        grouped.setdefault(canonical(run.compared()), (run, []))[1].append(curve)
    if not grouped:
        reason = f"; skipped: {skipped[0]}" if skipped else ""
        raise first_error or ValueError(f"holds no finished experiment{reason}; give a folder of such folders")
    lines = []
    for depth in sorted({run.parameters["depth"] for run, _ in grouped.values()}):
        panel = [(run, curves) for run, curves in grouped.values() if run.parameters["depth"] == depth]
        names = _names([run for run, _ in panel])
        lines += [Line(name, depth, curves) for (_, curves), name in zip(panel, names, strict=True)]
    return lines, sorted(skipped)


def _problem(run: RecordedRun) -> str:
    """Why a run is skipped; empty if it is not."""
    if any(run.parameters.get(name) is None for name in ("depth", "lr", "init_alpha")):
        return "no matrix factorization experiment"
    if run.status and not run.status.get("finished"):
        return "not finished"
    return "" if newest_checkpoint(run.path) else "has no checkpoint; give -store_checkpoints"


def _names(runs: Sequence[RecordedRun]) -> list[str]:
    """Names of lines: learning rate and initialization, unless other parameters alone tell them apart, and these."""
    differing = differing_names(runs)
    alone = differing and not set(differing).intersection(_INITIALIZATION)
    bases = ["" if alone else f"lr {scientific(run.parameters['lr'])} init {_initialization(run)}" for run in runs]
    return labels(runs, bases, shown=_INITIALIZATION)


def _initialization(run: RecordedRun) -> str:
    """The standard deviation of the product's entries, with (b) if it is balanced."""
    alpha, depth = run.parameters["init_alpha"], run.parameters["depth"]
    if run.parameters.get("weight_init_type") == "identity":
        return f"identity {scientific(alpha)}"
    if run.parameters.get("use_balanced_init"):
        return f"{scientific(alpha)} (b)"
    # A product of depth factors of std α and inner dimension d has entries of variance d^(depth − 1) α^(2 depth).
    try:
        inner = min(load_matrix_sensing(run.parameters.get("dataset_path") or "").shape)
        return scientific(float(f"{inner ** ((depth - 1) / 2) * alpha**depth:.1e}"))
    except (OSError, ValueError, ArithmeticError):
        return f"{scientific(alpha)} in each factor"
