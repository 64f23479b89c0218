"""Plots reconstruction error and rank against the number of observations, from a folder of tensor completion
experiments, and prints them as a table; or metrics against the epoch, or a map over two parameters.
"""

from functools import partial

from common.cli import Parameters, Parser, flag_errors, print_line, run_script
from common.flags import existing_dir
from common.plotting.flags import add_figure_flags, add_map_flags, check_map_flags, save_or_show

parser = Parser(__doc__)
text = "folder of the experiments' folders, of this project or of the original code, or one experiment's folder"
parser.add_argument("-experiments_dir", type=existing_dir, required=True, help=text)
text = "plot these recorded metrics, or patterns such as 'component_norm_*', against the epoch; with several, a panel "
text += "for each kind of run"
parser.add_argument("-against_epochs", nargs="+", default=[], metavar="METRIC", help=text)
add_figure_flags(parser)
add_map_flags(parser, "reconstruction_error")


def draw_figure(parameters: Parameters) -> tuple:
    """Returns the figure of error and rank against the number of observations, and its data, which it prints."""
    # Imported after the flags are checked, because importing matplotlib and torch is slow.
    from common.plotting.runs import number_of, report
    from common.plotting.tensor_completion import draw_tensor_completion, read_results, table

    with flag_errors("experiments_dir", parameters["experiments_dir"]):
        results, skipped = read_results(parameters["experiments_dir"])
    folders = {line.split(":")[0] for line in skipped} - {run.path.name for run, _ in results}
    found = f"{number_of(len(results), 'finished experiment')}, {number_of(len(folders), 'folder')} skipped"
    report(found, skipped, parameters["list_skipped"])
    figure, rows = draw_tensor_completion(results, parameters.values)
    print_line(table(rows, parameters["statistic"]))
    return figure, rows


def draw_epochs(parameters: Parameters) -> tuple:
    """Returns the figure of metrics against the epoch, and its data."""
    from common.plotting.against_epochs import draw_against_epochs
    from common.plotting.histories import NotRecorded, read_history
    from common.plotting.runs import number_of, read_groups, report, require_tensor_run

    directory, metrics = parameters["experiments_dir"], parameters["against_epochs"]
    with flag_errors("experiments_dir", directory), flag_errors("against_epochs", metrics, only=NotRecorded):
        groups, skipped = read_groups(directory, require_tensor_run, partial(read_history, patterns=metrics))
    found = number_of(sum(len(group.values) for group in groups), "finished experiment")
    report(f"{found}, {number_of(len(skipped), 'folder')} skipped", skipped, parameters["list_skipped"])
    with flag_errors("against_epochs", metrics):
        return draw_against_epochs(groups, parameters.values)


def draw_map_of_runs(parameters: Parameters) -> tuple:
    """Returns the figure of a map over two parameters, and its data."""
    from common.plotting.histories import NotRecorded, measure_tensor
    from common.plotting.maps import map_figure
    from common.plotting.runs import require_tensor_run

    directory, metric = parameters["experiments_dir"], parameters["metric"]
    with flag_errors("experiments_dir", directory), flag_errors("metric", metric, only=NotRecorded):
        return map_figure(parameters, require_tensor_run, partial(measure_tensor, metric=metric))


def main() -> None:
    parameters = parser.parse()
    check_map_flags(parameters, ("against_epochs",))
    draw = draw_map_of_runs if parameters["map"] else draw_epochs if parameters["against_epochs"] else draw_figure
    save_or_show(draw, parameters)


if __name__ == "__main__":
    run_script(main)
