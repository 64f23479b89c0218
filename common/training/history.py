"""The state of one experiment in training, and its recorded metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Names of train and validation metrics, and the values of all in this order: (metrics, …), float64.
Metrics = tuple[tuple[tuple[str, ...], tuple[str, ...]], np.ndarray]

# Why an experiment ended, as in the `status` of run_params.json.
FINAL_REASONS = DIVERGED, ZERO_LOSS, STALLED, EPOCHS = "diverged", "zero_loss", "stalled", "epochs"
INTERRUPTED = "interrupted"
# As many parts of a history wait to be joined: each of a few records has more overhead than content.
_MOST_PARTS = 500


class Series(NamedTuple):
    """Values of one metric: `epochs` (n,) int64 and `values` (n,) float64."""

    epochs: np.ndarray
    values: np.ndarray


class History:
    """Train and validation metrics of one experiment, by name. Metrics recorded at the same epochs share that array."""

    def __init__(self, train: Mapping[str, Series] | None = None, validation: Mapping[str, Series] | None = None):
        self._train, self._validation = dict(train or {}), dict(validation or {})
        # Epochs and values that were appended since a metric was read, and their names.
        self._new: list[tuple[np.ndarray, np.ndarray]] = []
        self._names: tuple = ((), ())

    @property
    def train(self) -> dict[str, Series]:
        self._join()
        return dict(self._train)

    @property
    def validation(self) -> dict[str, Series]:
        self._join()
        return dict(self._validation)

    def extend(self, epochs: np.ndarray, metrics: Metrics) -> None:
        """Appends values (metrics, n) at `epochs` (n,)."""
        names, values = metrics
        if names != self._names or len(self._new) == _MOST_PARTS:
            self._join()
        self._names = names
        self._new.append((epochs, values))

    def _join(self) -> None:
        if not self._new:
            return
        epochs, values = (np.concatenate(parts, axis=-1) for parts in zip(*self._new, strict=True))
        self._new, joined, rows = [], {}, iter(values)
        for metrics, names in zip((self._train, self._validation), self._names, strict=True):
            for name, new in zip(names, rows, strict=False):
                if name not in metrics:
                    metrics[name] = Series(epochs, new)
                    continue
                old = metrics[name]
                if id(old.epochs) not in joined:
                    joined[id(old.epochs)] = np.concatenate([old.epochs, epochs])
                metrics[name] = Series(joined[id(old.epochs)], np.concatenate([old.values, new]))

    def drop_last(self, epoch: int) -> None:
        """Removes the records of `epoch`, which no records follow."""
        for metrics in (self._train, self._validation):
            for name, (epochs, values) in list(metrics.items()):
                metrics[name] = Series(epochs[epochs < epoch], values[epochs < epoch])
                if epochs[0] == epoch:
                    del metrics[name]

    def last_values(self) -> dict[str, float]:
        """Returns the last value of every metric that was recorded at the last epoch."""
        metrics = self.train | self.validation
        newest = max((series.epochs[-1] for series in metrics.values()), default=-1)
        return {name: float(values[-1]) for name, (epochs, values) in metrics.items() if epochs[-1] == newest}


@dataclass(eq=False, kw_only=True)
class TrainingState:
    """When an experiment ends, and its progress."""

    last_epoch: int  # the last epoch to run
    zero_loss_tol: float  # losses below this count as zero
    keeps_history: bool = True  # False: only the last record is kept
    history: History = field(default_factory=History)
    epoch: int = -1  # the last finished epoch
    zero_loss_validations: int = 0  # in a row, up to the last validation
    moved_since_validation: bool = False  # whether a parameter changed since the last validation
    stop_reason: str | None = None  # one of the constants above once the experiment has ended
    final_output: Tensor | None = None  # the last end-to-end matrix or tensor (rows, cols), once it has ended
    stands_still: bool = False  # whether all epochs are done in one go, and the loss did not fall in the second half


def evaluator_state(metrics: Mapping[str, Series], dtype: torch.dtype) -> dict[str, dict]:
    """Returns metrics as a checkpoint stores them, with values of this `dtype`. Epochs that several metrics share are
    stored once.
    """
    shared: dict[int, Tensor] = {}
    return {
        name: {
            "name": name,
            "current_value": float(values[-1]),
            "epoch_last_updated": int(epochs[-1]),
            "epoch_values": torch.from_numpy(values).to(dtype),
            "epochs_with_values": shared.setdefault(id(epochs), torch.from_numpy(epochs)),
        }
        for name, (epochs, values) in metrics.items()
    }


def metrics_of_evaluator(state: Mapping[str, Mapping]) -> dict[str, Series]:
    """Returns the metrics in a checkpoint of this project (tensors) or of the original code (lists of numbers).

    Raises ValueError, KeyError or TypeError if `state` is something else.
    """
    metrics: dict[str, Series] = {}
    shared: dict[bytes, np.ndarray] = {}
    for name, tracker in state.items():
        epochs = _numbers(tracker["epochs_with_values"], torch.int64)
        values = _numbers(tracker["epoch_values"], torch.float64)
        if not isinstance(name, str):
            raise ValueError(f"a metric is called {name!r}")
        if epochs.shape != values.shape or (np.diff(epochs) <= 0).any() or (epochs < 0).any():
            raise ValueError(f"the {len(values)} values of metric {name} do not belong to increasing epochs")
        if len(epochs):
            metrics[name] = Series(shared.setdefault(epochs.tobytes(), epochs), values)
    return metrics


def _numbers(values: Tensor | list, dtype: torch.dtype) -> np.ndarray:
    """Returns values (n,) from a tensor or a list. Raises ValueError if they are something else."""
    if isinstance(values, list) and set(map(type, values)) <= {int, float}:
        values = torch.tensor(values, dtype=dtype)
    if isinstance(values, Tensor) and values.dim() == 1 and not values.is_complex():
        return values.detach().to(dtype).numpy()
    raise ValueError("the values or epochs of a metric are not numbers (n,)")
