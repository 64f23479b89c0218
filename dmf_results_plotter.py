"""Draws |unobserved entry| against the loss, from checkpoints of deep matrix factorization experiments."""

from common.cli import Flag, existing_file, flag_error, optional, parse_flags, picture_file, real, run_script, text

FLAGS = [
    Flag(
        "experiments_checkpoint_paths",
        None,
        "checkpoints, of this project or of the original code; entry (0, 0) must have been tracked",
        existing_file,
        required=True,
        num_values="+",
        metavar="FILE",
    ),
    Flag(
        "experiments_names",
        None,
        "name of each experiment in the legend, as many as paths",
        text,
        required=True,
        num_values="+",
        metavar="NAME",
    ),
    Flag("plot_title", "", "title of the figure", text),
    Flag("min_loss", 1e-4, "where the curves and the loss axis end", real(0, above=True)),
    Flag("save_plot_to", "", "write the figure to this png, pdf or svg file", optional(picture_file), metavar="FILE"),
]


def main() -> None:
    parameters = parse_flags(FLAGS, __doc__)
    paths, names = parameters["experiments_checkpoint_paths"], parameters["experiments_names"]
    if len(paths) != len(names):
        raise flag_error("experiments_names", names, f"there are {len(paths)} paths; give as many names")

    # Imported once the flags are known to be right: matplotlib and torch take a while.
    from common.plotting.figures import require_screen_or_file, save_and_show
    from common.plotting.unobserved_entry import draw_unobserved_entry, load_curve

    require_screen_or_file(parameters["save_plot_to"])
    curves = [load_curve(path, name) for path, name in zip(paths, names, strict=True)]
    figure = draw_unobserved_entry(curves, parameters["plot_title"], parameters["min_loss"])
    save_and_show(figure, parameters["save_plot_to"])


if __name__ == "__main__":
    run_script(main)
