"""Generates a dataset for deep matrix factorization: linear observations of a target matrix."""

from common.cli import Parameters, Parser, exclusive, flag_error, print_line, run_script
from common.datasets.flags import (
    add_generator_flags,
    add_random_matrix_flags,
    check_generator_flags,
    check_random_matrix,
    make_own_dataset,
    save_dataset,
)
from common.flags import drawn_seed, integer, real

parser = Parser(__doc__)
add_generator_flags(parser, "data/dmf")
add = parser.add_argument
add("-num_samples", type=integer(1), default=2500, help="number of observations")
add_random_matrix_flags(add)
add("-use_symmetric_target", action="store_true", help="a symmetric random target U Uᵀ; square targets only")
text = "the paper's target: (0,1), (1,0) and (i,i) for i ≥ 2 are 1, else 0; overrides -rank"
add("-use_custom_target", action="store_true", help=text)
text = "the entries of the target, row by row; overrides -rank"
add("-target_entries", type=real(-1e15, below=1e15), nargs="+", default=[], help=text)
text = "observe all entries except (0,0) or -unobserved_entry, in order; overrides -task_type and -num_samples"
add("-use_custom_sensing_matrices", action="store_true", help=text)
text = "with -use_custom_sensing_matrices: leave out entry (I, J) instead of (0, 0); repeatable"
pairs = {"nargs": 2, "action": "append", "default": [], "metavar": ("I", "J")}
add("-unobserved_entry", type=integer(0), **pairs, help=text)
text = "sensing (Gaussian sensing matrices) or completion (distinct random entries)"
add("-task_type", choices=["sensing", "completion"], default="sensing", help=text)
text = "store the observed entries instead of sensing matrices: a much smaller file, for this project only"
add("-store_entries", action="store_true", help=text)
text = "standard deviation of the entries of Gaussian sensing matrices"
add("-sensing_std", type=real(1e-15, below=1e15), default=1.0, help=text)


def check(parameters: Parameters) -> None:
    """Raises UserError if flags contradict each other."""
    rows, cols = parameters["num_rows"], parameters["num_cols"]
    entries, unobserved = parameters["target_entries"], parameters["unobserved_entry"]
    size = f"{rows}x{cols}"
    exclusive(parameters, "use_custom_target", "target_entries")
    for custom in ("use_custom_target", "target_entries"):
        exclusive(parameters, custom, "use_symmetric_target")
    if parameters["use_custom_target"] and min(rows, cols) < 2:
        raise flag_error("use_custom_target", True, f"the target is {size}; it needs 2 rows and 2 columns")
    if entries and len(entries) != rows * cols:
        remedy = f"there are {len(entries)}; a {size} target has {rows * cols} entries"
        raise flag_error("target_entries", entries, remedy)
    if parameters["use_symmetric_target"] and rows != cols:
        raise flag_error("use_symmetric_target", True, f"the target is {size}; only square ones are symmetric")
    if not (parameters["use_custom_target"] or entries):
        check_random_matrix(parameters)
    if parameters["use_custom_sensing_matrices"]:
        for row, col in unobserved:
            if row >= rows or col >= cols:
                raise flag_error("unobserved_entry", [row, col], f"the target is {size}; give one of its entries")
        if len(set(map(tuple, unobserved)) or {(0, 0)}) == rows * cols:
            remedy = f"no entry of the {size} target is left to observe"
            raise flag_error("use_custom_sensing_matrices", True, remedy)
    elif unobserved:
        raise flag_error("unobserved_entry", unobserved[0], "needs -use_custom_sensing_matrices")
    elif parameters["store_entries"] and parameters["task_type"] == "sensing":
        remedy = "Gaussian sensing matrices do not observe entries; give -task_type completion, or leave it out"
        raise flag_error("store_entries", True, remedy)
    elif parameters["task_type"] == "completion" and parameters["num_samples"] > rows * cols:
        remedy = f"a {size} target has {rows * cols} entries; give at most as many"
        raise flag_error("num_samples", parameters["num_samples"], remedy)


def main() -> None:
    parameters = parser.parse()
    check_generator_flags(parameters)
    if not parameters["target_file"]:
        check(parameters)

    # Imported after the flags are checked, because importing torch is slow.
    import torch

    from common.datasets import matrix_sensing
    from common.metrics.matrix import rank, singular_values

    rows, cols, target_rank = (parameters[name] for name in ("num_rows", "num_cols", "rank"))
    task_type, num_samples = parameters["task_type"], parameters["num_samples"]
    symmetric = parameters["use_symmetric_target"]
    seed = drawn_seed(parameters["random_seed"])
    if parameters["target_file"]:
        make_own_dataset(parameters, seed, matrix_sensing.completion_content, matrix_sensing.as_matrix_sensing)
        return
    generator = torch.Generator().manual_seed(seed)

    if parameters["target_entries"]:
        target = torch.tensor(parameters["target_entries"]).view(rows, cols)
    elif parameters["use_custom_target"]:
        target = matrix_sensing.infinite_norm_target(rows, cols)
    else:
        target = matrix_sensing.random_target(rows, cols, target_rank, symmetric, generator)

    if parameters["use_custom_sensing_matrices"]:
        task_type = "completion"
        entries = matrix_sensing.all_entries_but(parameters["unobserved_entry"] or [(0, 0)], rows, cols)
        sensing = matrix_sensing.entry_sensing(entries, rows, cols)
    elif task_type == "completion":
        entries = matrix_sensing.random_entries(num_samples, rows, cols, generator)
        sensing = matrix_sensing.entry_sensing(entries, rows, cols)
    else:
        sensing = matrix_sensing.gaussian_sensing(num_samples, rows, cols, parameters["sensing_std"], generator)

    problem = matrix_sensing.sense(sensing, target)
    if parameters["target_entries"] or parameters["use_custom_target"]:
        target_rank = int(rank(singular_values(target.double()), (rows, cols), target.dtype))
    name = f"{task_type}_rank_{target_rank}_{rows}x{cols}{'_sym' if symmetric else ''}"
    content = (
        matrix_sensing.completion_content(target, entries) if parameters["store_entries"] else problem.state_dict()
    )
    path = save_dataset({**content, "random_seed": seed}, parameters, name)
    target_text = f"a {rows}x{cols} target of rank {target_rank}"
    print_line(f"{path}: {len(sensing)} observations of {target_text}, random_seed {seed}")


if __name__ == "__main__":
    run_script(main)
