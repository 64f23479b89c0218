"""The flags of datasets: of files, and of random targets. Importing this does not import torch."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from common.cli import Parameters, Parser, flag_error, flag_errors
from common.files import utc_time
from common.flags import add_seed_flag, integer, optional, part_of_name, real, require, writable_dir


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
    add("-target_fro_norm", type=real(0, above=True), default=1.0, help="Frobenius norm of the target")
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


@cache
def load_samples(load: Callable[[str], Any], path: str, num_samples: int | None = None) -> Any:
    """Returns the first `num_samples` samples, or all, of a dataset file that `load` reads. Raises UserError."""
    if num_samples is None:
        with flag_errors("dataset_path", path):
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
