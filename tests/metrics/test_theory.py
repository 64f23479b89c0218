"""Tests of the theoretical bounds, on formulas and on trained runs."""

import math

import numpy as np
import pytest

from common.metrics import theory
from tests.conftest import ROOT, make_experiment, train

# Dataset name → sign of the determinant, unobserved entry, observations (a, b, z): a and b are next to the unobserved
# entry, z is diagonally opposite.
PROBLEMS = {
    "w_1_1_0": ("pos", (0, 0), (1.0, 1.0, 0.0)),
    "repositioned_w_1_0_1": ("neg", (0, 1), (1.0, 1.0, 0.0)),
    **{
        f"perturbed_w_-2_05_{z}": ("neg", (0, 0), (-2.0, 0.5, float(f"0.{z[1:]}0")))
        for z in ("0", "001", "005", "01", "05")
    },
}


@pytest.mark.parametrize("name, depth", [(list(PROBLEMS)[n], depth) for n, depth in enumerate((2, 3, 2, 3, 2, 3, 2))])
def test_bounds_hold_during_training(name, depth):
    sign, (row, col), corner = PROBLEMS[name]
    common = {
        "dataset_path": str(ROOT / f"data/dmf/completion_2x2_{name}.pt"),
        f"enforce_{sign}_det": True,
        "dtype": "float64",
        "depth": depth,
        "lr": 6e-3,
        "tracked_e2e_value_of": [[i, j] for i in (0, 1) for j in (0, 1)],
        "stop_on_zero_loss_tol": 1e-3,
        "epochs": 200_000,
        "validate_every": 10,
    }
    balanced, unbalanced = {"init_alpha": 1e-5, "use_balanced_init": True}, {"init_alpha": 1.71e-2}
    experiments = [
        make_experiment(**common, **start, random_seed=seed) for start in (balanced, unbalanced) for seed in range(3)
    ]
    train(experiments, native=True)
    checked = left = 0
    for experiment in experiments:
        recorded = {name: series.values for name, series in experiment.history.validation.items()}
        entries = np.array([[recorded[f"e2e_{i}_{j}_value"] for j in (0, 1)] for i in (0, 1)])
        determinant = entries[0, 0] * entries[1, 1] - entries[0, 1] * entries[1, 0]
        # Validation metrics are computed after the step, so the loss is recomputed from the recorded entries.
        fitted = entries[[row, 1 - row, 1 - row], [1 - col, col, 1 - col]]
        loss = ((fitted - np.array(corner)[:, None]) ** 2).sum(0) / 2
        bound, size = theory.unobserved_entry(loss, *corner), np.abs(entries[row, col])
        # Determinants within rounding error of 0 are excluded.
        kept = determinant * (1 if sign == "pos" else -1) > 1e-12 * size
        here = kept & np.isfinite(bound)
        assert (size[here] > bound[here]).all()
        assert (recorded["fro_e2e_norm"][here] > bound[here]).all()
        assert (recorded["distance_from_rank_1"][here] < theory.distance_from_rank_1(loss, *corner)[here]).all()
        assert not (recorded["e2e_effective_rank"][here] >= theory.effective_rank(loss, *corner)[here]).any()
        checked += here.sum()
        left += (size < bound).sum()
    assert checked > 100
    # Without the sign condition the bound is violated: at depth 2 the determinant changes sign.
    assert left > 0 or depth == 3 or corner[2] == 0.5


def test_bounds_known_values():
    loss = np.array([0.005, 0.02, 0.6])
    np.testing.assert_allclose(theory.unobserved_entry(loss, 1, 1, 0), [8.1, 3.2, np.nan])
    np.testing.assert_allclose(theory.distance_from_rank_1(loss, 1, -1, 0.3), [0.4, 0.5, np.nan])
    share = 0.04 / (0.04 + 0.64)
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert theory.effective_rank(loss, 1, 1, 0)[1] == pytest.approx(math.exp(entropy))
    # Values from the paper at loss 1e-4, approximately 1 / (|z| + √(2ℓ)).
    for z, expected in ((0.01, 41.4), (0.05, 15.6), (0.1, 8.8), (0.5, 1.94)):
        assert theory.unobserved_entry(np.array([1e-4]), -2, 0.5, z)[0] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_oscillation_rates(depth):
    """Runs at rates between them converge, have a period of 2 or of 4 steps, stay bounded, or diverge."""
    first, second, last = theory.oscillation_rates(depth) / 10 ** (2 - 2 / depth)
    rates = [0.97 * first, 1.03 * first, 0.98 * second, 1.02 * second, 0.98 * last, 1.15 * last]
    flags = {"dataset_path": ROOT / "data/dmf/completion_1x1_w_10.pt", "num_samples": 1, "weight_init_type": "identity"}
    flags |= {"init_alpha": 1.0, "dtype": "float64", "epochs": 3000, "validate_every": 1, "stop_on_zero_loss_tol": 0}
    runs = [make_experiment(**flags, depth=depth, lr=lr) for lr in rates]
    train(runs)
    assert [runs.pop().stop_reason, runs.pop().stop_reason] == ["diverged", "epochs"]
    periods = []
    for run in runs:
        losses = run.history.train["sse_loss_div_2"].values
        periods.append(next(n for n in (1, 2, 4) if np.allclose(losses[-20:], losses[-20 - n : -n], atol=1e-9)))
    assert periods == [1, 2, 2, 4]
