"""Histories of metrics from checkpoints."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from common.recorded_runs import RecordedRun, newest_checkpoint
from common.tensor_files import load_dictionary
from common.training.history import Series, metrics_of_evaluator


class NotRecorded(ValueError):
    """An experiment did not record the metric or the entry."""


def load_history(path: str | Path, patterns: Sequence[str]) -> tuple[dict[str, Series], list[str]]:
    """Returns the metrics in a checkpoint, of this project or of the original code, whose names match one of `patterns`
    (such as singular_value_*), by name, and the names of all metrics in it.

    Raises OSError, and ValueError if the file is something else.
    """
    content = load_dictionary(path)
    try:
        evaluators = {**content["train_evaluator"], **content["val_evaluator"]}
        recorded = [str(name) for name in evaluators]
        chosen = {
            name: evaluators[name] for name in recorded if any(fnmatchcase(name, pattern) for pattern in patterns)
        }
        return metrics_of_evaluator(chosen, np.dtype(np.float64)), recorded
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"is not a checkpoint of an experiment ({error!r}); give one") from None


def require_metrics(metrics: dict[str, Series], recorded: Sequence[str], patterns: Sequence[str]) -> None:
    """Raises NotRecorded if there is no metric for one of the patterns."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in metrics):
            raise NotRecorded(f"{pattern} was not recorded; give one of {', '.join(recorded)}")


def checkpoint_of(run: RecordedRun) -> Path:
    """Returns the newest checkpoint of a run that ended. Raises ValueError if the run is to be skipped."""
    if run.status and not run.status.get("finished"):
        raise ValueError("not finished")
    if run.status.get("stop_reason") == "diverged":
        raise ValueError("diverged")
    checkpoint = newest_checkpoint(run.path)
    if not checkpoint:
        raise ValueError("has no checkpoint; give -store_checkpoints")
    return checkpoint
