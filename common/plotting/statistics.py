"""Statistics over seeds: the middle of a line, and the band around it."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from common.naming import span

Row = dict[str, Any]

# The columns of each statistic in tables: lower end of the band, middle, upper end of the band.
COLUMNS = {
    "median": ("lower_quartile", "median", "upper_quartile"),
    "mean": ("lower_95", "mean", "upper_95"),
}
_BANDS = {"median": "quartiles", "mean": "95% confidence interval"}
_CONFIDENCE = 0.95


def over_seeds(statistic: str, seeds: Sequence[int]) -> str:
    """Returns the caption of lines with a statistic and band over these numbers of seeds."""
    return f"{statistic}, {_BANDS[statistic]} over {span(seeds)} seeds"


def line_rows(x_name: str, x: np.ndarray, values: np.ndarray, statistic: str) -> list[Row]:
    """Returns the rows of a line: a statistic of values (runs, n) at each `x` (n,) where they are not all NaN, with the
    number of runs that have a value, and of all runs.
    """
    runs = np.isfinite(values).sum(axis=0)
    x, values, runs = x[runs > 0], values[:, runs > 0], runs[runs > 0]
    columns = (x_name, *COLUMNS[statistic], "runs", "runs_in_all")
    points = zip(x.tolist(), summary(values, statistic), runs.tolist(), strict=True)
    return [dict(zip(columns, (at, *numbers, left, len(values)), strict=True)) for at, numbers, left in points]


def draw_line(axes: Axes, x_name: str, rows: Sequence[Row], statistic: str, **style: Any) -> Line2D:
    """Draws the rows of a line, with its band. Returns the solid part.

    Where some runs have no value, the line is dashed: which runs are left may bend it.
    """
    x, low, middle, high = (
        np.array([row[name] for row in rows], dtype=np.float64) for name in (x_name, *COLUMNS[statistic])
    )
    complete = next((index for index, row in enumerate(rows) if row["runs"] < row["runs_in_all"]), len(rows))
    everyone, fewer = slice(complete), slice(max(complete - 1, 0), None)
    for part, alpha in ((everyone, 0.2), (fewer, 0.07)):
        axes.fill_between(x[part], low[part], high[part], color=style["color"], alpha=alpha, linewidth=0, zorder=1)
    # The layout takes a line without points to be in the corner of the figure.
    (solid,) = axes.plot(x[everyone], middle[everyone], in_layout=bool(complete), **style)
    if complete < len(x):
        axes.plot(x[fewer], middle[fewer], **{**style, "linestyle": "--"})
    return solid


def summary(values: np.ndarray, statistic: str) -> list[list[float | None]]:
    """Returns lower end, middle and upper end of a statistic of each column of values (runs, n), of which NaN are left
    out; None for an end that does not exist.

    "median": with the 25th and the 75th percentile. "mean": with the 95% confidence interval from Student's
    distribution, mean ± t s / √k, where s is the standard deviation of k values; it does not exist if k is 1.
    """
    if not values.shape[1]:
        return []
    if statistic == "median":
        found = np.nanpercentile(values, (25, 50, 75), axis=0)
    else:
        counts = np.isfinite(values).sum(axis=0)
        mean = np.nanmean(values, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / (counts - 1))
        half = np.array([student_t(count - 1) if count > 1 else np.nan for count in counts.tolist()])
        half *= deviation / np.sqrt(counts)
        found = np.array([mean - half, mean, mean + half])
    return [[None if value != value else value for value in column] for column in found.T.tolist()]


@lru_cache(maxsize=4096)
def student_t(degrees: int) -> float:
    """Returns the t for which a variable of Student's distribution lies between −t and t with probability 0.95.

    With t = √ν tan θ, the density of θ in (0, π/2) is proportional to cos(θ)^(ν − 1).
    """
    # For many degrees of freedom, the density is narrow: its width is about 1 / √ν.
    theta = np.linspace(0, min(np.pi / 2, 8 / np.sqrt(degrees)), 20_001)
    density = np.cos(theta) ** (degrees - 1)
    cumulative = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(degrees) * np.tan(np.interp(_CONFIDENCE * cumulative[-1], cumulative, theta)))
