"""Showing and saving the figures that the plotters draw, and their data."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure

from common.files import write_atomically

MARKERS = "ov^Ds1^h"


def has_screen() -> bool:
    """Whether pyplot can open windows here."""
    # matplotlib chooses its backend when it is asked for it: the first that works, which without a screen is Agg.
    backend = matplotlib.get_backend().lower()
    return backend in {name.lower() for name in backend_registry.list_builtin(BackendFilter.INTERACTIVE)}


def require_drawable(figure: Figure) -> None:
    """Raises ValueError if the text of a figure is not valid."""
    try:
        figure.draw_without_rendering()
    except ValueError as error:
        reason = str(error).strip().splitlines()[-1][:80]
        raise ValueError(f"it or a name is not valid mathematical text ({reason}); write \\$ for a dollar") from None


def save_data(rows: Sequence[Mapping[str, object]], path: str) -> None:
    """Saves the data of a figure as CSV, with a column for each key; does nothing if `path` is empty."""
    if not path:
        return

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), write)
    print(f"saved {path}")


def save_and_show(figure: Figure, save_plot_to: str) -> None:
    """Saves the figure, 250 dpi and tight, if a path is given, and opens a window if there is a screen."""
    if save_plot_to:
        path = Path(save_plot_to)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=250, bbox_inches="tight"))
        print(f"saved {path}")
    if has_screen():
        plt.show()
    plt.close(figure)
