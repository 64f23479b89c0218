"""Pictures of an experiment's metrics, one line for each metric."""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from common.files import write_atomically
from common.plotting.thinning import visible_points
from common.training.history import Series

_DPI = 100


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


def draw_metrics(pictures: Mapping[str, Mapping[str, Series]], directory: Path) -> None:
    """Draws each of `pictures` (file name without ending → label of a line → its values) against the epoch, on linear
    axes, into `directory`.
    """
    figure = _figure()
    (axes,) = figure.axes
    for name, lines in pictures.items():
        # Clearing the axes would make all their ticks anew, too.
        for line in list(axes.lines):
            line.remove()
        axes.set_prop_cycle(None)
        for label, series in lines.items():
            finite = np.isfinite(series.values)
            epochs, values = series.epochs[finite], series.values[finite].astype(np.float64)
            shown = visible_points(epochs, values)
            axes.plot(epochs[shown], values[shown], label=label, marker="." if len(shown) == 1 else None)
        axes.relim()
        axes.autoscale_view()
        axes.set_ylabel(name)
        axes.legend(loc="best", fontsize="small")
        save = partial(figure.savefig, format="png", pil_kwargs={"compress_level": 1})
        write_atomically(directory / f"{name}.png", save)
