"""Pictures of an experiment's metrics, one line for each metric."""

import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from common.files import write_atomically
from common.plotting.thinning import visible_points
from common.training.history import History, Series

_DPI = 100
_MOST_LINES = 10


@cache
def _figure() -> Figure:
    """One figure for all pictures: making a new one takes longer than drawing it."""
    figure = Figure(figsize=(6.4, 4.8), dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.13, right=0.96, bottom=0.12, top=0.93)
    axes = figure.add_subplot()
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def draw_metrics(history: History, pictures: Mapping[str, str], directory: Path) -> None:
    """Draws metrics against the epoch, on linear axes, into `directory`: those of `pictures` (file name without ending
    → pattern of the names of its metrics) together, each of the others in a picture of its own name.
    """
    figure = _figure()
    (axes,) = figure.axes
    every_line = [
        (metric, f"{kind}_{metric}", series)
        for kind, metrics in (("train", history.train), ("validation", history.validation))
        for metric, series in metrics.items()
    ]
    drawn: dict[str, dict[str, Series]] = {}
    for metric, label, series in every_line:
        name = next((name for name, pattern in pictures.items() if re.fullmatch(pattern, metric)), metric)
        drawn.setdefault(name, {})[label] = series
    for name, lines in drawn.items():
        # Clearing the axes would make all their ticks anew, too.
        for line in list(axes.lines):
            line.remove()
        many = len(lines) > _MOST_LINES
        shades = len(lines) if many else _MOST_LINES
        axes.set_prop_cycle(color=colormaps["viridis" if many else "tab10"](np.linspace(0, 0.9, shades)))
        for label, series in lines.items():
            finite = np.isfinite(series.values)
            epochs, values = series.epochs[finite], series.values[finite].astype(np.float64)
            shown = visible_points(epochs, values)
            axes.plot(epochs[shown], values[shown], label=label, marker="." if len(shown) == 1 else None)
        axes.relim()
        axes.autoscale_view()
        axes.set_ylabel(name)
        # Of more lines than the legend has room for, it names the first and the last.
        named = [axes.lines[0], axes.lines[-1]] if many else axes.lines
        axes.legend(named, [line.get_label() for line in named], loc="best", fontsize="small")
        save = partial(figure.savefig, format="png", pil_kwargs={"compress_level": 1})
        write_atomically(directory / f"{name}.png", save)
