"""What was recorded of an experiment: the values of each metric and the epochs they belong to."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class Series:
    """Values of one metric: `epochs` (n,) int64 and `values` (n,) of the run's dtype, appended in chunks."""

    def __init__(self):
        self._chunks: list[tuple[np.ndarray, np.ndarray]] = []

    def extend(self, epochs: np.ndarray, values: np.ndarray) -> None:
        self._chunks.append((epochs, values))

    def _joined(self) -> tuple[np.ndarray, np.ndarray]:
        if len(self._chunks) > 1:
            epochs, values = zip(*self._chunks, strict=True)
            self._chunks = [(np.concatenate(epochs), np.concatenate(values))]
        return self._chunks[0] if self._chunks else (np.empty(0, np.int64), np.empty(0, np.float32))

    @property
    def epochs(self) -> np.ndarray:
        return self._joined()[0]

    @property
    def values(self) -> np.ndarray:
        return self._joined()[1]

    @property
    def last(self) -> tuple[int, float]:
        """Epoch and value of the last record."""
        epochs, values = self._chunks[-1]
        return int(epochs[-1]), float(values[-1])


class History:
    """Train and validation metrics of one experiment, by name."""

    def __init__(self):
        self.train: dict[str, Series] = {}
        self.validation: dict[str, Series] = {}

    def extend(self, epochs: np.ndarray, train: Mapping[str, np.ndarray], validation: Mapping[str, np.ndarray]) -> None:
        """Appends values (n,) of every metric at `epochs` (n,)."""
        for series, values in ((self.train, train), (self.validation, validation)):
            for name, new in values.items():
                series.setdefault(name, Series()).extend(epochs, new)

    def last_values(self) -> dict[str, float]:
        """The value at the last epoch of every metric that was recorded then."""
        last = {name: series.last for name, series in (self.train | self.validation).items()}
        newest = max((epoch for epoch, _ in last.values()), default=-1)
        return {name: value for name, (epoch, value) in last.items() if epoch == newest}


def evaluator_state(metrics: Mapping[str, Series]) -> dict[str, dict]:
    """Metrics as a checkpoint keeps them. Epochs that several metrics share are one tensor, and so stored once."""
    shared: dict[bytes, Tensor] = {}
    state = {}
    for name, series in metrics.items():
        epoch, value = series.last
        epochs = shared.setdefault(series.epochs.tobytes(), torch.from_numpy(series.epochs))
        state[name] = {
            "name": name,
            "current_value": value,
            "epoch_last_updated": epoch,
            "epoch_values": torch.from_numpy(series.values),
            "epochs_with_values": epochs,
        }
    return state


def series_of_evaluator(state: Mapping[str, Mapping], dtype: np.dtype) -> dict[str, Series]:
    """Metrics of a checkpoint, of this project (tensors) or of the original code (lists of numbers).

    Raises ValueError or KeyError where `state` is something else.
    """
    metrics = {}
    for name, tracker in state.items():
        epochs = np.asarray(tracker["epochs_with_values"], dtype=np.int64)
        values = np.asarray(tracker["epoch_values"], dtype=dtype)
        if epochs.ndim != 1 or epochs.shape != values.shape:
            raise ValueError(f"metric {name!r} has {values.shape} values at {epochs.shape} epochs")
        if len(epochs):
            metrics[name] = Series()
            metrics[name].extend(epochs, values)
    return metrics
