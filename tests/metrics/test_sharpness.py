import math
from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.metrics.sharpness import TOLERANCE, largest_eigenvalue, sharpness
from tests.conftest import ROOT, make_experiment, train


def reference(loss, factors):
    """Returns the eigenvalues of the Hessian of a loss, ascending, from the whole Hessian."""
    shapes, sizes = [factor.shape for factor in factors], [factor.numel() for factor in factors]

    def of_vector(vector):
        return loss([part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)])

    vector = torch.cat([factor.double().flatten() for factor in factors])
    return torch.linalg.eigvalsh(torch.func.hessian(of_vector)(vector))


def loss_of(dataset, is_matrix):
    """Returns the loss as a function of the factors."""

    def loss(factors):
        if is_matrix:
            product = reduce(torch.matmul, factors)
            predictions = (dataset.sensing_matrices.double() * product).sum((1, 2))
            return (predictions - dataset.observations).square().sum() / 2
        modes = "abcd"[: len(factors)]
        tensor = torch.einsum(f"{','.join(mode + 'r' for mode in modes)}->{modes}", *factors)
        return (tensor - dataset.target_tensor).flatten()[dataset.observed_entries].square().mean()

    return loss


@pytest.mark.parametrize(
    "kind, given",
    [
        ("dmf", {"depth": 1, "init_alpha": 0.5}),
        ("dmf", {"depth": 2, "init_alpha": 1e-3}),
        ("dmf", {"depth": 3, "weight_init_type": "identity"}),
        ("dmf", {"dataset_path": "sensing", "num_samples": 7, "lr": 1e-3, "init_alpha": 0.3}),
        ("tc", {"num_samples": 100, "init_std": 0.3}),
        ("tc", {"dataset_path": ROOT / "data/tc/tensor_rank_1_fro_1_order_4_dim_8.pt", "init_std": 0.3}),
    ],
)
def test_recorded_sharpness_is_the_largest_eigenvalue_of_the_hessian(kind, given, tmp_path):
    if given.get("dataset_path") == "sensing":
        generator, given = torch.Generator().manual_seed(0), {**given, "dataset_path": tmp_path / "sensing.pt"}
        matrices, target = (torch.randn(*shape, generator=generator) for shape in ((9, 3, 4), (3, 4)))
        content = {"A": matrices, "y": (matrices * target).sum((1, 2)), "target_matrix": target}
        torch.save(content, given["dataset_path"])
    components = {"num_components": 4} if kind == "tc" else {}
    experiment = make_experiment(kind, track_sharpness=True, dtype="float64", epochs=100, **components, **given)
    (factors,) = train([experiment])
    values = reference(loss_of(experiment.problem.dataset, kind == "dmf"), factors)
    recorded = experiment.history.validation["sharpness"].values[-1]
    assert abs(recorded - values[-1].item()) <= TOLERANCE * values.abs().max().item()


def test_float32_run_at_the_minimum_of_scalar_factorization():
    """At w_1 = … = w_L = s^(1/L), the Hessian of (w_1 ⋯ w_L − s)² / 2 is vvᵀ with v_l = s^(1 − 1/L), so that its
    largest eigenvalue is L s^(2 − 2/L).
    """
    given = {"dataset_path": ROOT / "data/dmf/completion_1x1_w_10.pt", "num_samples": 1, "epochs": 2000}
    init = {"weight_init_type": "identity", "init_alpha": 1.0, "stop_on_zero_loss_tol": 0.0}
    experiment = make_experiment(depth=3, **given, **init, track_sharpness=True)
    train([experiment])
    recorded = experiment.history.validation["sharpness"].values
    assert recorded[-1] == pytest.approx(3 * 10 ** (4 / 3), rel=1e-5)


@given(
    size=st.integers(1, 60),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    kind=st.sampled_from(["normal", "negative", "repeated", "low rank", "zero"]),
    seed=st.integers(0, 1000),
)
def test_largest_eigenvalue(size, scale, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    kinds = {"normal": values, "negative": -values.abs() - 1, "repeated": values.sign(), "zero": values * 0}
    values = {**kinds, "low rank": values * (torch.arange(size) < 3)}[kind] * scale
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    matrix = (rotation * values) @ rotation.T
    found = largest_eigenvalue(lambda vector: matrix @ vector, size)
    assert abs(found - values.max().item()) <= TOLERANCE * values.abs().max().item()


def test_hessian_that_is_not_finite():
    factors = [torch.tensor([[math.inf]]), torch.ones(1, 1)]
    assert math.isnan(sharpness(lambda leaves: (leaves[0] @ leaves[1]).square().sum(), factors))
