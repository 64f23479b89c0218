from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.datasets.matrix_sensing import all_entries_but, entry_sensing, gaussian_sensing, sense
from common.models.deep_matrix_factorization import DeepMatrixFactorization, factor_shapes, initial_factors
from common.training.objectives import SensingObjective, entry_objective
from common.training.optimizers import Adam, GradientDescent, GroupRMSprop, Momentum
from common.training.torch_engine import TorchEngine
from tests.training.test_native_engine import assert_independent_of_batch


def completion_objective(entries, targets):
    """Returns the matrix completion objective: half the sum of squared residuals."""
    return entry_objective(entries, targets, [1.0] * len(entries))


def gradient_descent(model, lrs):
    return GradientDescent({"lr": lrs}, model)


def make_generator(seed):
    return torch.Generator().manual_seed(seed)


def random_problem(shape, depth, seed, batch_size=3, alpha=0.5):
    """Returns random factors, targets and observed entries for each experiment in a batch."""
    generator = make_generator(seed)
    shapes = factor_shapes(*shape, depth)
    factors = [alpha * torch.randn(batch_size, *each, generator=generator).double() for each in shapes]
    targets = torch.randn(batch_size, *shape, generator=generator).double()
    numel = shape[0] * shape[1]
    numbers = torch.randint(1, numel + 1, (batch_size,), generator=generator).tolist()
    entries = [torch.randperm(numel, generator=generator)[:number] for number in numbers]
    return factors, targets, entries


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
    if dense:
        matrices = [gaussian_sensing(5, *shape, 1.0, make_generator(seed)).double()] * 3
    else:
        matrices = [entry_sensing(each, *shape).double() for each in entries]
    observations = [sense(matrices[b], targets[b]).observations for b in range(3)]
    objective = (
        SensingObjective(matrices[0], torch.stack(observations)) if dense else completion_objective(entries, targets)
    )
    model, lrs = DeepMatrixFactorization(factors), [1e-2, 1.0, 1e-3]
    losses = TorchEngine(model, objective, gradient_descent(model, lrs)).advance([1]).losses[:, 0]
    for b, lr in enumerate(lrs):
        leaves = [factor[b].clone().requires_grad_() for factor in factors]
        loss = reference_loss(leaves, matrices[b], observations[b])
        assert losses[b] == pytest.approx(loss.item())
        for view, leaf, gradient in zip(model.views, leaves, torch.autograd.grad(loss, leaves), strict=True):
            torch.testing.assert_close(view[b], leaf.detach() - lr * gradient)


@pytest.mark.parametrize("shape, num_dense", [((2, 2), 0), ((50, 50), 0), ((3, 5), 5), ((50, 50), 30)])
def test_engine_results_do_not_depend_on_batch(shape, num_dense):
    batch_size, depth, dense = 7, 3, num_dense > 0
    lrs = [(1e-3 if dense else 1e-2) / (1 + b) for b in range(batch_size)]
    shapes = factor_shapes(*shape, depth)
    settings = "normal", 0.3, False
    starts = [initial_factors(shapes, *settings, make_generator(b), torch.float32) for b in range(batch_size)]
    targets = torch.randn(batch_size, *shape, generator=make_generator(99))
    entries = [all_entries_but([(0, b % shape[1])], *shape) for b in range(batch_size)]
    matrices = gaussian_sensing(max(num_dense, 1), *shape, 0.1, make_generator(98))
    observations = torch.stack([sense(matrices, target).observations for target in targets])

    def make_engine():
        objective = SensingObjective(matrices, observations) if dense else completion_objective(entries, targets)
        model = DeepMatrixFactorization([torch.stack(each) for each in zip(*starts, strict=True)])
        return TorchEngine(model, objective, gradient_descent(model, lrs))

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
    factors, targets, entries = random_problem((6, 5), 3, seed=3, batch_size=4, alpha=0.3)
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
