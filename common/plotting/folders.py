"""Reading the experiments of a figure from a directory of their folders."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from common.cli import print_line
from common.recorded_runs import RecordedRun, is_experiment, read_run, read_runs, without_repeats

Result = TypeVar("Result")

# Why a plotter skips an experiment of the other kind.
OF_MATRICES = "a matrix factorization experiment; dmf_results_plotter.py draws it"
OF_TENSORS = "a tensor completion experiment; tc_results_plotter.py draws it"
_OF_EXPERIMENTS = "a folder of experiments; give it to -experiments_dir"


def read_each(
    directory: str, read: Callable[[RecordedRun], Result]
) -> tuple[list[tuple[RecordedRun, Result]], list[str]]:
    """Returns every run in a directory with `read(run)`, and a line "folder: reason" for each run that is skipped. The
    directory may also be the folder of one experiment.

    A run is skipped if `read` raises a ValueError, or if a newer one repeats it. If all are skipped, raises the first
    error of a subclass of ValueError, or else a ValueError.
    """
    alone = Path(directory).resolve()
    if is_experiment(alone):
        run = read_run(alone)
        return [(run, read(run))], []
    runs, skipped = read_runs(directory)
    found, errors, of_experiments = {}, [], []
    for run in runs:
        if not is_experiment(run.path) and any(map(is_experiment, run.path.glob("[!.]*"))):
            of_experiments.append(run.path.name)
            skipped.append(f"{run.path.name}: {_OF_EXPERIMENTS}")
            continue
        try:
            found[run.path] = read(run)
        except ValueError as error:
            errors.append(error)
            skipped.append(f"{run.path.name}: {error}")
    runs, repeats = without_repeats([run for run in runs if run.path in found])
    if not runs:
        empty = ValueError(_nothing_found(skipped, of_experiments))
        raise next((error for error in errors if type(error) is not ValueError), empty)
    return [(run, found[run.path]) for run in runs], skipped + repeats


def number_of(count: int, word: str) -> str:
    """Returns "1 experiment" or "2 experiments"."""
    return f"{count} {word}{'s' if count != 1 else ''}"


def _nothing_found(skipped: Sequence[str], of_experiments: Sequence[str]) -> str:
    """Returns the error message if no folder of a directory can be drawn."""
    if of_experiments:
        names = ", ".join(of_experiments[:10]) + (", …" if len(of_experiments) > 10 else "")
        return f"holds no experiments, but folders of experiments; give one of them: {names}"
    reason = f"; {skipped[0] if len(skipped) == 1 else count_reasons(skipped)[0]}" if skipped else ""
    # Some reasons say what to do.
    remedy = "" if reason.count(";") > 1 else "; give a folder of such folders"
    return f"holds no experiment that can be drawn{reason}{remedy}"


def report_skipped(found: str, skipped: Sequence[str], list_all: bool) -> None:
    """Prints what was found, and the folders that are skipped: each, or how many for which reason."""
    print_line(found)
    for line in skipped if list_all else count_reasons(skipped):
        print_line(f"  {line}")


def count_reasons(skipped: Sequence[str]) -> list[str]:
    """Returns a line for each reason with the number of folders that are skipped for it, the most frequent first."""
    # A reason may begin with a file name, which differs by folder.
    reasons = Counter(re.sub(r"^\S+\.pt: ", "", line.partition(": ")[2]) for line in skipped)
    return [f"{count} folder{'s' if count != 1 else ''}: {reason}" for reason, count in reasons.most_common()]
