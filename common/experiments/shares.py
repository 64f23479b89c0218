"""A sweep shared out among processes that a launcher starts together: torchrun, or any that sets RANK, WORLD_SIZE and
LOCAL_RANK. They do not talk with each other: each finds its share by itself.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from common.cli import UserError


@dataclass(frozen=True)
class Share:
    """Which of how many processes this is, and which on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def overlaps(self, rank: int, world_size: int) -> bool:
        """Whether a process of this rank may work on the same experiments as this one."""
        return self.world_size != world_size or self.rank == rank


def own_share() -> Share:
    """What the launcher says. Raises UserError where it makes no sense."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    told = {name: os.environ.get(name, "") for name in names}
    if not (told["RANK"] and told["WORLD_SIZE"]):
        return Share()
    try:
        rank, world_size, local_rank = (int(told[name] or told["RANK"]) for name in names)
        if not (0 <= rank < world_size and local_rank >= 0):
            raise ValueError
    except ValueError:
        shown = ", ".join(f"{name}={value}" for name, value in told.items())
        raise UserError(f"{shown}: must be integers, RANK below WORLD_SIZE; the launcher sets them") from None
    return Share(rank, world_size, local_rank)


def shared_out(costs: Sequence[float], world_size: int) -> list[list[int]]:
    """For each process the indices of what it takes, in order: from the most costly on, each goes to the process that
    has least so far.
    """
    loads = [0.0] * world_size
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        least = min(range(world_size), key=loads.__getitem__)
        loads[least] += costs[index]
        shares[least].append(index)
    return [sorted(share) for share in shares]


def launch_id() -> str | None:
    """What the processes that were started together have in common, and others hardly; None where nothing is known."""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")
    known = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
    return " ".join(known) or None


def expected_steps(num_factors: int, std: float, lr: float, most: int) -> float:
    """How many gradient steps a factorization takes, but for a constant, where it starts from factors of standard
    deviation `std`: in gradient flow the product of N factors grows like its (2 − 2/N)-th power, and so leaves the
    neighbourhood of 0 after a time of order std^(2 − N) (Arora et al. 2019). At most `most`.
    """
    try:
        growth = abs(std) ** max(0, num_factors - 2) * lr
    except OverflowError:
        return 1
    return most if growth * most < 1 else 1 / growth
