"""Files of tensors and dictionaries, written with torch.save and read back without executing anything."""

from pathlib import Path
from typing import Any

import torch

from common.cli import flag_error
from common.files import write_atomically


def save_tensors(content: dict | torch.Tensor, path: Path, overwrite: bool = True) -> None:
    """Writes a tensor, or a dictionary of tensors, numbers, strings, lists and dictionaries, with torch.save."""
    write_atomically(path, lambda temporary: torch.save(content, temporary), overwrite)


def load_dictionary(path: str | Path, flag: str) -> dict:
    """A dictionary written with torch.save, on the CPU; nothing in the file is executed.

    Raises UserError, naming `flag`, where the file cannot be read or holds anything else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise flag_error(flag, str(path), f"cannot be read: {error.strerror}; give a readable file") from None
    except Exception:
        # What torch says of such a file is long, and includes how to execute it.
        remedy = "is no torch.save file, or holds more than plain data (tensors, numbers, strings, lists, dictionaries)"
        raise flag_error(flag, str(path), f"{remedy}; give one written by this project") from None
    if not isinstance(content, dict):
        raise flag_error(flag, str(path), f"holds a {type(content).__name__}; give a file that holds a dictionary")
    return content


def is_plain_tensor(value: Any) -> bool:
    """Whether it is a dense tensor of floating-point numbers, with its data here."""
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )
