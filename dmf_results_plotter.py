"""Plots |unobserved entry| or other metrics of deep matrix factorization experiments against the loss or the epoch, or
as a map over two parameters. Reads a folder of experiments, or checkpoints. Experiments that differ only in their seed
are shown as median and quartiles.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common.cli import Parameters, Parser, UserError, flag_error, flag_errors, print_line, run_script
from common.flags import checkpoint_file, existing_dir, integer, optional, real
from common.plotting.flags import add_figure_flags, add_map_flags, check_map_flags, refuse_with, save_or_show

parser = Parser(__doc__)
add = parser.add_argument
text = "checkpoints of this project or of the original code"
add("-experiments_checkpoint_paths", type=checkpoint_file, nargs="+", default=[], help=text)
text = "names in the legend, one for each path or, with -experiments_dir, for each line of the legend, in its order"
add("-experiments_names", nargs="+", default=[], metavar="NAME", help=text)
text = "folder of the experiments' folders, or one experiment's folder, instead of checkpoints"
add("-experiments_dir", type=optional(existing_dir), default="", help=text)
text = "the entry (I, J) to plot (default: the one that run_params.json records, else (0, 0))"
add("-unobserved_entry", type=integer(0), nargs=2, metavar=("I", "J"), help=text)
text = "plot this recorded metric instead of |unobserved entry|: fro_e2e_norm, e2e_effective_rank (minus 1), …; with "
text += "-x epoch there may be several, and patterns, such as 'singular_value_*'. Or on_the_curve: the share of runs "
text += "whose |unobserved entry| has always been above its theoretical lower bound, down to -min_loss if that is given"
add("-y", nargs="+", default=[], metavar="METRIC", help=text)
text = "plot against the loss, or against the epoch: with several metrics, a panel for each kind of run"
add("-x", choices=["loss", "epoch"], default="loss", help=text)
text = "plot the theoretical bound, while it holds for at least half of the runs of a line"
add("-show_bound", action="store_true", help=text)
add("-min_loss", type=real(0, above=True), default=1e-4, help="where curves and loss axis end; see -y")
add_figure_flags(parser)
more = ", or ratio_to_bound: |unobserved entry| divided by its theoretical lower bound at the loss of the run"
add_map_flags(parser, None, f"{more} (default: |unobserved entry|)")
text = "take the metric of a map at the first validation with at most this loss; runs that do not reach it have none. "
text += "Of a run without checkpoint, take the last metric if the last loss is at most this one"
add("-at_loss", type=real(0, above=True), metavar="X", help=text)


@contextmanager
def reading_errors(parameters: Parameters, path: str, metric: str) -> Iterator[None]:
    """Turns errors in reading a path into UserErrors. If a given metric or entry was not recorded, the error names
    the flag `metric` or -unobserved_entry.
    """
    from common.plotting.histories import NoBound, NotRecorded

    source = "experiments_dir" if parameters["experiments_dir"] else "experiments_checkpoint_paths"
    asked = metric if parameters[metric] else "unobserved_entry"
    of_bound = "show_bound" if parameters["show_bound"] else metric
    with (
        flag_errors(source, path),
        flag_errors(of_bound, parameters[of_bound], only=NoBound),
        flag_errors(asked, parameters[asked], only=NotRecorded if parameters[asked] else ()),
    ):
        yield


def groups_of(parameters: Parameters, read: Callable[..., Any], panel_for_depth: bool) -> list:
    """Returns the groups of runs to draw, with the names that are given, and prints what was found. Raises UserError.

    `read(checkpoint, run)` returns what is drawn of a run. With `panel_for_depth`, the runs of a folder are named for
    each depth.
    """
    from common.plotting.runs import Group, number_of, read_groups, report, require_matrix_run
    from common.recorded_runs import read_run

    directory, names = parameters["experiments_dir"], parameters["experiments_names"]
    groups = []
    if not directory:
        for path, name in zip(parameters["experiments_checkpoint_paths"], names, strict=True):
            with reading_errors(parameters, path, "y"):
                groups.append(Group(name, "", [read(path, read_run(Path(path).parent.parent))]))
        return groups
    with reading_errors(parameters, directory, "y"):
        groups, skipped = read_groups(directory, require_matrix_run, read, panel_for_depth)
    sizes = [len(group.values) for group in groups]
    found = f"{number_of(sum(sizes), 'experiment')}, {len(skipped)} skipped"
    report(found, skipped, parameters["list_skipped"])
    if not names:
        return groups
    several_depths = len({group.panel for group in groups}) > 1
    own_names = [f"{group.panel}, {group.name}" if several_depths else group.name for group in groups]
    if len(names) != len(groups):
        remedy = f"there are {len(groups)} lines; give as many names, in the order of {'; '.join(own_names)}"
        raise flag_error("experiments_names", names, remedy)
    for name, own_name, size in zip(names, own_names, sizes, strict=True):
        print_line(f"{name}: {own_name} ({number_of(size, 'run')})")
    return [replace(group, name=name) for group, name in zip(groups, names, strict=True)]


def draw_loss(parameters: Parameters) -> tuple:
    """Returns the figure of a metric, or of the share of runs on the theory's curve, against the loss, and its data."""
    # Imported after the flags are checked, because importing matplotlib and torch is slow.
    from common.plotting.against_loss import ON_THE_CURVE, draw_against_loss, require_bound
    from common.plotting.histories import load_curve

    metric, show_bound = "".join(parameters["y"]), parameters["show_bound"]
    of_shares = metric == ON_THE_CURVE
    if of_shares:
        refuse_with(f"-y {ON_THE_CURVE}", parameters, ("show_bound", "statistic"))
    if show_bound:
        with flag_errors("show_bound", True):
            require_bound(metric)
    recorded, entry = "" if of_shares else metric, parameters["unobserved_entry"]
    read = partial(load_curve, metric=recorded, entry=entry and tuple(entry), corner=show_bound or of_shares)
    groups = groups_of(parameters, read, True)
    if of_shares:
        min_loss = parameters["min_loss"] if "min_loss" in parameters.given else None
        with flag_errors("y", metric):
            return draw_against_loss(groups, {**parameters.values, "min_loss": min_loss})
    with flag_errors("min_loss", f"{parameters['min_loss']:g}"):
        return draw_against_loss(groups, parameters.values)


