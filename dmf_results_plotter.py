"""Draws |unobserved entry|, or another metric, against the loss, from deep matrix factorization experiments: a folder
of them, or checkpoints. Of experiments that differ only in their seed, median and quartiles are drawn.
"""

from common.cli import (
    Flag,
    UserError,
    drawing_flags,
    existing_dir,
    existing_file,
    flag_error,
    integer,
    optional,
    parse_flags,
    real,
    run_script,
    text,
)

FLAGS = [
    Flag(
        "experiments_checkpoint_paths",
        [],
        "checkpoints, of this project or of the original code",
        existing_file,
        num_values="+",
        metavar="FILE",
    ),
    Flag(
        "experiments_names",
        [],
        "name of each experiment in the legend, as many as paths; with -experiments_dir of each line, made of the "
        "parameters where it is left out",
        text,
        num_values="+",
        metavar="NAME",
    ),
    Flag(
        "experiments_dir",
        "",
        "folder with the folders of experiments, in place of their checkpoints",
        optional(existing_dir),
        metavar="DIR",
    ),
    Flag(
        "unobserved_entry",
        None,
        "the entry (I, J) to draw; where left out, the one that run_params.json says, else (0, 0)",
        integer(0),
        num_values=2,
        metavar=("I", "J"),
    ),
    Flag(
        "y",
        "",
        "draw this recorded metric in place of |unobserved entry|: e2e_effective_rank, fro_e2e_norm, …",
        text,
        metavar="METRIC",
    ),
    Flag("show_bound", False, "draw what the theory bounds it by, while the determinant keeps its sign", switch=True),
    Flag("min_loss", 1e-4, "where the curves and the loss axis end", real(0, above=True)),
    *drawing_flags(),
]


def main() -> None:
    parameters = parse_flags(FLAGS, __doc__)
    paths, names = parameters["experiments_checkpoint_paths"], parameters["experiments_names"]
    directory = parameters["experiments_dir"]
    if not paths and not directory:
        raise UserError("required: -experiments_checkpoint_paths and -experiments_names, or -experiments_dir")
    if paths and directory:
        raise flag_error("experiments_dir", directory, "give either a folder or -experiments_checkpoint_paths")
    if paths and not names:
        raise UserError("required: -experiments_names, as many as paths")
    if paths and len(paths) != len(names):
        raise flag_error("experiments_names", names, f"there are {len(paths)} paths; give as many names")
    entry = parameters["unobserved_entry"]

    # Imported once the flags are known to be right: matplotlib and torch take a while.
    from common.plotting.against_loss import draw_against_loss, require_bound
    from common.plotting.curves import Panel, Wanted, load_curve, named, read_panels
    from common.plotting.figures import require_drawable, require_screen_or_file, save_and_show, save_data

    require_screen_or_file(parameters["save_plot_to"])
    metric, show_bound = parameters["y"], parameters["show_bound"]
    if show_bound:
        require_bound(metric)
    wanted = Wanted(metric, tuple(entry) if entry else None, show_bound)
    if directory:
        panels, left_out = read_panels(directory, wanted)
        experiments = sum(len(line) for panel in panels for line in panel.lines)
        print(f"{experiments} experiment{'s' if experiments != 1 else ''}, {len(left_out)} passed over")
        for line in left_out:
            print(f"  {line}")
        panels = named(panels, names) if names else panels
    else:
        panels = [Panel("", [[load_curve(path, name, wanted)] for path, name in zip(paths, names, strict=True)])]
    figure, rows = draw_against_loss(panels, parameters["plot_title"], parameters["min_loss"], metric, show_bound)
    require_drawable(figure)
    save_data(rows, parameters["save_data_to"])
    save_and_show(figure, parameters["save_plot_to"])


if __name__ == "__main__":
    run_script(main)
