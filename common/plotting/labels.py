"""Names of lines and panels, made from the parameters in which runs differ."""

from collections.abc import Collection, Sequence
from pathlib import Path

from common.datasets.matrix_sensing import load_matrix_sensing
from common.naming import scientific
from common.recorded_runs import RecordedRun, canonical, compared, differing_names

_INITIALIZATION = ("lr", "weight_init_type", "init_alpha", "use_balanced_init")


def matrix_names(runs: Sequence[RecordedRun]) -> list[str]:
    """Returns a name for each matrix factorization: learning rate and initialization, unless only other parameters
    differ, and the other parameters in which the runs differ.
    """
    differing = differing_names(runs)
    alone = differing and not set(differing).intersection(_INITIALIZATION)
    bases = ["" if alone else f"lr {scientific(run.parameters['lr'])} {_initialization(run)}" for run in runs]
    return _names(runs, bases, _INITIALIZATION)


def tensor_names(runs: Sequence[RecordedRun], shown: Collection[str] = ()) -> list[str]:
    """Returns a name for each tensor factorization: the initialization, and the other parameters in which the runs
    differ, except those in `shown`.
    """
    stds = [run.values.get("init_std") for run in runs]
    bases = ["model" if std is None else f"tf, factor init {scientific(std)}" for std in stds]
    return _names(runs, bases, {"init_std", *shown})


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
        shape = load_matrix_sensing(run.parameters.get("dataset_path") or "").shape
        inner = run.parameters.get("hidden_dim") or min(shape)
        return f"init {scientific(float(f'{inner ** ((depth - 1) / 2) * alpha**depth:.1e}'))}"
    except (OSError, ValueError, ArithmeticError):
        return f"factor init {scientific(alpha)}"


def _names(runs: Sequence[RecordedRun], bases: Sequence[str], shown: Collection[str]) -> list[str]:
    """Returns a name for each run: its base, which may be empty, and the parameters in which the runs differ, except
    those that the bases show. The folder's name is added to equal names.
    """
    names = [name for name in differing_names(runs) if name not in shown]
    if "dataset_path" in names and "num_samples" in names:
        numbers = {canonical(run.inputs): run.parameters.get("num_samples") for run in runs}
        if all(run.parameters.get("num_samples") == numbers[canonical(run.inputs)] for run in runs):
            names.remove("num_samples")
    # Of the datasets' names, split at underscores, the parts between the common beginning and the common end.
    stems = [Path(run.parameters.get("dataset_path") or "").stem.split("_") for run in runs]
    shortest = min(map(len, stems))
    begin = next((i for i in range(shortest) if len({each[i] for each in stems}) > 1), 0)
    end = next((i for i in range(shortest - begin) if len({each[-1 - i] for each in stems}) > 1), 0)
    found = []
    for run, base, stem, values in zip(runs, bases, stems, compared(runs), strict=True):
        words = {name: f"{name} {run.values.get(name, values.get(name))}" for name in names}
        checkpoint = Path(run.parameters.get("trainer_checkpoint") or "the start").name
        words |= {"dtype": str(run.parameters.get("dtype")), "dataset_path": "_".join(stem[begin : -end or None])}
        words["trainer_checkpoint"] = f"from {checkpoint}"
        found.append(", ".join([base] * bool(base) + [words[name] for name in names]))
    return [
        each if found.count(each) == 1 else f"{each} ({run.path.name})" for each, run in zip(found, runs, strict=True)
    ]
