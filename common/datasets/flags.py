"""The flags of datasets: of files, and of random targets. Importing this does not import torch."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from common.cli import Parameters, Parser, exclusive, flag_error, flag_errors, print_line
from common.files import utc_time
from common.flags import add_seed_flag, existing_file, integer, optional, part_of_name, real, require, writable_dir

_FORMAT = "data/README.md describes the format"


def dataset_file_name(value: str) -> str:
    """Checks the name of a dataset file."""
    require(part_of_name(value).endswith(".pt"), value, "must end in .pt")
    return value


def cp_rank(value: str) -> int:
    """Checks the CP rank of a random tensor."""
    rank = integer(-1, 10**6)(value)
    require(rank, value, "must be at least 1, or -1 for no constraint")
    return rank


def add_random_matrix_flags(add: Callable[..., Any]) -> None:
    """Adds the flags of a random matrix with the method `add` of a parser or a group."""
    add("-num_rows", type=integer(1), default=50, help="rows of the target matrix")
    add("-num_cols", type=integer(1), default=50, help="columns of the target matrix")
    add("-rank", type=integer(1), default=5, help="rank of the random target, which has Frobenius norm num_rows")


def check_random_matrix(parameters: Any) -> None:
    """Raises UserError if there is no matrix of this rank."""
    rows, cols, rank = (parameters[name] for name in ("num_rows", "num_cols", "rank"))
    if rank > min(rows, cols):
        raise flag_error("rank", rank, f"a {rows}x{cols} target has rank {min(rows, cols)} at most")


def add_random_tensor_flags(add: Callable[..., Any]) -> None:
    """Adds the flags of a random tensor with the method `add` of a parser or a group."""
    text = "CP rank of the random target; -1: no constraint, Gaussian entries"
    add("-target_tensor_cp_rank", type=cp_rank, default=1, help=text)
    add("-target_fro_norm", type=real(1e-15, below=1e15), default=1.0, help="Frobenius norm of the target")
    add("-mode_dim_size", type=integer(1), default=10, help="dimension of each mode")
    add("-order", type=integer(2, 25), default=3, help="number of modes")


def check_random_tensor(parameters: Any) -> None:
    """Raises UserError if a tensor of these dimensions is too large."""
    dim, order = parameters["mode_dim_size"], parameters["order"]
    if dim**order > 10**8:
        remedy = f"of order {order} makes {dim**order:.1e} entries; at most 1e8 are possible"
        raise flag_error("mode_dim_size", dim, remedy)


def add_generator_flags(parser: Parser, output_dir: str) -> None:
    """Adds the flags that both data generators share, with this default folder."""
    add = parser.add_argument
    add("-custom_file_name", type=optional(part_of_name), default="", help="name the file {NAME}_{time}.pt")
    add("-file_name", type=optional(dataset_file_name), default="", help="exact name of the file; must not exist")
    add_seed_flag(parser)
    add("-output_dir", type=writable_dir, default=output_dir, help="where the file is written; made if missing")
    text = "your own target, in a .npy, .npz, .csv or .pt file; NaN and empty cells are unknown entries"
    add("-target_file", type=optional(existing_file), default="", help=text)
    text = "with -target_file: a mask, or flat (row-major) indices, of the entries that may be observed"
    add("-observed_file", type=optional(existing_file), default="", help=text)


def check_generator_flags(parameters: Parameters) -> None:
    """Raises UserError if the flags of `add_generator_flags` contradict each other or, with -target_file, others."""
    exclusive(parameters, "custom_file_name", "file_name")
    shared = {"custom_file_name", "file_name", "random_seed", "output_dir", "target_file", "observed_file"}
    idle = parameters.given - shared if parameters["target_file"] else parameters.given & {"observed_file"}
    for name in sorted(idle):
        remedy = f"has no effect {'with' if parameters['target_file'] else 'without'} -target_file; leave it out"
        raise flag_error(name, parameters[name], remedy)


@cache
def load_samples(load: Callable[[str], Any], path: str, num_samples: int | None = None) -> Any:
    """Returns the first `num_samples` samples, or all, of a dataset file that `load` reads. Raises UserError."""
    if num_samples is None:
        with flag_errors("dataset_path", path), flag_errors("dataset_path", path, _FORMAT, only=ValueError):
            return load(path)
    return first_samples(load_samples(load, path), num_samples)


def first_samples(dataset: Any, num_samples: int) -> Any:
    """Returns a dataset with its first `num_samples` samples. Raises UserError if there are fewer."""
    with flag_errors("num_samples", num_samples):
        return dataset.first(num_samples)


def save_dataset(content: dict[str, Any], parameters: Parameters, default_name: str) -> Path:
    """Writes a dataset to the file that the flags of `add_generator_flags` name, and returns its path. Raises UserError
    if that file exists.
    """
    from common.tensor_files import save_tensors  # imports torch

    directory = Path(parameters["output_dir"])
    directory.mkdir(parents=True, exist_ok=True)
    name = parameters["file_name"] or f"{parameters['custom_file_name'] or default_name}_{utc_time()}.pt"
    try:
        save_tensors(content, directory / name, overwrite=False)
    except FileExistsError:
        flag = next((flag for flag in ("file_name", "custom_file_name") if parameters[flag]), "output_dir")
        remedy = f"{directory / name} exists and is not overwritten; give another name"
        raise flag_error(flag, parameters[flag], remedy) from None
    return directory / name


def make_own_dataset(
    parameters: Parameters, seed: int, content_of: Callable[..., Any], check: Callable[..., Any]
) -> None:
    """Writes the dataset of the target in -target_file, and prints what it has. `content_of` returns what it holds of
    the target, which is NaN where it is unknown, and the flat entries that may be observed, in random order. `check`
    raises ValueError if there is no such dataset. Raises UserError.
    """
    import torch

    from common.datasets.arrays import as_entries, as_numbers, load_array

    path, observed_path = parameters["target_file"], parameters["observed_file"]
    with flag_errors("target_file", path):
        target = as_numbers(load_array(path), "it")
        known = ~target.isnan()
        if not known.any():
            raise ValueError("it has no known entry")
    entries = known.flatten().nonzero().flatten()
    if observed_path:
        with flag_errors("observed_file", observed_path):
            named = as_entries(load_array(observed_path), tuple(target.shape), "it")
            entries = named[known.flatten()[named]]
            if not len(entries):
                raise ValueError("it names no known entry")
    entries = entries[torch.randperm(len(entries), generator=torch.Generator().manual_seed(seed))]
    content = {**content_of(target, entries), "known_entries": known, "random_seed": seed}
    with flag_errors("target_file", path):
        check(content)
    shape = "x".join(map(str, target.shape))
    made = save_dataset(content, parameters, f"{'matrix' if target.dim() == 2 else 'tensor'}_{shape}")
    found = f"{known.sum()} of {target.numel()} entries are known; observe up to -num_samples {len(entries)}"
    print_line(f"{made}: {shape} target; {found}; random_seed {seed}")
