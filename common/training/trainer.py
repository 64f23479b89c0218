"""The training loop: advances a batch of experiments from validation to validation until each has ended."""

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from common.training.history import DIVERGED, EPOCHS, STALLED, ZERO_LOSS, History, Metrics, TrainingState
from common.training.native_engine import Engine, in_parallel
from common.training.torch_engine import Observations

# The most validations in a call of the engine, and entries of their matrices or tensors.
_MOST_VALIDATIONS, _MOST_NUMBERS = 8192, 2**24
# Metrics are computed from this many numbers at a time, so that intermediate results stay in the cache.
_NUMBERS_AT_ONCE = 65536


class Ended(NamedTuple):
    """An experiment that ended."""

    state: TrainingState
    engine: Engine  # which holds the last parameters
    index: int  # of the experiment in the engine's batch


class Trainer:
    """Trains a batch of experiments that are at the same epoch and are validated at the same epochs.

    Parameters
    ----------
    engine : holds the experiments' parameters.
    states : the experiments' states, in the order of the engine's batch.
    validate_every : epochs between validations.
    max_zero_loss_validations : an experiment ends at more validations in a row with zero loss than this.
    measure : returns metrics (metrics, B, K) from the states of B experiments, losses (B, K), end-to-end matrices or
        tensors (B, K, rows, cols), and the factors of each experiment on the CPU.
    measures_at_once : whether `measure` needs the factors, or may take long. Then K = 1; else it gets no factors.

    Attributes
    ----------
    running : the states of the experiments that have not ended, in the order of the engine's batch.
    epoch : the last finished epoch.
    """

    def __init__(
        self,
        engine: Engine,
        states: Sequence[TrainingState],
        validate_every: int,
        max_zero_loss_validations: int,
        measure: Callable[..., Metrics],
        measures_at_once: bool = False,
    ):
        self.engine, self.running, self.epoch = engine, list(states), states[0].epoch
        self.validate_every, self._max_zero_losses = validate_every, max_zero_loss_validations
        self._measure, self._measures_at_once = measure, measures_at_once
        self._last_epochs = np.array([state.last_epoch for state in states])
        self._tolerances = np.array([state.zero_loss_tol for state in states])
        # The loss of each experiment that begins here at half of its epochs, and that epoch.
        self._half_losses = np.full(len(states), np.inf)
        self._halves = np.where(self.epoch < 0, self._last_epochs // 2, -1)

    def advance(self) -> list[Ended]:
        """Trains to a later validation, to the last epoch of an experiment, or for the time that one call may take, and
        updates the states. Returns the experiments that ended, which are removed from the batch.
        """
        ends = self._interval_ends()
        intervals = np.diff(ends, prepend=self.epoch + 1).tolist()
        # An experiment that ends before the last of several validations takes its steps again, from here.
        begin = self.engine.select(torch.arange(len(self.running))) if len(ends) > 1 else None
        observed = self.engine.advance(intervals)
        passed = np.flatnonzero((self.epoch < self._halves) & (self._halves < ends[-1]))
        columns = np.searchsorted(ends, self._halves[passed], side="right")
        is_last = ends[columns] > self._last_epochs[passed]
        self._half_losses[passed] = np.where(is_last, np.inf, observed.losses[passed, columns])
        self.epoch = int(ends[-1]) - 1
        end_columns = self._update_states(ends, observed)

        # All ends but the last are validations.
        counts = np.full(len(self.running), len(ends) - (ends[-1] % self.validate_every != 0))
        counts[list(end_columns)] = [column + 1 for column in end_columns.values()]
        self._record(ends - 1, observed.losses, observed.outputs, counts)
        ended = []
        for column in sorted(set(end_columns.values())):
            indices = [index for index, its_column in end_columns.items() if its_column == column]
            engine, positions = self.engine, indices
            if column < len(intervals) - 1:
                engine, positions = begin.select(torch.tensor(indices)), range(len(indices))
                engine.advance(intervals[: column + 1])
            for index, position in zip(indices, positions, strict=True):
                self.running[index].final_output = torch.from_numpy(observed.outputs[index, column].copy())
                ended.append(Ended(self.running[index], engine, position))
        kept = [index for index in range(len(self.running)) if index not in end_columns]
        if ended:
            self.running = [self.running[index] for index in kept]
            self._last_epochs, self._tolerances = self._last_epochs[kept], self._tolerances[kept]
            self._half_losses, self._halves = self._half_losses[kept], self._halves[kept]
            self.engine = self.engine.select(torch.tensor(kept)) if kept else self.engine
        return ended

    def _interval_ends(self) -> np.ndarray:
        """Returns the numbers of finished epochs (K,) at which to observe: validations, and an experiment's end."""
        done, every = self.epoch + 1, self.validate_every
        last = int(self._last_epochs.min()) + 1
        next_validation = (done // every + 1) * every
        longest = done + self.engine.max_steps_per_call
        if min(next_validation, last) > longest:
            return np.array([longest])
        count = 1
        if not self._measures_at_once:
            numbers = len(self.running) * prod(self.engine.model.output_shape)
            count = min(self.engine.max_steps_per_chunk // every, _MOST_VALIDATIONS, _MOST_NUMBERS // numbers)
        validations = next_validation + every * np.arange(max(1, count))
        return np.append(validations[validations < last], last)[: max(1, count)]

    def _update_states(self, ends: np.ndarray, observed: Observations) -> dict[int, int]:
        """Updates the states but for their histories. Returns the column of `ends` (K,) at which each experiment that
        ends does so, by index.
        """
        losses, outputs, moved = observed
        stateless, entries = self.engine.optimizer.is_stateless, outputs.reshape(len(outputs), -1)
        with np.errstate(over="ignore", invalid="ignore"):
            # No metric exceeds twice the loss, which is the sum of squares, or the sum of the output's absolute values,
            # which bounds its norms. For most experiments, extreme values show that both are finite.
            largest = np.maximum(entries.max(axis=1), -entries.min(axis=1))
            finite = np.isfinite(2 * losses.max(axis=1) + outputs[0, 0].size * largest)
        may_end = ~finite | (losses.min(axis=1) < self._tolerances) | (ends[-1] == self._last_epochs + 1)
        if stateless:
            may_end |= ~moved.all(axis=1)

        end_columns, is_validation = {}, (ends % self.validate_every == 0).tolist()  # all but the last are
        for index, state in enumerate(self.running):
            state.epoch = self.epoch
            if not may_end[index]:
                if is_validation[0]:
                    state.zero_loss_validations, state.moved_since_validation = 0, False
                if not is_validation[-1]:
                    state.moved_since_validation |= bool(moved[index, -1])
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                finite = np.isfinite(2 * losses[index] + np.abs(outputs[index]).reshape(len(ends), -1).sum(axis=1))
            for column, end in enumerate(ends.tolist()):
                state.moved_since_validation |= bool(moved[index, column])
                reason = EPOCHS if end == state.last_epoch + 1 else None
                if is_validation[column]:
                    is_zero = float(losses[index, column]) < state.zero_loss_tol
                    state.zero_loss_validations = state.zero_loss_validations + 1 if is_zero else 0
                    if stateless and not state.moved_since_validation:
                        reason = STALLED
                    if state.zero_loss_validations > self._max_zero_losses:
                        reason = ZERO_LOSS
                    state.moved_since_validation = False
                if not finite[column] and (is_validation[column] or reason):
                    reason = DIVERGED
                if reason:
                    end_columns[index], state.epoch, state.stop_reason = column, end - 1, reason
                    if reason == EPOCHS:
                        round_off = np.finfo(losses.dtype).eps * np.square(outputs[index, column]).mean()
                        state.stands_still = bool(losses[index, column] >= max(self._half_losses[index], round_off))
                    break
        return end_columns

    def _record(self, epochs: np.ndarray, losses: np.ndarray, outputs: np.ndarray, counts: np.ndarray) -> None:
        """Appends the metrics of the first `counts[b]` observations of each experiment b to its history, from `epochs`
        (K,), losses (B, K) and outputs (B, K, rows, cols). If a count is 0, then K = 1.
        """
        states, indices, epochs = self.running, np.flatnonzero(counts), np.broadcast_to(epochs, losses.shape)
        if not len(indices):
            return
        if len(indices) < len(counts) or not any(state.keeps_history for state in states):
            # Only the last record of each is needed.
            last = indices, counts[indices] - 1
            epochs, losses, outputs = epochs[last][:, None], losses[last][:, None], outputs[last][:, None]
            states, counts = [states[index] for index in indices], np.ones_like(indices)
        size = max(1, _NUMBERS_AT_ONCE // outputs[0].size)

        def measure(part: tuple[int, int]) -> None:
            for begin in range(*part, size):
                block, factors = slice(begin, min(begin + size, part[1])), []
                if self._measures_at_once:
                    models = map(self.engine.model.experiment_state, indices[block])
                    factors = [list(model.values()) for model in models]
                names, values = self._measure(states[block], losses[block], outputs[block], factors)
                for row, (state, count) in enumerate(zip(states[block], counts[block].tolist(), strict=True)):
                    first = 0
                    if not state.keeps_history:
                        state.history, first = History(), count - 1
                    state.history.extend(epochs[begin + row, first:count], (names, values[:, row, first:count]))

        # PyTorch starts threads of its own for larger matrices or tensors.
        if outputs[0, 0].size <= 4 and not self._measures_at_once:
            in_parallel(measure, len(states), size)
        else:
            measure((0, len(states)))
