"""Files that are never half-written."""

import json
import math
import os
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


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
