"""Where the data generators write."""

from pathlib import Path
from typing import Any

from common.cli import Parameters, flag_error
from common.files import utc_time
from common.tensor_files import save_tensors


def save_dataset(content: dict[str, Any], parameters: Parameters, default_name: str) -> Path:
    """Writes a dataset into `-output_dir` and returns its path: named exactly `-file_name`, or `-custom_file_name` or
    else `default_name`, with the time.

    Raises UserError, and writes nothing, where a file of that name exists.
    """
    directory = Path(parameters["output_dir"])
    directory.mkdir(parents=True, exist_ok=True)
    name = parameters["file_name"] or f"{parameters['custom_file_name'] or default_name}_{utc_time()}.pt"
    try:
        save_tensors(content, directory / name, overwrite=False)
    except FileExistsError:
        flag = next((flag for flag in ("file_name", "custom_file_name") if parameters[flag]), "output_dir")
        raise flag_error(
            flag, parameters[flag], f"{directory / name} exists and is not overwritten; give another name"
        ) from None
    return directory / name
