"""Showing and saving figures and their data."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure

from common.cli import print_line
from common.files import write_atomically

MARKERS = "ov^Ds1^h"


def has_screen() -> bool:
    """Returns whether pyplot can open windows."""
    # Asked for its backend, matplotlib chooses the first that works, which is Agg without a screen.
    backend = matplotlib.get_backend().lower()
    return backend in {name.lower() for name in backend_registry.list_builtin(BackendFilter.INTERACTIVE)}


class NotDrawable(ValueError):
    """A text of a figure is not valid."""


def require_drawable(figure: Figure) -> None:
    """Raises NotDrawable if a text of the figure is not valid."""
    try:
        figure.draw_without_rendering()
    except ValueError as error:
        reason = str(error).strip().splitlines()[-1][:80]
        raise NotDrawable(f"it or a name is not valid mathematical text ({reason}); write \\$ for a dollar") from None


def _save(path: str, write: Callable[[Path], None]) -> None:
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), write)
        print_line(f"saved {Path(path)}")


def save_data(rows: Sequence[Mapping[str, object]], path: str) -> None:
    """Saves the data of a figure as CSV, with a column for each key; does nothing if `path` is empty."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    _save(path, write)


def save_and_show(figure: Figure, save_plot_to: str) -> None:
    """Saves the figure (250 dpi, tight) if a path is given, and opens a window if there is a screen."""
    _save(save_plot_to, lambda temporary: figure.savefig(temporary, dpi=250, bbox_inches="tight"))
    if has_screen():
        plt.show()
    plt.close(figure)
