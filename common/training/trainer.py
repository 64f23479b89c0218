"""The training loop: advances a batch of experiments from validation to validation until each has ended."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from common.training.history import DIVERGED, EPOCHS, INTERRUPTED, STALLED, ZERO_LOSS, History, Metrics, TrainingState
from common.training.native_engine import Engine, in_parallel
from common.training.torch_engine import Observations, on_host

# Size of the buffer of the observations of all experiments.
_BUFFER_BYTES = 64 * 2**20
# The most validations in the buffer: few enough for the intermediate results of metrics to stay in the cache. When half
# as many are new, metrics are computed.
_BUFFER_ROWS = 8192
# PyTorch starts threads of its own for operations on more numbers.
_ONE_THREAD_UP_TO = 32768


class Ended(NamedTuple):
    """An experiment that ended."""

    state: TrainingState
    engine: Engine  # which holds the last parameters
    index: int  # of the experiment in the engine's batch
    output: np.ndarray  # (rows, cols), the last end-to-end matrix or tensor


class Trainer:
    """Trains a batch of experiments that are at the same epoch and are validated at the same epochs.

    Observations at validations are rows of a buffer. Metrics are computed from them when they are needed, or when there
    are many new rows.

    Parameters
    ----------
    engine : holds the experiments' parameters.
    states : the experiments' states, in the order of the engine's batch.
    validate_every : epochs between validations.
    max_zero_loss_validations : an experiment ends at more validations in a row with zero loss than this.
    stopped : whether a signal has come; then metrics are no longer computed at once.

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
        stopped: Callable[[], bool] = lambda: False,
    ):
        self.engine, self.running, self.epoch = engine, list(states), states[0].epoch
        self.validate_every, self._max_zero_losses, self._stopped = validate_every, max_zero_loss_validations, stopped
        self._last_epochs = np.array([state.last_epoch for state in states])
        self._tolerances = np.array([state.zero_loss_tol for state in states])
        self._zero_losses = np.array([state.zero_loss_validations for state in states])
        # Whether a parameter moved since the last validation: an interval may be trained in several parts.
        self._moved = np.array([state.moved_since_validation for state in states])
        self._last_losses = self._last_outputs = None  # at the last finished epoch

        shape, dtype = engine.model.output_shape, engine.model.values[:0].cpu().numpy().dtype
        most_rows = int(self._last_epochs.max() - self.epoch) // validate_every + 2
        num_rows = max(1, min(most_rows, _BUFFER_ROWS, _BUFFER_BYTES // (len(states) * prod(shape) * dtype.itemsize)))
        self._epoch_rows = np.zeros(num_rows, dtype=np.int64)
        self._loss_rows = np.zeros((len(states), num_rows), dtype)
        self._output_rows = np.zeros((len(states), num_rows, *shape), dtype)
        # The number of rows, how many of them all histories have, and how many each has.
        self._num_rows, self._num_rows_measured, self._num_measured = 0, 0, np.zeros(len(states), dtype=np.int64)
        # The index of each experiment in the buffer.
        self._places = np.arange(len(states))

    def advance(self) -> list[Ended]:
        """Trains to a later validation, to the last epoch of an experiment, or for the time that one call may take.

        Returns the experiments that ended, which are removed from the batch.
        """
        ends = self._interval_ends()
        intervals = np.diff(ends, prepend=self.epoch + 1).tolist()
        # An experiment that ends before the last of several validations takes its steps again, from here.
        begin = self.engine.select(torch.arange(len(self.running))) if len(ends) > 1 else None
        observed = self.engine.advance(intervals)
        self.epoch = int(ends[-1]) - 1
        self._last_losses, self._last_outputs = observed.losses[:, -1].copy(), observed.outputs[:, -1].copy()

        end_columns = self._decide_stops(ends, observed)
        self._record(ends, observed, end_columns)
        ended = []
        for column in sorted(set(end_columns.values())):
            indices = [index for index, its_column in end_columns.items() if its_column == column]
            engine, positions = self.engine, indices
            if column < len(intervals) - 1:
                engine, positions = begin.select(torch.tensor(indices)), range(len(indices))
                engine.advance(intervals[: column + 1])
            for index, position in zip(indices, positions, strict=True):
                ended.append(Ended(self.running[index], engine, position, observed.outputs[index, column].copy()))
        self.discard([each.state for each in ended])
        if self._num_rows - self._num_rows_measured >= _BUFFER_ROWS // 2 and not self._measures_at_once():
            self._measure_histories()
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
        if not self._measures_at_once():
            count = max(1, min(self.engine.max_steps_per_chunk // every, len(self._epoch_rows)))
        validations = next_validation + every * np.arange(count)
        return np.append(validations[validations < last], last)[:count]

    def _measures_at_once(self) -> bool:
        return any(state.measures_at_once for state in self.running)

    def _decide_stops(self, ends: np.ndarray, observed: Observations) -> dict[int, int]:
        """Updates the counts of zero losses, whether parameters moved, and the states of the experiments that end.

        Returns the column of `ends` (K,) at which each of these ends, by index.
        """
        observed.moved[:, 0] |= self._moved
        is_validation = ends % self.validate_every == 0  # (K,): all but the last are
        self._moved = observed.moved[:, -1] & ~is_validation[-1]
        may_end = np.flatnonzero(self._may_end(ends, observed))
        zero_losses_before = self._zero_losses[may_end]
        if is_validation[0]:
            self._zero_losses[:] = 0
        if not len(may_end):
            return {}
        losses, outputs, moved = (each[may_end] for each in observed)
        at_last_epoch = ends == self._last_epochs[may_end, None] + 1  # (those that may end, K)
        zero_losses = _in_a_row(losses < self._tolerances[may_end, None], is_validation, zero_losses_before)
        self._zero_losses[may_end] = zero_losses[:, -1]
        # If several hold, the last one is recorded.
        reasons = {
            EPOCHS: at_last_epoch,
            STALLED: is_validation & ~moved & self.engine.optimizer.is_stateless,
            ZERO_LOSS: is_validation & (zero_losses > self._max_zero_losses),
            DIVERGED: (is_validation | at_last_epoch) & ~_all_finite(losses, outputs),
        }
        ended = np.any(list(reasons.values()), axis=0)
        columns = {}
        for row in np.flatnonzero(ended.any(axis=1)).tolist():
            index, column = int(may_end[row]), int(ended[row].argmax())
            columns[index], state = column, self.running[index]
            state.stop_reason = [name for name, holds in reasons.items() if holds[row, column]][-1]
            state.epoch = int(ends[column]) - 1
            state.zero_loss_validations = int(zero_losses[row, column])
            state.moved_since_validation = bool(moved[row, column] and not is_validation[column])
        return columns

    def _may_end(self, ends: np.ndarray, observed: Observations) -> np.ndarray:
        """Returns whether each experiment (B,) may end or have a zero loss. For most, extreme values show that it
        does not.
        """
        losses, outputs, moved = observed
        entries = outputs.reshape(len(outputs), -1)
        with np.errstate(over="ignore", invalid="ignore"):
            largest = np.maximum(entries.max(axis=1), -entries.min(axis=1))
            finite = np.isfinite(2 * losses.max(axis=1) + prod(outputs.shape[2:]) * largest)  # see _all_finite
        stalled = ~moved.all(axis=1) & self.engine.optimizer.is_stateless
        return ~finite | stalled | (losses.min(axis=1) < self._tolerances) | (ends[-1] == self._last_epochs + 1)

    def _record(self, ends: np.ndarray, observed: Observations, end_columns: dict[int, int]) -> None:
        """Appends observations to the buffer, and computes the metrics that are not postponed."""
        # All ends but the last are validations.
        is_observed = (ends[-1] % self.validate_every == 0) | (ends[-1] == self._last_epochs + 1)
        if len(ends) == 1 and not is_observed.any():
            return
        first_row = self._append(ends - 1, observed.losses, observed.outputs)
        for index, state in enumerate(self.running):
            if index in end_columns:
                self._measure(index, first_row + end_columns[index] + 1)
            elif not is_observed[index]:
                # The last epoch of another experiment, between validations: the row is not of this one.
                self._measure(index, self._num_rows - 1)
                self._num_measured[index] = self._num_rows
            elif state.measures_at_once and not self._stopped():
                self._measure(index, self._num_rows)

    def _append(self, epochs: np.ndarray, losses: np.ndarray, outputs: np.ndarray) -> int:
        """Appends rows to the buffer, which is emptied first if they do not fit. Returns the index of the first."""
        if self._num_rows + len(epochs) > len(self._epoch_rows):
            self._measure_histories()
            self._num_rows, self._num_rows_measured, self._num_measured[:] = 0, 0, 0
            self._epoch_rows = np.empty_like(self._epoch_rows)  # histories share views of the old one
        first, self._num_rows = self._num_rows, self._num_rows + len(epochs)
        rows = slice(first, self._num_rows)
        self._epoch_rows[rows] = epochs
        self._loss_rows[self._places, rows], self._output_rows[self._places, rows] = losses, outputs
        return first

    def _measure_histories(self) -> None:
        """Adds what is missing of the metrics of all rows to the histories."""
        indices = [index for index, state in enumerate(self.running) if state.keeps_history]

        def measure(part: tuple[int, int]) -> None:
            for index in indices[slice(*part)]:
                self._measure(index, self._num_rows)

        is_small = _BUFFER_ROWS * prod(self._output_rows.shape[2:]) <= _ONE_THREAD_UP_TO
        if indices and is_small and not self._measures_at_once():
            in_parallel(measure, len(indices))
        else:
            measure((0, len(indices)))
        self._num_rows_measured = self._num_rows

    def _measure(self, index: int, num_rows: int) -> None:
        """Adds what is missing of the metrics of the first `num_rows` rows to an experiment's history."""
        state, begin = self.running[index], int(self._num_measured[index])
        if begin >= num_rows:
            return
        if not state.keeps_history:
            state.history, begin = History(), num_rows - 1
        rows = slice(begin, num_rows)
        state.history.extend(self._epoch_rows[rows], *self._metrics(index, rows))
        self._num_measured[index] = num_rows

    def _metrics(self, index: int, rows: slice) -> tuple[Metrics, Metrics]:
        """Returns the train and validation metrics of an experiment, from rows of the buffer."""
        state, place, factors = self.running[index], self._places[index], []
        if state.measures_at_once:
            # The only row that is missing is the last, and the engine holds its factors.
            factors = list(self.engine.model.experiment_state(index).values())
        return state.measure(self._loss_rows[place, rows], self._output_rows[place, rows], factors)

    def discard(self, states: Iterable[TrainingState]) -> None:
        """Removes experiments from the batch. Called after `advance`."""
        discarded = set(states)
        kept = [index for index, state in enumerate(self.running) if state not in discarded]
        if len(kept) == len(self.running):
            return
        self.running = [self.running[index] for index in kept]
        arrays = ("_last_epochs", "_tolerances", "_zero_losses", "_moved", "_last_losses", "_last_outputs")
        for name in (*arrays, "_num_measured", "_places"):
            setattr(self, name, getattr(self, name)[kept])
        if kept:
            self.engine = self.engine.select(torch.tensor(kept))

    def latest(self, index: int) -> dict[str, float]:
        """Returns the metrics of an experiment at its last validation, by name; none before the first."""
        if self._num_measured[index] == self._num_rows:
            return self.running[index].history.last_values()
        train, validation = self._metrics(index, slice(self._num_rows - 1, self._num_rows))
        return {name: float(values[0]) for name, values in (train | validation).items()}

    def sync(self, index: int) -> TrainingState:
        """Updates an experiment's state, history included, to the last finished epoch, and returns it."""
        state = self.running[index]
        state.epoch = self.epoch
        state.moved_since_validation = bool(self._moved[index])
        state.zero_loss_validations = int(self._zero_losses[index])
        self._measure(index, self._num_rows)
        return state

    def interrupt(self) -> list[Ended]:
        """Ends all experiments at the last finished epoch. The caller calls `sync`, which may take a while."""
        outputs = self._last_outputs
        if outputs is None:
            outputs = on_host(self.engine.model.forward())
        elif not self._num_rows or self._epoch_rows[self._num_rows - 1] != self.epoch:
            self._append(np.array([self.epoch]), self._last_losses[:, None], outputs[:, None])
        for state in self.running:
            state.stop_reason = INTERRUPTED
        return [Ended(state, self.engine, index, outputs[index].copy()) for index, state in enumerate(self.running)]


def _in_a_row(holds: np.ndarray, counted: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Returns for each column (B, K) how often in a row, up to there, `holds` was true in `counted` (K,) columns.
    Before the first column it was true `before` (B,) times in a row. All columns but the last must be counted.
    """
    columns = np.arange(1, holds.shape[1] + 1)
    last_false = np.maximum.accumulate(np.where(holds | ~counted, 0, columns), axis=1)
    return columns - last_false + np.where(last_false == 0, before[:, None], 0) - ~counted


def _all_finite(losses: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Returns whether all metrics of each experiment are finite (B, K): none exceeds twice the loss, which is the sum
    of squares, or the sum of the output's absolute values, which bounds its norms.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(2 * losses + np.abs(outputs).reshape(*losses.shape, -1).sum(axis=-1))
