"""What figures draw of a run: the metrics in its checkpoint, a metric against the loss, or a number."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

import numpy as np

from common.metrics import theory
from common.plotting.runs import checkpoint_of, observed_problem
from common.recorded_runs import RecordedRun, final_metrics, newest_checkpoint
from common.tensor_files import load_dictionary
from common.training.history import Series, metrics_of_evaluator

# Row and column of a matrix entry, if one is given.
Entry = tuple[int, int] | None
# |unobserved entry| divided by its theoretical lower bound at the loss of the run; see metrics/theory.py.
RATIO_TO_BOUND = "ratio_to_bound"


class NotRecorded(ValueError):
    """An experiment did not record the metric or the entry."""


class NoBound(ValueError):
    """There is no bound for an experiment or a metric."""


@dataclass(frozen=True)
class Curve:
    """Loss (n,) and metric (n,) of one run after `epochs` (n,) epochs."""

    epochs: np.ndarray
    losses: np.ndarray
    values: np.ndarray
    # The observations a, b and z of a 2×2 problem with one unobserved entry (see metrics/theory.py), if wanted.
    corner: tuple[float, float, float] | None = None

    def first_below(self, losses: np.ndarray) -> np.ndarray:
        """Returns the index of the first point below each of `losses`; n if there is none."""
        return np.searchsorted(-np.minimum.accumulate(self.losses), -losses, side="right")

    def values_below(self, losses: np.ndarray) -> np.ndarray:
        """Returns the value of the first point below each of `losses`, NaN if there is none."""
        return np.append(self.values, np.nan)[self.first_below(losses)]

    def down_to(self, min_loss: float) -> "Curve":
        """Returns the curve up to its first loss below `min_loss`."""
        end = int(self.first_below(np.array(min_loss))) + 1
        return replace(self, epochs=self.epochs[:end], losses=self.losses[:end], values=self.values[:end])


def entry_of(run: RecordedRun, entry: Entry) -> tuple[int, int]:
    """Returns `entry` or, if it is None, the unobserved entry of a run: (0, 0) if none is recorded."""
    return entry or tuple(run.parameters.get("unobserved_entry") or (0, 0))


def read_history(
    path: str | Path, run: RecordedRun, patterns: Sequence[str] = ("",), entry: Entry = None
) -> dict[str, Series]:
    """Returns the metrics in a checkpoint, of this project or of the original code, whose names match one of `patterns`
    (such as singular_value_*), by name. The pattern and name "" is the absolute value of the matrix entry `entry`, by
    default the unobserved one. Raises NotRecorded; OSError, and ValueError if the file is something else.
    """
    row, col = entry_of(run, entry)
    of_entry = f"e2e_{row}_{col}_value"
    content = load_dictionary(path)
    try:
        evaluators = {**content["train_evaluator"], **content["val_evaluator"]}
        recorded = [str(name) for name in evaluators]
        wanted = [pattern or of_entry for pattern in patterns]
        chosen = [name for name in recorded if any(fnmatchcase(name, pattern) for pattern in wanted)]
        metrics = metrics_of_evaluator({name: evaluators[name] for name in chosen})
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"is not a checkpoint of an experiment ({error!r}); give one") from None
    if "sse_loss_div_2" in patterns and "sse_loss_div_2" not in recorded:
        raise ValueError("is not a checkpoint of a matrix factorization (it has no sse_loss_div_2); give one")
    if "" in patterns:
        if of_entry not in metrics:
            entries = [name for name in recorded if re.fullmatch(r"e2e_\d+_\d+_value", name)]
            known = f"only {', '.join(entries)} {'was' if len(entries) == 1 else 'were'}" if entries else "no entry was"
            remedy = f"plot another metric with -y, or give {'such an entry or ' * bool(entries)}a run with "
            remedy += f"-tracked_e2e_value_of {row} {col}"
            raise NotRecorded(f"{known} recorded; {remedy}")
        epochs, values = metrics.pop(of_entry)
        metrics[""] = Series(epochs, np.abs(values))
    for pattern in filter(None, patterns):
        if not any(fnmatchcase(name, pattern) for name in metrics):
            raise NotRecorded(f"{pattern} was not recorded; give one of {', '.join(recorded)}")
    return metrics


def load_curve(
    path: str | Path, run: RecordedRun, metric: str = "", entry: Entry = None, corner: bool = False
) -> Curve:
    """Returns the curve of a checkpoint; see `read_history`. Pairs loss and metric by epoch. `corner` says whether to
    read the observations. Raises as `read_history` does, and NoBound.
    """
    metrics = read_history(path, run, ("sse_loss_div_2", escape(metric)), entry)
    loss, other = metrics["sse_loss_div_2"], metrics[metric]
    epochs, at_loss, at_value = np.intersect1d(loss.epochs, other.epochs, return_indices=True)
    losses, values = loss.values[at_loss], other.values[at_value]
    usable = np.isfinite(losses) & np.isfinite(values) & (losses > 0)
    if not usable.any():
        diverged = len(losses) and not np.isfinite(losses).any()
        raise ValueError("diverged" if diverged else "has no epoch with both loss and metric; give one that has")
    observations = corner_of(run, *entry_of(run, entry)) if corner else None
    return Curve(epochs[usable] + 1, losses[usable], values[usable], observations)


def corner_of(run: RecordedRun, row: int, col: int) -> tuple[float, float, float]:
    """Returns the observations a, b and z of metrics/theory.py. Raises NoBound if the experiment has no bounds."""
    try:
        _, unobserved, observations = observed_problem(run)
    except (OSError, ValueError) as error:
        path = run.parameters.get("dataset_path") or ""
        unread = f"its dataset {path:.200} cannot be read ({error!s:.200})" if path else "no run_params.json names them"
        raise NoBound(f"needs the observations of {run.path}, but {unread}; leave it out") from None
    if len(observations or ()) != 3 or unobserved != [row, col]:
        raise NoBound(f"is known only for 2x2 matrices with one unobserved entry, unlike {run.path}; leave it out")
    if not observations[0] * observations[1]:
        raise NoBound(f"does not exist for {run.path}, which observes 0 beside the unobserved entry; leave it out")
    return tuple(observations)


def measure_matrix(run: RecordedRun, metric: str, entry: Entry = None, at_loss: float | None = None) -> float | None:
    """Returns the `metric` ("" for |entry|, by default of the unobserved entry; RATIO_TO_BOUND) of a run of matrix
    factorization at its end or, with `at_loss`, at the first validation with at most this loss; None if there is none.
    Of a run without checkpoint, the end counts if its loss is at most `at_loss`.

    Raises ValueError, NotRecorded and NoBound.
    """
    row, col = entry_of(run, entry)
    of_entry = metric in ("", RATIO_TO_BOUND)
    name = f"e2e_{row}_{col}_value" if of_entry else metric
    final = {} if at_loss is not None and newest_checkpoint(run.path) else final_metrics(run)
    if {name, "sse_loss_div_2"} <= final.keys():
        loss, value = final["sse_loss_div_2"], final[name]
    else:
        curve = load_curve(checkpoint_of(run), run, "" if of_entry else metric, entry)
        index = -1 if at_loss is None else int(np.argmax(curve.losses <= at_loss))
        loss, value = curve.losses[index], curve.values[index]
    if loss is None or value is None or (at_loss is not None and loss > at_loss):
        return None
    if metric == RATIO_TO_BOUND:
        value = abs(value) / theory.unobserved_entry(np.array(loss), *corner_of(run, row, col))
    return float(abs(value) if of_entry else value)


def measure_tensor(run: RecordedRun, metric: str) -> float | None:
    """Returns the final value of `metric` of a run of tensor completion. Raises ValueError and NotRecorded."""
    final, checkpoint = final_metrics(run), newest_checkpoint(run.path)
    # In the results, the metrics of the model have its name.
    for name in (metric, f"model_{metric}"):
        if name in final:
            return final[name]
    if not checkpoint:
        raise NotRecorded(f"{metric} was not recorded; give one of {', '.join(final)}")
    try:
        return float(read_history(checkpoint, run, [escape(metric)])[metric].values[-1])
    except NotRecorded as error:
        raise NotRecorded(", ".join([str(error), *final])) from None
