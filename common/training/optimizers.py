"""Optimizers for a batch of factorizations, each experiment with its own learning rate.

A new one is a class here, and an entry in OPTIMIZERS of common/flags.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from common.models.factorization import BatchedFactorization, batch_of_zeros
from common.training.objectives import sum_all


class Optimizer:
    """Takes the steps of a batch of experiments, all after the same number of steps. A subclass implements `update`,
    and declares its state: what is declared is selected with its experiment, and saved in checkpoints.

    Parameters
    ----------
    settings : hyper-parameters by name, a value for each experiment (B,); without a weight decay, 0.
    model : the batch whose parameters are updated.
    num_steps : taken so far.
    states : for each experiment the `state` of a checkpoint (see `experiment_state`); None at the start.

    Attributes
    ----------
    num_steps : taken so far; in `update`, including this one.
    rates : hyper-parameters (B,) by name.
    state : what `factor_state` and `scalar_state` declare, by name.
    """

    # The flags whose values a step uses.
    hyperparameters: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    # Other constants of a step. Checkpoints hold them; a checkpoint with other values is refused.
    constants: ClassVar[Mapping[str, Any]] = {}
    # State that is laid out as the parameters, flat as `model.values`, and state of one number per experiment (B,).
    # Both are 0 before the first step.
    factor_state: ClassVar[tuple[str, ...]] = ()
    scalar_state: ClassVar[tuple[str, ...]] = ()
    # Whether torch.optim stores the number of steps, which is in checkpoints anyway: it is the epoch plus 1.
    stores_step: ClassVar[bool] = False
    # Whether a step depends on the parameters alone: if one step changes nothing, no later one does ("stalled").
    is_stateless = False

    def __init__(
        self,
        settings: Mapping[str, Sequence[float] | Tensor],
        model: BatchedFactorization,
        num_steps: int = 0,
        states: Sequence[Mapping[Any, Any]] | None = None,
    ):
        self.num_steps, self._shapes, self._batch_size = num_steps, model.shapes, model.batch_size
        settings = {"weight_decay": torch.zeros(self._batch_size), **settings}
        self._settings = {name: torch.as_tensor(settings[name], dtype=torch.float64) for name in self.hyperparameters}
        self.rates = {name: values.to(model.values, copy=True) for name, values in self._settings.items()}
        self._per_parameter: dict[str, Tensor] = {}
        self._decays = bool(self._settings["weight_decay"].any())
        self.state = {name: torch.zeros_like(self.rates["lr"]) for name in self.scalar_state}
        self._views = {}
        for name in self.factor_state:
            self.state[name], self._views[name] = batch_of_zeros(self._batch_size, self._shapes, like=model.values)
        for index, state in enumerate(states or ()):
            for name in self.scalar_state:
                self.state[name][index] = state[name]
            for name, views in self._views.items():
                for k, view in enumerate(views):
                    view[index].copy_(state[k][name])

    def step(self, model: BatchedFactorization) -> None:
        """Updates `model.values` from `model.gradients`, which it overwrites, after adding weight_decay · θ to them."""
        self.num_steps += 1
        if self._decays:
            model.gradients.add_(self.per_parameter("weight_decay") * model.values)
        self.update(model)

    def update(self, model: BatchedFactorization) -> None:
        """Updates `model.values` from `model.gradients`, which it may overwrite.

        Multiplication and addition are separate operations, each rounded once, so that the bits do not depend on a
        parameter's place in a vector register.
        """
        raise NotImplementedError

    def per_parameter(self, name: str) -> Tensor:
        """Returns a hyper-parameter laid out as `model.values`: that of the experiment at each parameter."""
        if name not in self._per_parameter:
            rates = self.rates[name]
            self._per_parameter[name], views = batch_of_zeros(self._batch_size, self._shapes, like=rates)
            for view in views:
                view.copy_(rates[:, None, None])
        return self._per_parameter[name]

    def select(self, kept: Tensor, model: BatchedFactorization) -> "Optimizer":
        """Returns the optimizer of the experiments at the indices `kept`, whose batch is `model`."""
        settings = {name: values[kept] for name, values in self._settings.items()}
        selected = type(self)(settings, model, self.num_steps)
        for name in self.scalar_state:
            selected.state[name].copy_(self.state[name][kept])
        for name, views in self._views.items():
            for view, mine in zip(selected._views[name], views, strict=True):
                view.copy_(mine[kept])
        return selected

    def experiment_state(self, index: int) -> dict[str, Any]:
        """Returns the state and hyper-parameters of one experiment in the format of torch.optim: state of factor k is
        in `["state"][k]`. State of one number per experiment is in `["state"]` itself.
        """
        state: dict[Any, Any] = {name: self.state[name][index].item() for name in self.scalar_state}
        if self.factor_state:
            for k in range(len(self._shapes)):
                state[k] = {name: views[k][index].cpu().clone() for name, views in self._views.items()}
                if self.stores_step:
                    # A tensor for each factor, because torch.optim counts in place.
                    state[k]["step"] = torch.tensor(self.num_steps, dtype=torch.float64)
        elif self.stores_step:
            state["step"] = self.num_steps
        settings = {name: values[index].item() for name, values in self._settings.items()}
        group = {**settings, **self.constants, "params": list(range(len(self._shapes)))}
        return {"state": state, "param_groups": [group]}


class GradientDescent(Optimizer):
    """Plain gradient descent: θ ← θ − lr · ∇ℓ."""

    is_stateless = True
    # The macros of the native kernels. A subclass has no kernel unless it sets its own.
    kernel_constants: ClassVar[Mapping[str, Any]] = {"MOMENTUM": 0, "ADAPTIVE": 0}

    def update(self, model: BatchedFactorization) -> None:
        model.gradients.mul_(self.per_parameter("lr"))
        model.values.sub_(model.gradients)


class Momentum(Optimizer):
    """Gradient descent with momentum, as torch.optim.SGD: b ← momentum · b + ∇ℓ, θ ← θ − lr · b."""

    hyperparameters = ("lr", "weight_decay", "momentum")
    constants: ClassVar[Mapping[str, Any]] = {"dampening": 0, "nesterov": False}
    factor_state = ("momentum_buffer",)
    kernel_constants: ClassVar[Mapping[str, Any]] = {"MOMENTUM": 1, "ADAPTIVE": 0}

    def update(self, model: BatchedFactorization) -> None:
        buffer = self.state["momentum_buffer"].mul_(self.per_parameter("momentum")).add_(model.gradients)
        torch.mul(buffer, self.per_parameter("lr"), out=model.gradients)
        model.values.sub_(model.gradients)


class Muon(Optimizer):
    """Steps of equal size in every direction, as Muon (Jordan et al. 2024), with the exact orthogonal factor instead of
    that of a Newton–Schulz iteration: for each factor b ← momentum · b + ∇ℓ, θ ← θ − lr · U Vᵀ, where b = U diag(s) Vᵀ
    is the SVD without singular values that are round-off.
    """

    hyperparameters = ("lr", "weight_decay", "momentum")
    constants: ClassVar[Mapping[str, Any]] = {"orthogonalized": True}  # tells its checkpoints from those of Momentum
    factor_state = ("momentum_buffer",)

    def update(self, model: BatchedFactorization) -> None:
        self.state["momentum_buffer"].mul_(self.per_parameter("momentum")).add_(model.gradients)
        for buffer, gradient in zip(self._views["momentum_buffer"], model.factor_gradients, strict=True):
            # The SVD of what is not finite fails; the steps of a run that diverges are NaN. In a batch, the bits of an
            # SVD would depend on its place.
            finite = buffer.where(buffer.isfinite(), 0).unbind()
            parts = [torch.linalg.svd(each.clone(), full_matrices=False) for each in finite]
            left, values, right = map(torch.stack, zip(*parts, strict=True))
            is_used = values > values[:, :1] * values.shape[1] * torch.finfo(values.dtype).eps
            torch.add((left * is_used[:, None]) @ right, buffer * 0, out=gradient)
        model.gradients.mul_(self.per_parameter("lr"))
        model.values.sub_(model.gradients)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), as torch.optim.Adam: m ← β₁ m + (1 − β₁) ∇ℓ, v ← β₂ v + (1 − β₂) ∇ℓ²,
    θ ← θ − lr / (1 − β₁ᵗ) · m / (√(v / (1 − β₂ᵗ)) + eps) in step t = 1, 2, …
    """

    constants: ClassVar[Mapping[str, Any]] = {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False}
    factor_state = ("exp_avg", "exp_avg_sq")
    stores_step = True

    def update(self, model: BatchedFactorization) -> None:
        (beta_1, beta_2), eps = self.constants["betas"], self.constants["eps"]
        mean = self.state["exp_avg"].mul_(beta_1).add_(model.gradients * (1 - beta_1))
        square = self.state["exp_avg_sq"].mul_(beta_2).add_(model.gradients.square_().mul_(1 - beta_2))
        norm = (square / (1 - beta_2**self.num_steps)).sqrt_().add_(eps)
        torch.div(mean, norm, out=model.gradients)
        model.gradients.mul_(self.per_parameter("lr")).div_(1 - beta_1**self.num_steps)
        model.values.sub_(model.gradients)


