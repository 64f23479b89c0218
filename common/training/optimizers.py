"""Steps of gradient descent for a batch of factorizations, each experiment with its own learning rate."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.models.factorization import BatchedFactorization, batch_of_zeros
from common.training.objectives import sum_all


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
        return type(self)([self.lrs[position] for position in kept.tolist()], model)

    def experiment_state(self, position: int, num_parameters: int) -> dict:
        """As torch.optim.SGD writes it for one experiment."""
        return {"state": {}, "param_groups": [{"lr": self.lrs[position], "params": list(range(num_parameters))}]}


class GroupRMSprop:
    """Gradient descent whose step size adapts to the norm of the gradient (Arora et al. 2019): for one scalar
    v ← β v + (1 − β) ‖∇ℓ‖² over all parameters together, θ ← θ − lr / (√(v / (1 − βᵗ)) + eps) · ∇ℓ in step t = 1, 2, …

    Parameters
    ----------
    num_steps : steps taken before, the same for all experiments of the batch.
    square_avgs : v of each experiment after these.

    Attributes: `num_steps`; `square_avg` and `adjusted_lr` (B,), v and the step size of the last step.
    """

    stops_where_nothing_moves = False
    beta, eps = 0.99, 1e-6

    def __init__(
        self,
        lrs: Sequence[float],
        model: BatchedFactorization,
        num_steps: int = 0,
        square_avgs: Sequence[float] | None = None,
    ):
        self.lrs = list(lrs)
        self.num_steps = num_steps
        self._lr = model.values.new_tensor(self.lrs)
        self.square_avg = model.values.new_tensor(square_avgs or [0.0] * len(self.lrs))
        self.adjusted_lr = self._lr.clone()

    def step(self, model: BatchedFactorization) -> None:
        """Moves `model.values` against `model.gradients`, which it uses up."""
        self.num_steps += 1
        squares = sum(sum_all(gradient * gradient) for gradient in model.factor_gradients)
        self.square_avg.mul_(self.beta).add_(squares.mul_(1 - self.beta))
        norm = (self.square_avg / (1 - self.beta**self.num_steps)).sqrt_()
        torch.div(self._lr, norm.add_(self.eps), out=self.adjusted_lr)
        for gradient in model.factor_gradients:
            gradient.mul_(self.adjusted_lr[:, None, None])
        model.values.sub_(model.gradients)

    def select(self, kept: Tensor, model: BatchedFactorization) -> "GroupRMSprop":
        """The optimizer of the experiments at the positions `kept`, for the `model` of just these."""
        lrs = [self.lrs[position] for position in kept.tolist()]
        selected = GroupRMSprop(lrs, model, self.num_steps, self.square_avg[kept].tolist())
        selected.adjusted_lr = self.adjusted_lr[kept]
        return selected

    def experiment_state(self, position: int, num_parameters: int) -> dict:
        """The state of one experiment, as a checkpoint keeps it."""
        group = {
            "lr": self.lrs[position],
            "beta": self.beta,
            "eps": self.eps,
            "adjusted_lr": self.adjusted_lr[position].item(),
            "params": list(range(num_parameters)),
        }
        state = {"step": self.num_steps, "square_avg": self.square_avg[position].item()}
        return {"state": state, "param_groups": [group]}


Optimizer = GradientDescent | GroupRMSprop
