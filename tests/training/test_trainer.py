import numpy as np
import pytest
import torch

from common.training.torch_engine import Observations, TorchEngine
from tests.conftest import make_experiment, make_trainer, recorded_metrics, train

OF_FACTORS = {"dmf": {"track_balancedness": True, "track_sharpness": True}, "tc": {"track_sharpness": True}}
OF_FACTORS["tc"]["track_component_norms"] = 3
SHORT = {"dmf": {"lr": 1e-2, "init_alpha": 0.3}, "tc": {"num_components": 4, "init_std": 0.3, "lr": 0.1}}


def test_train_metrics_before_step_and_validation_metrics_after(native):
    experiment = make_experiment(
        epochs=3, validate_every=1, dtype="float64", tracked_e2e_value_of=[[0, 1], [1, 1]], init_alpha=0.5
    )
    products = []
    for _ in range(4):
        start = make_experiment(epochs=max(1, len(products)), dtype="float64", init_alpha=0.5)
        factors = train([start], native=native)[0] if products else start.factors
        products.append(torch.linalg.multi_dot(factors))
    target, mask = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    losses = [0.5 * (mask * (product - target).square()).sum().item() for product in products]
    train([experiment], native=native)
    history = experiment.history
    np.testing.assert_allclose(history.train["sse_loss_div_2"].values, losses[:3])
    np.testing.assert_allclose(history.train["mse_loss"].values, np.array(losses[:3]) * 2 / 3)
    np.testing.assert_allclose(history.validation["e2e_0_1_value"].values, [p[0, 1].item() for p in products[1:]])
    np.testing.assert_allclose(history.validation["fro_e2e_norm"].values, [p.norm().item() for p in products[1:]])


def test_zero_loss_stops_after_11_consecutive_validations(native):
    given = {"stop_on_zero_loss_tol": 1e-2, "init_alpha": 0.3, "lr": 1e-2, "enforce_pos_det": True}
    experiment = make_experiment(epochs=10**6, **given)
    train([experiment], native=native)
    losses = experiment.history.train["sse_loss_div_2"].values
    assert experiment.stop_reason == "zero_loss"
    assert (losses[-11:] < 1e-2).all()
    assert losses[-12] >= 1e-2


@pytest.mark.parametrize("steps_per_chunk", [0, 35])
def test_zero_losses_are_counted_in_a_row(monkeypatch, steps_per_chunk):
    """Losses between validations, here at the last epoch of another experiment, are not counted."""

    def advance(engine, intervals):
        size = engine.model.batch_size, len(intervals)
        is_zero = [end % 10 == 0 and end != 60 for end in trainer.epoch + 1 + np.cumsum(intervals)]
        losses = np.where(is_zero, 0, 1) * np.ones(size)
        return Observations(losses.astype(np.float32), np.ones((*size, 2, 2), np.float32), np.ones(size, bool))

    monkeypatch.setattr(TorchEngine, "advance", advance)
    monkeypatch.setattr(TorchEngine, "max_steps_per_call", 100)
    monkeypatch.setattr(TorchEngine, "max_steps_per_chunk", steps_per_chunk)
    short, long = (make_experiment(epochs=epochs, validate_every=10) for epochs in (105, 1000))
    trainer = make_trainer([short, long])
    while trainer.running:
        trainer.advance()
    assert (short.stop_reason, short.epoch, short.zero_loss_validations) == ("epochs", 104, 4)
    assert (long.stop_reason, long.epoch, long.zero_loss_validations) == ("zero_loss", 169, 11)


def test_run_with_unchanged_parameters_is_stalled(native):
    # lr · gradient is far below half a unit in the last place, so float32 parameters do not change.
    experiment = make_experiment(epochs=10**6, lr=1e-12, init_alpha=0.5, stop_on_zero_loss_tol=0)
    (factors,) = train([experiment], native=native)
    assert (experiment.stop_reason, experiment.epoch) == ("stalled", 49)
    assert all(torch.equal(before, after) for before, after in zip(experiment.factors, factors, strict=True))


def test_stall_requires_full_validation_interval(native):
    """Changes before an interruption count towards the current validation interval."""
    experiment = make_experiment(epochs=10**6, lr=1e-12, init_alpha=0.5, stop_on_zero_loss_tol=0)
    experiment.epoch, experiment.moved_since_validation = 24, True
    train([experiment], native=native)
    assert (experiment.stop_reason, experiment.epoch) == ("stalled", 99)


