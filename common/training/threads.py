"""How many threads PyTorch computes with on the CPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def _suitable() -> int:
    """What PyTorch finds suitable: the processor's cores, or what OMP_NUM_THREADS says. Of processes that were started
    together on a machine, each has its share of the cores; their launcher says 1 where the user says nothing.
    """
    together = os.environ.get("LOCAL_WORLD_SIZE", "")
    if not together.isdecimal() or int(together) < 2 or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(together))


NUM_THREADS = _suitable()
torch.set_num_threads(NUM_THREADS)


@contextmanager
def one_thread(condition: bool = True) -> Iterator[None]:
    """Computes with one thread inside, if `condition` holds. Small matrix products take less time than the threads'
    waiting for each other, and many times less where another process keeps a core busy.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if condition else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
