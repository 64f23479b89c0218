"""Files that are never half-written, and dictionaries read back without executing anything."""

import json
import math
import os
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from common.cli import flag_error


def utc_time() -> str:
    """Now, in UTC, as it is written in the names of files and folders."""
    return datetime.now(timezone.utc).strftime("%Y_%m_%d-%H_%M_%S")


def write_atomically(path: Path, write: Callable[[Path], None], overwrite: bool = True) -> None:
    """Lets `write` make a temporary file beside `path`, then moves it there once it is safely on the disk.

    Raises FileExistsError where `path` exists and `overwrite` is off, and whatever `write` raises; nothing is left
    behind then.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    temporary = Path(name)
    try:
        os.close(handle)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        if not overwrite:
            path.touch(exist_ok=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def save_json(content: dict, path: Path) -> None:
    """Writes JSON in which null stands for a number that is not there."""
    plain = json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(plain, encoding="utf-8"))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
