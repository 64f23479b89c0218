"""The cells of a map over two parameters: which runs are in each, what its colour shows, and where it is drawn."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from common.naming import scientific
from common.plotting.figures import metric_label
from common.plotting.map_runs import RATIO_TO_BOUND, MapRun
from common.recorded_runs import canonical, is_number

_MOST_PANELS, _MOST_TICKS = 12, 9
# See is_log_spaced.
_LOG_RATIO, _SURELY_LOG_RATIO = 5, 100

Row = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """What the colours of a map show."""

    metric: str  # "" for |unobserved entry|
    statistic: str = "median"
    at_loss: float | None = None
    above: float | None = None  # share of runs with a larger metric
    below: float | None = None  # share of runs with a smaller one

    @property
    def of_share(self) -> bool:
        return self.above is not None or self.below is not None

    @property
    def label(self) -> str:
        ratio = "|unobserved entry| / lower bound"
        text = ratio if self.metric == RATIO_TO_BOUND else metric_label(self.metric)
        if self.of_share:
            sign, limit = (">", self.above) if self.above is not None else ("<", self.below)
            text = f"share of runs with {text} {sign}\xa0{limit:g}"
        else:
            text = f"{self.statistic} {text}"
        return text if self.at_loss is None else f"{text} at\xa0loss\xa0{scientific(self.at_loss)}"

    def value(self, runs: Sequence[MapRun]) -> float | None:
        """Returns what the colour of a cell with these runs shows; None if it has none. In shares, finished runs
        without a value, such as those that diverged, count as runs whose metric is not above or below the limit.
        """
        values = [run.value for run in runs if run.value is not None]
        if not self.of_share:
            return float(getattr(np, self.statistic)(values)) if values else None
        finished = sum(run.finished for run in runs)
        low, high = (-np.inf if self.above is None else self.above), (np.inf if self.below is None else self.below)
        return sum(low < value < high for value in values) / finished if finished else None


class Axis:
    """An axis of a map: the values of a parameter, and where they are drawn."""

    def __init__(self, name: str, values: Sequence[Any]):
        self.name = name
        distinct = {canonical(value): value for value in values}.values()
        self.numeric = all(is_number(value) for value in distinct)
        self.values = sorted(distinct) if self.numeric else sorted(distinct, key=lambda value: text_of(name, value))
        self.log = self.numeric and is_log_spaced(self.values)
        places = np.array(self.values if self.numeric else range(len(self.values)), dtype=np.float64)
        places = np.log(places) if self.log else places
        # The cell of a single value has size 1, or spans a factor e.
        between = (places[1:] + places[:-1]) / 2 if len(places) > 1 else places[:0]
        half = np.diff(places) / 2 if len(places) > 1 else [0.5]
        edges = np.concatenate([[places[0] - half[0]], between, [places[-1] + half[-1]]])
        self.places, self.edges = (np.exp(places), np.exp(edges)) if self.log else (places, edges)

    def index(self, value: Any) -> int:
        """Returns the number of the column or row of a value."""
        return [canonical(each) for each in self.values].index(canonical(value))

    def draw(self, axes: Axes, which: str) -> None:
        """Sets scale, limits, ticks and label of the "x" or "y" axis."""
        every = -(-len(self.values) // _MOST_TICKS) if self.numeric else 1
        text = scientific if self.log and any(isinstance(value, float) for value in self.values) else None
        texts = [text(value) if text else text_of(self.name, value) for value in self.values[::every]]
        getattr(axes, f"set_{which}scale")("log" if self.log else "linear")
        getattr(axes, f"set_{which}lim")(self.edges[0], self.edges[-1])
        of_axis = getattr(axes, f"{which}axis")
        of_axis.set_ticks(self.places[::every], labels=texts)
        of_axis.set_ticks([], minor=True)
        if which == "x" and sum(map(len, texts)) > 28:
            of_axis.set_tick_params(rotation=45 if max(map(len, texts)) < 9 else 90)


def is_log_spaced(values: Sequence[float]) -> bool:
    """Returns whether increasing values are drawn on a logarithmic axis: no if they span a factor below 5; yes if there
    are two, or they span a factor above 100; otherwise, if their ratios are more nearly equal than their differences.
    """
    if values[0] <= 0 or values[-1] / values[0] < _LOG_RATIO:
        return False
    if len(values) == 2 or values[-1] / values[0] > _SURELY_LOG_RATIO:
        return True

    def unevenness(places: np.ndarray) -> float:
        steps = np.diff(places)
        return float(np.std(steps) / np.mean(steps))

    return unevenness(np.log(values)) < unevenness(np.array(values, dtype=np.float64))


def text_of(name: str, value: Any) -> str:
    """Returns the value of a parameter as text."""
    if name == "dataset_path":
        return Path(value).stem
    if isinstance(value, float):
        return f"{value:g}" if 0.01 <= abs(value) < 1000 or not value else scientific(value)
    return value if isinstance(value, str) and value else json.dumps(value)


def require_parameters(runs: Sequence[MapRun], names: Sequence[str]) -> None:
    """Raises ValueError if a run has no such parameter."""
    for name in names:
        if not all(name in run.values for run in runs):
            known = {each for run in runs for each in run.values}
            varying = sorted(each for each in known if len({canonical(run.values.get(each)) for run in runs}) > 1)
            named = ("experiment_name", "random_seed", "output_dir")
            varying = ", ".join(each for each in varying if each not in named) or "none"
            raise ValueError(f"{name} is not recorded of all runs; the parameters in which they differ are: {varying}")


def panels_of(runs: Sequence[MapRun], names: tuple[str, str]) -> dict[str, list[MapRun]]:
    """Returns the runs of each panel by its title. Runs that would share a cell, but differ in more than their seed,
    are in different panels. Raises ValueError if there are too many panels.
    """
    others = [{name: value for name, value in run.compared.items() if name not in names} for run in runs]
    seen: dict[tuple[str, str], str] = {}
    differing = set()
    for run, parameters in zip(runs, others, strict=True):
        cell = canonical([run.values[name] for name in names])
        for name, value in parameters.items():
            value = canonical(value)
            if seen.setdefault((cell, name), value) != value:
                differing.add(name)
    panels: dict[str, tuple[str, list[MapRun]]] = {}
    for run, parameters in zip(runs, others, strict=True):
        key = canonical({name: parameters.get(name) for name in differing})
        title = ", ".join(f"{name} {text_of(name, run.values.get(name))}" for name in sorted(differing))
        panels.setdefault(key, (title, []))[1].append(run)
    if len(panels) > _MOST_PANELS:
        raise ValueError(
            f"the runs differ in {', '.join(sorted(differing))} as well, which takes {len(panels)} maps; give a folder "
            f"with at most {_MOST_PANELS} combinations of the other parameters"
        )
    titles = [title for title, _ in panels.values()]
    return {
        title if titles.count(title) == 1 else f"{title} ({number})": members
        for number, (title, members) in enumerate(panels.values(), start=1)
    }


def cells_of(runs: Sequence[MapRun], x: Axis, y: Axis) -> dict[tuple[int, int], list[MapRun]]:
    """Returns the runs of each cell of the grid by the numbers of its column and row."""
    found: dict[tuple[int, int], list[MapRun]] = {
        (i, j): [] for j in range(len(y.values)) for i in range(len(x.values))
    }
    for run in runs:
        found[x.index(run.values[x.name]), y.index(run.values[y.name])].append(run)
    return found


def row_of(runs: Sequence[MapRun], shown: Shown) -> Row:
    """Returns value and numbers of runs of a cell. "valid" counts the runs with a value: those that finished, did not
    diverge and, with `at_loss`, reached it.
    """
    finished, valid = sum(run.finished for run in runs), sum(run.value is not None for run in runs)
    return {"value": shown.value(runs), "runs": len(runs), "finished": finished, "valid": valid}
