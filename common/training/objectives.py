"""Losses of end-to-end matrices or tensors, for every experiment of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from common.models.factorization import batch_of_zeros


def sum_all(values: Tensor) -> Tensor:
    """Returns the sums (B,) of `values` (B, m, n), in an order that does not depend on B."""
    return values.sum(-1).sum(-1)


@dataclass(eq=False)
class EntryObjective:
    """ℓ = ½ Σ w ∘ (W − Y)² over the observed entries of each experiment."""

    targets: Tensor  # Y (B, rows, cols), 0 where an entry is not observed
    weights: Tensor  # w (B, rows, cols), 0 where an entry is not observed

    @cached_property
    def _gradient(self) -> Tensor:
        _, (gradient,) = batch_of_zeros(self.targets.shape[0], [self.targets.shape[1:]], like=self.targets)
        return gradient

    def gradient(self, outputs: Tensor) -> Tensor:
        """Returns ∂ℓ/∂W (B, rows, cols) in a buffer that the next call overwrites."""
        torch.sub(outputs, self.targets, out=self._gradient)
        return self._gradient.mul_(self.weights)

    def loss(self, outputs: Tensor) -> Tensor:
        """Returns ℓ (B,)."""
        residuals = outputs - self.targets
        return sum_all(residuals * residuals * self.weights) / 2

    def select(self, kept: Tensor) -> "EntryObjective":
        """Returns the objective of the experiments at the indices `kept`."""
        return EntryObjective(self.targets[kept], self.weights[kept])


@dataclass(eq=False)
class SensingObjective:
    """ℓ = ½ Σ_i (⟨A_i, W⟩ − y_i)², with the same sensing matrices for every experiment of the batch."""

    sensing_matrices: Tensor  # (n, rows, cols)
    observations: Tensor  # (B, n)

    @cached_property
    def _buffers(self) -> list[Tensor]:
        shapes = [self.sensing_matrices.shape[1:], self.observations.shape[1:]]
        return batch_of_zeros(self.observations.shape[0], shapes, like=self.observations)[1]

    def gradient(self, outputs: Tensor) -> Tensor:
        """Returns ∂ℓ/∂W = Σ_i (⟨A_i, W⟩ − y_i) A_i (B, rows, cols) in a buffer that the next call overwrites."""
        gradient, residuals = self._buffers
        matrix = self.sensing_matrices.flatten(1)
        _apply(matrix, outputs.flatten(1), residuals)
        residuals.sub_(self.observations)
        _apply(matrix.T, residuals, gradient.flatten(1))
        return gradient

    def loss(self, outputs: Tensor) -> Tensor:
        """Returns ℓ (B,)."""
        _, residuals = self._buffers
        residuals = _apply(self.sensing_matrices.flatten(1), outputs.flatten(1), residuals) - self.observations
        # torch sums a single long row on several threads, and so in another order than many rows.
        return torch.stack([row.sum() for row in residuals * residuals]) / 2

    def select(self, kept: Tensor) -> "SensingObjective":
        """Returns the objective of the experiments at the indices `kept`."""
        return SensingObjective(self.sensing_matrices, self.observations[kept])


def _apply(matrix: Tensor, vectors: Tensor, out: Tensor) -> Tensor:
    """Multiplies `matrix` (m, n) by each of `vectors` (B, n) into `out` (B, m), which it returns. On the CPU this is
    done one by one, so that an experiment's bits do not depend on B.
    """
    if matrix.is_cuda:
        return out.copy_(vectors @ matrix.T)
    for vector, one_out in zip(vectors.unbind(), out.unbind(), strict=True):
        torch.mv(matrix, vector, out=one_out)
    return out


Objective = EntryObjective | SensingObjective


def entry_objective(entries: Sequence[Tensor], targets: Tensor, weights: Sequence[float]) -> EntryObjective:
    """Returns the objective in which experiment b observes the flat entries `entries[b]` of `targets[b]`
    (B, rows, cols), each with weight `weights[b]`.
    """
    per_entry = torch.zeros_like(targets)
    for one_experiment, observed, weight in zip(per_entry.view(len(entries), -1), entries, weights, strict=True):
        one_experiment[observed.to(targets.device)] = weight
    return EntryObjective(targets * (per_entry > 0), per_entry)
