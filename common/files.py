"""Files: written so that a crash leaves the old file or the new one, never a part; read only if they are regular."""

import csv
import ctypes
import errno
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

# JSON files of this project are smaller and less deeply nested.
_MOST_JSON_BYTES, _MOST_JSON_LEVELS = 10**6, 20
_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")
# Before Linux 5.8, syncfs does not report write errors.
_KERNEL = [int(number) for number in re.findall(r"\d+", platform.release())[:2]]
_HAS_SYNCFS = platform.system() == "Linux" and _KERNEL >= [5, 8]
# An open folder of each file system, by device; None if syncfs failed there.
_file_systems: dict[int, int | None] = {}

# A temporary file and its final path.
Written = tuple[Path, Path]


def utc_time() -> str:
    """Returns the time in UTC, in the format of the names of files and folders."""
    return datetime.now(timezone.utc).strftime("%Y_%m_%d-%H_%M_%S")


def write_atomically(path: Path, content: bytes, overwrite: bool = True) -> None:
    """Writes a file under a temporary name beside `path`, and moves it there.

    Raises FileExistsError if `path` exists and `overwrite` is False. If writing fails, leaves no file.
    """
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        temporary.write_bytes(content)
        if not overwrite:
            path.touch(exist_ok=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_temporary(path: Path, write: Callable[[Path], None]) -> Written:
    """Calls `write` with a temporary path beside `path`, and returns both. If `write` raises, leaves no file."""
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        write(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary, path


def rename(temporary: Path, path: Path) -> None:
    """Moves a temporary file to its final path. If that fails, removes it."""
    try:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folders(folders: Iterable[Path]) -> dict[Path, OSError]:
    """Waits until everything in these folders is on the disk. Returns the error of each folder for which that failed.

    This takes one call for each file system where syncfs is available and never failed, otherwise one for each file.
    """
    errors: dict[Path, OSError] = {}
    synced: set[int] = set()
    for folder in folders:
        try:
            device = folder.stat().st_dev
            if device not in synced and _sync_file_system(folder, device):
                synced.add(device)
            if device not in synced:
                for path in (*folder.rglob("*"), folder, folder.parent):
                    if path.is_file() or path.is_dir():
                        _sync(path)
        except OSError as error:
            errors[folder] = error
    return errors


def _sync_file_system(folder: Path, device: int) -> bool:
    """Waits until everything on the file system of a folder is on the disk. Returns whether it succeeded."""
    if device not in _file_systems:
        # Stays open, because errors that were reported before it was opened are not reported again.
        _file_systems[device] = os.open(folder, os.O_RDONLY) if _HAS_SYNCFS else None
    handle = _file_systems[device]
    if handle is not None and ctypes.CDLL(None).syncfs(handle):
        # The next call would not report the error again, but fsync of the affected files does.
        os.close(handle)
        handle = _file_systems[device] = None
    return handle is not None


def _sync(path: Path) -> None:
    """Waits until a file, or the list of files in a folder, is on the disk, if the file system supports that."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextmanager
def folder_lock(directory: Path) -> Iterator[bool]:
    """Waits for the lock on a folder and holds it. Yields False if the file system has no locks."""
    handle, locked = os.open(directory, os.O_RDONLY), False
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        yield locked
    finally:
        os.close(handle)


def remove_temporary_files(directory: Path, suffix: str = "") -> None:
    """Removes the temporary files of a crashed `write_atomically`, of all names or those with a suffix, from a folder
    to which no other process writes such files.
    """
    for path in directory.glob(f".*-*{suffix}"):
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


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Returns a dictionary as JSON, with null for NaN and infinity."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return (json.dumps(finite, indent=2, allow_nan=False) + "\n").encode()


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
        containers = [value for value in level if isinstance(value, (dict, list))]
        level = [each for value in containers for each in (value.values() if isinstance(value, dict) else value)]
    if not isinstance(content, dict) or level:
        raise ValueError(f"damaged: {path.name} does not hold a dictionary of an experiment")
    return content


def csv_bytes(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """Returns a table as CSV, with empty cells where rows lack a column."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode("utf-8", "surrogateescape")
