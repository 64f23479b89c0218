"""Reads the folders of experiments, of this project or of the original code, for -resume and for the plotters."""

import json
import math
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import load_json

# The last file of a tensor completion experiment. The original code's folders may have it without a run_params.json.
TENSOR_METRICS = "tensor_rank_and_reconstruction_metrics.json"
# The last values of the metrics of a matrix factorization experiment.
MATRIX_METRICS = "final_metrics_values.json"


def is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Returns whether `value` is a finite number from `least` to `most`; integers must fit into 64 bits."""
    kinds = (type(value) is int and abs(value) < 2**63) or (type(value) is float and math.isfinite(value))
    return kinds and least <= value <= most


def _is_count(value: Any) -> bool:
    return type(value) is int and is_number(value, 0)


# Values of run_params.json that are used, and what must hold of them if they are there.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "provenance status status.metrics provenance.sweep provenance.identity provenance.identity.run "
    "provenance.identity.inputs provenance.identity.origin": lambda value: isinstance(value, dict),
    "dataset_path trainer_checkpoint provenance.identity.inputs.dataset_path provenance.sweep.id "
    "provenance.sweep.start_time": lambda value: type(value) is str,
    "provenance.identity.outputs": lambda value: type(value) is list and {str} >= set(map(type, value)),
    "depth num_samples": lambda value: _is_count(value) and value > 0,
    "hidden_dim provenance.resumed provenance.sweep.experiment provenance.identity.occurrence": _is_count,
    "random_seed provenance.identity.seed": lambda value: type(value) is int and -1 <= value < 2**32,
    "lr init_alpha provenance.identity.origin.init_alpha": is_number,
    "init_std provenance.identity.origin.init_std": lambda value: is_number(value, 0),
    "unobserved_entry": lambda value: type(value) is list and len(value) == 2 and all(map(_is_count, value)),
    "shape": lambda value: type(value) is list and value != [] and all(map(_is_count, value)),
    "observations": lambda value: type(value) is list and all(map(is_number, value)),
}
# The parameters that tell runs of the original code apart, which recorded no "identity". New flags are not added.
_OF_ORIGINAL_RUNS = (
    "depth num_samples lr weight_init_type init_alpha use_balanced_init enforce_pos_det enforce_neg_det epochs "
    "stop_on_zero_loss_tol validate_every optimizer init_std tensor_rank_tol"
)


@dataclass(frozen=True)
class RecordedRun:
    """The content of the run_params.json of an experiment's folder."""

    path: Path  # of the folder
    parameters: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What identifies the run: the parameters in which different runs differ, with their defaults ("run"), further
        names that -resume compares ("outputs"), digests of the input files ("inputs"), the seed in the list ("seed"),
        the number among equal experiments ("occurrence"), and the start of the run that it continues ("origin").
        """
        known = self.provenance.get("identity") or {}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def values(self) -> dict[str, Any]:
        """The parameters. A run that continues a checkpoint has the initialization of the run that it continues."""
        return {**self.parameters, **self.identity.get("origin", {})}

    @property
    def sweep(self) -> dict[str, Any]:
        """The sweep of the run."""
        return self.provenance.get("sweep") or {}

    @property
    def order(self) -> tuple[str, int]:
        """The place among the runs of all sweeps: when the sweep began, and the number in it."""
        return self.sweep.get("start_time") or "", self.sweep.get("experiment") or 0

    @property
    def inputs(self) -> dict[str, Any]:
        """The digest of each input file by the name of its flag; its path if the digest is unknown."""
        paths = {name: self.parameters.get(name) for name in ("dataset_path", "trainer_checkpoint")}
        return self.identity.get("inputs") or {name: path for name, path in paths.items() if path}


def is_experiment(folder: Path) -> bool:
    """Returns whether a folder is that of one experiment, not of several."""
    return any(os.path.exists(folder / name) for name in ("run_params.json", TENSOR_METRICS))


def compared(runs: Sequence[RecordedRun], without: Collection[str] = ()) -> list[dict[str, Any]]:
    """Returns for each run the parameters in which different runs differ, by name; input files by their digests.

    A run that was recorded before a flag existed has its default.
    """
    defaults = {name: default for run in runs for name, default in run.identity.get("run", {}).items()}
    found = []
    for run in runs:
        values = {**defaults, **run.values}
        names = {*(run.identity.get("run") or _OF_ORIGINAL_RUNS.split()), *defaults} & values.keys()
        found.append({name: values[name] for name in names - set(without)} | run.inputs)
    return found


def differing_names(runs: Sequence[RecordedRun]) -> list[str]:
    """Returns the names of the parameters in which these runs differ, in alphabetical order."""
    parameters = compared(runs)
    names = sorted({name for each in parameters for name in each})
    return [name for name in names if len({canonical(each.get(name)) for each in parameters}) > 1]


def read_runs(directory: str | Path) -> tuple[list[RecordedRun], list[str]]:
    """Returns the runs in a folder's folders, in the order of their sweeps, and a line for each damaged one."""
    runs, damaged = [], []
    for folder in Path(directory).glob("[!.]*"):
        try:
            runs += [read_run(folder)] if folder.is_dir() else []
        except ValueError as error:
            damaged.append(f"{folder.name}: {error}")
    return sorted(runs, key=lambda run: (run.order, run.path.name)), sorted(damaged)


def read_run(folder: Path) -> RecordedRun:
    """Reads the run_params.json of a folder, if there is one. Raises ValueError if it is damaged."""
    try:
        content = load_json(folder / "run_params.json")
    except FileNotFoundError:
        return RecordedRun(folder)
    for names, holds in _CHECKS.items():
        for name in names.split():
            value: Any = content
            for key in name.split("."):
                value = value.get(key) if value else None
            if value is not None and not holds(value):
                raise ValueError(f"damaged: {name} in run_params.json is {value!r:.40}")
    provenance, status = content.pop("provenance", None) or {}, content.pop("status", None) or {}
    if "use_adaptive_lr" in content:  # the original code's only flag of the optimizer
        content.setdefault("optimizer", "group_rmsprop" if content["use_adaptive_lr"] else "gd")
    return RecordedRun(folder, content, provenance, status)


def final_metrics(run: RecordedRun) -> dict[str, float | None]:
    """Returns the last value of each metric of a run that ended, and the numbers in its results; None for those that
    are not finite. Runs that were recorded before `status` had metrics have only the results.
    """
    numbers = dict(run.status.get("metrics") or {})
    for name in (MATRIX_METRICS, TENSOR_METRICS):
        with suppress(FileNotFoundError, ValueError):
            numbers |= load_json(run.path / name)
    return {name: number if is_number(number) else None for name, number in numbers.items()}


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the checkpoint with the largest epoch in an experiment's folder; None if there is none."""
    epochs = {path: path.stem.rpartition("_")[2] for path in (folder / "checkpoints").glob("[!.]*_epoch_*.pt")}
    return max((path for path in epochs if epochs[path].isdecimal()), key=lambda path: int(epochs[path]), default=None)


def canonical(value: Any) -> str:
    """Returns JSON that is equal for equal values."""
    return json.dumps(value, sort_keys=True)
