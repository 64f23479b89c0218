"""What was recorded of an experiment: the values of each metric and the epochs they belong to."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class _Column:
    """Numbers that come in chunks."""

    def __init__(self, chunk: np.ndarray):
        self._chunks, self.length = [chunk], len(chunk)

    def extend(self, chunk: np.ndarray) -> None:
        self._chunks.append(chunk)
        self.length += len(chunk)

    def joined(self) -> np.ndarray:
        if len(self._chunks) > 1:
            self._chunks = [np.concatenate(self._chunks)]
        return self._chunks[0]


class Series:
    """Values of one metric: `epochs` (n,) int64 and `values` (n,) of the run's dtype.

    The column of the epochs may belong to other metrics, too, and go on where this one ended.
    """

    def __init__(self, epochs: _Column, values: np.ndarray):
        self.epoch_column, self.value_column = epochs, _Column(values)

    @property
    def epochs(self) -> np.ndarray:
        return self.epoch_column.joined()[: self.value_column.length]

    @property
    def values(self) -> np.ndarray:
        return self.value_column.joined()

    @property
    def last(self) -> tuple[int, float]:
        """Epoch and value of the last record."""
        return int(self.epochs[-1]), float(self.values[-1])


class History:
    """Train and validation metrics of one experiment, by name. Metrics recorded at the same epochs share them."""

    def __init__(self):
        self.train: dict[str, Series] = {}
        self.validation: dict[str, Series] = {}

    def extend(self, epochs: np.ndarray, train: Mapping[str, np.ndarray], validation: Mapping[str, np.ndarray]) -> None:
        """Appends values (n,) of every metric at `epochs` (n,)."""
        begun, gone_on = _Column(epochs), {}
        for series, values in ((self.train, train), (self.validation, validation)):
            for name, new in values.items():
                if name in series:
                    series[name].value_column.extend(new)
                    gone_on[id(series[name].epoch_column)] = series[name].epoch_column
                else:
                    series[name] = Series(begun, new)
        for column in gone_on.values():
            column.extend(epochs)

    def drop_last(self, epoch: int) -> None:
        """Takes out what was recorded at `epoch`, which is the last one of what it has."""
        shared: dict[bytes, _Column] = {}
        for metrics in (self.train, self.validation):
            for name, series in list(metrics.items()):
                epochs = series.epochs[series.epochs < epoch]
                if len(epochs):
                    column = shared.setdefault(epochs.tobytes(), _Column(epochs))
                    metrics[name] = Series(column, series.values[: len(epochs)])
                else:
                    del metrics[name]

    def last_values(self) -> dict[str, float]:
        """The value at the last epoch of every metric that was recorded then."""
        last = {name: series.last for name, series in (self.train | self.validation).items()}
        newest = max((epoch for epoch, _ in last.values()), default=-1)
        return {name: value for name, (epoch, value) in last.items() if epoch == newest}


def evaluator_state(metrics: Mapping[str, Series]) -> dict[str, dict]:
    """Metrics as a checkpoint keeps them. Epochs that several metrics share are one tensor, and so stored once."""
    shared: dict[tuple[int, int], Tensor] = {}
    state = {}
    for name, series in metrics.items():
        epoch, value = series.last
        key = id(series.epoch_column), series.value_column.length
        epochs = shared.setdefault(key, torch.from_numpy(series.epochs))
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
    metrics: dict[str, Series] = {}
    shared: dict[bytes, _Column] = {}
    for name, tracker in state.items():
        epochs = _numbers(tracker["epochs_with_values"], np.dtype(np.int64))
        values = _numbers(tracker["epoch_values"], dtype)
        if epochs.shape != values.shape or (np.diff(epochs) <= 0).any() or (epochs < 0).any():
            raise ValueError(f"the {len(values)} values of metric {name} are not at epochs in a row")
        if len(epochs):
            metrics[name] = Series(shared.setdefault(epochs.tobytes(), _Column(epochs)), values)
    return metrics


def _numbers(values: Tensor | list, dtype: np.dtype) -> np.ndarray:
    """Values (n,) from a tensor or a list. Raises ValueError where they are something else."""
    if isinstance(values, Tensor):
        if values.dim() != 1 or values.is_complex():
            raise ValueError(f"a metric has values of shape {tuple(values.shape)} and type {values.dtype}")
        return values.detach().to(torch.float64 if dtype.kind == "f" else torch.int64).numpy().astype(dtype, copy=False)
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        raise ValueError("a metric has values that are no numbers")
    return np.array(values, dtype=dtype)
