"""The state of one experiment in training, and its recorded metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Metrics = Mapping[str, np.ndarray]

# Why an experiment ended, as in the `status` of run_params.json.
FINAL_REASONS = DIVERGED, ZERO_LOSS, STALLED, EPOCHS = "diverged", "zero_loss", "stalled", "epochs"
INTERRUPTED = "interrupted"


class Series(NamedTuple):
    """Values of one metric: `epochs` (n,) int64 and `values` (n,) of the run's dtype."""

    epochs: np.ndarray
    values: np.ndarray


class History:
    """Train and validation metrics of one experiment, by name. Metrics recorded at the same epochs share that array."""

    def __init__(self, train: Mapping[str, Series] | None = None, validation: Mapping[str, Series] | None = None):
        self._train, self._validation = dict(train or {}), dict(validation or {})
        # Epochs, train and validation metrics that were appended since a metric was read. They are joined when one is.
        self._new: list[tuple[np.ndarray, Metrics, Metrics]] = []

    @property
    def train(self) -> dict[str, Series]:
        self._join()
        return dict(self._train)

    @property
    def validation(self) -> dict[str, Series]:
        self._join()
        return dict(self._validation)

    def extend(self, epochs: np.ndarray, train: Metrics, validation: Metrics) -> None:
        """Appends values (n,) of every metric at `epochs` (n,)."""
        self._new.append((epochs, train, validation))

    def _join(self) -> None:
        if not self._new:
            return
        (all_epochs, *new), self._new = zip(*self._new, strict=True), []
        joined: dict[tuple[int, ...], np.ndarray] = {}
        for metrics, new_metrics in zip((self._train, self._validation), new, strict=True):
            parts = {name: [series] for name, series in metrics.items()}
            for epochs, values_by_name in zip(all_epochs, new_metrics, strict=True):
                for name, values in values_by_name.items():
                    parts.setdefault(name, []).append(Series(epochs, values))
            for name, series in parts.items():
                epochs, values = zip(*series, strict=True)
                if (key := tuple(map(id, epochs))) not in joined:
                    joined[key] = np.concatenate(epochs)
                metrics[name] = Series(joined[key], np.concatenate(values))

    def drop_last(self, epoch: int) -> None:
        """Removes the records of `epoch`, which no records follow."""
        self._join()
        for metrics in (self._train, self._validation):
            for name, (epochs, values) in list(metrics.items()):
                kept = len(epochs) - (epochs[-1] == epoch)
                metrics[name] = Series(epochs[:kept], values[:kept])
                if not kept:
                    del metrics[name]

    def last_values(self) -> dict[str, float]:
        """Returns the last value of every metric that was recorded at the last epoch."""
        if self._new:
            _, train, validation = self._new[-1]
            return {name: float(values[-1]) for name, values in {**train, **validation}.items()}
        metrics = self._train | self._validation
        newest = max((series.epochs[-1] for series in metrics.values()), default=-1)
        return {name: float(values[-1]) for name, (epochs, values) in metrics.items() if epochs[-1] == newest}


@dataclass(eq=False)
class TrainingState:
    """When an experiment ends, how it is measured, and its progress."""

    last_epoch: int  # the last epoch to run
    zero_loss_tol: float  # losses below this count as zero
    # Train and validation metrics (n,) by name; see Problem.measure.
    measure: Callable[[np.ndarray, np.ndarray, Sequence[Tensor]], tuple[Metrics, Metrics]]
    keeps_history: bool = True  # False: only the last record is kept
    # True: metrics are not postponed, because they need the factors, or because a signal would have to wait for them.
    measures_at_once: bool = False
    history: History = field(default_factory=History)
    epoch: int = -1  # the last finished epoch
    zero_loss_validations: int = 0  # in a row, up to the last validation
    moved_since_validation: bool = False  # whether a parameter changed since the last validation
    stop_reason: str | None = None  # one of the constants above once the experiment has ended


def evaluator_state(metrics: Mapping[str, Series]) -> dict[str, dict]:
    """Returns metrics as a checkpoint stores them. Epochs that several metrics share are stored once."""
    shared: dict[int, Tensor] = {}
    return {
        name: {
            "name": name,
            "current_value": float(values[-1]),
            "epoch_last_updated": int(epochs[-1]),
            "epoch_values": torch.from_numpy(values),
            "epochs_with_values": shared.setdefault(id(epochs), torch.from_numpy(epochs)),
        }
        for name, (epochs, values) in metrics.items()
    }


def metrics_of_evaluator(state: Mapping[str, Mapping], dtype: np.dtype) -> dict[str, Series]:
    """Returns the metrics in a checkpoint of this project (tensors) or of the original code (lists of numbers).

    Raises ValueError, KeyError or TypeError if `state` is something else.
    """
    metrics: dict[str, Series] = {}
    shared: dict[bytes, np.ndarray] = {}
    for name, tracker in state.items():
        epochs = _numbers(tracker["epochs_with_values"], np.dtype(np.int64))
        values = _numbers(tracker["epoch_values"], dtype)
        if not isinstance(name, str):
            raise ValueError(f"a metric is called {name!r}")
        if epochs.shape != values.shape or (np.diff(epochs) <= 0).any() or (epochs < 0).any():
            raise ValueError(f"the {len(values)} values of metric {name} do not belong to increasing epochs")
        if len(epochs):
            metrics[name] = Series(shared.setdefault(epochs.tobytes(), epochs), values)
    return metrics


def _numbers(values: Tensor | list, dtype: np.dtype) -> np.ndarray:
    """Returns values (n,) from a tensor or a list. Raises ValueError if they are something else."""
    if isinstance(values, Tensor) and values.dim() == 1 and not values.is_complex():
        return values.detach().to(torch.float64 if dtype.kind == "f" else torch.int64).numpy().astype(dtype, copy=False)
    if isinstance(values, list) and set(map(type, values)) <= {int, float}:
        return np.array(values, dtype=dtype)
    raise ValueError("the values or epochs of a metric are not numbers (n,)")
