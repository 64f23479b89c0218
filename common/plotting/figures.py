"""Showing and saving the figures that the plotters draw, and their data."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure

from common.cli import UserError
from common.files import write_atomically

MARKERS = "ov^Ds1^h"


def has_screen() -> bool:
    """Whether pyplot can open windows here."""
    # Asking for the backend makes matplotlib choose: the first that works, which without a screen is Agg.
    backend = matplotlib.get_backend().lower()
    return backend in {name.lower() for name in backend_registry.list_builtin(BackendFilter.INTERACTIVE)}


def require_screen_or_file(save_plot_to: str) -> None:
    """Raises UserError where there is nowhere to put a figure."""
    if not save_plot_to and not has_screen():
        raise UserError(
            "-save_plot_to: is needed, for there is no screen to show the figure on; give a .png, .pdf or .svg file"
        )


def require_drawable(figure: Figure) -> None:
    """Raises UserError where the text of a figure cannot be set."""
    try:
        figure.draw_without_rendering()
    except ValueError as error:
        reason = str(error).strip().splitlines()[-1][:80]
        raise UserError(
            f"-plot_title or a name is no valid mathematical text ({reason}); write \\$ for a dollar"
        ) from None


def save_data(rows: Sequence[Mapping[str, object]], path: str) -> None:
    """Saves what a figure shows as CSV, one column for each key, where a path is given."""
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
    """Saves the figure, 250 dpi and tight, where a path is given, and opens a window where there is a screen."""
    if save_plot_to:
        path = Path(save_plot_to)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=250, bbox_inches="tight"))
        print(f"saved {path}")
    if has_screen():
        plt.show()
    plt.close(figure)
