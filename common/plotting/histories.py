"""Histories of metrics from checkpoints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from common.plotting.folders import read_each
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
    return require_checkpoint(run)


def require_checkpoint(run: RecordedRun) -> Path:
    """Returns the newest checkpoint of a run. Raises ValueError if it has none."""
    checkpoint = newest_checkpoint(run.path)
    if not checkpoint:
        raise ValueError("has no checkpoint; run it with -store_checkpoints")
    return checkpoint


@dataclass(frozen=True)
class Group:
    """The histories of runs that differ only in their seed."""

    name: str
    histories: list[dict[str, Series]]  # of each run by metric


def read_history(
    path: str | Path,
    patterns: Sequence[str],
    entry: tuple[int, int] | None = None,
    run: RecordedRun | None = None,
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

    def read(run: RecordedRun) -> dict[str, Series]:
        require(run)
        checkpoint = checkpoint_of(run)
        try:
            return read_history(checkpoint, patterns, entry, run)
        except (OSError, ValueError) as error:
            kind = ValueError if isinstance(error, OSError) else type(error)
            raise kind(f"{checkpoint.name}: {error}") from None

    found, skipped = read_each(directory, read)
    grouped: dict[str, tuple[RecordedRun, list[dict[str, Series]]]] = {}
    for (run, history), parameters in zip(found, compared([run for run, _ in found]), strict=True):
        grouped.setdefault(canonical(parameters), (run, []))[1].append(history)
    runs, histories = zip(*grouped.values(), strict=True)
    return [Group(name, each) for name, each in zip(names(runs), histories, strict=True)], sorted(skipped)
