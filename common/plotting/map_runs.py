"""The runs of a map over two parameters: the final metric of each, or its metric at a loss."""

from collections.abc import Callable
from dataclasses import dataclass
from glob import escape
from typing import Any

import numpy as np

from common.metrics import theory
from common.plotting.histories import NotRecorded, corner_of, entry_of, load_curve, read_history
from common.plotting.runs import checkpoint_of, read_each
from common.recorded_runs import TENSOR_METRICS, RecordedRun, compared, final_metrics, newest_checkpoint

# |unobserved entry| divided by its theoretical lower bound at the loss of the run; see metrics/theory.py.
RATIO_TO_BOUND = "ratio_to_bound"


@dataclass(frozen=True)
class MapRun:
    """A run of a map."""

    values: dict[str, Any]  # its parameters
    compared: dict[str, Any]  # the parameters that tell runs apart; input files by their digests
    finished: bool
    value: float | None  # of the metric; None if the run did not finish, diverged or did not reach the loss


def read_map_runs(
    directory: str,
    require: Callable[[RecordedRun], None],
    measure: Callable[[RecordedRun], float | None],
) -> tuple[list[MapRun], list[str]]:
    """Returns the runs in a directory, also unfinished and diverged ones, and a line of text for each folder that is
    skipped. `measure` returns the value of a finished run. Raises as `read_each` does.
    """

    def read(run: RecordedRun) -> tuple[bool, float | None]:
        # The original code recorded no status.
        finished = bool(run.status.get("finished", newest_checkpoint(run.path) or (run.path / TENSOR_METRICS).exists()))
        value = measure(run) if finished and run.status.get("stop_reason") != "diverged" else None
        return finished, None if value is None or not np.isfinite(value) else value

    found, skipped = read_each(directory, require, read)
    parameters = compared([run for run, _ in found])
    return [MapRun(run.values, known, *rest) for (run, rest), known in zip(found, parameters, strict=True)], skipped


def measure_matrix(
    run: RecordedRun, metric: str, entry: tuple[int, int] | None = None, at_loss: float | None = None
) -> float | None:
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
        reached = [-1] if at_loss is None else np.flatnonzero(curve.losses <= at_loss)
        loss, value = (curve.losses[reached[0]], curve.values[reached[0]]) if len(reached) else (None, None)
    if loss is None or value is None or (at_loss is not None and loss > at_loss):
        return None
    if metric == RATIO_TO_BOUND:
        value = abs(value) / theory.unobserved_entry(np.array(loss), *corner_of(run, row, col)[0])
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
