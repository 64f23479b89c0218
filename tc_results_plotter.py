"""Plots reconstruction error and rank against the number of observations, from a folder of tensor completion
experiments, and prints them as a table.
"""

from common.cli import Parser, flag_errors, print_line, run_script
from common.flags import add_figure_flags, existing_dir, require_screen_or_file, save_figure

parser = Parser(__doc__)
text = "folder of the experiments' folders, of this project or of the original code, or one experiment's folder"
parser.add_argument("-experiments_dir", type=existing_dir, required=True, help=text)
add_figure_flags(parser)


def main() -> None:
    parameters = parser.parse()

    # Imported after the flags are checked, because importing matplotlib and torch is slow.
    from common.plotting import tensor_completion
    from common.plotting.folders import count_reasons

    require_screen_or_file(parameters)
    with flag_errors("experiments_dir", parameters["experiments_dir"]):
        results, skipped = tensor_completion.read_results(parameters["experiments_dir"])
    folders = {line.split(":")[0] for line in skipped} - {result.run.path.name for result in results}
    finished = f"{len(results)} finished experiment{'s' if len(results) != 1 else ''}"
    print_line(f"{finished}, {len(folders)} folder{'s' if len(folders) != 1 else ''} skipped")
    for line in skipped if parameters["list_skipped"] else count_reasons(skipped):
        print_line(f"  {line}")
    rows = tensor_completion.summarize(results)
    print_line(tensor_completion.table(rows))
    target_rank = tensor_completion.common_target_rank(results)
    title = parameters["plot_title"] or tensor_completion.default_title(results)
    figure = tensor_completion.draw_tensor_completion(rows, target_rank, title)
    save_figure(figure, rows, parameters)


if __name__ == "__main__":
    run_script(main)
