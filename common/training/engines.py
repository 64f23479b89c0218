"""Engines advance a batch of experiments by many gradient steps without looking at anything in between."""

import torch
from torch import Tensor

from common.models.factorization import BatchedFactorization
from common.training.objectives import Objective
from common.training.optimizers import Optimizer


class TorchEngine:
    """Closed-form gradients in eager PyTorch, on the device of the model."""

    name = "torch"

    def __init__(self, model: BatchedFactorization, objective: Objective, optimizer: Optimizer):
        self.model, self.objective, self.optimizer = model, objective, optimizer

    @torch.inference_mode()
    def advance(self, num_steps: int) -> Tensor:
        """Takes `num_steps` ≥ 1 steps; the losses (B,) of the last one, of its prediction before it moved."""
        model, objective, optimizer = self.model, self.objective, self.optimizer
        for _ in range(num_steps):
            outputs = model.forward()
            model.backpropagate(objective.gradient(outputs))
            optimizer.step(model)
        return objective.loss(outputs)

    def select(self, kept: Tensor) -> "TorchEngine":
        """An engine that goes on with the experiments at the positions `kept` (on the model's device) only."""
        model = self.model.select(kept)
        return TorchEngine(model, self.objective.select(kept), self.optimizer.select(kept, model))
