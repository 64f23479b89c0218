"""The axes of a map over two parameters, and the line on them that theory predicts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from common.datasets.matrix_sensing import load_matrix_sensing
from common.naming import scientific
from common.recorded_runs import canonical, is_number

# What is read from the dataset of a tensor.
TENSOR_FACTS = ("target_rank", "dimension", "order")
_MOST_TICKS = 20


class Axis:
    """An axis of a map: the values of a parameter, and where they are drawn."""

    def __init__(self, name: str, values: Sequence[Any]):
        self.name = name
        distinct = {canonical(value): value for value in values}.values()
        self.numeric = all(is_number(value) for value in distinct)
        self.values = sorted(distinct) if self.numeric else sorted(distinct, key=lambda value: text_of(name, value))
        self.log = self.numeric and _is_log_spaced(self.values)
        places = np.array(self.values if self.numeric else range(len(self.values)), dtype=np.float64)
        places = np.log(places) if self.log else places
        # The cell of a single value has size 1, or spans a factor e.
        half = np.diff(places) / 2 if len(places) > 1 else np.array([0.5])
        edges = np.concatenate([places[:1] - half[0], places[:-1] + half[: len(places) - 1], places[-1:] + half[-1]])
        self.places, self.edges = (np.exp(places), np.exp(edges)) if self.log else (places, edges)

    def draw(self, axes: Axes, which: str) -> None:
        """Sets scale, limits and ticks of the "x" or "y" axis."""
        every = -(-len(self.values) // _MOST_TICKS) if self.numeric else 1
        text = scientific if self.log and any(isinstance(value, float) for value in self.values) else None
        texts = [text(value) if text else text_of(self.name, value) for value in self.values[::every]]
        axes.set(**{f"{which}scale": "log" if self.log else "linear", f"{which}lim": (self.edges[0], self.edges[-1])})
        of_axis = getattr(axes, f"{which}axis")
        of_axis.set_ticks(self.places[::every], labels=texts, fontsize="small" if len(texts) > 9 else "medium")
        of_axis.set_ticks([], minor=True)
        if which == "x" and sum(map(len, texts)) > 28:
            of_axis.set_tick_params(rotation=45 if max(map(len, texts)) < 9 else 90)


def _is_log_spaced(values: Sequence[float]) -> bool:
    """Returns whether increasing values are drawn on a logarithmic axis: no if they span a factor below 5; yes if there
    are two, or they span a factor above 100; otherwise, if their ratios are more nearly equal than their differences.
    """
    if values[0] <= 0 or values[-1] / values[0] < 5:
        return False
    ratios, differences = np.diff(np.log(values)), np.diff(np.array(values, dtype=np.float64))
    more_equal = np.std(ratios) / np.mean(ratios) < np.std(differences) / np.mean(differences)
    return bool(len(values) == 2 or values[-1] / values[0] > 100 or more_equal)


def text_of(name: str, value: Any) -> str:
    """Returns the value of a parameter as text."""
    if name == "dataset_path":
        return Path(value).stem
    if isinstance(value, float):
        return f"{value:g}" if 0.01 <= abs(value) < 1000 or not value else scientific(value)
    return value if isinstance(value, str) and value else json.dumps(value)


def theory_line(runs: Sequence[Mapping[str, Any]], x: Axis, y: Axis) -> tuple[np.ndarray, np.ndarray, str] | None:
    """Returns points on the x and the y axis, and the label, of the line that theory predicts for runs with these
    parameters; None if none is known.
    """
    for one, other, is_x in ((x, y, True), (y, x, False)):
        if other.name == "num_samples":
            line = _free_parameters(runs, one, other)
        else:
            line = _edge_of_stability(runs, one, other)
        if line:
            *points, label = line
            return (*(points if is_x else points[::-1]), label)
    return None


def _free_parameters(runs: Sequence[Mapping[str, Any]], axis: Axis, samples: Axis) -> tuple | None:
    """Returns values of target_rank or dimension, the number of free parameters of a tensor of CP rank r and these
    sizes, r (Σ d_k − N + 1), and a label; None unless all targets agree in the rest.

    A CP decomposition has r Σ d_k numbers, of which each component can be rescaled in N − 1 ways.
    """
    if axis.name not in ("target_rank", "dimension") or not axis.numeric:
        return None
    facts = {name: {canonical(run[name]): run[name] for run in runs} for name in TENSOR_FACTS if name != axis.name}
    if any(len(values) > 1 or not is_number(*values.values(), 1) for values in facts.values()):
        return None
    known = {name: next(iter(values.values())) for name, values in facts.items()}
    known[axis.name] = np.linspace(axis.edges[0], axis.edges[-1], 200)
    order = known["order"]
    numbers = known["target_rank"] * (order * known["dimension"] - order + 1)
    inside = (numbers >= samples.edges[0]) & (numbers <= samples.edges[-1]) & (known[axis.name] > 0)
    formula = "r(d₁ + d₂ + d₃ − 2)" if order == 3 else "r(Σd − N + 1)"
    return known[axis.name][inside], numbers[inside], f"free parameters, {formula}"


def _edge_of_stability(runs: Sequence[Mapping[str, Any]], rates: Axis, depths: Axis) -> tuple | None:
    """Returns the learning rate 2 / sharpness at the minimum, above which gradient descent oscillates, the depths, and
    a label; None unless the matrices are 1×1, and all runs plain gradient descent.

    For a product of L equal numbers with target σ and half the squared error, the sharpness is L |σ|^(2 − 2/L).
    """
    paths = {run.get("dataset_path") for run in runs}
    plain = all(run.get("optimizer") in (None, "gd") and not run.get("weight_decay") for run in runs)
    if (rates.name, depths.name) != ("lr", "depth") or len(paths) > 1 or not plain or not rates.numeric:
        return None
    try:
        dataset = load_matrix_sensing(paths.pop() or "")
    except (OSError, ValueError):
        return None
    if dataset.shape != (1, 1) or dataset.observed_entries is None:
        return None
    depth = np.array(depths.values, dtype=np.float64)
    edges = 2 / (depth * abs(dataset.target_matrix.item()) ** (2 - 2 / depth))
    # A step for each depth.
    return np.repeat(edges, 2), np.repeat(depths.edges, 2)[1:-1], "2 / sharpness at the minimum"
