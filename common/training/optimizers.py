"""Gradient descent for a batch of factorizations, each experiment with its own learning rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.models.factorization import BatchedFactorization, batch_of_zeros
from common.training.objectives import sum_all


@dataclass(eq=False)
class GradientDescent:
    """Plain gradient descent: θ ← θ − lr · ∇ℓ."""

    lrs: list[float]  # of each experiment
    _steps: Tensor | None = field(default=None, init=False)

    # Whether a step depends on the parameters alone: if one step changes nothing, no later one does.
    is_stateless = True
    # The macros of the native kernel. A subclass has no kernel unless it sets its own.
    kernel_constants = {"ADAPTIVE": 0}  # noqa: RUF012

    def step(self, model: BatchedFactorization) -> None:
        """Updates `model.values` from `model.gradients`, which it overwrites.

        Multiplication and subtraction are separate operations, each rounded once, so that the bits do not depend on a
        parameter's place in a vector register.
        """
        if self._steps is None:
            self._steps, views = batch_of_zeros(model.batch_size, model.shapes, like=model.values)
            for view in views:
                view.copy_(view.new_tensor(self.lrs)[:, None, None])
        model.gradients.mul_(self._steps)
        model.values.sub_(model.gradients)

    def select(self, kept: Tensor) -> "GradientDescent":
        """Returns the optimizer of the experiments at the indices `kept`."""
        return type(self)([self.lrs[index] for index in kept.tolist()])

    def experiment_state(self, index: int, num_factors: int) -> dict[str, Any]:
        """Returns the state of one experiment in the format of torch.optim.SGD."""
        return {"state": {}, "param_groups": [{"lr": self.lrs[index], "params": list(range(num_factors))}]}


class GroupRMSprop:
    """Gradient descent whose step size adapts to the norm of the gradient (Arora et al. 2019): with one scalar
    v ← β v + (1 − β) ‖∇ℓ‖² over all parameters together, θ ← θ − lr / (√(v / (1 − βᵗ)) + eps) · ∇ℓ in step t = 1, 2, …

    `like` is a tensor with the model's dtype and device. `states` holds the `state` of each experiment in a checkpoint,
    all after the same number of steps. Attributes: `num_steps`, taken so far; `square_avg` (B,), v; `adjusted_lr` (B,),
    the step size of the last step.
    """

    is_stateless = False
    beta, eps = 0.99, 1e-6
    kernel_constants = {"ADAPTIVE": 1, "BETA": beta, "EPS": eps}  # noqa: RUF012

    def __init__(self, lrs: Sequence[float], like: Tensor, states: Sequence[Mapping[str, Any]] | None = None):
        self.lrs = list(lrs)
        states = states or [{"step": 0, "square_avg": 0.0}] * len(self.lrs)
        self.num_steps = int(states[0]["step"])
        self._lr = like.new_tensor(self.lrs)
        self.square_avg = like.new_tensor([float(state["square_avg"]) for state in states])
        self.adjusted_lr = self._lr.clone()

    def step(self, model: BatchedFactorization) -> None:
        """Updates `model.values` from `model.gradients`, which it overwrites."""
        self.num_steps += 1
        squares = sum(sum_all(gradient * gradient) for gradient in model.factor_gradients)
        self.square_avg.mul_(self.beta).add_(squares.mul_(1 - self.beta))
        norm = (self.square_avg / (1 - self.beta**self.num_steps)).sqrt_()
        torch.div(self._lr, norm.add_(self.eps), out=self.adjusted_lr)
        for gradient in model.factor_gradients:
            gradient.mul_(self.adjusted_lr[:, None, None])
        model.values.sub_(model.gradients)

    def select(self, kept: Tensor) -> "GroupRMSprop":
        """Returns the optimizer of the experiments at the indices `kept`."""
        indices = kept.tolist()
        states = [self.experiment_state(index, 0)["state"] for index in indices]
        selected = GroupRMSprop([self.lrs[index] for index in indices], self.square_avg, states)
        selected.adjusted_lr = self.adjusted_lr[kept]
        return selected

    def experiment_state(self, index: int, num_factors: int) -> dict[str, Any]:
        """Returns the state of one experiment, as a checkpoint stores it."""
        group = {"lr": self.lrs[index], "beta": self.beta, "eps": self.eps}
        group |= {"adjusted_lr": self.adjusted_lr[index].item(), "params": list(range(num_factors))}
        state = {"step": self.num_steps, "square_avg": self.square_avg[index].item()}
        return {"state": state, "param_groups": [group]}


Optimizer = GradientDescent | GroupRMSprop
