from typing import get_type_hints

import numpy as np
import torch

from common.training.history import History, TrainingState, evaluator_state, metrics_of_evaluator


def make_history():
    history = History()
    for start in (0, 10):
        epochs = np.arange(start, start + 10)
        history.extend(epochs, {"a": epochs.astype(np.float32), "b": -epochs.astype(np.float32)}, {})
    return history


def test_evaluator_state_round_trip():
    state = evaluator_state(make_history().train)
    assert state["b"]["name"] == "b"
    assert (state["b"]["current_value"], state["b"]["epoch_last_updated"]) == (-19.0, 19)
    assert state["b"]["epoch_values"].dtype == torch.float32
    assert state["b"]["epochs_with_values"].dtype == torch.int64
    back = metrics_of_evaluator(state, np.dtype(np.float32))
    assert back["b"].epochs.tolist() == list(range(20))
    assert back["b"].values.tolist() == [-float(n) for n in range(20)]


def test_last_values():
    """Only metrics recorded at the last epoch are included."""
    history = make_history()
    history.extend(np.array([30]), {"a": np.array([7.0], dtype=np.float32)}, {})
    assert history.last_values() == {"a": 7.0}
    assert History().last_values() == {}


def test_shared_epochs_are_stored_once():
    history = make_history()
    assert history.train["a"].epochs is history.train["b"].epochs
    state = evaluator_state(history.train)
    assert state["a"]["epochs_with_values"] is state["b"]["epochs_with_values"]


def test_metrics_with_different_epochs():
    continued = History(metrics_of_evaluator(evaluator_state(make_history().train), np.dtype(np.float32)))
    epochs = np.array([20, 21])
    continued.extend(epochs, {"a": np.array([1.0, 2.0], np.float32)}, {"new": np.array([3.0, 4.0], np.float32)})
    assert continued.train["a"].epochs.tolist() == list(range(22))
    assert continued.train["b"].epochs.tolist() == list(range(20))
    assert continued.validation["new"].epochs.tolist() == [20, 21]
    state = evaluator_state(continued.train)
    assert [len(state[name]["epochs_with_values"]) for name in "ab"] == [22, 20]


def test_lists_of_original_code_are_read():
    state = {"loss": {"name": "loss", "epoch_values": [0.5, 0.25], "epochs_with_values": [0, 1]}}
    series = metrics_of_evaluator(state, np.dtype(np.float32))["loss"]
    assert (series.epochs.tolist(), series.values.tolist()) == ([0, 1], [0.5, 0.25])


def test_moved_since_validation_defaults_to_false():
    assert get_type_hints(TrainingState)["moved_since_validation"] is bool
    assert TrainingState(1, 0.0, lambda losses, outputs: ({}, {})).moved_since_validation is False
