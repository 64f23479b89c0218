"""How many threads PyTorch computes with on the CPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
