"""Metric-versus-loss curves from checkpoints of matrix factorization experiments."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.datasets.matrix_sensing import load_matrix_sensing
from common.naming import scientific
from common.plotting.folders import OF_TENSORS
from common.plotting.histories import Group, NotRecorded, load_history, read_seeds
from common.recorded_runs import TENSOR_METRICS, RecordedRun, differing_names, labels, read_run

_INITIALIZATION = ("lr", "weight_init_type", "init_alpha", "use_balanced_init")


class NoBound(ValueError):
    """There is no bound for an experiment or a metric."""


@dataclass(frozen=True)
class Curve:
    """Loss (n,) and metric (n,) of one experiment after `iterations` (n,) gradient steps."""

    iterations: np.ndarray
    losses: np.ndarray
    values: np.ndarray
    # The observations a, b and z of a 2×2 problem with one unobserved entry (see metrics/theory.py), if wanted.
    corner: tuple[float, float, float] | None = None
    # The sign of the determinant while the bounds hold.
    det_sign: int = 1

    def first_below(self, losses: np.ndarray) -> np.ndarray:
        """Returns the index of the first point below each of `losses`; n if there is none."""
        return np.searchsorted(-np.minimum.accumulate(self.losses), -losses, side="right")

    def down_to(self, min_loss: float) -> "Curve":
        """Returns the curve up to its first loss below `min_loss`."""
        end = int(self.first_below(np.array(min_loss))) + 1
        return replace(self, iterations=self.iterations[:end], losses=self.losses[:end], values=self.values[:end])


def load_curve(
    path: str | Path,
    run: RecordedRun | None = None,
    metric: str = "",
    entry: tuple[int, int] | None = None,
    corner: bool = False,
) -> Curve:
    """Returns the curve of a checkpoint of this project or of the original code. Pairs loss and metric by epoch.

    `run` is what its folder records, if that has been read; without a `metric`, the curve is that of |entry|, by
    default of the unobserved entry; `corner` says whether to read the observations. Raises NotRecorded and NoBound;
    OSError, and ValueError if the file is something else.
    """
    run = run or read_run(Path(path).parent.parent)
    row, col = entry or tuple(run.parameters.get("unobserved_entry") or (0, 0))
    name = metric or f"e2e_{row}_{col}_value"
    metrics, recorded = load_history(path, ("sse_loss_div_2", name))
    if "sse_loss_div_2" not in metrics:
        raise ValueError("is not a checkpoint of a matrix factorization (it has no sse_loss_div_2); give one")
    loss = metrics["sse_loss_div_2"]
    if name not in metrics and metric:
        raise NotRecorded(f"this metric was not recorded; give one of {', '.join(recorded)}")
    if name not in metrics:
        entries = [name for name in recorded if re.fullmatch(r"e2e_\d+_\d+_value", name)]
        known = f"only {', '.join(entries)} {'was' if len(entries) == 1 else 'were'}" if entries else "no entry was"
        remedy = f"give {'such an entry, or ' * bool(entries)}a run with -tracked_e2e_value_of {row} {col}"
        raise NotRecorded(f"{known} recorded; {remedy}")
    epochs, at_loss, at_value = np.intersect1d(loss.epochs, metrics[name].epochs, return_indices=True)
    losses, values = loss.values[at_loss], metrics[name].values[at_value]
    usable = np.isfinite(losses) & np.isfinite(values) & (losses > 0)
    if not usable.any():
        diverged = len(losses) and not np.isfinite(losses).any()
        raise ValueError("diverged" if diverged else "has no epoch with both loss and metric; give one that has")
    values = values if metric else np.abs(values)
    observations = corner_of(run, row, col) if corner else ()
    return Curve(epochs[usable] + 1, losses[usable], values[usable], *observations)


def corner_of(run: RecordedRun, row: int, col: int) -> tuple[tuple[float, float, float], int]:
    """Returns the observations a, b and z of metrics/theory.py, and the sign of the determinant while the bounds hold.

    Raises NoBound if the experiment has no bounds.
    """
    path, num_samples = run.parameters.get("dataset_path") or "", run.parameters.get("num_samples") or 1
    try:
        dataset = load_matrix_sensing(path).first(num_samples)
    except (OSError, ValueError) as error:
        unread = f"its dataset {path:.200} cannot be read ({error!s:.200})"
        problem = unread if path else "no run_params.json names them"
        raise NoBound(f"needs the observations of {run.path}, but {problem}; leave it out") from None
    observed = dataset.observed_entries
    if dataset.shape != (2, 2) or observed is None or len(observed) != 3 or 2 * row + col in observed:
        raise NoBound(f"is known only for 2x2 matrices with one unobserved entry, unlike {run.path}; leave it out")
    values = dict(zip(observed.tolist(), dataset.observations.tolist(), strict=True))
    a, b, z = values[2 * row + 1 - col], values[2 * (1 - row) + col], values[2 * (1 - row) + 1 - col]
    if not a * b:
        raise NoBound(f"does not exist for {run.path}, which observes 0 beside the unobserved entry; leave it out")
    return (a, b, z), int(np.sign(a * b)) * (1 if row == col else -1)


def read_lines(directory: str, **wanted: Any) -> tuple[list[Group], list[str]]:
    """Returns the lines of the finished experiments in a directory, of this project or of the original code, by depth,
    and a line of text for each folder that is skipped. `wanted` are arguments of `load_curve`.

    Raises ValueError if there is no curve; NotRecorded or NoBound if that is the reason.
    """
    groups, skipped = read_seeds(directory, require_matrix_run, partial(load_curve, **wanted))
    lines = []
    for depth in sorted({run.parameters["depth"] for run, _ in groups}):
        runs, curves = zip(*(group for group in groups if group[0].parameters["depth"] == depth), strict=True)
        lines += [Group(name, depth, of_line) for name, of_line in zip(names_of_lines(runs), curves, strict=True)]
    return lines, skipped


def require_matrix_run(run: RecordedRun) -> None:
    """Raises ValueError if a run is no matrix factorization experiment."""
    if any(run.parameters.get(name) is None for name in ("depth", "lr", "init_alpha")):
        of_tensors = "init_std" in run.parameters or (run.path / TENSOR_METRICS).exists()
        raise ValueError(OF_TENSORS if of_tensors else "no matrix factorization experiment")


def names_of_lines(runs: Sequence[RecordedRun]) -> list[str]:
    """Returns the names of lines: learning rate and initialization, unless only other parameters differ, and the other
    parameters in which the runs differ.
    """
    differing = differing_names(runs)
    alone = differing and not set(differing).intersection(_INITIALIZATION)
    bases = ["" if alone else f"lr {scientific(run.parameters['lr'])} {_initialization(run)}" for run in runs]
    return labels(runs, bases, shown=_INITIALIZATION)


def _initialization(run: RecordedRun) -> str:
    """Returns the initialization as text: "init" and the standard deviation of the product's entries, with (b) if it is
    balanced; or "factor init" and that of each factor's entries, if the shape of the matrix is not known.
    """
    alpha, depth = run.values["init_alpha"], run.values["depth"]
    if alpha is None:
        return f"init unknown, from {Path(run.values['trainer_checkpoint']).name}"
    if run.values.get("weight_init_type") == "identity":
        return f"init identity {scientific(alpha)}"
    if run.values.get("use_balanced_init"):
        return f"init {scientific(alpha)} (b)"
    # A product of factors with std α and inner dimension d has entries of variance d^(depth − 1) α^(2 depth).
    try:
        shape = load_matrix_sensing(run.parameters.get("dataset_path") or "").shape
        inner = run.parameters.get("hidden_dim") or min(shape)
        return f"init {scientific(float(f'{inner ** ((depth - 1) / 2) * alpha**depth:.1e}'))}"
    except (OSError, ValueError, ArithmeticError):
        return f"factor init {scientific(alpha)}"
