"""Reading the experiments of a figure from a directory of their folders."""

from collections.abc import Callable
from typing import TypeVar

from common.recorded_runs import RecordedRun, read_runs, without_repeats

Result = TypeVar("Result")


def read_each(
    directory: str, read: Callable[[RecordedRun], Result]
) -> tuple[list[tuple[RecordedRun, Result]], list[str]]:
    """Returns every run in a directory with `read(run)`, and a line of text for each run that is skipped.

    A run is skipped if `read` raises a ValueError, or if a newer one repeats it. If all are skipped, raises the first
    error of a subclass of ValueError, or else a ValueError.
    """
    runs, skipped = read_runs(directory)
    found, errors = {}, []
    for run in runs:
        try:
            found[run.path] = read(run)
        except ValueError as error:
            errors.append(error)
            skipped.append(f"{run.path.name}: {error}")
    runs, repeats = without_repeats([run for run in runs if run.path in found])
    if not runs:
        reason = f"; skipped: {skipped[0]}" if skipped else ""
        empty = ValueError(f"holds no finished experiment{reason}; give a folder of such folders")
        raise next((error for error in errors if type(error) is not ValueError), empty)
    return [(run, found[run.path]) for run in runs], skipped + repeats
