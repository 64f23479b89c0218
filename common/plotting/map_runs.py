"""The runs of a map over two parameters: the final metric of each, or its metric at a loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from common.datasets.tensor_completion import load_tensor_completion
from common.metrics import theory
from common.plotting.curves import corner_of, load_curve
from common.plotting.folders import read_each
from common.plotting.histories import NotRecorded, checkpoint_of, load_history
from common.recorded_runs import TENSOR_METRICS, RecordedRun, compared, final_metrics, newest_checkpoint

# |unobserved entry| divided by its theoretical lower bound at the loss of the run; see metrics/theory.py.
RATIO_TO_BOUND = "ratio_to_bound"
# What is read from the dataset of a tensor.
TENSOR_FACTS = ("target_rank", "dimension", "order")


@dataclass(frozen=True)
class MapRun:
    """A run of a map."""

    values: dict[str, Any]  # its parameters, and what was read from its dataset
    compared: dict[str, Any]  # the parameters that distinguish runs; input files by their digests
    finished: bool
    diverged: bool
    value: float | None  # of the metric; None if the run did not finish, diverged or did not reach the loss


Measure = Callable[[RecordedRun], float | None]


def read_map_runs(
    directory: str, require: Callable[[RecordedRun], None], measure: Measure, names: tuple[str, str]
) -> tuple[list[MapRun], list[str]]:
    """Returns the runs in a directory, and a line of text for each folder that is skipped. Unfinished and diverged
    runs are included, without a value.

    `require` raises ValueError for a run of another kind; `measure` returns the value of a finished run. `names` are
    the parameters of the map: if one is of `TENSOR_FACTS`, these facts of its target tell runs apart instead of the
    dataset. Raises ValueError if there are no runs, NotRecorded if that is the reason.
    """
    with_facts = bool(set(names) & set(TENSOR_FACTS))

    def read(run: RecordedRun) -> tuple[bool, bool, float | None, dict[str, Any]]:
        require(run)
        facts = _tensor_facts(run.parameters.get("dataset_path") or "") if with_facts else {}
        diverged = run.status.get("stop_reason") == "diverged"
        # The original code recorded no status.
        finished = bool(run.status.get("finished", newest_checkpoint(run.path) or (run.path / TENSOR_METRICS).exists()))
        return finished, diverged, measure(run) if finished and not diverged else None, facts

    found, skipped = read_each(directory, read)
    runs = []
    parameters = compared([run for run, _ in found])
    for (run, (finished, diverged, value, facts)), each in zip(found, parameters, strict=True):
        each = {name: known for name, known in each.items() if not (facts and name == "dataset_path")} | facts
        value = None if value is None or not np.isfinite(value) else value
        runs.append(MapRun({**run.values, **facts}, each, finished, diverged, value))
    return runs, sorted(skipped)


def measure_matrix(metric: str, entry: tuple[int, int] | None, at_loss: float | None) -> Measure:
    """Returns the function that measures a run of matrix factorization: `metric` ("" for |entry|, by default of the
    unobserved entry; RATIO_TO_BOUND) at the end or, with `at_loss`, at the first validation with at most this loss.

    It raises ValueError, NotRecorded and NoBound.
    """

    def measure(run: RecordedRun) -> float | None:
        row, col = entry or tuple(run.parameters.get("unobserved_entry") or (0, 0))
        of_entry = metric in ("", RATIO_TO_BOUND)
        name = f"e2e_{row}_{col}_value" if of_entry else metric
        final = final_metrics(run) if at_loss is None else {}
        if {name, "sse_loss_div_2"} <= final.keys():
            loss, value = final["sse_loss_div_2"], final[name]
        else:
            curve = load_curve(checkpoint_of(run), run, "" if of_entry else metric, (row, col))
            reached = np.flatnonzero(curve.losses <= (np.inf if at_loss is None else at_loss))
            if not len(reached):
                return None
            index = reached[-1 if at_loss is None else 0]
            loss, value = curve.losses[index], curve.values[index]
        if loss is None or value is None:
            return None
        if metric == RATIO_TO_BOUND:
            corner, _ = corner_of(run, row, col)
            value = abs(value) / theory.unobserved_entry(np.array(loss), *corner)
        return float(abs(value) if of_entry else value)

    return measure


def measure_tensor(metric: str) -> Measure:
    """Returns the function that measures a run of tensor completion: the final value of `metric`. It raises ValueError
    and NotRecorded.
    """

    def measure(run: RecordedRun) -> float | None:
        final = final_metrics(run)
        # In the results, the metrics of the model have its name.
        for name in (metric, f"model_{metric}"):
            if name in final:
                return final[name]
        metrics, recorded = {}, list(final)
        if checkpoint := newest_checkpoint(run.path):
            metrics, recorded = load_history(checkpoint, [metric])
        if metric not in metrics:
            raise NotRecorded(
                f"this metric was not recorded; give one of {', '.join(dict.fromkeys([*recorded, *final]))}"
            )
        return float(metrics[metric].values[-1])

    return measure


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
