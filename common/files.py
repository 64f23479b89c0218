"""Files that are never half-written: a reader, or a crash at any instant, finds the old one or the new one, whole."""

import errno
import json
import math
import os
import re
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

# Of the files that are read: many times what any of them has.
_LARGEST_JSON = 2**24
# What tempfile.mkstemp makes of a name that begins with a dot and the file's name.
_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")


def utc_time() -> str:
    """Now, in UTC, as it is written in the names of files and folders."""
    return datetime.now(timezone.utc).strftime("%Y_%m_%d-%H_%M_%S")


def write_atomically(path: Path, write: Callable[[Path], None], overwrite: bool = True) -> None:
    """Lets `write` make a temporary file beside `path`, then moves it there once it is safely on the disk. The move is
    on the disk, too, when this returns.

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
        temporary.chmod(0o666 & ~_umask())
        if overwrite:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _link(existing: Path, path: Path) -> None:
    try:
        os.link(existing, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        path.touch(exist_ok=False)
        os.replace(existing, path)


@cache
def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def sync_directory(path: Path) -> None:
    """Waits until what was made, renamed or removed in a folder is on the disk, where the file system knows how."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def remove_temporary_files(directory: Path) -> None:
    """Removes what a crash left of `write_atomically` in a folder that no other process writes into."""
    for path in directory.glob(".*-*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def save_json(content: dict, path: Path) -> None:
    """Writes JSON in which null stands for a number that is not there."""
    plain = json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(plain, encoding="utf-8"))


def load_json(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file. Raises FileNotFoundError where there is none, and ValueError that says what is
    wrong where it cannot be read or holds something else.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ValueError(f"damaged: {path.name} is no JSON") from None
    if not isinstance(content, dict):
        raise ValueError(f"damaged: {path.name} holds no dictionary")
    return content


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
