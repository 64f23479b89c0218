"""Files: written so that a crash leaves the old file or the new one, never a part; read only if they are regular."""

import errno
import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

# JSON files of this project are smaller and less deeply nested.
_MOST_JSON_BYTES, _MOST_JSON_LEVELS = 10**6, 20
_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")


def utc_time() -> str:
    """Returns the time in UTC, in the format of the names of files and folders."""
    return datetime.now(timezone.utc).strftime("%Y_%m_%d-%H_%M_%S")


def write_atomically(path: Path, write: Callable[[Path], None], overwrite: bool = True) -> None:
    """Calls `write` with a temporary path beside `path`, and moves that file to `path` once it is on the disk.

    Raises FileExistsError if `path` exists and `overwrite` is False, and what `write` raises. Then it leaves no file.
    """
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if not overwrite:
            path.touch(exist_ok=False)
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Waits until changes to the list of files in a folder are on the disk, if the file system supports that."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def remove_temporary_files(directory: Path) -> None:
    """Removes the temporary files of a crashed `write_atomically` from a folder that no other process writes to."""
    for path in directory.glob(".*-*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading. Raises OSError, and ValueError for devices and pipes, which may be endless."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("is not a regular file; give one")
    return os.fdopen(handle, "rb")


@cache
def sha256_of_file(path: str) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal. It is computed once for each path."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def save_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes a dictionary as JSON, with null for NaN and infinity."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    text = json.dumps(finite, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def load_json(path: Path) -> dict[str, Any]:
    """Returns the dictionary in a JSON file. Raises FileNotFoundError, and ValueError if the file cannot be read or
    holds something else.
    """
    try:
        with open_regular(path) as file:
            text = file.read(_MOST_JSON_BYTES + 1)
        content = json.loads(text) if len(text) <= _MOST_JSON_BYTES else None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ValueError(f"damaged: {path.name} is not JSON") from None
    level = [content]
    for _ in range(_MOST_JSON_LEVELS):
        level = [each for value in level if isinstance(value, (dict, list)) for each in children(value)]
    if not isinstance(content, dict) or level:
        raise ValueError(f"damaged: {path.name} does not hold a dictionary of an experiment")
    return content


def children(value: dict | list | tuple) -> list:
    """Returns the keys and values of a dictionary, or the values of a list or tuple."""
    return [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
