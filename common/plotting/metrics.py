"""Pictures of an experiment's metrics, one line for each metric."""

import pickle
import sys
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

from common.files import write_atomically
from common.plotting.pictures import Lines

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
    # Most of the time goes into the layout of tick labels: a few will do, and the axes' labels have fixed places.
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_label_coords(0.5, -0.09)
    axes.yaxis.set_label_coords(-0.12, 0.5)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def draw(lines: Lines, directory: Path) -> None:
    """Draws each picture of `lines` into `directory`, against the epoch and on linear axes."""
    figure = _figure()
    (axes,) = figure.axes
    for name, of_picture in lines.items():
        # Clearing the axes would make all their ticks anew, too.
        for line in list(axes.lines):
            line.remove()
        many = len(of_picture) > _MOST_LINES
        shades = len(of_picture) if many else _MOST_LINES
        axes.set_prop_cycle(color=colormaps["viridis" if many else "tab10"](np.linspace(0, 0.9, shades)))
        for label, (epochs, values) in of_picture.items():
            axes.plot(epochs, values, label=label, marker="." if len(epochs) == 1 else None)
        axes.relim()
        axes.autoscale_view()
        axes.set_ylabel(name)
        # Of more lines than the legend has room for, it names the first and the last.
        named = [axes.lines[0], axes.lines[-1]] if many else axes.lines
        axes.legend(named, [line.get_label() for line in named], loc="best", fontsize="small")
        figure.canvas.draw()
        # Without the alpha channel, and hardly compressed: three times as fast as figure.savefig.
        picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        save = partial(picture.save, format="png", compress_level=1)
        write_atomically(directory / f"{name}.png", save)


def main() -> None:
    """Draws what comes in on standard input from the process that trains. Answers each time with a line: the seconds it
    took, and what went wrong, if it did.
    """
    while True:
        try:
            lines, directory = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        begin, problem = time.monotonic(), ""
        try:
            draw(lines, directory)
        except Exception as error:
            problem = f" {type(error).__name__}: {' '.join(str(error).split())}"
        print(f"{time.monotonic() - begin}{problem}", flush=True)
