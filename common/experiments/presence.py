"""Which processes work in a folder, so that no two go on with the same experiments.

Each keeps a file there, `.running_{id}`, that says who it is, and holds a lock on it: the system lets go of the lock
when the process ends, however it ends.
"""

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from common.experiments.folder import discard_folder
from common.files import utc_time

# Given the folder and what others there say of themselves: the names of the folders in it that this process takes up.
Take = Callable[[Path, list[dict[str, Any]]], list[str]]


@contextmanager
def present(directories: Iterable[Path], process: str, about: dict[str, Any], take: Take | None) -> Iterator[None]:
    """Lets others know that `process`, an id, works in `directories`, which are made if missing.

    With `take`, removes first what processes that are no more left there, and asks what there is to take up; nobody
    else can ask before the answer is known to all. Raises what `take` raises.
    """
    who = {"id": process, "pid": os.getpid(), "host": socket.gethostname(), "start_time": utc_time(), **about}
    with ExitStack() as stack:
        for directory in directories:
            directory.mkdir(parents=True, exist_ok=True)
            with _mutex(directory) as locks:
                folders = take(directory, _others(directory) if locks else []) if take else []
                if locks:
                    stack.enter_context(_announced(directory / f".running_{process}", {**who, "folders": folders}))
        yield


@contextmanager
def _announced(path: Path, content: dict[str, Any]) -> Iterator[None]:
    with open(path, "w", encoding="utf-8") as file:
        _locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())  # for other machines
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _others(directory: Path) -> list[dict[str, Any]]:
    """What the other processes that work in a folder say of themselves. Nothing is left of those that ended."""
    others = []
    for path in directory.glob(".running_*"):
        with suppress(FileNotFoundError), open(path, "r+", encoding="utf-8") as file:
            if _locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                path.unlink(missing_ok=True)
            else:
                others.append(_told(file, path))
    alive = {other["id"] for other in others}
    for making in directory.glob(".making_*"):
        if making.name.removeprefix(".making_") not in alive:
            discard_folder(making)
    return others


def _told(file: TextIO, path: Path) -> dict[str, Any]:
    """What a process that lives says of itself; what is asked of it is unknown, None, where that cannot be read."""
    try:
        return json.load(file)
    except ValueError:
        unknown = dict.fromkeys(("pid", "host", "start_time", "sweep", "rank", "world_size"))
        return {**unknown, "id": path.name.removeprefix(".running_"), "folders": []}


@contextmanager
def _mutex(directory: Path) -> Iterator[bool]:
    """Only one process at a time is inside, of those that work in a folder. Yields whether there are locks at all."""
    path = directory / ".running.lock"
    while True:
        file = open(path, "w")  # noqa: SIM115 (it is closed below)
        if not _locked(file, fcntl.LOCK_EX):
            remedy = "do not -resume there what still runs"
            print(f"{directory}: its file system knows no locks; {remedy}", file=sys.stderr, flush=True)
            locks = False
            break
        # The one that was inside before may have removed the file that this one waited for.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                locks = True
                break
        file.close()
    try:
        yield locks
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _locked(file: TextIO, operation: int) -> bool:
    """Locks a file; False where another process has it, or there are no locks."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
            raise
        return False
    return True