def draw_epochs(parameters: Parameters) -> tuple:
    """Returns the figure of metrics against the epoch, and its data."""
    from common.plotting.against_epochs import draw_against_epochs
    from common.plotting.histories import read_history

    metrics, entry = parameters["y"], parameters["unobserved_entry"]
    read = partial(read_history, patterns=metrics or [""], entry=entry and tuple(entry))
    groups = groups_of(parameters, read, False)
    with flag_errors("y", metrics):
        return draw_against_epochs(groups, parameters.values)


def draw_map_of_runs(parameters: Parameters) -> tuple:
    """Returns the figure of a map over two parameters, and its data."""
    from common.plotting.histories import measure_matrix
    from common.plotting.maps import map_figure
    from common.plotting.runs import require_matrix_run

    directory, metric, entry = (parameters[name] for name in ("experiments_dir", "metric", "unobserved_entry"))
    measure = partial(measure_matrix, metric=metric or "", entry=entry and tuple(entry), at_loss=parameters["at_loss"])
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
        refuse_with("-x epoch", parameters, ("show_bound", "min_loss"))
        if "on_the_curve" in parameters["y"]:
            raise flag_error("y", "on_the_curve", "is drawn against the loss; leave out -x epoch")
    elif len(parameters["y"]) > 1:
        raise flag_error("y", parameters["y"], "give one metric, or -x epoch")


def main() -> None:
    parameters = parser.parse()
    require_source(parameters)
    draw = draw_map_of_runs if parameters["map"] else draw_epochs if parameters["x"] == "epoch" else draw_loss
    save_or_show(draw, parameters)


if __name__ == "__main__":
    run_script(main)
