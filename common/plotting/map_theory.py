"""Lines in maps that theory predicts."""

from collections.abc import Sequence

import numpy as np

from common.datasets.matrix_sensing import load_matrix_sensing
from common.plotting.map_cells import Axis
from common.plotting.map_runs import TENSOR_FACTS, MapRun
from common.recorded_runs import canonical, is_number

# Points on the x and the y axis, and a label.
Line = tuple[tuple[np.ndarray, np.ndarray], str]


def theory_line(runs: Sequence[MapRun], x: Axis, y: Axis) -> Line | None:
    """Returns the line of a map over two parameters, None if none is known."""
    return _free_parameters(runs, x, y) or _edge_of_stability(runs, x, y)


def _free_parameters(runs: Sequence[MapRun], x: Axis, y: Axis) -> Line | None:
    """Returns the points and the label of the number of free parameters of a tensor of CP rank r, r (Σ d_k − N + 1),
    if one axis is num_samples and the other is target_rank or dimension, and all targets agree in the rest.

    A CP decomposition has r Σ d_k numbers, of which each component can be rescaled in N − 1 ways.
    """
    axis, samples = (x, y) if y.name == "num_samples" else (y, x)
    if samples.name != "num_samples" or axis.name not in ("target_rank", "dimension") or not axis.numeric:
        return None
    fixed = [name for name in TENSOR_FACTS if name != axis.name]
    known = {canonical([run.values[name] for name in fixed]) for run in runs}
    facts = {name: runs[0].values[name] for name in fixed}
    if len(known) > 1 or not all(is_number(value, 1) for value in facts.values()):
        return None
    facts[axis.name] = np.linspace(axis.edges[0], axis.edges[-1], 200)
    order = facts["order"]
    numbers = facts["target_rank"] * (order * facts["dimension"] - order + 1)
    inside = (numbers >= samples.edges[0]) & (numbers <= samples.edges[-1]) & (facts[axis.name] > 0)
    line = facts[axis.name][inside], numbers[inside]
    formula = "r(d₁ + d₂ + d₃ − 2)" if order == 3 else "r(Σd − N + 1)"
    return (line if axis is x else line[::-1]), f"free parameters, {formula}"


def _edge_of_stability(runs: Sequence[MapRun], x: Axis, y: Axis) -> Line | None:
    """Returns the learning rate 2 / sharpness at the minimum, above which gradient descent oscillates, if the axes are
    lr and depth, the matrices 1×1, and all runs plain gradient descent.

    For a product of L equal numbers with target σ and half the squared error, the sharpness is L |σ|^(2 − 2/L).
    """
    rates, depths = (x, y) if y.name == "depth" else (y, x)
    paths = {run.values.get("dataset_path") for run in runs}
    plain = all(run.values.get("optimizer") in (None, "gd") and not run.values.get("weight_decay") for run in runs)
    if (rates.name, depths.name) != ("lr", "depth") or len(paths) > 1 or not plain or not rates.numeric:
        return None
    try:
        dataset = load_matrix_sensing(paths.pop() or "")
    except (OSError, ValueError):
        return None
    if dataset.shape != (1, 1) or dataset.observed_entries is None:
        return None
    depth = np.array(depths.values, dtype=np.float64)
    target = abs(dataset.target_matrix.item())
    # A step for each depth.
    edges = np.repeat(2 / (depth * target ** (2 - 2 / depth)), 2), np.repeat(depths.edges, 2)[1:-1]
    return (edges if rates is x else edges[::-1]), "2 / sharpness at the minimum"
