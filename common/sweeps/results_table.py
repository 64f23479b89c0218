"""The table of the runs in an output folder, with their parameters and final metrics: results.csv."""

import csv
import io
import json
import os
from contextlib import suppress
from pathlib import Path

from common.files import csv_bytes, folder_lock, open_regular, write_atomically
from common.recorded_runs import RecordedRun, final_metrics, is_experiment, read_run

RESULTS_TABLE = "results.csv"
# The first columns. "sweep" is the time at which the sweep of the run began, "experiment" the number of the run in it.
_FIRST = ("folder", "sweep", "experiment", "finished", "stop_reason", "last_epoch")


def write_results_table(directory: Path) -> None:
    """Writes results.csv: a row for each experiment's folder in `directory`, those of earlier sweeps included, in the
    order of the sweeps. Does nothing if there is no experiment.

    Columns are those of `_FIRST`, every parameter and every final metric; a cell is empty if the run has no such value,
    or if it is not finite. Folders whose run_params.json is damaged are left out. The row of a run that had finished
    when the table was written before is taken from there, so that a folder of many runs is not read again. Processes
    that share the folder write one after the other. Raises OSError, and ValueError if results.csv is another file.
    """
    path = directory / RESULTS_TABLE
    with folder_lock(directory):
        content, time = _read(path)
        known = _rows_of(content)
        rows = []
        for folder in directory.glob("[!.]*"):
            row = known.get(folder.name, {})
            complete = row.get("finished") == "True" and row["experiment"].isdecimal()
            if complete and _is_older(folder / "run_params.json", time):
                rows.append(row)
            elif folder.is_dir() and is_experiment(folder):
                with suppress(ValueError):
                    rows.append(_row(read_run(folder)))
        rows.sort(key=lambda row: (row["sweep"], int(row["experiment"]), row["folder"]))
        columns = list(dict.fromkeys([*_FIRST, *(name for row in reversed(rows) for name in row)]))
        table = csv_bytes(rows, columns)
        if rows and table != content:
            write_atomically(path, table)


def _is_older(path: Path, time: int) -> bool:
    """Returns whether a file exists, and was changed before `time`, in nanoseconds."""
    try:
        return path.stat().st_mtime_ns < time
    except OSError:
        return False


def _row(run: RecordedRun) -> dict[str, str]:
    """Returns the cells of a run by column."""
    sweep, experiment = run.order
    status = {name: run.status.get(name) for name in ("finished", "stop_reason", "last_epoch")}
    values = {"folder": run.path.name, "sweep": sweep, "experiment": experiment, **status, **run.parameters}
    values |= {name: value for name, value in final_metrics(run).items() if name not in values}
    texts = {name: json.dumps(each) if isinstance(each, (list, dict)) else str(each) for name, each in values.items()}
    return {name: "" if values[name] is None else text for name, text in texts.items()}


def _read(path: Path) -> tuple[bytes, int]:
    """Returns the content of a file and when it was written, in nanoseconds; nothing and 0 if it does not exist."""
    try:
        with open_regular(path) as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return b"", 0


def _rows_of(content: bytes) -> dict[str, dict[str, str]]:
    """Returns the complete rows of a table by folder; none if it is damaged. Raises ValueError if it is no table of
    this project.
    """
    lines = csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""))
    try:
        columns = next(lines, list(_FIRST))
        if tuple(columns[: len(_FIRST)]) != _FIRST:
            raise ValueError("there is another file of this name; move it away")
        return {cells[0]: dict(zip(columns, cells, strict=True)) for cells in lines if len(cells) == len(columns)}
    except csv.Error:
        return {}
