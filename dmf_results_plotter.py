"""Plots |unobserved entry|, or other metrics, against the loss or the epoch of deep matrix factorization experiments,
from a folder of experiments or from checkpoints, or as a map over two parameters. For experiments that differ only in
their seed, plots median and quartiles.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from common.cli import Parameters, Parser, UserError, flag_error, flag_errors, print_line, run_script
from common.flags import checkpoint_file, existing_dir, integer, optional, real
from common.plotting.flags import (
    add_figure_flags,
    add_map_flags,
    check_map_flags,
    drawing_errors,
    refuse_with,
    require_screen_or_file,
    save_figure,
)

parser = Parser(__doc__)
add = parser.add_argument
text = "checkpoints of this project or of the original code"
add("-experiments_checkpoint_paths", type=checkpoint_file, nargs="+", default=[], help=text)
text = "names in the legend, one for each path or, with -experiments_dir, for each line of the legend, in its order"
add("-experiments_names", type=str, nargs="+", default=[], metavar="NAME", help=text)
text = "folder of the experiments' folders, or one experiment's folder, instead of checkpoints"
add("-experiments_dir", type=optional(existing_dir), default="", help=text)
text = "the entry (I, J) to plot (default: the one that run_params.json records, else (0, 0))"
add("-unobserved_entry", type=integer(0), nargs=2, metavar=("I", "J"), help=text)
text = "plot this recorded metric instead of |unobserved entry|: fro_e2e_norm, e2e_effective_rank (minus 1), …; with "
text += "-x epoch there may be several, and patterns, such as 'singular_value_*'"
add("-y", nargs="+", default=[], metavar="METRIC", help=text)
text = "plot against the loss, or against the epoch: with several metrics, a panel for each kind of run"
add("-x", choices=["loss", "epoch"], default="loss", help=text)
text = "plot the theoretical bound, as far as the determinant keeps its sign in half of the runs of a line"
add("-show_bound", action="store_true", help=text)
add("-min_loss", type=real(0, above=True), default=1e-4, help="where the curves and the loss axis end")
add_figure_flags(parser)
more = ", or ratio_to_bound: |unobserved entry| divided by its theoretical lower bound at the loss of the run"
add_map_flags(parser, None, "", f"{more} (default: |unobserved entry|)")
text = "take the metric of a map at the first validation with at most this loss; runs that do not reach it are left out"
add("-at_loss", type=real(0, above=True), metavar="X", help=text)


@contextmanager
def reading_errors(parameters: Parameters, path: str, metric: str) -> Iterator[None]:
    """Turns errors in reading a path into UserErrors. If a metric or an entry was not recorded, these are of the flag
    `metric` or of -unobserved_entry, if they are given.
    """
    from common.plotting.curves import NoBound, NotRecorded

    source = "experiments_dir" if parameters["experiments_dir"] else "experiments_checkpoint_paths"
    asked = metric if parameters[metric] else "unobserved_entry"
    of_bound = "show_bound" if parameters["show_bound"] else metric
    with (
        flag_errors(source, path),
        flag_errors(of_bound, parameters[of_bound], only=NoBound),
        flag_errors(asked, parameters[asked], only=NotRecorded if parameters[asked] else ()),
    ):
        yield


def rename(items: list, own_names: list[str], sizes: list[int], names: list[str]) -> list:
    """Returns lines or groups with these names, if there are any, in place of their own, and prints which runs get
    which name. Raises UserError if there are not as many names as items.
    """
    if not names:
        return items
    if len(names) != len(items):
        problem = f"there are {len(items)} lines; give as many names, in the order of {'; '.join(own_names)}"
        raise flag_error("experiments_names", names, problem)
    for name, own_name, runs in zip(names, own_names, sizes, strict=True):
        print_line(f"{name}: {own_name} ({runs} run{'s' if runs != 1 else ''})")
    return [replace(item, name=name) for item, name in zip(items, names, strict=True)]


def draw_loss(parameters: Parameters) -> tuple:
    """Returns the figure of a metric against the loss, and its data."""
    # Imported after the flags are checked, because importing matplotlib and torch is slow.
    from common.plotting.against_loss import draw_against_loss, require_bound
    from common.plotting.curves import Line, Wanted, load_curve, read_lines
    from common.plotting.folders import number_of, report_skipped

    directory, names, show_bound = (parameters[name] for name in ("experiments_dir", "experiments_names", "show_bound"))
    metric, entry = "".join(parameters["y"]), parameters["unobserved_entry"]
    wanted = Wanted(metric, entry and tuple(entry), show_bound)
    lines, skipped = [], []
    for path in [directory] if directory else parameters["experiments_checkpoint_paths"]:
        with reading_errors(parameters, path, "y"):
            if show_bound:
                require_bound(metric)
            if directory:
                lines, skipped = read_lines(directory, wanted)
            else:
                lines.append(Line(names[len(lines)], 0, [load_curve(path, wanted)]))
    if directory:
        sizes = [len(line.curves) for line in lines]
        found = f"{number_of(sum(sizes), 'experiment')}, {len(skipped)} skipped"
        report_skipped(found, skipped, parameters["list_skipped"])
        several_depths = len({line.depth for line in lines}) > 1
        own_names = [f"depth {line.depth}, {line.name}" if several_depths else line.name for line in lines]
        lines = rename(lines, own_names, sizes, names)
    title, min_loss = parameters["plot_title"] or "", parameters["min_loss"]
    with drawing_errors("min_loss", f"{min_loss:g}", title):
        return draw_against_loss(lines, title, min_loss, metric, show_bound, parameters["statistic"])


def draw_epochs(parameters: Parameters) -> tuple:
    """Returns the figure of metrics against the epoch, and its data."""
    from common.plotting.against_epochs import draw_against_epochs
    from common.plotting.curves import names_of_lines, require_matrix_run
    from common.plotting.folders import number_of, report_skipped
    from common.plotting.histories import Group, read_groups, read_history

    directory, names, metrics = (parameters[name] for name in ("experiments_dir", "experiments_names", "y"))
    entry = parameters["unobserved_entry"] and tuple(parameters["unobserved_entry"])
    groups, skipped = [], []
    for path in [directory] if directory else parameters["experiments_checkpoint_paths"]:
        with reading_errors(parameters, path, "y"):
            if directory:
                groups, skipped = read_groups(directory, metrics, require_matrix_run, names_of_lines, entry)
            else:
                groups.append(Group(names[len(groups)], [read_history(path, metrics, entry)]))
    if directory:
        sizes = [len(group.histories) for group in groups]
        found = f"{number_of(sum(sizes), 'experiment')}, {len(skipped)} skipped"
        report_skipped(found, skipped, parameters["list_skipped"])
        groups = rename(groups, [group.name for group in groups], sizes, names)
    title = parameters["plot_title"] or ""
    with drawing_errors("y", metrics, title):
        return draw_against_epochs(groups, title, parameters["statistic"])


def draw_map_of_runs(parameters: Parameters) -> tuple:
    """Returns the figure of a map over two parameters, and its data."""
    from common.plotting.curves import require_matrix_run
    from common.plotting.map_runs import measure_matrix
    from common.plotting.maps import map_figure

    directory, metric, entry = (parameters[name] for name in ("experiments_dir", "metric", "unobserved_entry"))
    measure = measure_matrix(metric or "", entry and tuple(entry), parameters["at_loss"])
    with reading_errors(parameters, directory, "metric"):
        return map_figure(parameters, require_matrix_run, measure)


def require_source(parameters: Parameters) -> None:
    """Raises UserError if flags contradict each other, or do not say what to plot."""
    paths, names, directory = (
        parameters[name] for name in ("experiments_checkpoint_paths", "experiments_names", "experiments_dir")
    )
    if not paths and not directory:
        raise UserError("required: -experiments_checkpoint_paths and -experiments_names, or -experiments_dir")
    if paths and directory:
        raise flag_error("experiments_dir", directory, "give either a folder or -experiments_checkpoint_paths")
    if paths and not names and not parameters["map"]:
        raise UserError("required: -experiments_names, as many as paths")
    if paths and names and len(paths) != len(names):
        raise flag_error("experiments_names", names, f"there are {len(paths)} paths; give as many names")
    check_map_flags(
        parameters, ("experiments_checkpoint_paths", "experiments_names", "x", "y", "show_bound", "min_loss")
    )
    if parameters["x"] == "epoch":
        refuse_with("x", parameters, ("show_bound", "min_loss"))
    elif len(parameters["y"]) > 1:
        raise flag_error("y", parameters["y"], "give one metric, or -x epoch")


def main() -> None:
    parameters = parser.parse()
    require_source(parameters)
    draw = draw_map_of_runs if parameters["map"] else draw_epochs if parameters["x"] == "epoch" else draw_loss
    require_screen_or_file(parameters)
    save_figure(*draw(parameters), parameters)


if __name__ == "__main__":
    run_script(main)