class GroupRMSprop(Optimizer):
    """Gradient descent whose step size adapts to the norm of the gradient (Arora et al. 2019): with one scalar
    v ← β v + (1 − β) ‖∇ℓ‖² over all parameters together, θ ← θ − lr / (√(v / (1 − βᵗ)) + eps) · ∇ℓ in step t = 1, 2, …
    """

    constants: ClassVar[Mapping[str, Any]] = {"beta": 0.99, "eps": 1e-6}
    scalar_state = ("square_avg",)
    stores_step = True
    kernel_constants: ClassVar[Mapping[str, Any]] = {"MOMENTUM": 0, "ADAPTIVE": 1, "BETA": 0.99, "EPS": 1e-6}

    def update(self, model: BatchedFactorization) -> None:
        beta = self.constants["beta"]
        squares = sum(sum_all(gradient * gradient) for gradient in model.factor_gradients)
        self.state["square_avg"].mul_(beta).add_(squares.mul_(1 - beta))
        sizes = self._step_sizes()
        for gradient in model.factor_gradients:
            gradient.mul_(sizes[:, None, None])
        model.values.sub_(model.gradients)

    def _step_sizes(self) -> Tensor:
        """Returns the step sizes (B,) of the last step."""
        norm = (self.state["square_avg"] / (1 - self.constants["beta"] ** self.num_steps)).sqrt_()
        return self.rates["lr"] / norm.add_(self.constants["eps"])

    def experiment_state(self, index: int) -> dict[str, Any]:
        content = super().experiment_state(index)
        content["param_groups"][0]["adjusted_lr"] = self._step_sizes()[index].item()
        return content
