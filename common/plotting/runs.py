"""The runs of a figure: reads the experiments in a folder, and groups those that differ only in their seed."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.cli import print_line
from common.datasets.matrix_sensing import load_matrix_sensing
from common.naming import scientific
from common.recorded_runs import (
    TENSOR_METRICS,
    RecordedRun,
    canonical,
    compared,
    differing_names,
    is_experiment,
    newest_checkpoint,
    read_run,
    read_runs,
)

# A recorded run, and what is drawn of it.
Found = tuple[RecordedRun, Any]


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed: a line, or a panel, of a figure."""

    name: str
    panel: str  # its title, "depth 3", if each depth has one; otherwise ""
    values: list[Any]  # what is drawn of each run


def require_matrix_run(run: RecordedRun) -> None:
    """Raises ValueError if a run is no matrix factorization experiment."""
    if any(run.parameters.get(name) is None for name in ("depth", "lr", "init_alpha")):
        if "init_std" in run.parameters or (run.path / TENSOR_METRICS).exists():
            raise ValueError("a tensor completion experiment; tc_results_plotter.py draws it")
        raise ValueError("no matrix factorization experiment")


def require_tensor_run(run: RecordedRun) -> None:
    """Raises ValueError if a run is no tensor completion experiment."""
    if "depth" in run.parameters:
        raise ValueError("a matrix factorization experiment; dmf_results_plotter.py draws it")
    if "num_samples" not in run.parameters and not (run.path / TENSOR_METRICS).exists():
        raise ValueError("no tensor completion experiment")


def is_finished(run: RecordedRun) -> bool:
    """Returns whether a run ended; the original code recorded no status."""
    return bool(run.status.get("finished", newest_checkpoint(run.path) or (run.path / TENSOR_METRICS).exists()))


def checkpoint_of(run: RecordedRun) -> Path:
    """Returns the newest checkpoint of a run that ended. Raises ValueError if the run is to be skipped."""
    if run.status and not run.status.get("finished"):
        raise ValueError("not finished; -resume continues it")
    if run.status.get("stop_reason") == "diverged":
        raise ValueError("diverged")
    if checkpoint := newest_checkpoint(run.path):
        return checkpoint
    raise ValueError("has no checkpoint; run it with -store_checkpoints")


def read_each(
    directory: str, require: Callable[[RecordedRun], None], read: Callable[[RecordedRun], Any]
) -> tuple[list[Found], list[str]]:
    """Returns every run in a directory, or the run whose folder it is, with `read(run)`, and a line "folder: reason"
    for each folder that is skipped.

    A run is skipped if `require`, which refuses runs of another kind, or `read` raises a ValueError, or if a newer run
    repeats it. If all are skipped, raises the first error of a subclass of ValueError, or else a ValueError.
    """
    alone = Path(directory).resolve()
    runs, skipped = ([read_run(alone)], []) if is_experiment(alone) else read_runs(directory)
    found, errors, of_experiments = [], [], []
    for run in runs:
        # The original code's folders without run_params.json have parameters in their names.
        named = re.search(r"_samples_(\d+)(?:_init_(\d+\.?\d*(?:e[+-]?\d+)?))?", run.path.name)
        if named and not run.parameters:
            run.parameters.update({"num_samples": int(named[1]), **({"init_std": float(named[2])} if named[2] else {})})
        try:
            if not is_experiment(run.path) and any(map(is_experiment, run.path.glob("[!.]*"))):
                of_experiments.append(run.path.name)
                raise ValueError("a folder of experiments; give it to -experiments_dir")
            require(run)
            found.append((run, read(run)))
        except ValueError as error:
            if run.path == alone:
                raise
            errors.append(error)
            skipped.append(f"{run.path.name}: {error}")
    newest: dict[tuple, Found] = {}
    for each, parameters in zip(found, compared([run for run, _ in found]), strict=True):
        # The original code did not record its seeds.
        seed = each[0].values.get("random_seed") if each[0].provenance else each[0].path.name
        if repeated := newest.get(key := (canonical(parameters), seed)):
            skipped.append(f"{repeated[0].path.name}: was run again, with the same seed")
        newest[key] = each
    if newest:
        return list(newest.values()), sorted(skipped)
    if of_another_type := [error for error in errors if type(error) is not ValueError]:
        raise of_another_type[0]
    if of_experiments:
        names = ", ".join(of_experiments[:10]) + (", …" if len(of_experiments) > 10 else "")
        raise ValueError(f"holds no experiments, but folders of experiments; give one of them: {names}")
    reason = f"; {skipped[0] if len(skipped) == 1 else _reasons(skipped)[0]}" if skipped else ""
    # Some reasons say what to do.
    remedy = "" if reason.count(";") > 1 else "; give a folder of such folders"
    raise ValueError(f"holds no experiment that can be drawn{reason}{remedy}")


def read_groups(
    directory: str, require: Callable[[RecordedRun], None], read: Callable[..., Any], panel_for_depth: bool = False
) -> tuple[list[Group], list[str]]:
    """Returns the finished runs in a directory with `read(checkpoint, run)` of each, grouped, and a line of text for
    each folder that is skipped. With `panel_for_depth`, the groups are ordered by depth, and named for each depth.

    `require` refuses runs of another kind. Raises as `read_each` does.
    """

    def read_one(run: RecordedRun) -> Any:
        checkpoint = checkpoint_of(run)
        try:
            return read(checkpoint, run)
        except (OSError, ValueError) as error:
            kind = ValueError if isinstance(error, OSError) else type(error)
            raise kind(f"{checkpoint.name}: {error}") from None

    found, skipped = read_each(directory, require, read_one)
    depths = [run.parameters["depth"] if panel_for_depth else 0 for run, _ in found]
    groups = []
    for depth in sorted(set(depths)):
        title = f"depth {depth}" if panel_for_depth else ""
        for name, members in named_lines([each for each, own in zip(found, depths, strict=True) if own == depth]):
            groups.append(Group(name, title, [value for _, value in members]))
    return groups, skipped


