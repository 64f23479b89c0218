"""The training loop: a batch of experiments advances from one validation to the next, and each ends by itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from common.training.engines import Engine, on_host
from common.training.history import History

# Why an experiment ended, as `status` in run_params.json has it.
DIVERGED, ZERO_LOSS, STALLED, EPOCHS, INTERRUPTED = "diverged", "zero_loss", "stalled", "epochs", "interrupted"

# What is observed of all runs together is kept in so many bytes, and measured when they are full.
_BUFFER_BYTES = 64 * 2**20
# Rows that are measured at a time: what is computed on the way stays in the cache.
_ROWS_AT_ONCE = 4096

Metrics = Mapping[str, np.ndarray]


@dataclass
class Run:
    """How one experiment is trained, and how far it got.

    Attributes
    ----------
    num_epochs : how many it takes from where it starts.
    zero_loss_tol : the loss that counts as zero.
    measure : train and validation metrics (n,) by name, of losses (n,) and end-to-end matrices or tensors (n, ...).
    keeps_history : whether the history is wanted; otherwise it has the last record alone.
    measures_slowly : whether `measure` takes so long that it is not left for later, when a signal may be waiting.
    epoch : the last epoch it finished, -1 before the first.
    zero_loss_validations : validations in a row, up to the last one, whose loss counted as zero.
    moved_since_validation : whether a parameter changed since the last validation; None where that is not known.
    stop_reason : one of the constants of this module; None while it runs.
    """

    num_epochs: int
    zero_loss_tol: float
    measure: Callable[[np.ndarray, np.ndarray], tuple[Metrics, Metrics]]
    keeps_history: bool = True
    measures_slowly: bool = False
    history: History = field(default_factory=History)
    epoch: int = -1
    zero_loss_validations: int = 0
    moved_since_validation: bool | None = False
    stop_reason: str | None = None


class Ended(NamedTuple):
    """A run that ended, and where its last state is: the engine, its position there, and its last output."""

    run: Run
    engine: Engine
    position: int
    output: np.ndarray


class LockstepTrainer:
    """Trains a batch of runs that are at the same epoch and are validated at the same epochs.

    `running` are the runs that have not ended, in the order of the engine's batch. What is observed at validations is
    kept in a buffer; metrics are computed from it in bulk, when they are asked for or the buffer is full. Those that
    take long are computed at once, but no more when `stopped()` holds.
    """

    def __init__(
        self,
        engine: Engine,
        runs: Sequence[Run],
        validate_every: int,
        max_zero_loss_validations: int,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self.engine, self._stopped = engine, stopped
        self.running = list(runs)
        self.epoch = runs[0].epoch
        self._validate_every = validate_every
        self._max_zero_loss_validations = max_zero_loss_validations
        self._last_epochs = np.array([run.epoch + run.num_epochs for run in runs])
        self._tolerances = np.array([run.zero_loss_tol for run in runs])
        self._zero_losses = np.array([run.zero_loss_validations for run in runs])
        # A stretch that begins between validations is not a whole interval: what moved in its first part counts.
        self._moved = np.array([bool(run.moved_since_validation) for run in runs])

        self._last_outputs = on_host(engine.model.forward()).copy()
        self._last_losses: np.ndarray | None = None
        outputs = self._last_outputs
        most_validations = max(run.num_epochs for run in runs) // validate_every + 2
        rows = max(1, min(most_validations, _BUFFER_BYTES // outputs.nbytes))
        # Row by row of the buffer, for each run as they began; `_places` says where those are that still run.
        self._places = np.arange(len(runs))
        self._epoch_rows = np.zeros(rows, dtype=np.int64)
        self._loss_rows = np.zeros((len(runs), rows), outputs.dtype)
        self._output_rows = np.zeros((len(runs), rows, *outputs.shape[1:]), outputs.dtype)
        self._num_rows = 0
        self._num_measured = np.zeros(len(runs), dtype=np.int64)

    def advance(self) -> list[Ended]:
        """Trains to a later validation, or to the last epoch of a run that has fewer to go, or for a long stretch.

        Returns the runs that ended on the way; `drop_ended()` takes them out of the batch.
        """
        done = self.epoch + 1
        ends = self._ends_of_stretches()
        stretches = np.diff(ends, prepend=done).tolist()
        # An experiment that ends before the last validation of several takes its steps again, from here.
        begin = self.engine.select(torch.arange(len(self.running))) if len(ends) > 1 else None
        observed = self.engine.advance(stretches)
        self.epoch = int(ends[-1]) - 1
        self._last_losses, self._last_outputs = observed.losses[:, -1].copy(), observed.outputs[:, -1].copy()

        # All these are (B, K): for each run, and each end of a stretch.
        is_validation = ends[None] % self._validate_every == 0
        at_end = ends == self._last_epochs[:, None] + 1
        is_observed = is_validation | at_end
        moved = observed.moved
        moved[:, 0] |= self._moved
        zero_losses = _in_a_row(observed.losses < self._tolerances[:, None], is_validation, self._zero_losses)
        reasons = {
            EPOCHS: at_end,
            STALLED: is_validation & ~moved & self.engine.optimizer.stops_where_nothing_moves,
            ZERO_LOSS: is_validation & (zero_losses > self._max_zero_loss_validations),
            DIVERGED: is_observed & ~_all_finite(observed.losses, observed.outputs),
        }
        ended = np.any(list(reasons.values()), axis=0)
        # The row of its end, for each run that ended.
        end_rows = {position: int(ended[position].argmax()) for position in np.flatnonzero(ended.any(axis=1)).tolist()}
        self._moved, self._zero_losses = moved[:, -1] & ~is_validation[:, -1], zero_losses[:, -1].copy()
        if not is_observed.any():
            return []
        first_row = self._record(ends - 1, observed.losses, observed.outputs)
        for position, row in end_rows.items():
            run = self.running[position]
            run.stop_reason = [reason for reason, stops in reasons.items() if stops[position, row]][-1]
            run.epoch = int(ends[row]) - 1
            run.zero_loss_validations = int(zero_losses[position, row])
            run.moved_since_validation = bool(moved[position, row] and not is_validation[0, row])
            self._measure(position, first_row + row + 1)
        for position, run in enumerate(self.running):
            if run.measures_slowly and run.stop_reason is None and is_observed[position, -1] and not self._stopped():
                self._measure(position, self._num_rows)
        # At the last epoch of another run, between validations, these are not observed: they skip the row.
        for position in np.flatnonzero(~is_observed[:, -1] & ~ended.any(axis=1)):
            self._measure(position, self._num_rows - 1)
            self._num_measured[position] = self._num_rows
        return self._with_last_state(end_rows, begin, stretches, observed.outputs)

    def interrupt(self) -> list[Ended]:
        """Ends all runs where they are, and returns them as `advance()` does, but for `sync()`, which is up to the
        caller: it may take a while.
        """
        recorded = self._epoch_rows[self._num_rows - 1] if self._num_rows else -1
        if self._last_losses is not None and recorded != self.epoch:
            self._record(np.array([self.epoch]), self._last_losses[:, None], self._last_outputs[:, None])
        for run in self.running:
            run.stop_reason = INTERRUPTED
        return [Ended(run, self.engine, b, self._last_outputs[b].copy()) for b, run in enumerate(self.running)]

    def drop_ended(self) -> None:
        """Takes the runs that ended out of the batch."""
        kept = [position for position, run in enumerate(self.running) if run.stop_reason is None]
        if len(kept) == len(self.running):
            return
        self.running = [self.running[position] for position in kept]
        for name in ("_last_epochs", "_tolerances", "_zero_losses", "_moved", "_num_measured", "_places"):
            setattr(self, name, getattr(self, name)[kept])
        if kept:
            self.engine = self.engine.select(torch.tensor(kept))
            self._last_losses, self._last_outputs = self._last_losses[kept], self._last_outputs[kept]

    def sync(self, position: int) -> Run:
        """The run at a position of the batch, brought up to date: its epoch, history and what a checkpoint needs."""
        run = self.running[position]
        run.epoch = self.epoch
        run.moved_since_validation = bool(self._moved[position])
        run.zero_loss_validations = int(self._zero_losses[position])
        self._measure(position, self._num_rows)
        return run

    def _ends_of_stretches(self) -> np.ndarray:
        """Numbers of epochs done (K,) after which to look: at validations, and at the last epoch of a run."""
        done, every = self.epoch + 1, self._validate_every
        last = int(self._last_epochs.min()) + 1
        next_validation = (done // every + 1) * every
        longest = done + self.engine.longest_call
        if min(next_validation, last) > longest:
            return np.array([longest])
        slow = any(run.measures_slowly for run in self.running)
        count = 1 if slow else max(1, min(self.engine.several_validations // every, len(self._epoch_rows)))
        validations = next_validation + every * np.arange(count)
        return np.append(validations[validations < last], last)[:count]

    def _with_last_state(
        self, end_rows: Mapping[int, int], begin: Engine | None, stretches: list[int], outputs: np.ndarray
    ) -> list[Ended]:
        """The runs at the positions in `end_rows`, ended at its rows, with an engine that holds their last states."""
        ended = []
        for row in sorted(set(end_rows.values())):
            positions = [position for position, its_row in end_rows.items() if its_row == row]
            engine, places = self.engine, positions
            if row < len(stretches) - 1:
                engine, places = begin.select(torch.tensor(positions)), range(len(positions))
                engine.advance(stretches[: row + 1])
            for position, place in zip(positions, places, strict=True):
                ended.append(Ended(self.running[position], engine, place, outputs[position, row].copy()))
        return ended

    def latest(self, position: int) -> dict[str, float]:
        """The metrics of a run at the last validation, by name; none before the first."""
        if not self._num_rows:
            return {}
        row = slice(self._num_rows - 1, self._num_rows)
        train, validation = self._metrics(position, row)
        return {name: float(values[0]) for name, values in (train | validation).items()}

    def _measure(self, position: int, num_rows: int) -> None:
        """Computes the metrics of a run from the first `num_rows` rows of the buffer, but for those that were."""
        run, begin = self.running[position], int(self._num_measured[position])
        if not run.keeps_history and begin < num_rows:
            run.history, begin = History(), num_rows - 1
        while begin < num_rows:
            rows = slice(begin, min(begin + _ROWS_AT_ONCE, num_rows))
            run.history.extend(self._epoch_rows[rows].copy(), *self._metrics(position, rows))
            begin = rows.stop
        self._num_measured[position] = num_rows

    def _metrics(self, position: int, rows: slice) -> tuple[Metrics, Metrics]:
        """Train and validation metrics of a run, from rows of the buffer."""
        place = self._places[position]
        return self.running[position].measure(self._loss_rows[place, rows], self._output_rows[place, rows])

    def _record(self, epochs: np.ndarray, losses: np.ndarray, outputs: np.ndarray) -> int:
        """Appends rows to the buffer, which is emptied first where they do not fit. Returns the first one's number."""
        if self._num_rows + len(epochs) > len(self._epoch_rows):
            for position, run in enumerate(self.running):
                if run.keeps_history:
                    self._measure(position, self._num_rows)
            self._num_rows, self._num_measured[:] = 0, 0
        first, self._num_rows = self._num_rows, self._num_rows + len(epochs)
        rows = slice(first, self._num_rows)
        self._epoch_rows[rows] = epochs
        self._loss_rows[self._places, rows], self._output_rows[self._places, rows] = losses, outputs
        return first


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
