"""Plots of an experiment's metrics against the epoch. Does not import torch; imports matplotlib to draw.

As a program, it draws what it reads from standard input.
"""

import io
import os
import pickle
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_atomically

_MOST_LINES = 10
# Metrics that decrease by orders of magnitude.
LOGARITHMIC = re.compile(r"mse_loss|sse_loss_div_2|reconstruction_error|held_out_error")
# Metrics that are whole numbers.
WHOLE = re.compile(r"e2e_rank|model_tensor_rank")

# Figure → label → epochs (n,) and values (n,).
Lines = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]


def metric_lines(metrics: Mapping[str, Mapping[str, Any]], figures: Mapping[str, str]) -> Lines:
    """Returns the lines of each figure, reduced to the visible points.

    `metrics` holds epochs (n,) and values (n,) by kind ("train" or "validation") and name. `figures` maps names of
    figures to patterns of the metrics in them; each of the other metrics has its own figure.
    """
    lines: Lines = {}
    for kind, of_kind in metrics.items():
        for metric, (epochs, values) in of_kind.items():
            name = next((name for name, pattern in figures.items() if re.fullmatch(pattern, metric)), metric)
            finite = np.isfinite(values)
            epochs, values = epochs[finite], values[finite].astype(np.float64)
            visible = visible_points(epochs, values)
            lines.setdefault(name, {})[f"{kind}_{metric}"] = epochs[visible], values[visible]
    return lines


def visible_points(x: np.ndarray, y: np.ndarray, columns: int = 1000) -> np.ndarray:
    """Returns ascending indices of points (n,) that suffice to draw the same line, `columns` pixels wide: the first,
    last, lowest and highest of each run of points in one pixel column.
    """
    if len(x) <= 4 * columns:
        return np.arange(len(x))
    column = np.floor((x - x.min()) / (np.ptp(x) or 1.0) * columns).astype(np.int64)
    begins = np.flatnonzero(np.r_[True, column[1:] != column[:-1]])
    ends = np.r_[begins[1:], len(x)] - 1
    by_height = np.lexsort((y, np.repeat(np.arange(len(begins)), ends - begins + 1)))
    return np.unique(np.concatenate([begins, ends, by_height[begins], by_height[ends]]))


@cache
def _axes() -> Any:
    """Returns the axes of all plots: a new figure takes longer to make than to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(6.4, 4.8), dpi=100)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.13, right=0.96, bottom=0.12, top=0.93)
    axes = figure.add_subplot(xlabel="Epoch")
    # The layout of tick labels takes most of the time, so there are few of them, and the axis labels do not move.
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_label_coords(0.5, -0.09)
    axes.yaxis.set_label_coords(-0.12, 0.5)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return axes


def draw_metrics(lines: Lines, directory: Path, stalled: int | None = None, owner: int | None = None) -> None:
    """Writes each figure of `lines` as a png file to `directory`, which is made if missing, whatever backend
    and style the user has chosen.

    The axis of a loss is logarithmic if all values are positive. Of many lines, the legend shows the first and the
    last. A vertical line marks the epoch `stalled`, from which no parameter changed. Stops if the process `owner`, this
    one or its parent, has died: a resumed run may be drawing the same figures.
    """
    # When it is imported, matplotlib refuses a backend that it does not know.
    os.environ["MPLBACKEND"] = "agg"
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    directory.mkdir(exist_ok=True)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        axes = _axes()
        for name, of_figure in lines.items():
            # Clearing the axes would make all ticks again.
            for line in list(axes.lines):
                line.remove()
            many = len(of_figure) > _MOST_LINES
            shades = np.linspace(0, 0.9, max(len(of_figure), _MOST_LINES))
            axes.set_prop_cycle(color=matplotlib.colormaps["viridis" if many else "tab10"](shades))
            for label, (epochs, values) in of_figure.items():
                axes.plot(epochs, values, label=label, marker="." if len(epochs) == 1 else None)
            values = np.concatenate([values for _, values in of_figure.values()])
            is_log = bool(LOGARITHMIC.fullmatch(name) and len(values) and values.min() > 0)
            axes.set(yscale="log" if is_log else "linear", ylabel=name)
            if not is_log:
                whole = {"integer": True, "min_n_ticks": 1} if WHOLE.fullmatch(name) else {}
                axes.yaxis.set_major_locator(MaxNLocator(5, **whole))
                axes.ticklabel_format(axis="y", scilimits=(-3, 4))  # longer labels would touch the axis label
            axes.relim()
            axes.autoscale_view()
            if not len(values):
                # Without points, the limits of the previous figure would remain.
                axes.set(xlim=(0, 1), ylim=(0, 1))
                axes.autoscale()
            named = [axes.lines[0], axes.lines[-1]] if many else list(axes.lines)
            if stalled is not None:
                named.append(axes.axvline(stalled, color="0.45", linestyle="--", linewidth=1, label="stalled"))
            axes.legend(named, [line.get_label() for line in named], loc="best", fontsize="small")
            picture = io.BytesIO()
            axes.figure.savefig(picture, format="png", pil_kwargs={"compress_level": 1})
            if owner not in (None, os.getpid(), os.getppid()):
                return
            write_atomically(directory / f"{name}.png", picture.getvalue())


if __name__ == "__main__":
    # Draws what standard input has: pickles of the arguments of `draw_metrics`. Answers each with an empty line.
    with suppress(EOFError):
        while True:
            draw_metrics(*pickle.load(sys.stdin.buffer))
            print(flush=True)
