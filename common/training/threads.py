"""How many threads PyTorch computes with on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What PyTorch finds suitable: the processor's cores, or what OMP_NUM_THREADS says.
NUM_THREADS = torch.get_num_threads()


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
