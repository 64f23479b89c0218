"""The ways of matrix factorization experiments down the loss: a recorded metric at every loss."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.cli import UserError, flag_error
from common.datasets.matrix_sensing import load_matrix_sensing
from common.naming import scientific
from common.run_files import newest_checkpoint, run_parameters
from common.tensor_files import load_dictionary
from common.training.history import series_of_evaluator

# Experiments where these agree differ only in their seed: what else a run's parameters say changes no number in it.
_WHAT_IS_RUN = (
    "depth",
    "dataset_path",
    "num_samples",
    "dtype",
    "lr",
    "weight_init_type",
    "init_alpha",
    "use_balanced_init",
    "enforce_pos_det",
    "enforce_neg_det",
    "epochs",
    "stop_on_zero_loss_tol",
    "trainer_checkpoint",
)
_OF_INITIALIZATION = ("lr", "weight_init_type", "init_alpha", "use_balanced_init")


@dataclass(frozen=True)
class Curve:
    """One experiment: loss and metric (n,) after `iterations` (n,) gradient steps.

    `corner` holds the observations a, b and z of a 2×2 problem with one unobserved entry (see metrics/theory.py), where
    they were asked for.
    """

    name: str
    iterations: np.ndarray
    losses: np.ndarray
    values: np.ndarray
    corner: tuple[float, float, float] | None = None

    def down_to(self, min_loss: float) -> "Curve":
        """The curve, cut after its first loss below `min_loss`."""
        below = np.flatnonzero(self.losses < min_loss)
        end = below[0] + 1 if len(below) else len(self.losses)
        return replace(self, iterations=self.iterations[:end], losses=self.losses[:end], values=self.values[:end])

    def reaches(self, min_loss: float) -> bool:
        """Whether a loss is below `min_loss`."""
        return bool((self.losses < min_loss).any())


@dataclass(frozen=True)
class Wanted:
    """What is to be read of an experiment: `metric`, or |entry| where it is empty; the unobserved entry where that is
    None. `corner` asks for the observations.
    """

    metric: str = ""
    entry: tuple[int, int] | None = None
    corner: bool = False


@dataclass(frozen=True)
class Panel:
    """What is drawn in one pair of axes. A line has a curve for each seed."""

    title: str
    lines: list[list[Curve]]


def load_curve(path: str, name: str, wanted: Wanted = Wanted(), flag: str = "experiments_checkpoint_paths") -> Curve:
    """The curve of a checkpoint file, of this project or of the original code. Loss and metric are paired by epoch.

    Raises UserError, naming `flag`, where there is none in the file.
    """
    try:
        parameters = run_parameters(Path(path).parent.parent)
    except FileNotFoundError:
        parameters = {}
    except ValueError as error:
        raise flag_error(flag, path, f"beside it, {error}; give one of an experiment's folder as it was") from None
    entry = wanted.entry or tuple(parameters.get("unobserved_entry") or (0, 0))
    metric = wanted.metric or f"e2e_{entry[0]}_{entry[1]}_value"
    content = load_dictionary(path, flag)
    try:
        evaluators = {**content["train_evaluator"], **content["val_evaluator"]}
        if metric not in evaluators:
            if wanted.metric:
                known = ", ".join(evaluators)
                raise flag_error("y", metric, f"{path} did not record it; give one of {known}")
            row, col = entry
            if wanted.entry:
                known = ", ".join(name for name in evaluators if re.fullmatch(r"e2e_\d+_\d+_value", name))
                raise flag_error("unobserved_entry", entry, f"{path} did not track it, but {known or 'no entry'}")
            raise flag_error(
                flag, path, f"did not track entry ({row}, {col}); give a run with -tracked_e2e_value_of {row} {col}"
            )
        float64 = np.dtype(np.float64)
        loss = series_of_evaluator({"": evaluators["sse_loss_div_2"]}, float64)[""]
        series = series_of_evaluator({"": evaluators[metric]}, float64)[""]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise flag_error(flag, path, f"is no checkpoint of a matrix factorization ({error!r}); give one") from None
    epochs, at_loss, at_value = np.intersect1d(loss.epochs, series.epochs, return_indices=True)
    losses, values = loss.values[at_loss], series.values[at_value]
    usable = np.isfinite(losses) & np.isfinite(values) & (losses > 0)
    if not usable.any():
        raise flag_error(flag, path, "has no epoch with both loss and metric; give one that has")
    values = values[usable] if wanted.metric else np.abs(values[usable])
    corner = _corner(parameters, entry, path) if wanted.corner else None
    return Curve(name, epochs[usable] + 1, losses[usable], values, corner)


def _corner(parameters: dict[str, Any], entry: tuple[int, int], path: str) -> tuple[float, float, float]:
    """Raises UserError, naming -show_bound, where the experiment is of another kind."""
    dataset_path = parameters.get("dataset_path")
    needs = f"needs the observations of {path}"
    if not dataset_path or not parameters.get("num_samples"):
        raise flag_error("show_bound", True, f"{needs}, and no run_params.json names them; leave it out")
    if not os.path.isfile(dataset_path):
        raise flag_error("show_bound", True, f"{needs}, and its dataset {dataset_path:.200} is not here; leave it out")
    try:
        dataset = load_matrix_sensing(dataset_path, parameters["num_samples"])
    except UserError as error:
        raise flag_error("show_bound", True, f"{needs}, but {error}; leave it out") from None
    observed = dataset.observed_entries
    if dataset.shape != (2, 2) or observed is None or len(observed) != 3 or 2 * entry[0] + entry[1] in observed:
        problem = f"the theory's curve is of 2x2 matrices with one unobserved entry, and {path} is not; leave it out"
        raise flag_error("show_bound", True, problem)
    values = dict(zip(observed.tolist(), dataset.observations.tolist(), strict=True))
    row, col = entry
    a, b, z = values[2 * row + 1 - col], values[2 * (1 - row) + col], values[2 * (1 - row) + 1 - col]
    if not a * b:
        raise flag_error("show_bound", True, f"{path} observes 0 beside the unobserved entry, which bounds nothing")
    return a, b, z


def read_panels(directory: str, wanted: Wanted) -> tuple[list[Panel], list[str]]:
    """The curves of every finished experiment in a directory, of this project or of the original code: a panel for each
    depth, a line for those that differ only in their seed; and a line of text for everything that was left out.

    Raises UserError, naming -experiments_dir, where there is none, and what was wrong with the first where none can be
    drawn.
    """
    found, left_out = [], []
    for folder in sorted(path for path in Path(directory).glob("[!.]*") if path.is_dir()):
        try:
            parameters = run_parameters(folder)
        except FileNotFoundError:
            parameters = {}
        except ValueError as error:
            left_out.append(f"{folder.name}: {error}")
            continue
        if not all(parameters.get(name) is not None for name in ("depth", "lr", "init_alpha")):
            left_out.append(f"{folder.name}: no matrix factorization experiment")
        elif parameters.get("status") and not parameters["status"].get("finished"):
            left_out.append(f"{folder.name}: not finished")
        elif not (checkpoint := newest_checkpoint(folder)):
            left_out.append(f"{folder.name}: has no checkpoint; give -store_checkpoints")
        else:
            found.append((_place(parameters), folder.name, parameters, checkpoint))
    found.sort(key=lambda each: each[:2])
    newest = {}
    for _, folder, parameters, checkpoint in found:
        run = *_what_is_run(parameters), parameters.get("random_seed") if "provenance" in parameters else folder
        if run in newest:
            left_out.append(f"{newest[run][0]}: was run again, with the same seed")
        newest[run] = folder, parameters, checkpoint
    if not newest:
        reason = f"; passed over: {left_out[0]}" if left_out else ""
        raise flag_error(
            "experiments_dir", directory, f"holds no finished experiment{reason}; give a folder of such folders"
        )
    grouped: dict[tuple, list[Curve]] = {}
    problems = []
    for folder, parameters, checkpoint in newest.values():
        try:
            curve = load_curve(str(checkpoint), folder, wanted, "experiments_dir")
        except UserError as error:
            problems.append(error)
            left_out.append(f"{folder}: {error}")
            continue
        grouped.setdefault(_what_is_run(parameters), []).append(curve)
    if not grouped:
        raise problems[0]
    depths = sorted({key[0] for key in grouped})
    panels = []
    for depth in depths:
        keys = [key for key in grouped if key[0] == depth]
        names = _names(keys)
        lines = [[replace(curve, name=name) for curve in grouped[key]] for key, name in zip(keys, names, strict=True)]
        panels.append(Panel(f"depth {depth}" if len(depths) > 1 else "", lines))
    return panels, left_out


def named(panels: Sequence[Panel], names: Sequence[str]) -> list[Panel]:
    """The panels with other names of their lines. Raises UserError where these are not as many."""
    count = sum(len(panel.lines) for panel in panels)
    if len(names) != count:
        raise flag_error("experiments_names", names, f"there are {count} lines; give as many names")
    rest = iter(names)
    return [
        Panel(
            panel.title,
            [[replace(curve, name=name) for curve in line] for line, name in zip(panel.lines, rest, strict=False)],
        )
        for panel in panels
    ]


def _place(parameters: dict[str, Any]) -> tuple[str, int]:
    """Where it stands among the experiments of all sweeps."""
    sweep = (parameters.get("provenance") or {}).get("sweep") or {}
    return sweep.get("start_time") or "", sweep.get("experiment") or 0


def _what_is_run(parameters: dict[str, Any]) -> tuple:
    return tuple(parameters.get(name) for name in _WHAT_IS_RUN)


def _names(keys: Sequence[tuple]) -> list[str]:
    """Names of lines, made of the parameters in which they differ: learning rate and initialization, what else."""
    differing = {name for name, *values in zip(_WHAT_IS_RUN, *keys, strict=True) if len(set(values)) > 1}
    others = [name for name in _WHAT_IS_RUN if name in differing and name not in _OF_INITIALIZATION]
    if "dataset_path" in others:
        others = [name for name in others if name != "num_samples"]
    datasets = _distinct_parts([Path(key[_WHAT_IS_RUN.index("dataset_path")] or "").stem for key in keys])
    names = []
    for key, dataset in zip(keys, datasets, strict=True):
        values = dict(zip(_WHAT_IS_RUN, key, strict=True))
        words = []
        if not others or differing.intersection(_OF_INITIALIZATION):
            words.append(f"lr {scientific(values['lr'])} init {_initialization(values)}")
        for name in others:
            told = {"dataset_path": dataset, "dtype": values["dtype"]}
            words.append(told.get(name) or f"{name} {values[name]}")
        names.append(", ".join(words))
    return names


def _initialization(values: dict[str, Any]) -> str:
    """The standard deviation of the product's entries, with (b) where it is balanced."""
    alpha, depth = values["init_alpha"], values["depth"]
    if values["weight_init_type"] == "identity":
        return f"identity {scientific(alpha)}"
    if values["use_balanced_init"]:
        return f"{scientific(alpha)} (b)"
    # A product of depth factors of std α and inner dimension d has entries of variance d^(depth − 1) α^(2 depth).
    try:
        inner = min(load_matrix_sensing(values["dataset_path"] or "", 1).shape)
        std = inner ** ((depth - 1) / 2) * alpha**depth
        return scientific(float(f"{std:.1e}"))
    except (UserError, ArithmeticError):
        return f"{scientific(alpha)} in each factor"


def _distinct_parts(stems: Sequence[str]) -> list[str]:
    """What is left of file names without the parts, between underscores, that all begin or end with."""
    parts = [stem.split("_") for stem in dict.fromkeys(stems)]
    shortest = min(map(len, parts))
    begin = next((i for i in range(shortest) if len({each[i] for each in parts}) > 1), 0)
    end = next((i for i in range(shortest - begin) if len({each[-1 - i] for each in parts}) > 1), 0)
    return ["_".join(stem.split("_")[begin : -end or None]) for stem in stems]
