"""Files: written under a temporary name and renamed, so that a crash leaves the old file or the new one."""

import csv
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")


def utc_time() -> str:
    """Returns the time in UTC, in the format of the names of files and folders."""
    return datetime.now(timezone.utc).strftime("%Y_%m_%d-%H_%M_%S")


def write_atomically(path: Path, content: bytes, overwrite: bool = True) -> None:
    """Writes a file under a temporary name beside `path`, and renames it. If that fails, leaves no file.

    Raises OSError: FileExistsError if `path` exists and `overwrite` is False.
    """
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        temporary.write_bytes(content)
        if not overwrite:
            path.touch(exist_ok=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(directory: Path) -> None:
    """Removes the temporary files of a crashed `write_atomically` from a folder that no other process writes to."""
    for path in directory.glob(".*-*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Returns a dictionary as JSON, with null for NaN and infinity."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return (json.dumps(finite, indent=2, allow_nan=False) + "\n").encode()


def load_json(path: Path) -> dict[str, Any]:
    """Returns the dictionary in a JSON file. Raises FileNotFoundError, and ValueError if the file cannot be read or
    holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ValueError(f"damaged: {path.name} is not JSON") from None
    if not isinstance(content, dict):
        raise ValueError(f"damaged: {path.name} does not hold a dictionary of an experiment")
    return content


def csv_bytes(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """Returns a table as CSV, with empty cells where rows lack a column."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode("utf-8", "surrogateescape")
