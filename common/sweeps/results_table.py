"""The table of the runs in an output folder, with their parameters and final metrics: results.csv."""

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path

from common.files import csv_bytes, write_atomically
from common.recorded_runs import RecordedRun, final_metrics, is_experiment, read_runs

RESULTS_TABLE = "results.csv"
# The first columns. "sweep" is the time at which the sweep of the run began, "experiment" the number of the run in it.
_FIRST = ("folder", "sweep", "experiment", "finished", "stop_reason", "last_epoch")


def write_results_table(directory: Path) -> None:
    """Writes results.csv: a row for each experiment's folder in `directory`, those of earlier sweeps included, in the
    order of the sweeps. Does nothing if there is no experiment. Processes that share the folder write in turn.

    Columns are those of `_FIRST`, every parameter and every final metric; a cell is empty if the run has no such value,
    or if it is not finite. Folders whose run_params.json is damaged are left out. Raises OSError, and ValueError if
    results.csv is another file.
    """
    path, handle = directory / RESULTS_TABLE, os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists() and not path.read_bytes().startswith(",".join(_FIRST).encode()):
            raise ValueError("there is another file of this name; move it away")
        runs, _ = read_runs(directory)
        rows = [_row(run) for run in runs if is_experiment(run.path)]
        columns = list(dict.fromkeys(name for row in reversed(rows) for name in row))
        if rows:
            write_atomically(path, csv_bytes(rows, columns))
    finally:
        os.close(handle)


def _row(run: RecordedRun) -> dict[str, str]:
    """Returns the cells of a run by column."""
    status = {name: run.status.get(name) for name in ("finished", "stop_reason", "last_epoch")}
    values = {"folder": run.path.name, **dict(zip(("sweep", "experiment"), run.order, strict=True)), **status}
    values |= {name: value for name, value in {**run.parameters, **final_metrics(run)}.items() if name not in values}
    texts = {name: json.dumps(each) if isinstance(each, (list, dict)) else str(each) for name, each in values.items()}
    return {name: "" if values[name] is None else text for name, text in texts.items()}
