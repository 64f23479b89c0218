"""The number of threads that PyTorch uses on the CPU."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

NUM_THREADS = torch.get_num_threads()
# Processes that a launcher started together on a machine share its cores equally, unless the user sets OMP_NUM_THREADS.
# The launcher itself sets it to 1.
_processes = os.environ.get("LOCAL_WORLD_SIZE", "")
if _processes.isdecimal() and int(_processes) > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
    _cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    NUM_THREADS = max(1, _cores // int(_processes))
torch.set_num_threads(NUM_THREADS)


@contextmanager
def num_threads(number: int) -> Iterator[None]:
    """Uses `number` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """Uses one thread inside the block, where synchronizing threads would take longer than the small products."""
    return num_threads(1)
