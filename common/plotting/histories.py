"""Histories of metrics from checkpoints, and runs that differ only in their seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.plotting.folders import Result, read_each
from common.recorded_runs import RecordedRun, canonical, compared, newest_checkpoint, read_run
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
        raise ValueError("has no checkpoint; run it with -store_checkpoints")
    return checkpoint


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed: a line, or a panel, of a figure."""

    name: str
    depth: int  # of a matrix factorization; 0 if it is not known
    runs: list[Any]  # what is drawn of each run: a Curve, or histories by metric


def read_seeds(
    directory: str, require: Callable[[RecordedRun], None], read: Callable[[Path, RecordedRun], Result]
) -> tuple[list[tuple[RecordedRun, list[Result]]], list[str]]:
    """Returns, for each set of finished runs in a directory that differ only in their seed, the first run and
    `read(checkpoint, run)` of each; and a line of text for each folder that is skipped.

    `require` raises ValueError for a run of another kind. Raises as `read_each` does.
    """

    def read_one(run: RecordedRun) -> Result:
        require(run)
        checkpoint = checkpoint_of(run)
        try:
            return read(checkpoint, run)
        except (OSError, ValueError) as error:
            kind = ValueError if isinstance(error, OSError) else type(error)
            raise kind(f"{checkpoint.name}: {error}") from None

    found, skipped = read_each(directory, read_one)
    groups: dict[str, tuple[RecordedRun, list[Result]]] = {}
    for (run, result), parameters in zip(found, compared([run for run, _ in found]), strict=True):
        groups.setdefault(canonical(parameters), (run, []))[1].append(result)
    return list(groups.values()), sorted(skipped)


def read_history(
    path: str | Path,
    run: RecordedRun | None = None,
    patterns: Sequence[str] = (),
    entry: tuple[int, int] | None = None,
) -> dict[str, Series]:
    """Returns the metrics of a run from its checkpoint: those whose names match one of `patterns` or, without patterns,
    the absolute value of the matrix entry `entry`, by default the unobserved one. `run` is what its folder records, if
    that has been read.

    Raises OSError, ValueError and NotRecorded.
    """
    run = run or read_run(Path(path).parent.parent)
    row, col = entry or tuple(run.parameters.get("unobserved_entry") or (0, 0))
    names = patterns or [f"e2e_{row}_{col}_value"]
    metrics, recorded = load_history(path, names)
    require_metrics(metrics, recorded, names)
    if patterns:
        return metrics
    ((epochs, values),) = metrics.values()
    return {"": Series(epochs, np.abs(values))}


def read_groups(
    directory: str,
    patterns: Sequence[str],
    require: Callable[[RecordedRun], None],
    names: Callable[[Sequence[RecordedRun]], list[str]],
    entry: tuple[int, int] | None = None,
) -> tuple[list[Group], list[str]]:
    """Returns the histories of the finished experiments in a directory (see `read_history`), and a line of text for
    each folder that is skipped.

    `require` raises ValueError for a run of another kind; `names` returns the names of groups from a run of each.
    Raises ValueError if there is no history, NotRecorded if that is the reason.
    """
    groups, skipped = read_seeds(directory, require, partial(read_history, patterns=patterns, entry=entry))
    runs, histories = zip(*groups, strict=True)
    return [Group(name, 0, each) for name, each in zip(names(runs), histories, strict=True)], skipped
