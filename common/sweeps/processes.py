"""Several processes: which of them runs which experiments, and the lock on the folders that they write to."""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from common.cli import UserError, flag_error, warn_once


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
    if not (known["RANK"] and known["WORLD_SIZE"]):
        return World(uuid.uuid4().hex[:12])
    try:
        rank, size, local_rank = (int(number or known["RANK"]) for number in known.values())
        if not (0 <= rank < size and local_rank >= 0):
            raise ValueError
    except ValueError:
        shown = ", ".join(f"{name}={value}" for name, value in known.items())
        raise UserError(f"{shown}: must be integers, RANK below WORLD_SIZE; the launcher sets them") from None
    ids = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")
    launch = " ".join(f"{name}={os.environ[name]}" for name in ids if os.environ.get(name)) or uuid.uuid4().hex
    return World(hashlib.sha256(launch.encode()).hexdigest()[:12], rank, size, local_rank)


def partition(keys: Sequence[str], world: World) -> list[int]:
    """Returns the indices of the experiments that this process runs, in order. Experiments with equal `keys` (their
    parameters without the seed) take about the same time, and are distributed evenly.
    """
    order = sorted(range(len(keys)), key=lambda index: keys[index])
    return sorted(order[world.rank :: world.size])


@contextmanager
def folder_lock(directory: Path, world: World, resume: bool) -> Iterator[None]:
    """Holds the lock of an output folder, which is made if missing: runs share it, and with `resume` only the processes
    of this launch may hold it at the start. Raises UserError if others do, or if the folder cannot be made. The system
    releases the locks of a process that dies.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise flag_error("output_dir", directory, f"cannot be made ({error.strerror}); give another folder") from None
    with open(directory / ".lock", "a+", encoding="utf-8") as file:
        try:
            with suppress(BlockingIOError):  # another process holds it
                if resume:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.truncate(0)
                    file.write(world.launch)
                    file.flush()
            # From here on, it is shared. Waits for a process that is writing its launch.
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            warn_once(f"{directory}: cannot be locked ({error.strerror}); do not -resume while another process runs")
        else:
            file.seek(0)
            if resume and file.read() != world.launch:
                remedy = "wait until it ends, or end it"
                raise UserError(f"-resume: another process is running experiments in {directory}; {remedy}")
        yield
