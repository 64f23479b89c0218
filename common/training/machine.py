"""The machine: how many threads PyTorch computes with on the CPU, and what repeats a run."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch

import common

NUM_THREADS = torch.get_num_threads()
# Of processes that were started together on a machine, each has its share of the cores; their launcher sets
# OMP_NUM_THREADS to 1 unless the user does.
_processes = os.environ.get("LOCAL_WORLD_SIZE", "")
if _processes.isdecimal() and int(_processes) > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
    _cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    NUM_THREADS = max(1, _cores // int(_processes))
torch.set_num_threads(NUM_THREADS)


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread inside: small products take less time than the threads' waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def host_facts(device: torch.device, engine: str) -> dict[str, Any]:
    """What repeats a run besides its parameters: versions, machine, device, engine."""
    cpu = f"cpu ({torch.get_num_threads()} threads)"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "project": common.__version__,
        "commit": _commit(),
        "machine": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else cpu,
        "engine": engine,
        "command": sys.argv,
    }


@cache
def _commit() -> str | None:
    """The project's commit, with "-dirty" if files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        if (root / ".git").exists():
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return None
