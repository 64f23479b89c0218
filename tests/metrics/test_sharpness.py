import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.metrics.sharpness import TOLERANCE, largest_eigenvalue, sharpness
from tests.conftest import ROOT, make_experiment, train

ORDER_4 = ROOT / "data/tc/tensor_rank_1_fro_1_order_4_dim_8.pt"


def reference(loss, factors):
    """Returns the eigenvalues of the Hessian of a loss, ascending, from the whole Hessian."""
    shapes, sizes = [factor.shape for factor in factors], [factor.numel() for factor in factors]

    def of_vector(vector):
        return loss([part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)])

    vector = torch.cat([factor.double().flatten() for factor in factors])
    return torch.linalg.eigvalsh(torch.func.hessian(of_vector)(vector))


def matrix_loss(dataset):
    """Returns half the sum of squared residuals as a function of the factors."""

    def loss(factors):
        product = factors[0]
        for factor in factors[1:]:
            product = product @ factor
        return ((dataset.sensing_matrices.double() * product).sum((1, 2)) - dataset.observations).square().sum() / 2

    return loss


def tensor_loss(dataset):
    """Returns the mean squared residual over the observed entries as a function of the factors."""

    def loss(factors):
        modes = "abcd"[: len(factors)]
        tensor = torch.einsum(f"{','.join(mode + 'r' for mode in modes)}->{modes}", *factors)
        residuals = (tensor - dataset.target_tensor).flatten()[dataset.observed_entries]
        return residuals.square().sum() / len(residuals)

    return loss


def assert_sharpness_is_recorded(experiment, loss):
    """Checks the sharpness of the last validation against the whole Hessian at the last factors."""
    (factors,) = train([experiment])
    values = reference(loss, factors)
    recorded = experiment.history.validation["sharpness"].values[-1]
    assert abs(recorded - values[-1].item()) <= TOLERANCE * values.abs().max().item()


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("init", [{"init_alpha": 0.5}, {"init_alpha": 1e-3}, {"weight_init_type": "identity"}])
def test_completion(depth, init):
    experiment = make_experiment(depth=depth, **init, track_sharpness=True, dtype="float64", epochs=50)
    assert_sharpness_is_recorded(experiment, matrix_loss(experiment.problem.dataset))


def test_sensing(tmp_path):
    generator = torch.Generator().manual_seed(0)
    matrices, target = (torch.randn(*shape, generator=generator) for shape in ((9, 3, 4), (3, 4)))
    content = {"A": matrices, "y": (matrices * target).sum((1, 2)), "target_matrix": target}
    torch.save(content, tmp_path / "sensing.pt")
    given = {"dataset_path": tmp_path / "sensing.pt", "num_samples": 7, "dtype": "float64", "epochs": 50, "lr": 1e-3}
    experiment = make_experiment(**given, track_sharpness=True, init_alpha=0.3)
    assert_sharpness_is_recorded(experiment, matrix_loss(experiment.problem.dataset))


@pytest.mark.parametrize("init_std", [1e-3, 0.3])
@pytest.mark.parametrize("given", [{"num_samples": 100}, {"num_samples": 500}, {"dataset_path": ORDER_4}])
def test_tensor_completion(given, init_std):
    given = {"dtype": "float64", "epochs": 100, "num_components": 4, "init_std": init_std, **given}
    experiment = make_experiment("tc", track_sharpness=True, **given)
    assert_sharpness_is_recorded(experiment, tensor_loss(experiment.problem.dataset))


@pytest.mark.parametrize("dtype, accuracy", [("float32", 1e-5), ("float64", 1e-8)])
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_minimum_of_scalar_factorization(tmp_path, depth, dtype, accuracy):
    """At w_1 = … = w_L = s^(1/L), the Hessian of (w_1 ⋯ w_L − s)² / 2 is vvᵀ with v_l = s^(1 − 1/L), so that its
    largest eigenvalue is L s^(2 − 2/L).
    """
    s = 2.5
    content = {"A": torch.ones(1, 1, 1), "y": torch.tensor([s]), "target_matrix": torch.tensor([[s]])}
    torch.save(content, tmp_path / "one.pt")
    given = {"dataset_path": tmp_path / "one.pt", "num_samples": 1, "epochs": 5000, "lr": 1e-2}
    init = {"weight_init_type": "identity", "init_alpha": 1.0, "stop_on_zero_loss_tol": 0.0}
    experiment = make_experiment(depth=depth, **given, **init, dtype=dtype, track_sharpness=True)
    train([experiment])
    recorded = experiment.history.validation["sharpness"].values
    assert recorded[-1] == pytest.approx(depth * s ** (2 - 2 / depth), rel=accuracy)


@given(
    size=st.integers(1, 60),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    kind=st.sampled_from(["normal", "negative", "repeated", "low rank", "zero"]),
    seed=st.integers(0, 1000),
)
def test_largest_eigenvalue(size, scale, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    values = {
        "normal": values,
        "negative": -values.abs() - 1,
        "repeated": values.sign(),
        "low rank": values * (torch.arange(size) < 3),
        "zero": values * 0,
    }[kind] * scale
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    matrix = (rotation * values) @ rotation.T
    found = largest_eigenvalue(lambda vector: matrix @ vector, size)
    assert abs(found - values.max().item()) <= TOLERANCE * values.abs().max().item()


def test_too_many_products_give_lower_bound(monkeypatch):
    monkeypatch.setattr("common.metrics.sharpness.MOST_PRODUCTS", 5)
    values = torch.linspace(-1, 1, 100, dtype=torch.float64)
    assert 0.5 < largest_eigenvalue(lambda vector: values * vector, 100) < 1


def test_hessian_that_is_not_finite():
    factors = [torch.tensor([[math.inf]]), torch.ones(1, 1)]
    assert math.isnan(sharpness(lambda leaves: (leaves[0] @ leaves[1]).square().sum(), factors))


def test_parameters_are_not_changed():
    factors = [torch.full((1, 1), 2.0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)]
    assert sharpness(lambda leaves: (leaves[0] @ leaves[1]).square().sum() / 2, factors) > 0
    assert not any(factor.requires_grad for factor in factors)
