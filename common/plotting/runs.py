"""The runs of a figure: reads the experiments in a folder, and groups those that differ only in their seed."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.cli import print_line
from common.plotting.labels import compared, matrix_names, tensor_names
from common.recorded_runs import (
    TENSOR_METRICS,
    RecordedRun,
    canonical,
    is_experiment,
    newest_checkpoint,
    read_run,
    read_runs,
)


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed: a line, or a panel, of a figure."""

    name: str
    depth: int  # of a matrix factorization, if each depth has a panel; otherwise 0
    values: list[Any]  # what is drawn of each run


def require_matrix_run(run: RecordedRun) -> None:
    """Raises ValueError if a run is no matrix factorization experiment."""
    if any(run.parameters.get(name) is None for name in ("depth", "lr", "init_alpha")):
        of_tensors = "init_std" in run.parameters or (run.path / TENSOR_METRICS).exists()
        known = "a tensor completion experiment; tc_results_plotter.py draws it"
        raise ValueError(known if of_tensors else "no matrix factorization experiment")


def require_tensor_run(run: RecordedRun) -> None:
    """Raises ValueError if a run is no tensor completion experiment."""
    if "depth" in run.parameters:
        raise ValueError("a matrix factorization experiment; dmf_results_plotter.py draws it")
    if "num_samples" not in run.parameters and not (run.path / TENSOR_METRICS).exists():
        raise ValueError("no tensor completion experiment")


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


def read_each(
    directory: str, require: Callable[[RecordedRun], None], read: Callable[[RecordedRun], Any]
) -> tuple[list[tuple[RecordedRun, Any]], list[str]]:
    """Returns every run in a directory with `read(run)`, and a line "folder: reason" for each folder that is skipped.
    The directory may also be the folder of one experiment.

    A run is skipped if `require`, which refuses runs of another kind, or `read` raises a ValueError, or if a newer run
    repeats it. If all are skipped, raises the first error of a subclass of ValueError, or else a ValueError.
    """
    alone = Path(directory).resolve()
    if is_experiment(alone):
        run = _with_parameters(read_run(alone))
        require(run)
        return [(run, read(run))], []
    runs, skipped = read_runs(directory)
    found, errors, of_experiments = [], [], []
    for run in map(_with_parameters, runs):
        name = run.path.name
        if not is_experiment(run.path) and any(map(is_experiment, run.path.glob("[!.]*"))):
            of_experiments.append(name)
            skipped.append(f"{name}: a folder of experiments; give it to -experiments_dir")
            continue
        try:
            require(run)
            found.append((run, read(run)))
        except ValueError as error:
            errors.append(error)
            skipped.append(f"{name}: {error}")
    newest: dict[tuple, tuple[RecordedRun, Any]] = {}
    for (run, value), parameters in zip(found, compared([run for run, _ in found]), strict=True):
        # The original code did not record its seeds.
        key = canonical(parameters), run.values.get("random_seed") if run.provenance else run.path.name
        if key in newest:
            skipped.append(f"{newest[key][0].path.name}: was run again, with the same seed")
        newest[key] = run, value
    if newest:
        return list(newest.values()), sorted(skipped)
    if error := next((error for error in errors if type(error) is not ValueError), None):
        raise error
    if of_experiments:
        names = ", ".join(of_experiments[:10]) + (", …" if len(of_experiments) > 10 else "")
        raise ValueError(f"holds no experiments, but folders of experiments; give one of them: {names}")
    reason = f"; {skipped[0] if len(skipped) == 1 else count_reasons(skipped)[0]}" if skipped else ""
    # Some reasons say what to do.
    remedy = "" if reason.count(";") > 1 else "; give a folder of such folders"
    raise ValueError(f"holds no experiment that can be drawn{reason}{remedy}")


def _with_parameters(run: RecordedRun) -> RecordedRun:
    """Returns a run with the parameters in its folder's name, if the original code wrote no run_params.json."""
    named = re.search(r"_samples_(\d+)(?:_init_(\d+\.?\d*(?:e[+-]?\d+)?))?", run.path.name)
    if run.parameters or not named:
        return run
    init_std = {"init_std": float(named[2])} if named[2] else {}
    return replace(run, parameters={"num_samples": int(named[1]), **init_std})


def read_groups(
    directory: str,
    require: Callable[[RecordedRun], None],
    read: Callable[[Path, RecordedRun], Any],
    panel_for_depth: bool = False,
) -> tuple[list[Group], list[str]]:
    """Returns the finished runs in a directory with `read(checkpoint, run)` of each, grouped, and a line of text for
    each folder that is skipped. With `panel_for_depth`, the groups are ordered by depth, and named for each depth.

    `require` raises ValueError for a run of another kind. Raises as `read_each` does.
    """

    def read_one(run: RecordedRun) -> Any:
        checkpoint = checkpoint_of(run)
        try:
            return read(checkpoint, run)
        except (OSError, ValueError) as error:
            kind = ValueError if isinstance(error, OSError) else type(error)
            raise kind(f"{checkpoint.name}: {error}") from None

    found, skipped = read_each(directory, require, read_one)
    # Depth of the panel → parameters → runs.
    panels: dict[int, dict[str, list[tuple[RecordedRun, Any]]]] = {}
    for each, parameters in zip(found, compared([run for run, _ in found]), strict=True):
        depth = each[0].parameters["depth"] if panel_for_depth else 0
        panels.setdefault(depth, {}).setdefault(canonical(parameters), []).append(each)
    groups = []
    for depth, panel in sorted(panels.items()):
        first = [members[0][0] for members in panel.values()]
        names = tensor_names(first) if require is require_tensor_run else matrix_names(first)
        for name, members in zip(names, panel.values(), strict=True):
            groups.append(Group(name, depth, [value for _, value in members]))
    return groups, skipped


def number_of(count: int, word: str) -> str:
    """Returns "1 experiment" or "2 experiments"."""
    return f"{count} {word}{'s' if count != 1 else ''}"


def report_skipped(found: str, skipped: Sequence[str], list_all: bool) -> None:
    """Prints what was found, and the folders that are skipped: each, or how many for which reason."""
    print_line(found)
    for line in skipped if list_all else count_reasons(skipped):
        print_line(f"  {line}")


def count_reasons(skipped: Sequence[str]) -> list[str]:
    """Returns a line for each reason with the number of folders that are skipped for it, the most frequent first."""
    # A reason may begin with a file name, which differs by folder.
    reasons = Counter(re.sub(r"^\S+\.pt: ", "", line.partition(": ")[2]) for line in skipped)
    return [f"{number_of(count, 'folder')}: {reason}" for reason, count in reasons.most_common()]
