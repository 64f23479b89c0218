"""Several processes: which of them runs which experiments, and locks on the folders that they write to."""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from common.cli import UserError, printable
from common.files import load_json, open_regular, utc_time


@dataclass(frozen=True)
class World:
    """This process among those that a launcher started together."""

    launch: str  # an id that these processes share
    rank: int = 0
    size: int = 1
    local_rank: int = 0  # the rank among those on this machine


def world_from_env() -> World:
    """Returns what torchrun, or another launcher that sets RANK and WORLD_SIZE, describes. Raises UserError."""
    known = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    ids = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")
    # Different users may have the same values of these.
    launch = " ".join(f"{name}={os.environ[name]}" for name in ids if os.environ.get(name)) or uuid.uuid4().hex
    if not (known["RANK"] and known["WORLD_SIZE"]):
        return World(uuid.uuid4().hex[:12])
    try:
        rank, size, local_rank = (int(number or known["RANK"]) for number in known.values())
        if not (0 <= rank < size and local_rank >= 0):
            raise ValueError
    except ValueError:
        shown = ", ".join(f"{name}={value}" for name, value in known.items())
        raise UserError(f"{shown}: must be integers, RANK below WORLD_SIZE; the launcher sets them") from None
    return World(hashlib.sha256(f"{os.geteuid()} {launch}".encode()).hexdigest()[:12], rank, size, local_rank)


def partition(keys: Sequence[str], world: World) -> list[int]:
    """Returns the indices of the experiments that this process runs, in order. Experiments with equal `keys` (their
    parameters without the seed) take about the same time, and are distributed evenly.
    """
    order = sorted(range(len(keys)), key=lambda index: keys[index])
    return sorted(order[world.rank :: world.size])


@contextmanager
def hold_run_lock(directory: Path, world: World) -> Iterator[Path | None]:
    """Holds the lock of this process on a folder, which is made if missing. The lock file names the process.

    The system releases the lock when the process ends, however it ends. Yields the path of the lock file, or None if
    the file system has no locks.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f".lock-{world.launch}-{world.rank}"
    if path.is_symlink() or not path.is_file():
        discard(path)
    while True:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        file = os.fdopen(handle, "w", encoding="utf-8")
        locked = _lock(file, fcntl.LOCK_EX)
        # Another process may have removed the file before it was locked.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    try:
        if not locked:
            remedy = "do not -resume there while another process runs"
            print(f"{directory}: the file system has no locks; {remedy}", file=sys.stderr, flush=True)
        file.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "start_time": utc_time()}, file)
        file.flush()
        os.fsync(file.fileno())  # for other machines
        os.utime(path)
        yield path if locked else None
    finally:
        path.unlink(missing_ok=True)
        file.close()


def other_launch(lock: Path) -> dict[str, Any] | None:
    """Returns the content of the lock file of another launch if its lock on the folder is held and is older than
    `lock`, the lock file of this process, else None. Removes what processes that died have left.

    Of two processes that hold locks and call this, at least one sees the other.
    """
    launch, own_time = lock.name.rpartition("-")[0], lock.stat().st_mtime_ns
    for path in set(lock.parent.glob(".lock-*")) - {lock}:
        try:
            # For reading, and with a shared lock: the file may be another user's.
            with open_regular(path) as file:
                if _lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB):
                    discard(path.with_name(path.name.replace(".lock-", ".making-")))
                    path.unlink()
                elif path.name.rpartition("-")[0] != launch and path.stat().st_mtime_ns <= own_time:
                    unknown = dict.fromkeys(("pid", "host", "start_time"), "unknown")
                    with suppress(ValueError):  # it is being written
                        return unknown | load_json(path)
                    return unknown
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            print(printable(f"{path}: skipped ({reason})"), file=sys.stderr, flush=True)
    return None


def _lock(file: IO, operation: int) -> bool:
    """Locks a file. Returns False if another process holds the lock, or the file system has no locks."""
    with suppress(OSError):
        fcntl.flock(file, operation)
        return True
    return False


def discard(path: Path) -> None:
    """Removes a folder and its content, or another file, if it exists. Does not follow links."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
