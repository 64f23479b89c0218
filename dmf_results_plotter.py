"""Plots |unobserved entry|, or another metric, against the loss of deep matrix factorization experiments, from a folder
of experiments or from checkpoints. For experiments that differ only in their seed, plots median and quartiles.
"""

from dataclasses import replace

from common.cli import Parser, UserError, flag_error, flag_errors, print_line, run_script
from common.flags import (
    add_figure_flags,
    checkpoint_file,
    existing_dir,
    integer,
    optional,
    real,
    require_screen_or_file,
    save_figure,
)

parser = Parser(__doc__)
add = parser.add_argument
text = "checkpoints of this project or of the original code"
add("-experiments_checkpoint_paths", type=checkpoint_file, nargs="+", default=[], help=text)
text = "names in the legend, one for each path; with -experiments_dir in place of the lines' own names, in their order"
add("-experiments_names", type=str, nargs="+", default=[], metavar="NAME", help=text)
text = "folder of the experiments' folders, or one experiment's folder, instead of checkpoints"
add("-experiments_dir", type=optional(existing_dir), default="", help=text)
text = "the entry (I, J) to plot (default: the one that run_params.json records, else (0, 0))"
add("-unobserved_entry", type=integer(0), nargs=2, metavar=("I", "J"), help=text)
text = "plot this recorded metric instead of |unobserved entry|: fro_e2e_norm, e2e_effective_rank (less 1), …"
add("-y", default="", metavar="METRIC", help=text)
text = "plot the theoretical bound, as far as the determinant keeps its sign in half of the runs of a line"
add("-show_bound", action="store_true", help=text)
add("-min_loss", type=real(0, above=True), default=1e-4, help="where the curves and the loss axis end")
add_figure_flags(parser)


def rename(lines: list, names: list[str]) -> list:
    """Returns the lines with these names in place of their own, and prints which runs get which name. Raises UserError
    if there are not as many names as lines.
    """
    several_depths = len({line.depth for line in lines}) > 1
    own_names = [f"depth {line.depth}, {line.name}" if several_depths else line.name for line in lines]
    if len(names) != len(lines):
        problem = f"there are {len(lines)} lines; give as many names, in the order of {'; '.join(own_names)}"
        raise flag_error("experiments_names", names, problem)
    for name, own_name, line in zip(names, own_names, lines, strict=True):
        runs = len(line.curves)
        print_line(f"{name}: {own_name} ({runs} run{'s' if runs != 1 else ''})")
    return [replace(line, name=name) for line, name in zip(lines, names, strict=True)]


def main() -> None:
    parameters = parser.parse()
    paths, names = parameters["experiments_checkpoint_paths"], parameters["experiments_names"]
    directory, metric, show_bound = (parameters[name] for name in ("experiments_dir", "y", "show_bound"))
    if not paths and not directory:
        raise UserError("required: -experiments_checkpoint_paths and -experiments_names, or -experiments_dir")
    if paths and directory:
        raise flag_error("experiments_dir", directory, "give either a folder or -experiments_checkpoint_paths")
    if paths and not names:
        raise UserError("required: -experiments_names, as many as paths")
    if paths and len(paths) != len(names):
        raise flag_error("experiments_names", names, f"there are {len(paths)} paths; give as many names")

    # Imported after the flags are checked, because importing matplotlib and torch is slow.
    from common.plotting.against_loss import draw_against_loss, require_bound
    from common.plotting.curves import Line, NoBound, NotRecorded, Wanted, load_curve, read_lines
    from common.plotting.figures import NotDrawable
    from common.plotting.folders import count_reasons

    require_screen_or_file(parameters)
    entry = parameters["unobserved_entry"]
    wanted = Wanted(metric, entry and tuple(entry), show_bound)
    source = "experiments_dir" if directory else "experiments_checkpoint_paths"
    # The flag to blame, if it is given, for a metric or an entry that was not recorded.
    asked = "y" if metric else "unobserved_entry"
    lines, skipped = [], []
    for path in [directory] if directory else paths:
        with (
            flag_errors(source, path),
            flag_errors("show_bound", True, only=NoBound),
            flag_errors(asked, parameters[asked], only=NotRecorded if parameters[asked] else ()),
        ):
            if show_bound:
                require_bound(metric)
            if directory:
                lines, skipped = read_lines(directory, wanted)
            else:
                lines.append(Line(names[len(lines)], 0, [load_curve(path, wanted)]))
    if directory:
        experiments = sum(len(line.curves) for line in lines)
        print_line(f"{experiments} experiment{'s' if experiments != 1 else ''}, {len(skipped)} skipped")
        for text in skipped if parameters["list_skipped"] else count_reasons(skipped):
            print_line(f"  {text}")
        lines = rename(lines, names) if names else lines
    title, min_loss = parameters["plot_title"] or "", parameters["min_loss"]
    with flag_errors("min_loss", f"{min_loss:g}"), flag_errors("plot_title", title, only=NotDrawable):
        figure, rows = draw_against_loss(lines, title, min_loss, metric, show_bound)
    save_figure(figure, rows, parameters)


if __name__ == "__main__":
    run_script(main)
