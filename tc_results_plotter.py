"""Plots reconstruction error and rank against the number of observations, from a folder of tensor completion
experiments, and prints them as a table.
"""

from common.cli import Parser, flag_errors, run_script
from common.flags import add_figure_flags, existing_dir, require_screen_or_file, save_figure

parser = Parser(__doc__)
text = "folder that contains the experiments' folders, of this project or of the original code"
parser.add_argument("-experiments_dir", type=existing_dir, required=True, help=text)
add_figure_flags(parser)


def main() -> None:
    parameters = parser.parse()

    # Imported after the flags are checked, because importing matplotlib and torch is slow.
    from common.plotting import tensor_completion

    require_screen_or_file(parameters)
    with flag_errors("experiments_dir", parameters["experiments_dir"]):
        results, skipped = tensor_completion.read_results(parameters["experiments_dir"])
    folders = {line.split(":")[0] for line in skipped} - {result.run.path.name for result in results}
    print(f"{len(results)} finished experiments, {len(folders)} folders skipped")
    for line in skipped:
        print(f"  {line}")
    rows = tensor_completion.summarize(results)
    print(tensor_completion.table(rows), flush=True)
    target_rank = tensor_completion.common_target_rank(results)
    figure = tensor_completion.draw_tensor_completion(rows, target_rank, parameters["plot_title"])
    save_figure(figure, rows, parameters)


if __name__ == "__main__":
    run_script(main)
