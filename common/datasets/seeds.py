"""The random numbers of targets that runs draw."""

import hashlib

import torch


def target_generator(seed: int) -> torch.Generator:
    """Returns the generator of the target of a run with this seed. Its numbers are independent of those from which the
    run is initialized, which are of a generator with the seed itself.
    """
    digest = hashlib.sha256(f"target {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
