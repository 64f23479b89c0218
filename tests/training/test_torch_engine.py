from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.datasets.matrix_sensing import entry_sensing, gaussian_sensing, sense
from common.models.deep_matrix_factorization import DeepMatrixFactorization
from common.training.objectives import SensingObjective
from common.training.optimizers import Adam, GradientDescent, GroupRMSprop, Momentum
from common.training.torch_engine import TorchEngine
from tests.conftest import make_generator
from tests.training.test_native_engine import assert_independent_of_batch, completion_objective, random_problem


def reference_loss(factors, matrices, observations):
    """Returns ½ Σ (⟨A_i, W_1 ⋯ W_L⟩ − y_i)² for one experiment."""
    predictions = (matrices * reduce(torch.matmul, factors)).sum((1, 2))
    return 0.5 * ((predictions - observations) ** 2).sum()


@given(
    shape=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    depth=st.integers(1, 5),
    seed=st.integers(0, 1000),
    dense=st.booleans(),
)
def test_step_is_the_gradient_of_autograd(shape, depth, seed, dense):
    factors, targets, entries = random_problem(shape, depth, seed)
    matrices = [entry_sensing(each, *shape).double() for each in entries]
    if dense:
        matrices = [gaussian_sensing(5, *shape, 1.0, make_generator(seed)).double()] * 3
    observations = [sense(*each).observations for each in zip(matrices, targets, strict=True)]
    objective = completion_objective(entries, targets)
    if dense:
        objective = SensingObjective(matrices[0], torch.stack(observations))
    model, lrs = DeepMatrixFactorization(factors), [1e-2, 1.0, 1e-3]
    losses = TorchEngine(model, objective, GradientDescent({"lr": lrs}, model)).advance([1]).losses[:, 0]
    for b, lr in enumerate(lrs):
        leaves = [factor[b].clone().requires_grad_() for factor in factors]
        loss = reference_loss(leaves, matrices[b], observations[b])
        assert losses[b] == pytest.approx(loss.item())
        for view, leaf, gradient in zip(model.views, leaves, torch.autograd.grad(loss, leaves), strict=True):
            torch.testing.assert_close(view[b], leaf.detach() - lr * gradient)


@pytest.mark.parametrize("shape, num_dense", [((50, 50), 0), ((3, 5), 5), ((50, 50), 30)])
def test_engine_results_do_not_depend_on_batch(shape, num_dense):
    lrs = [(1e-3 if num_dense else 1e-2) / (1 + b) for b in range(7)]
    factors, targets, entries = random_problem(shape, 3, 99, 7, torch.float32, alpha=0.3)
    matrices = gaussian_sensing(max(num_dense, 1), *shape, 0.1, make_generator(98))
    observations = torch.stack([sense(matrices, target).observations for target in targets])

    def make_engine():
        objective = SensingObjective(matrices, observations) if num_dense else completion_objective(entries, targets)
        model = DeepMatrixFactorization(factors)
        return TorchEngine(model, objective, GradientDescent({"lr": lrs}, model))

    assert_independent_of_batch(make_engine)


def test_loss_of_many_samples_does_not_depend_on_batch():
    """PyTorch sums a single long row on several threads, but uses one thread per row for several rows."""
    torch.set_num_threads(2)
    try:
        matrices = gaussian_sensing(40_000, 1, 1, 1.0, make_generator(0))
        observations = torch.randn(7, 40_000, generator=make_generator(1))
        outputs = torch.randn(7, 1, 1, generator=make_generator(2))
        together = SensingObjective(matrices, observations).loss(outputs)
        for b in range(7):
            assert SensingObjective(matrices, observations[b : b + 1]).loss(outputs[b : b + 1])[0] == together[b]
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("optimizer", [GradientDescent, Momentum, Adam, GroupRMSprop])
def test_cuda_matches_cpu(dense, optimizer):
    factors, targets, entries = random_problem((6, 5), 3, 3, batch_size=4, alpha=0.3)
    matrices = gaussian_sensing(20, 6, 5, 0.3, make_generator(4)).double()
    observations = torch.stack([sense(matrices, target).observations for target in targets])

    def run(device):
        model = DeepMatrixFactorization([factor.to(device) for factor in factors])
        if dense:
            objective = SensingObjective(matrices.to(device), observations.to(device))
        else:
            objective = completion_objective(entries, targets.to(device))
        lrs = [1e-2 / (1 + b) for b in range(4)]
        settings = {"lr": lrs, "momentum": [0.5] * 4, "weight_decay": [0.01] * 4}
        engine = TorchEngine(model, objective, optimizer(settings, model))
        engine.advance([500])
        states = [engine.optimizer.experiment_state(b)["state"] for b in range(4)]
        engine.optimizer = optimizer(settings, model, 500, states)
        engine = engine.select(torch.tensor([0, 2]))
        return torch.from_numpy(engine.advance([500]).losses), [view.cpu() for view in engine.model.views]

    torch.testing.assert_close(run("cpu"), run("cuda"), rtol=1e-8, atol=1e-10)
