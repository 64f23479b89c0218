"""Draws reconstruction error and rank against the number of observations, from a folder of tensor completion
experiments, and prints the table of what it draws.
"""

import sys

from common.cli import Flag, drawing_flags, existing_dir, parse_flags, run_script

FLAGS = [
    Flag(
        "experiments_dir",
        None,
        "folder with the folders of experiments, of this project or of the original code",
        existing_dir,
        required=True,
        metavar="DIR",
    ),
    *drawing_flags(),
]


def main() -> None:
    parameters = parse_flags(FLAGS, __doc__)

    # Imported once the flags are known to be right: matplotlib and torch take a while.
    from common.plotting.figures import require_drawable, require_screen_or_file, save_and_show, save_data
    from common.plotting.tensor_completion import (
        common_target_rank,
        draw_tensor_completion,
        read_results,
        rows,
        summarize,
        table,
    )

    require_screen_or_file(parameters["save_plot_to"])
    results, left_out = read_results(parameters["experiments_dir"])
    passed_over = {line.split(":")[0] for line in left_out} - {result.folder for result in results}
    print(f"{len(results)} finished experiments, {len(passed_over)} folders passed over")
    for line in left_out:
        print(f"  {line}")
    summaries = summarize(results)
    print(table(summaries))
    sys.stdout.flush()
    figure = draw_tensor_completion(summaries, common_target_rank(results), parameters["plot_title"])
    require_drawable(figure)
    save_data(rows(summaries), parameters["save_data_to"])
    save_and_show(figure, parameters["save_plot_to"])


if __name__ == "__main__":
    run_script(main)