def test_oscillating_run_is_not_stalled(tmp_path, native):
    """With learning rate 2, gradient descent on ½ (w − 1)² alternates between w and 2 − w."""
    content = {"A": torch.ones(1, 1, 1), "y": torch.ones(1), "target_matrix": torch.ones(1, 1)}
    torch.save(content, tmp_path / "one.pt")
    cycling = {"dataset_path": str(tmp_path / "one.pt"), "num_samples": 1, "depth": 1, "lr": 2.0, "init_alpha": 0.5}
    experiment = make_experiment(epochs=1000, weight_init_type="identity", **cycling)
    train([experiment], native=native)
    assert experiment.stop_reason == "epochs"
    assert set(experiment.history.train["sse_loss_div_2"].values.tolist()) == {0.125}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_diverged_run_stops_and_keeps_history(dtype, native):
    converging, diverging = (
        make_experiment(epochs=500, lr=lr, init_alpha=1.0, validate_every=1, dtype=dtype) for lr in (1e-3, 10.0)
    )
    train([converging, diverging], native=native)
    assert (converging.stop_reason, diverging.stop_reason) == ("epochs", "diverged")
    assert diverging.epoch < 100
    metrics = recorded_metrics(diverging)
    values = np.array([series.values for series in metrics.values()])
    assert np.isfinite(values[:, :-1]).all()
    assert not np.isfinite(values[:, -1]).all()


def test_results_do_not_depend_on_validations_per_call(monkeypatch, native):
    """Some experiments end by zero loss, some by divergence, some between validations; one keeps no history."""

    def run(steps_per_chunk):
        monkeypatch.setattr(TorchEngine, "max_steps_per_chunk", steps_per_chunk)
        common = {"validate_every": 5, "init_alpha": 0.3, "track_singular_values": True, "stop_on_zero_loss_tol": 0.1}
        experiments = [
            make_experiment(random_seed=seed, epochs=400 + 37 * seed, lr=lr, **common)
            for seed, lr in enumerate([1e-3, 1e-2, 2e-2, 10.0, 1e-3, 3e-2])
        ]
        experiments[-1].keeps_history = False
        trainer, factors = make_trainer(experiments, native=native), {}
        while trainer.running:
            if native:
                trainer.engine.max_steps_per_chunk = steps_per_chunk
            for state, engine, index in trainer.advance():
                factors[state] = torch.cat([each.flatten() for each in engine.model.experiment_state(index).values()])
            for state in trainer.running:
                assert state.epoch == trainer.epoch
                assert state.history.train["mse_loss"].epochs[-1] == (trainer.epoch + 1) // 5 * 5 - 1
        return experiments, [factors[experiment] for experiment in experiments]

    expected, expected_factors = run(200)
    assert {each.stop_reason for each in expected} == {"zero_loss", "diverged", "epochs"}
    assert len(recorded_metrics(expected[-1])["mse_loss"].epochs) == 1
    for steps_per_chunk in (0, 35):
        seen, factors = run(steps_per_chunk)
        for experiment, other in zip(seen, expected, strict=True):
            assert (experiment.epoch, experiment.stop_reason) == (other.epoch, other.stop_reason)
            for name, series in recorded_metrics(other).items():
                assert recorded_metrics(experiment)[name].epochs.tolist() == series.epochs.tolist()
                assert recorded_metrics(experiment)[name].values.tobytes() == series.values.tobytes()
        np.testing.assert_array_equal(factors, expected_factors)


@pytest.mark.parametrize("tracked", [{}, OF_FACTORS["dmf"]])
def test_last_values_without_history(native, tracked):
    def run(keeps_history):
        given = {**SHORT["dmf"], **tracked, "validate_every": 50}
        experiments = [make_experiment(epochs=300 + 20 * seed, random_seed=seed, **given) for seed in range(3)]
        for experiment in experiments:
            experiment.keeps_history = keeps_history
        train(experiments, native=native)
        return experiments

    for experiment, full in zip(run(False), run(True), strict=True):
        assert {len(series.epochs) for series in recorded_metrics(experiment).values()} == {1}
        assert recorded_metrics(experiment)["mse_loss"].epochs.tolist() == [experiment.epoch]
        assert experiment.history.last_values() == full.history.last_values()


@pytest.mark.parametrize("kind", ["dmf", "tc"])
def test_metrics_at_validations_are_those_of_shorter_runs(kind, native):
    """The batch has other experiments that end earlier, between validations."""
    common = {**SHORT[kind], **OF_FACTORS[kind], "validate_every": 20}
    others = [make_experiment(kind, **common, epochs=epochs, random_seed=epochs) for epochs in (33, 50)]
    experiment = make_experiment(kind, **common, epochs=75, random_seed=1)
    train([*others, experiment], native=native)
    for index, epoch in enumerate([19, 39, 59, 74]):
        shorter = make_experiment(kind, **common, epochs=epoch + 1, random_seed=1)
        train([shorter], native=native)
        at_epoch = {name: series.values[index] for name, series in recorded_metrics(experiment).items()}
        assert at_epoch == shorter.history.last_values()
    for series in recorded_metrics(experiment).values():
        assert series.epochs.tolist() == [19, 39, 59, 74]
    assert {len(series.epochs) for series in recorded_metrics(others[1]).values()} == {3}