def named_lines(found: Sequence[Found], without: Collection[str] = ()) -> list[tuple[str, list[Found]]]:
    """Returns the runs in lists of those that differ only in their seed and in the parameters `without`, with a name
    for each list; see `_names_of`.
    """
    lines: dict[str, list[Found]] = {}
    for each, parameters in zip(found, compared([run for run, _ in found], without), strict=True):
        lines.setdefault(canonical(parameters), []).append(each)
    names = _names_of([members[0][0] for members in lines.values()], without)
    return list(zip(names, lines.values(), strict=True))


def report(found: str, skipped: Sequence[str], list_all: bool) -> None:
    """Prints what was found, and the folders that are skipped: each, or how many for which reason."""
    print_line("\n  ".join([found, *(skipped if list_all else _reasons(skipped))]))


def number_of(count: int, word: str) -> str:
    """Returns "1 experiment" or "2 experiments"."""
    return f"{count} {word}{'s' if count != 1 else ''}"


def _reasons(skipped: Sequence[str]) -> list[str]:
    """Returns a line for each reason with the number of folders that are skipped for it, the most frequent first."""
    # A reason may begin with a file name, which differs by folder.
    reasons = Counter(re.sub(r"^\S+\.pt: ", "", line.partition(": ")[2]) for line in skipped)
    return [f"{number_of(count, 'folder')}: {reason}" for reason, count in reasons.most_common()]


def _names_of(runs: Sequence[RecordedRun], without: Collection[str] = ()) -> list[str]:
    """Returns a name for each run: the initialization, and the parameters in which the runs differ, except `without`.
    Of matrix factorizations, learning rate and initialization are left out if only other parameters differ.
    The folder's name is added to equal names.
    """
    names = differing_names(runs)
    if "depth" in runs[0].parameters:
        of_base = {"lr", "weight_init_type", "init_alpha", "use_balanced_init"}
        is_needed = not names or of_base & set(names)
        bases = [f"lr {scientific(run.parameters['lr'])} {_initialization(run)}" if is_needed else "" for run in runs]
    else:
        of_base, stds = {"init_std"}, [run.values.get("init_std") for run in runs]
        bases = ["model" if std is None else f"tf, init {scientific(std)}" for std in stds]
    names = [name for name in names if name not in of_base | set(without)]
    # The numbers of samples are left out if they follow from the datasets.
    samples = {canonical([run.inputs, run.parameters.get("num_samples")]) for run in runs}
    if "dataset_path" in names and len(samples) == len({canonical(run.inputs) for run in runs}):
        names = [name for name in names if name != "num_samples"]
    # Of the datasets' names, split at underscores, the parts between the common beginning and the common end.
    stems = [Path(run.parameters.get("dataset_path") or "").stem.split("_") for run in runs]
    shortest = min(map(len, stems))
    begin = next((i for i in range(shortest) if len({each[i] for each in stems}) > 1), 0)
    end = next((i for i in range(shortest - begin) if len({each[-1 - i] for each in stems}) > 1), 0)
    found = []
    for run, base, stem, values in zip(runs, bases, stems, compared(runs), strict=True):
        words = {name: f"{name} {run.values.get(name, values.get(name))}" for name in names}
        words |= {"dtype": str(run.parameters.get("dtype")), "dataset_path": "_".join(stem[begin : -end or None])}
        words["trainer_checkpoint"] = f"from {Path(run.parameters.get('trainer_checkpoint') or 'the start').name}"
        found.append(", ".join(filter(None, [base, *(words[name] for name in names)])))
    folders = [f" ({run.path.name})" for run in runs]
    return [name + folder * (found.count(name) > 1) for name, folder in zip(found, folders, strict=True)]


def _initialization(run: RecordedRun) -> str:
    """Returns the initialization as text: "init" and the standard deviation of the product's entries, with (b) if it is
    balanced; or "factor init" and that of each factor's entries, if the shape of the matrix is not known.
    """
    alpha, depth = run.values["init_alpha"], run.values["depth"]
    if alpha is None:
        return f"init unknown, from {Path(run.values['trainer_checkpoint']).name}"
    if run.values.get("weight_init_type") == "identity":
        return f"init identity {scientific(alpha)}"
    if run.values.get("use_balanced_init"):
        return f"init {scientific(alpha)} (b)"
    # A product of factors with std α and inner dimension d has entries of variance d^(depth − 1) α^(2 depth).
    try:
        inner = run.parameters.get("hidden_dim") or min(observed_problem(run)[0])
        return f"init {scientific(float(f'{inner ** ((depth - 1) / 2) * alpha**depth:.1e}'))}"
    except (OSError, ValueError, ArithmeticError):
        return f"factor init {scientific(alpha)}"


def observed_problem(run: RecordedRun) -> tuple[list[int], list[int] | None, list[float] | None]:
    """Returns the shape of a run's matrix and, if it is 1×1 or 2×2 and entries are observed, all but one at least, the
    unobserved entry and the observations: a, b and z of metrics/theory.py.

    Runs that were recorded before run_params.json had them need their dataset. Raises OSError and ValueError.
    """
    facts = run.parameters
    if not facts.get("shape"):
        dataset = load_matrix_sensing(run.parameters.get("dataset_path") or "")
        facts = dataset.first(run.parameters.get("num_samples") or 1).facts()
    return tuple(facts.get(name) for name in ("shape", "unobserved_entry", "observations"))
