"""Generates a dataset for deep matrix factorization: linear observations of a target matrix."""

from common.cli import (
    Flag,
    Parameters,
    choice,
    drawn_seed,
    exclusive,
    flag_error,
    integer,
    parse_flags,
    real,
    run_script,
)
from common.datasets.flags import generator_flags

FLAGS = [
    *generator_flags("data/dmf"),
    Flag("num_samples", 2500, "sensing matrices to draw", integer(1)),
    Flag("num_rows", 50, "rows of the target matrix", integer(1)),
    Flag("num_cols", 50, "columns of the target matrix", integer(1)),
    Flag("rank", 5, "rank of the random target, which has Frobenius norm num_rows", integer(1)),
    Flag("use_symmetric_target", False, "a symmetric random target U Uᵀ; square targets only", switch=True),
    Flag(
        "use_custom_target",
        False,
        "the paper's target: (0,1), (1,0) and (i,i) for i ≥ 2 are 1, else 0; overrides -rank",
        switch=True,
    ),
    Flag(
        "target_entries",
        [],
        "the entries of the target, row by row; overrides -rank",
        real(),
        num_values="+",
        metavar="X",
    ),
    Flag(
        "use_custom_sensing_matrices",
        False,
        "observe every entry but (0,0), or those of -unobserved_entry, in order; overrides -task_type and -num_samples",
        switch=True,
    ),
    Flag(
        "unobserved_entry",
        [],
        "with -use_custom_sensing_matrices: leave out entry (I, J) rather than (0, 0); repeatable",
        integer(0),
        num_values=2,
        repeatable=True,
        metavar=("I", "J"),
    ),
    Flag(
        "task_type",
        "sensing",
        "sensing (Gaussian sensing matrices) or completion (distinct random entries)",
        choice("sensing", "completion"),
        metavar="TYPE",
    ),
    Flag("sensing_std", 1.0, "standard deviation of the entries of Gaussian sensing matrices", real(0, above=True)),
]


def check(parameters: Parameters) -> None:
    """Raises UserError where flags contradict each other."""
    rows, cols = parameters["num_rows"], parameters["num_cols"]
    exclusive(parameters, "custom_file_name", "file_name")
    exclusive(parameters, "use_custom_target", "target_entries")
    for custom in ("use_custom_target", "target_entries"):
        exclusive(parameters, custom, "use_symmetric_target")
    if parameters["use_custom_target"] and min(rows, cols) < 2:
        raise flag_error("use_custom_target", True, f"the target is {rows}x{cols}; it needs 2 rows and 2 columns")
    if parameters["target_entries"] and len(parameters["target_entries"]) != rows * cols:
        remedy = f"there are {len(parameters['target_entries'])}; a {rows}x{cols} target has {rows * cols} entries"
        raise flag_error("target_entries", parameters["target_entries"], remedy)
    if parameters["use_symmetric_target"] and rows != cols:
        raise flag_error("use_symmetric_target", True, f"the target is {rows}x{cols}; only square ones are symmetric")
    random_target = not (parameters["use_custom_target"] or parameters["target_entries"])
    if random_target and parameters["rank"] > min(rows, cols):
        raise flag_error("rank", parameters["rank"], f"a {rows}x{cols} target has rank {min(rows, cols)} at most")
    if parameters["use_custom_sensing_matrices"]:
        unobserved = {tuple(entry) for entry in parameters["unobserved_entry"]} or {(0, 0)}
        for row, col in parameters["unobserved_entry"]:
            if row >= rows or col >= cols:
                raise flag_error(
                    "unobserved_entry", [row, col], f"the target is {rows}x{cols}; give one of its entries"
                )
        if len(unobserved) == rows * cols:
            raise flag_error(
                "use_custom_sensing_matrices", True, f"no entry of the {rows}x{cols} target is left to observe"
            )
    elif parameters["unobserved_entry"]:
        raise flag_error("unobserved_entry", parameters["unobserved_entry"][0], "needs -use_custom_sensing_matrices")
    elif parameters["task_type"] == "completion" and parameters["num_samples"] > rows * cols:
        remedy = f"a {rows}x{cols} target has {rows * cols} entries; give at most as many"
        raise flag_error("num_samples", parameters["num_samples"], remedy)


def main() -> None:
    parameters = parse_flags(FLAGS, __doc__)
    check(parameters)

    # Imported once the flags are known to be right: torch takes a while.
    import torch

    from common.datasets import files, matrix_sensing
    from common.metrics.matrix import rank, singular_values

    rows, cols = parameters["num_rows"], parameters["num_cols"]
    seed = drawn_seed(parameters["random_seed"])
    generator = torch.Generator().manual_seed(seed)

    if parameters["target_entries"]:
        target = torch.tensor(parameters["target_entries"]).view(rows, cols)
    elif parameters["use_custom_target"]:
        target = matrix_sensing.infinite_norm_target(rows, cols)
    else:
        symmetric = parameters["use_symmetric_target"]
        target = matrix_sensing.random_target(rows, cols, parameters["rank"], symmetric, generator)

    if parameters["use_custom_sensing_matrices"]:
        unobserved = parameters["unobserved_entry"] or [(0, 0)]
        entries = matrix_sensing.all_entries_but(unobserved, rows, cols)
        sensing = matrix_sensing.entry_sensing(entries, rows, cols)
    elif parameters["task_type"] == "completion":
        entries = matrix_sensing.random_entries(parameters["num_samples"], rows, cols, generator)
        sensing = matrix_sensing.entry_sensing(entries, rows, cols)
    else:
        std = parameters["sensing_std"]
        sensing = matrix_sensing.gaussian_sensing(parameters["num_samples"], rows, cols, std, generator)

    problem = matrix_sensing.sense(sensing, target)
    if not all(tensor.isfinite().all() for tensor in problem.state_dict().values()):
        flag = "target_entries" if parameters["target_entries"] else "sensing_std"
        raise flag_error(flag, parameters[flag], "makes numbers that float32 cannot hold; give smaller ones")
    task_type = "completion" if parameters["use_custom_sensing_matrices"] else parameters["task_type"]
    target_rank = parameters["rank"]
    if parameters["target_entries"] or parameters["use_custom_target"]:
        target_rank = int(rank(singular_values(target.double()), (rows, cols), target.dtype))
    symmetric = "_sym" if parameters["use_symmetric_target"] else ""
    path = files.save_dataset(
        {**problem.state_dict(), "random_seed": seed},
        parameters,
        default_name=f"{task_type}_rank_{target_rank}_{rows}x{cols}{symmetric}",
    )
    print(f"{path}: {len(sensing)} observations of a {rows}x{cols} target of rank {target_rank}, random_seed {seed}")


if __name__ == "__main__":
    run_script(main)
