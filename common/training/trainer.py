"""The training loop: a batch of experiments advances from one validation to the next, and each ends by itself."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from common.training.history import DIVERGED, EPOCHS, INTERRUPTED, STALLED, ZERO_LOSS, History, Metrics, TrainingState
from common.training.native_engine import Engine
from common.training.torch_engine import Observations, on_host

# Observations of all experiments together are kept in so many bytes. When these are full, the metrics are computed.
_BUFFER_BYTES = 64 * 2**20
# Metrics are computed from so many validations at a time, so that intermediate results stay in the cache.
_ROWS_AT_ONCE = 4096


class Ended(NamedTuple):
    """An experiment that ended, and its last parameters (at an index of an engine's batch) and output (rows, cols)."""

    state: TrainingState
    engine: Engine
    index: int
    output: np.ndarray


class Trainer:
    """Trains a batch of experiments that are at the same epoch and are validated at the same epochs.

    Observations at validations are kept in a buffer with a row for each, and the metrics are computed when they are
    needed, or when the buffer is full.

    Parameters
    ----------
    engine : with the experiments' parameters.
    states : of the experiments, in the order of the engine's batch.
    validate_every : epochs between validations.
    max_zero_loss_validations : an experiment ends at more than so many validations in a row with zero loss.
    stopped : whether a signal is waiting, and slow metrics are not to be computed any more.

    Attributes
    ----------
    running : the states of the experiments that have not ended, in the order of the engine's batch.
    epoch : the last epoch that is finished.
    """

    def __init__(
        self,
        engine: Engine,
        states: Sequence[TrainingState],
        validate_every: int,
        max_zero_loss_validations: int,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self.engine, self.running, self.epoch = engine, list(states), states[0].epoch
        self.validate_every, self._max_zero_losses, self._stopped = validate_every, max_zero_loss_validations, stopped
        self._last_epochs = np.array([state.last_epoch for state in states])
        self._tolerances = np.array([state.zero_loss_tol for state in states])
        self._zero_losses = np.array([state.zero_loss_validations for state in states])
        # An interval that begins between validations is not a whole one: what moved in its first part counts.
        self._moved = np.array([state.moved_since_validation for state in states])
        self._last_losses = self._last_outputs = None

        shape, dtype = engine.model.output_shape, engine.model.values[:0].cpu().numpy().dtype
        most_rows = int(self._last_epochs.max() - self.epoch) // validate_every + 2
        num_rows = max(1, min(most_rows, _BUFFER_BYTES // (len(states) * prod(shape) * dtype.itemsize)))
        self._epoch_rows = np.zeros(num_rows, dtype=np.int64)
        self._loss_rows = np.zeros((len(states), num_rows), dtype)
        self._output_rows = np.zeros((len(states), num_rows, *shape), dtype)
        # How many rows there are, and how many of them each history has; where each experiment is in the buffer.
        self._num_rows, self._num_measured = 0, np.zeros(len(states), dtype=np.int64)
        self._places = np.arange(len(states))

    def advance(self) -> list[Ended]:
        """Trains to a later validation, or to the last epoch of an experiment, or for as long as one call may take.

        Returns the experiments that ended on the way. They are no longer in the batch.
        """
        ends = self._interval_ends()
        intervals = np.diff(ends, prepend=self.epoch + 1).tolist()
        # An experiment that ends before the last validation of several takes its steps again, from here.
        begin = self.engine.select(torch.arange(len(self.running))) if len(ends) > 1 else None
        observed = self.engine.advance(intervals)
        self.epoch = int(ends[-1]) - 1
        self._last_losses, self._last_outputs = observed.losses[:, -1].copy(), observed.outputs[:, -1].copy()

        end_columns = self._decide_stops(ends, observed)
        self._record(ends, observed, end_columns)
        ended = []
        for column in sorted(set(end_columns.values())):
            batch = [index for index, its_column in end_columns.items() if its_column == column]
            engine, indices = self.engine, batch
            if column < len(intervals) - 1:
                engine, indices = begin.select(torch.tensor(batch)), range(len(batch))
                engine.advance(intervals[: column + 1])
            for index, engine_index in zip(batch, indices, strict=True):
                ended.append(Ended(self.running[index], engine, engine_index, observed.outputs[index, column].copy()))
        self.discard([each.state for each in ended])
        return ended

    def _interval_ends(self) -> np.ndarray:
        """Numbers of finished epochs (K,) at which to observe: at validations, and at an experiment's last epoch."""
        done, every = self.epoch + 1, self.validate_every
        last = int(self._last_epochs.min()) + 1
        next_validation = (done // every + 1) * every
        longest = done + self.engine.max_steps_per_call
        if min(next_validation, last) > longest:
            return np.array([longest])
        slow = any(state.measures_slowly for state in self.running)
        count = 1 if slow else max(1, min(self.engine.max_steps_per_chunk // every, len(self._epoch_rows)))
        validations = next_validation + every * np.arange(count)
        return np.append(validations[validations < last], last)[:count]

    def _decide_stops(self, ends: np.ndarray, observed: Observations) -> dict[int, int]:
        """Updates what is known about zero losses and movement, and the states of the experiments that end.

        Returns the column of `ends` (K,) where each of these ends, by index.
        """
        losses, outputs, moved = observed
        moved[:, 0] |= self._moved
        is_validation = ends[None] % self.validate_every == 0  # (1, K)
        at_last_epoch = ends == self._last_epochs[:, None] + 1  # (B, K)
        zero_losses = _in_a_row(losses < self._tolerances[:, None], is_validation, self._zero_losses)
        self._moved, self._zero_losses = moved[:, -1] & ~is_validation[:, -1], zero_losses[:, -1].copy()
        # If several hold, the last of these is recorded.
        reasons = {
            EPOCHS: at_last_epoch,
            STALLED: is_validation & ~moved & self.engine.optimizer.is_stateless,
            ZERO_LOSS: is_validation & (zero_losses > self._max_zero_losses),
            DIVERGED: (is_validation | at_last_epoch) & ~_all_finite(losses, outputs),
        }
        ended = np.any(list(reasons.values()), axis=0)
        columns = {index: int(ended[index].argmax()) for index in np.flatnonzero(ended.any(axis=1)).tolist()}
        for index, column in columns.items():
            state = self.running[index]
            state.stop_reason = [name for name, holds in reasons.items() if holds[index, column]][-1]
            state.epoch = int(ends[column]) - 1
            state.zero_loss_validations = int(zero_losses[index, column])
            state.moved_since_validation = bool(moved[index, column] and not is_validation[0, column])
        return columns

    def _record(self, ends: np.ndarray, observed: Observations, end_columns: dict[int, int]) -> None:
        """Puts observations into the buffer, and computes the metrics that are not postponed."""
        is_observed = (ends % self.validate_every == 0) | (ends == self._last_epochs[:, None] + 1)
        if not is_observed.any():
            return
        first_row = self._append(ends - 1, observed.losses, observed.outputs)
        for index, state in enumerate(self.running):
            if index in end_columns:
                self._measure(index, first_row + end_columns[index] + 1)
            elif not is_observed[index, -1]:
                # The last epoch of another experiment, between validations: this one skips the row.
                self._measure(index, self._num_rows - 1)
                self._num_measured[index] = self._num_rows
            elif state.measures_slowly and not self._stopped():
                self._measure(index, self._num_rows)

    def _append(self, epochs: np.ndarray, losses: np.ndarray, outputs: np.ndarray) -> int:
        """Appends rows to the buffer, which is emptied first if they do not fit. Returns the first one's number."""
        if self._num_rows + len(epochs) > len(self._epoch_rows):
            for index, state in enumerate(self.running):
                if state.keeps_history:
                    self._measure(index, self._num_rows)
            self._num_rows, self._num_measured[:] = 0, 0
        first, self._num_rows = self._num_rows, self._num_rows + len(epochs)
        rows = slice(first, self._num_rows)
        self._epoch_rows[rows] = epochs
        self._loss_rows[self._places, rows], self._output_rows[self._places, rows] = losses, outputs
        return first

    def _measure(self, index: int, num_rows: int) -> None:
        """Extends an experiment's history to the first `num_rows` rows of the buffer."""
        state, begin = self.running[index], int(self._num_measured[index])
        if begin >= num_rows:
            return
        if not state.keeps_history:
            state.history, begin = History(), num_rows - 1
        for row in range(begin, num_rows, _ROWS_AT_ONCE):
            rows = slice(row, min(row + _ROWS_AT_ONCE, num_rows))
            state.history.extend(self._epoch_rows[rows].copy(), *self._metrics(index, rows))
        self._num_measured[index] = num_rows

    def _metrics(self, index: int, rows: slice) -> tuple[Metrics, Metrics]:
        """Train and validation metrics of an experiment, from rows of the buffer."""
        place = self._places[index]
        return self.running[index].measure(self._loss_rows[place, rows], self._output_rows[place, rows])

    def discard(self, states: Iterable[TrainingState]) -> None:
        """Removes experiments from the batch."""
        discarded = set(states)
        kept = [index for index, state in enumerate(self.running) if state not in discarded]
        if len(kept) == len(self.running):
            return
        self.running = [self.running[index] for index in kept]
        for name in ("_last_epochs", "_tolerances", "_zero_losses", "_moved", "_num_measured", "_places"):
            setattr(self, name, getattr(self, name)[kept])
        if kept:
            self.engine = self.engine.select(torch.tensor(kept))
            if self._last_losses is not None:
                self._last_losses, self._last_outputs = self._last_losses[kept], self._last_outputs[kept]

    def latest(self, index: int) -> dict[str, float]:
        """The metrics of an experiment at its last validation, by name; none before the first."""
        if self.num_unmeasured(index) == 0:
            return self.running[index].history.last_values()
        train, validation = self._metrics(index, slice(self._num_rows - 1, self._num_rows))
        return {name: float(values[0]) for name, values in (train | validation).items()}

    def num_unmeasured(self, index: int) -> int:
        """How many validations of an experiment are not yet in its history."""
        return self._num_rows - int(self._num_measured[index])

    def sync(self, index: int) -> TrainingState:
        """Updates an experiment's state to the last epoch, and returns it."""
        state = self.running[index]
        state.epoch = self.epoch
        state.moved_since_validation = bool(self._moved[index])
        state.zero_loss_validations = int(self._zero_losses[index])
        self._measure(index, self._num_rows)
        return state

    def interrupt(self) -> list[Ended]:
        """Ends all experiments where they are. `sync`, which may take a while, is left to the caller."""
        outputs = self._last_outputs
        if outputs is None:
            outputs = on_host(self.engine.model.forward())
        elif not self._num_rows or self._epoch_rows[self._num_rows - 1] != self.epoch:
            self._append(np.array([self.epoch]), self._last_losses[:, None], outputs[:, None])
        for state in self.running:
            state.stop_reason = INTERRUPTED
        return [Ended(state, self.engine, index, outputs[index].copy()) for index, state in enumerate(self.running)]


def _in_a_row(holds: np.ndarray, counted: np.ndarray, before: np.ndarray) -> np.ndarray:
    """How often in a row, up to each column (B, K), `holds` was true in columns that are `counted` (1, K); `before`
    times (B,) before the first one. Only the last column may not be counted.
    """
    columns = np.arange(1, holds.shape[1] + 1)
    last_false = np.maximum.accumulate(np.where(holds | ~counted, 0, columns), axis=1)
    return columns - last_false + np.where(last_false == 0, before[:, None], 0) - ~counted


def _all_finite(losses: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Whether all metrics of each experiment are finite (B, K): none is larger than twice the loss (the sum of squares)
    or the sum of the output's absolute values, which no norm of it exceeds.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(2 * losses + np.abs(outputs).reshape(*losses.shape, -1).sum(axis=-1))
