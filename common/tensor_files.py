"""Files of tensors and dictionaries: written with torch.save, read without executing anything."""

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.files import write_atomically


def tensor_bytes(content: Any) -> bytes:
    """Returns what torch.save writes for a tensor, or a dictionary of tensors, numbers, strings, lists and
    dictionaries.
    """
    buffer = io.BytesIO()  # torch would report a full disk with a RuntimeError of many lines
    torch.save(content, buffer)
    return buffer.getvalue()


def save_tensors(content: Any, path: Path, overwrite: bool = True) -> None:
    """Writes the `tensor_bytes` of `content` to a file. Raises as `write_atomically` does."""
    write_atomically(path, tensor_bytes(content), overwrite)


def load_tensors(path: str | Path) -> Any:
    """Returns the content of a file written by torch.save, with its tensors on the CPU. Nothing in the file is
    executed. Raises OSError, and ValueError if the file is damaged, no regular file, or holds more than plain data.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError("is not a regular file; give one")
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception:
            problem = "is not a torch.save file, is damaged, or holds more than plain data (tensors, numbers, strings, "
            raise ValueError(f"{problem}lists, dictionaries); give one written by this project") from None


def load_dictionary(path: str | Path) -> dict:
    """Returns the dictionary in a file. Raises as `load_tensors` does, and ValueError for any other content."""
    content = load_tensors(path)
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}; give a file that holds a dictionary")
    return content


def is_float_tensor(value: Any) -> bool:
    """Returns whether `value` is a dense tensor of real floating-point numbers on the CPU."""
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return is_dense and value.is_floating_point()
