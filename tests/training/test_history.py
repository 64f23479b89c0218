import numpy as np
import torch

from common.training.history import History, evaluator_state, metrics_of_evaluator

NAMES = ("a", "b"), ("c",)


def make_history():
    history = History()
    for start in (0, 10):
        epochs = np.arange(start, start + 10)
        history.extend(epochs, (NAMES, np.stack([epochs, -epochs, 2 * epochs]).astype(np.float32)))
    return history


def test_evaluator_state_round_trip():
    history = make_history()
    state = evaluator_state(history.train, torch.float32)
    assert (list(state), list(history.validation)) == (["a", "b"], ["c"])
    assert state["a"]["epochs_with_values"] is state["b"]["epochs_with_values"]  # stored once in the file
    assert (state["b"]["name"], state["b"]["current_value"], state["b"]["epoch_last_updated"]) == ("b", -19.0, 19)
    assert (state["b"]["epoch_values"].dtype, state["b"]["epochs_with_values"].dtype) == (torch.float32, torch.int64)
    back = metrics_of_evaluator(state)
    assert back["b"].epochs.tolist() == list(range(20))
    assert back["b"].values.tolist() == [-float(n) for n in range(20)]


def test_metrics_with_different_epochs():
    """Only metrics recorded at the last epoch are among the last values."""
    continued = History(metrics_of_evaluator(evaluator_state(make_history().train, torch.float32)))
    values = np.array([[1, 2], [3, 4]], np.float32)
    continued.extend(np.array([20, 21]), ((("a",), ("new",)), values))
    assert continued.train["a"].epochs.tolist() == list(range(22))
    assert continued.train["b"].epochs.tolist() == list(range(20))
    assert continued.validation["new"].epochs.tolist() == [20, 21]
    assert continued.last_values() == {"a": 2, "new": 4}
    continued.drop_last(21)
    assert continued.last_values() == {"a": 1, "new": 3}


def test_lists_of_original_code_are_read():
    state = {"loss": {"name": "loss", "epoch_values": [0.5, 0.25], "epochs_with_values": [0, 1]}}
    series = metrics_of_evaluator(state)["loss"]
    assert (series.epochs.tolist(), series.values.tolist()) == ([0, 1], [0.5, 0.25])
