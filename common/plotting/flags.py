"""Flags that both plotters share, and what the scripts do with them. Importing this does not import matplotlib."""

import io
import os
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from common.cli import Parameters, Parser, UserError, flag_error, print_line
from common.files import csv_bytes, write_atomically
from common.flags import optional, output_file, real


def add_figure_flags(parser: Parser) -> None:
    """Adds the flags that both plotters share: the figure's title, the files to which it and its data are written, and
    whether to list the folders that are skipped.
    """
    picture, table = optional(output_file(".png", ".pdf", ".svg")), optional(output_file(".csv"))
    text = "title of the figure (default: made from the experiments)"
    parser.add_argument("-plot_title", default=None, help=text)
    parser.add_argument("-save_plot_to", type=picture, default="", help="write the figure to this png, pdf or svg file")
    parser.add_argument("-save_data_to", type=table, default="", help="write the figure's data to this csv file")
    text = "list every skipped folder, instead of their number for each reason"
    parser.add_argument("-list_skipped", action="store_true", help=text)
    text = "statistic over seeds: median with quartiles, or mean with 95%% confidence interval (Student's t)"
    parser.add_argument("-statistic", choices=["median", "mean"], default="median", help=text)


def add_map_flags(parser: Parser, metric: str | None, metrics: str = "") -> None:
    """Adds the flags of a map. `metric` is the default of -metric, and `metrics` names metrics that are not recorded,
    with a comma in front.
    """
    maps = parser.add_argument_group("a map over two parameters")
    text = "draw a map over two parameters, on the x and the y axis: flags of the runner, such as num_samples"
    maps.add_argument("-map", nargs=2, metavar=("PARAM", "PARAM"), help=text)
    text = f"colour the map by the -statistic over seeds of this metric at the end of a run: a recorded one{metrics}"
    maps.add_argument("-metric", default=metric, metavar="METRIC", help=text)
    text = "colour the map by the share of finished runs with a larger metric; diverged runs count as not larger"
    maps.add_argument("-above", type=real(), metavar="X", help=text)
    maps.add_argument("-below", type=real(), metavar="X", help="the same with a smaller metric")
    maps.add_argument("-map_counts", action="store_true", help="write in each cell how many runs it holds")


def check_map_flags(parameters: Parameters, not_in_maps: Sequence[str]) -> None:
    """Raises UserError if a flag of a map is given without -map, or one of `not_in_maps` with it."""
    for name in () if parameters["map"] else ("metric", "above", "below", "map_counts", "at_loss"):
        if name in parameters.given:
            raise flag_error(name, parameters[name], "is for maps; give -map PARAM PARAM as well, or leave it out")
    if parameters["map"]:
        refuse_with("-map", parameters, not_in_maps)
        if len(set(parameters["map"])) == 1:
            raise flag_error("map", parameters["map"], "give two different parameters")
        if parameters["above"] is not None and parameters["below"] is not None:
            raise flag_error("below", parameters["below"], "contradicts -above; give only one of the two")


def refuse_with(given: str, parameters: Parameters, names: Sequence[str]) -> None:
    """Raises UserError if one of the flags `names`, which have no effect with the `given` words, is given."""
    for name in names:
        if name in parameters.given:
            raise flag_error(name, parameters[name], f"has no effect with {given}; leave it out")


def save_or_show(draw: Callable[[Parameters], tuple], parameters: Parameters) -> None:
    """Saves the rows of the figure that `draw` returns as CSV, with a column for each key, and the figure (250 dpi,
    tight), as the flags of `add_figure_flags` say, and opens a window if there is a screen. Raises UserError, also if
    the figure can neither be saved nor shown.
    """
    # A notebook names a backend of its own, which a script may not have. It is not needed to save a figure.
    backend = os.environ.get("MPLBACKEND", "")
    is_missing = backend.startswith("module://") and not find_spec(backend[9:].partition(".")[0])
    if is_missing or (backend and parameters["save_plot_to"]):
        os.environ["MPLBACKEND"] = "agg"
    from matplotlib import rcParams

    from common.plotting.figures import has_screen

    rcParams["text.usetex"] &= shutil.which("latex") is not None
    save_plot_to, title = parameters["save_plot_to"], parameters["plot_title"] or ""
    if not save_plot_to and not has_screen():
        remedy = "is needed, because there is no screen to show the figure on; give a .png, .pdf or .svg file"
        raise UserError(f"-save_plot_to: {remedy}")
    figure, rows = draw(parameters)
    try:
        figure.draw_without_rendering()
    except ValueError as error:
        reason = str(error).strip().splitlines()[-1][:80]
        problem = f"it or a name is not valid mathematical text ({reason}); write \\$ for a dollar"
        raise flag_error("plot_title", title, problem) from None
    picture = io.BytesIO()
    if save_plot_to:
        figure.savefig(picture, format=Path(save_plot_to).suffix[1:].lower(), dpi=250, bbox_inches="tight")
    files = {parameters["save_data_to"]: csv_bytes(rows, list(rows[0])), save_plot_to: picture.getvalue()}
    for path, content in files.items():
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(path), content)
            print_line(f"saved {Path(path)}")
    if has_screen():
        from matplotlib import pyplot as plt

        plt.show()
