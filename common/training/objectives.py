"""What is minimized: a loss of the end-to-end matrix or tensor, for every experiment of a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.models.factorization import batch_of_zeros


def sum_all(values: Tensor) -> Tensor:
    """Sums (B,) over all but the first of the three dimensions of `values`, in an order that B has no part in."""
    return values.sum(-1).sum(-1)


class EntryObjective:
    """ℓ = ½ Σ w ∘ (W − Y)² over the observed entries of each experiment.

    Parameters
    ----------
    targets : (B, rows, cols), Y where it is observed.
    weights : (B, rows, cols), w: 0 where an entry is not observed.
    """

    def __init__(self, targets: Tensor, weights: Tensor):
        self.targets, self.weights = targets, weights
        _, (self._gradient,) = batch_of_zeros(targets.shape[0], [targets.shape[1:]], like=targets)

    def gradient(self, outputs: Tensor) -> Tensor:
        """∂ℓ/∂W (B, rows, cols), in a buffer that the next call overwrites."""
        torch.sub(outputs, self.targets, out=self._gradient)
        return self._gradient.mul_(self.weights)

    def loss(self, outputs: Tensor) -> Tensor:
        """ℓ (B,)."""
        residuals = outputs - self.targets
        return sum_all(residuals * residuals * self.weights) / 2

    def to(self, device: torch.device) -> "EntryObjective":
        """The same objective on another device."""
        return EntryObjective(self.targets.to(device), self.weights.to(device))

    def select(self, kept: Tensor) -> "EntryObjective":
        """The objective of the experiments at the positions `kept`."""
        return EntryObjective(self.targets[kept], self.weights[kept])


class SensingObjective:
    """ℓ = ½ Σ_i (⟨A_i, W⟩ − y_i)², with the same sensing matrices for every experiment of the batch.

    Parameters
    ----------
    sensing_matrices : (n, rows, cols).
    observations : (B, n).
    """

    def __init__(self, sensing_matrices: Tensor, observations: Tensor):
        self.sensing_matrices, self.observations = sensing_matrices, observations
        self._flat = sensing_matrices.flatten(1)
        batch_size = observations.shape[0]
        shapes = [sensing_matrices.shape[1:], observations.shape[1:]]
        _, (self._gradient, self._residuals) = batch_of_zeros(batch_size, shapes, like=observations)

    def gradient(self, outputs: Tensor) -> Tensor:
        """∂ℓ/∂W = Σ_i (⟨A_i, W⟩ − y_i) A_i (B, rows, cols), in a buffer that the next call overwrites."""
        self._apply(self._flat, outputs.flatten(1), self._residuals)
        self._residuals.sub_(self.observations)
        self._apply(self._flat.T, self._residuals, self._gradient.flatten(1))
        return self._gradient

    def loss(self, outputs: Tensor) -> Tensor:
        """ℓ (B,)."""
        residuals = self._apply(self._flat, outputs.flatten(1), self._residuals) - self.observations
        # Each by itself: torch sums a single long row on several threads, and so in another order than many rows.
        return torch.stack([row.sum() for row in residuals * residuals]) / 2

    def select(self, kept: Tensor) -> "SensingObjective":
        """The objective of the experiments at the positions `kept`."""
        return SensingObjective(self.sensing_matrices, self.observations[kept])

    @staticmethod
    def _apply(matrix: Tensor, vectors: Tensor, out: Tensor) -> Tensor:
        """`matrix` (m, n) times each of `vectors` (B, n), into `out` (B, m). On the CPU one by one, so that an
        experiment's bits do not depend on how many there are.
        """
        if matrix.is_cuda:
            return out.copy_(vectors @ matrix.T)
        for vector, one_out in zip(vectors.unbind(), out.unbind(), strict=True):
            torch.mv(matrix, vector, out=one_out)
        return out


Objective = EntryObjective | SensingObjective


def entry_objective(entries: Sequence[Tensor], targets: Tensor, weights: Sequence[float]) -> EntryObjective:
    """The objective in which experiment b observes the flat entries `entries[b]` of `targets[b]` (B, rows, cols), each
    with weight `weights[b]`.
    """
    per_entry = torch.zeros_like(targets).flatten(1)
    for position, (observed, weight) in enumerate(zip(entries, weights, strict=True)):
        per_entry[position, observed] = weight
    per_entry = per_entry.view_as(targets)
    return EntryObjective(targets * (per_entry > 0), per_entry)
