"""The torch engine: closed-form gradients in eager PyTorch, for every size and device.

Engines advance a batch of experiments from one validation to the next. The torch and the native engine take the same
steps and agree within round-off.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.models.factorization import BatchedFactorization, batch_views
from common.training.objectives import Objective
from common.training.optimizers import Optimizer

# Seconds that one call may take before a signal is handled, and those beyond the next validation.
_MAX_SECONDS, _MAX_SECONDS_OF_CHUNK = 0.3, 0.03


class Observations(NamedTuple):
    """What is observed at the end of each of K intervals of steps."""

    losses: np.ndarray  # (B, K), of the prediction made in the interval's last step, before the parameters moved
    outputs: np.ndarray  # (B, K, rows, cols), end-to-end matrices or tensors after that step
    moved: np.ndarray  # (B, K), whether a parameter changed: from the interval's beginning to its end, or in that step


@dataclass
class TorchEngine:
    """A batch of experiments. `seconds_per_step` is the time that a step took in the last call.

    Both engines have a `name`; `max_steps_per_call`, the most steps that a call of `advance` may take, so that signals
    are handled soon; and `max_steps_per_chunk`, the most steps beyond the next validation: those after the end of an
    experiment are wasted.
    """

    model: BatchedFactorization
    objective: Objective
    optimizer: Optimizer
    seconds_per_step: float | None = None

    name = "torch"

    @property
    def max_steps_per_call(self) -> int:
        return 10 if self.seconds_per_step is None else max(1, min(1000, int(_MAX_SECONDS / self.seconds_per_step)))

    @property
    def max_steps_per_chunk(self) -> int:
        return 0 if self.seconds_per_step is None else int(_MAX_SECONDS_OF_CHUNK / self.seconds_per_step)

    @torch.inference_mode()
    def advance(self, intervals: Sequence[int]) -> Observations:
        """Takes `intervals[k]` ≥ 1 steps for each k, and returns what is observed after each interval."""
        begin = time.monotonic()
        observed = [self._observe(num_steps) for num_steps in intervals]
        self.seconds_per_step = (time.monotonic() - begin) / sum(intervals)
        return Observations(*(np.stack(each, axis=1) for each in zip(*observed, strict=True)))

    def _observe(self, num_steps: int) -> tuple[np.ndarray, ...]:
        model, objective, optimizer = self.model, self.objective, self.optimizer
        begin = model.values.clone()
        for remaining in range(num_steps, 0, -1):
            if remaining == 1:
                before = model.values.clone()
            outputs = model.forward()
            model.backpropagate(objective.gradient(outputs))
            optimizer.step(model)
        losses = on_host(objective.loss(outputs))
        moved = np.ones(len(losses), dtype=bool)
        if optimizer.is_stateless:
            moved = _differ(model, begin) | _differ(model, before)
        return losses, on_host(model.forward()).copy(), moved

    def select(self, kept: Tensor) -> "TorchEngine":
        """Returns an engine for the experiments at the indices `kept`, a tensor on the model's device."""
        model = self.model.select(kept)
        parts = model, self.objective.select(kept), self.optimizer.select(kept, model)
        return TorchEngine(*parts, self.seconds_per_step)


def _differ(model: BatchedFactorization, values: Tensor) -> np.ndarray:
    """Returns whether any parameter of each experiment (B,) differs from that in `values`, a copy of the buffer."""
    then = batch_views(values, model.batch_size, model.shapes)
    changed = [(now != before).flatten(1).any(1) for now, before in zip(model.views, then, strict=True)]
    return on_host(torch.stack(changed).any(0))


def on_host(values: Tensor) -> np.ndarray:
    """Returns the values as an array, a view if they are on the CPU."""
    return values.cpu().numpy()
