"""The training loop: a batch of experiments advances from one validation to the next, and each ends by itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from common.models.factorization import BatchedFactorization, batch_views
from common.training.history import History

# Why an experiment ended, as `status` in run_params.json has it.
DIVERGED, ZERO_LOSS, STALLED, EPOCHS, INTERRUPTED = "diverged", "zero_loss", "stalled", "epochs", "interrupted"

# Steps after which the engine hands over at the latest, so that a signal is heeded.
_LONGEST_STRETCH = 1000
_BUFFER_BYTES = 8 * 2**20
_BUFFER_ROWS = 4096

Metrics = Mapping[str, np.ndarray]


class Engine(Protocol):
    """Advances a batch of experiments; see common/training/engines.py."""

    name: str
    model: BatchedFactorization
    optimizer: object

    def advance(self, num_steps: int) -> Tensor: ...

    def select(self, kept: Tensor) -> "Engine": ...


@dataclass
class Run:
    """How one experiment is trained, and how far it got.

    Attributes
    ----------
    num_epochs : how many it takes from where it starts.
    zero_loss_tol : the loss that counts as zero.
    measure : train and validation metrics (n,) by name, of losses (n,) and end-to-end matrices or tensors (n, ...).
    epoch : the last epoch it finished, -1 before the first.
    zero_loss_validations : validations in a row, up to the last one, whose loss counted as zero.
    moved_since_validation : whether a parameter changed since the last validation; None where that is not known.
    stop_reason : one of the constants of this module; None while it runs.
    """

    num_epochs: int
    zero_loss_tol: float
    measure: Callable[[np.ndarray, np.ndarray], tuple[Metrics, Metrics]]
    history: History = field(default_factory=History)
    epoch: int = -1
    zero_loss_validations: int = 0
    moved_since_validation: bool | None = False
    stop_reason: str | None = None


class LockstepTrainer:
    """Trains a batch of runs that are at the same epoch and are validated at the same epochs.

    `running` are the runs that have not ended, in the order of the engine's batch. What is observed at validations is
    kept in a buffer; the metrics are computed from it in bulk, when they are asked for or the buffer is full.
    """

    def __init__(self, engine: Engine, runs: Sequence[Run], validate_every: int, max_zero_loss_validations: int):
        self.engine = engine
        self.running = list(runs)
        self.epoch = runs[0].epoch
        self._validate_every = validate_every
        self._max_zero_loss_validations = max_zero_loss_validations
        self._last_epochs = np.array([run.epoch + run.num_epochs for run in runs])
        self._tolerances = np.array([run.zero_loss_tol for run in runs])
        self._zero_losses = np.array([run.zero_loss_validations for run in runs])
        # A stretch that begins between validations is not a whole interval: what moved in its first part counts.
        self._moved = np.array([run.moved_since_validation for run in runs])

        outputs = _on_host(engine.model.forward())
        self._last_values, self._last_outputs = engine.model.values.clone(), outputs.copy()
        self._last_losses: np.ndarray | None = None
        rows = max(1, min(_BUFFER_ROWS, _BUFFER_BYTES // outputs.nbytes))
        self._epoch_rows = np.zeros(rows, dtype=np.int64)
        self._loss_rows = np.zeros((rows, len(runs)), outputs.dtype)
        self._output_rows = np.zeros((rows, *outputs.shape), outputs.dtype)
        self._num_rows = 0
        self._num_measured = np.zeros(len(runs), dtype=np.int64)

    def advance(self) -> list[tuple[int, Run]]:
        """Trains until the next validation, or to the last epoch of a run that has fewer to go, or for a long stretch.

        Returns the runs that ended, each with its position in the engine's batch; `drop_ended()` takes them out.
        """
        done = self.epoch + 1
        next_validation = (done // self._validate_every + 1) * self._validate_every
        target = min(next_validation, int(self._last_epochs.min()) + 1, done + _LONGEST_STRETCH)
        is_validation = target % self._validate_every == 0
        losses = _on_host(self.engine.advance(target - done))
        outputs = _on_host(self.engine.model.forward())
        self.epoch, self._last_losses = target - 1, losses

        at_end = self._last_epochs == self.epoch
        observed = at_end | is_validation
        diverged = observed & ~_all_finite(losses, outputs)
        self._moved |= self._moved_in_stretch(outputs)
        if is_validation:
            stalled = self._fixed_points(~self._moved)
            self._moved[:] = False
            self._zero_losses = (self._zero_losses + 1) * (losses < self._tolerances)
        else:
            stalled = np.zeros_like(at_end)
        zero_loss = is_validation & (self._zero_losses > self._max_zero_loss_validations)
        if is_validation or at_end.any():
            self._record(losses, outputs, observed)

        ended = at_end | diverged | zero_loss | stalled
        if not ended.any():
            return []
        for reason, positions in ((EPOCHS, at_end), (STALLED, stalled), (ZERO_LOSS, zero_loss), (DIVERGED, diverged)):
            for position in np.flatnonzero(positions):
                self.running[position].stop_reason = reason
        return self._synced(np.flatnonzero(ended))

    def interrupt(self) -> list[tuple[int, Run]]:
        """Ends all runs where they are, and returns them as `advance()` does."""
        recorded = self._epoch_rows[self._num_rows - 1] if self._num_rows else -1
        if self._last_losses is not None and recorded != self.epoch:
            self._record(self._last_losses, self._last_outputs, np.ones(len(self.running), dtype=bool))
        for run in self.running:
            run.stop_reason = INTERRUPTED
        return self._synced(range(len(self.running)))

    def drop_ended(self) -> None:
        """Takes the runs that ended out of the batch."""
        kept = [position for position, run in enumerate(self.running) if run.stop_reason is None]
        if len(kept) == len(self.running):
            return
        self.running = [self.running[position] for position in kept]
        for name in ("_last_epochs", "_tolerances", "_zero_losses", "_moved", "_num_measured"):
            setattr(self, name, getattr(self, name)[kept])
        if kept:
            self.engine = self.engine.select(torch.tensor(kept))
            self._last_values = self.engine.model.values.clone()
            self._last_losses, self._last_outputs = self._last_losses[kept], self._last_outputs[kept]
            self._loss_rows, self._output_rows = self._loss_rows[:, kept], self._output_rows[:, kept]

    def sync(self, position: int) -> Run:
        """The run at a position of the batch, brought up to date: its epoch, history and what a checkpoint needs."""
        run = self.running[position]
        run.epoch = self.epoch
        run.moved_since_validation = bool(self._moved[position])
        run.zero_loss_validations = int(self._zero_losses[position])
        rows = slice(self._num_measured[position], self._num_rows)
        if rows.start < rows.stop:
            train, validation = run.measure(self._loss_rows[rows, position], self._output_rows[rows, position])
            run.history.extend(self._epoch_rows[rows].copy(), train, validation)
            self._num_measured[position] = self._num_rows
        return run

    def _synced(self, positions: Sequence[int]) -> list[tuple[int, Run]]:
        return [(int(position), self.sync(position)) for position in positions]

    def _moved_in_stretch(self, outputs: np.ndarray) -> np.ndarray:
        """Whether any parameter changed since the last call (B,). Where the output changed, one did; only where it
        did not are the parameters compared.
        """
        moved = (outputs != self._last_outputs).reshape(len(outputs), -1).any(axis=1)
        self._last_outputs[:] = outputs
        if not moved.all():
            moved |= _differ(self.engine.model, self._last_values)
        self._last_values.copy_(self.engine.model.values)
        return moved

    def _fixed_points(self, candidates: np.ndarray) -> np.ndarray:
        """Which of the runs that ended an interval where they began it are where no step will move them (B,), rather
        than in a cycle: a step of a copy tells.
        """
        fixed = np.zeros_like(candidates)
        if candidates.any() and self.engine.optimizer.stops_where_nothing_moves:
            positions = np.flatnonzero(candidates)
            copy = self.engine.select(torch.from_numpy(positions))
            before = copy.model.values.clone()
            copy.advance(1)
            fixed[positions] = ~_differ(copy.model, before)
        return fixed

    def _record(self, losses: np.ndarray, outputs: np.ndarray, observed: np.ndarray) -> None:
        """Appends a row to the buffer. Where only some of the runs are observed, the others must have been measured
        before, and skip the row.
        """
        if self._num_rows == len(self._epoch_rows):
            self._synced(range(len(self.running)))
            self._num_rows, self._num_measured[:] = 0, 0
        skipping = np.flatnonzero(~observed)
        self._synced(skipping)
        self._epoch_rows[self._num_rows] = self.epoch
        self._loss_rows[self._num_rows], self._output_rows[self._num_rows] = losses, outputs
        self._num_rows += 1
        self._num_measured[skipping] = self._num_rows


def _differ(model: BatchedFactorization, values: Tensor) -> np.ndarray:
    """Whether any parameter of each experiment differs from that in `values`, a buffer like the model's (B,)."""
    then = batch_views(values, model.batch_size, model.shapes)
    changed = [(now != before).flatten(1).any(1) for now, before in zip(model.views, then, strict=True)]
    return _on_host(torch.stack(changed).any(0))


def _on_host(values: Tensor) -> np.ndarray:
    """An array of the values; a view of them where they are on the CPU."""
    return values.cpu().numpy()


def _all_finite(losses: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Whether all metrics of each experiment are finite (B,): none is larger than twice the loss (the sum of squares)
    or the sum of the output's absolute values, which no norm of it exceeds.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(2 * losses + np.abs(outputs).reshape(len(outputs), -1).sum(axis=1))
