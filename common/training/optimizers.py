"""Steps of gradient descent for a batch of factorizations, each experiment with its own learning rate."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.models.factorization import BatchedFactorization, batch_of_zeros


class GradientDescent:
    """Plain gradient descent: θ ← θ − lr · ∇ℓ.

    The multiplication and the subtraction are separate operations, each rounded once, so that the bits do not depend
    on where in a vector register a parameter happens to lie.
    """

    # Where a step changes nothing, no later step will.
    stops_where_nothing_moves = True

    def __init__(self, lrs: Sequence[float], model: BatchedFactorization):
        self.lrs = list(lrs)
        self._steps, views = batch_of_zeros(model.batch_size, model.shapes, like=model.values)
        for view in views:
            view.copy_(torch.tensor(self.lrs, dtype=torch.float64).view(-1, *[1] * (view.dim() - 1)))

    def step(self, model: BatchedFactorization) -> None:
        """Moves `model.values` against `model.gradients`, which it uses up."""
        model.gradients.mul_(self._steps)
        model.values.sub_(model.gradients)

    def select(self, kept: Tensor, model: BatchedFactorization) -> "GradientDescent":
        """The optimizer of the experiments at the positions `kept`, for the `model` of just these."""
        return GradientDescent([self.lrs[position] for position in kept.tolist()], model)

    def experiment_state(self, position: int, num_parameters: int) -> dict:
        """As torch.optim.SGD writes it for one experiment."""
        return {"state": {}, "param_groups": [{"lr": self.lrs[position], "params": list(range(num_parameters))}]}
