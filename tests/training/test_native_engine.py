"""Tests of the native engine: agreement with the torch engine, and bitwise reproducibility."""

import numpy as np
import pytest
import torch

from common.models.cp_factorization import CPFactorization, full_rank, initial_factors
from common.models.deep_matrix_factorization import DeepMatrixFactorization, factor_shapes
from common.training.compilation import NativeUnavailable
from common.training.native_engine import NativeEngine, native_kernel
from common.training.objectives import entry_objective
from common.training.optimizers import Adam, GradientDescent, GroupRMSprop, Momentum
from common.training.torch_engine import TorchEngine
from tests.conftest import make_experiment, make_generator, make_trainer


def random_problem(shape, depth, seed, batch_size=3, dtype=torch.float64, width=0, alpha=0.4):
    """Returns random factors, targets and observed entries of each experiment in a batch of matrix completion."""
    generator = make_generator(seed)
    shapes = factor_shapes(*shape, depth, width)
    factors = [alpha * torch.randn(batch_size, *each, generator=generator, dtype=dtype) for each in shapes]
    targets = torch.randn(batch_size, *shape, generator=generator, dtype=dtype)
    numel = shape[0] * shape[1]
    numbers = torch.randint(1, numel + 1, (batch_size,), generator=generator).tolist()
    return factors, targets, [torch.randperm(numel, generator=generator)[:number] for number in numbers]


def completion_objective(entries, targets):
    """Returns the matrix completion objective: half the sum of squared residuals."""
    return entry_objective(entries, targets, [1.0] * len(entries))


def matrix_engines(shape, depth, batch_size, seed, dtype, width=0, optimizer=GradientDescent, decay=0.0):
    """Returns a torch and a native engine on the same random problems, with weight decays up to `decay`."""
    factors, targets, entries = random_problem(shape, depth, seed, batch_size, dtype, width)
    shapes = factor_shapes(*shape, depth, width)
    kernel = native_kernel(DeepMatrixFactorization, shapes, dtype, optimizer, shape[0] * shape[1], decay > 0)

    def engine(kind, *more):
        model, objective = DeepMatrixFactorization(factors), completion_objective(entries, targets)
        return kind(model, objective, optimizer(settings(batch_size, 1e-2, decay), model), *more)

    return engine(TorchEngine), engine(NativeEngine, kernel)


def settings(batch_size, lr, decay):
    """Returns the hyper-parameters of a batch of experiments, of which `lr` and `decay` are the largest."""
    scales = 1 / (1 + torch.arange(batch_size, dtype=torch.float64) % 5)
    return {"lr": lr * scales, "weight_decay": decay * scales, "momentum": 0.8 * scales}


def tensor_engines(dims, batch_size, seed, dtype, optimizer, kernel_for=1, decay=0.0):
    """Returns a torch and a native engine on the same random tensor completion problems. The kernel is the one for
    `kernel_for` observed entries; the problems have one or more, the last one all of them.
    """
    rank = full_rank(dims)
    drawn = [initial_factors(dims, rank, 0.3, make_generator(seed + b), dtype) for b in range(batch_size)]
    factors = [torch.stack(each) for each in zip(*drawn, strict=True)]
    shape = CPFactorization(factors).forward().shape
    targets = torch.randn(shape, generator=make_generator(seed), dtype=dtype)
    numel = shape[1] * shape[2]
    numbers = [1 + b * seed % numel for b in range(batch_size - 1)] + [numel]
    entries = [torch.randperm(numel, generator=make_generator(b))[:number] for b, number in enumerate(numbers)]
    entries[0] = entries[0].repeat(2)  # a repeated entry counts once
    shapes = [(dim, rank) for dim in dims]
    kernel = native_kernel(CPFactorization, shapes, dtype, optimizer, kernel_for, decay > 0)

    def engine(kind, *more):
        model = CPFactorization(factors)
        objective = entry_objective(entries, targets, [2 / number for number in numbers])
        return kind(model, objective, optimizer(settings(batch_size, 1e-3, decay), model), *more)

    return engine(TorchEngine), engine(NativeEngine, kernel)


def assert_engines_match(torch_engine, native_engine, intervals, tolerance):
    expected, seen = torch_engine.advance(intervals), native_engine.advance(intervals)
    np.testing.assert_allclose(seen.losses, expected.losses, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(seen.outputs, expected.outputs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(native_engine.model.views, torch_engine.model.views, rtol=tolerance, atol=tolerance)
    optimizers = native_engine.optimizer, torch_engine.optimizer
    assert optimizers[0].num_steps == optimizers[1].num_steps == sum(intervals)
    for name in optimizers[0].state:
        states = [optimizer.state[name] for optimizer in optimizers]
        torch.testing.assert_close(*states, rtol=10 * tolerance, atol=tolerance)


F32, F64 = torch.float32, torch.float64
# Each case is a kernel to compile, so they are few: all optimizers with and without weight decay, both precisions,
# dimensions below, at and above the vector width, square and not, and inner factors that are narrower and wider.
MATRIX_CASES = [
    # shape, depth, width, precision, optimizer, weight decay
    ((2, 2), 3, 0, F32, GradientDescent, 0.0),
    ((2, 2), 2, 0, F64, Momentum, 0.03),
    ((3, 5), 2, 0, F64, GradientDescent, 0.03),
    ((7, 1), 1, 0, F32, Momentum, 0.0),
    ((4, 4), 5, 9, F64, GradientDescent, 0.0),
    ((6, 7), 4, 1, F32, Momentum, 0.03),
    ((12, 12), 3, 0, F32, GradientDescent, 0.0),
]
# Tensors of orders 2 to 6; the kernels for few and for all entries.
ALL_ENTRIES = 10**4
TENSOR_CASES = [
    # dimensions, observed entries, precision, optimizer, weight decay
    ((3, 4), ALL_ENTRIES, F64, GradientDescent, 0.0),
    ((3, 4), 1, F32, Momentum, 0.0),
    ((8, 8, 8), 1, F32, GroupRMSprop, 0.0),
    ((8, 8, 8), ALL_ENTRIES, F32, Momentum, 0.03),
    ((5, 2, 7), 1, F64, GradientDescent, 0.0),
    ((5, 2, 7), ALL_ENTRIES, F32, GroupRMSprop, 0.0),
    ((1, 3, 2), 1, F64, Momentum, 0.03),
    ((3, 4, 5, 6), 1, F32, GradientDescent, 0.03),
    ((3, 4, 5, 6), ALL_ENTRIES, F64, GroupRMSprop, 0.03),
    ((2, 3, 2, 2, 3), ALL_ENTRIES, F64, GradientDescent, 0.0),
    ((2, 2, 3, 2, 2, 2), 1, F64, GradientDescent, 0.0),
]


@pytest.mark.parametrize("shape, depth, width, dtype, optimizer, decay", MATRIX_CASES)
def test_matrix_factorization(shape, depth, width, dtype, optimizer, decay):
    """Steps are those of the torch engine, and those of both do not depend on the batch."""

    def engines(batch_size, seed):
        return matrix_engines(shape, depth, batch_size, seed, dtype, width, optimizer, decay)

    for batch_size, seed in ((1, 1), (3, 2), (21, 3)):
        # Deep products amplify rounding errors near saddle points.
        assert_engines_match(*engines(batch_size, seed), [1, 49, 250, 500], 3e-3 if dtype == F32 else 1e-10)
    assert_independent_of_batch(lambda: engines(37, 5)[0])
    assert_independent_of_batch(lambda: engines(37, 5)[1])


@pytest.mark.parametrize("dims, kernel_for, dtype, optimizer, decay", TENSOR_CASES)
def test_tensor_factorization(dims, kernel_for, dtype, optimizer, decay):
    """Steps are those of the torch engine, and those of both do not depend on the batch."""

    def engines(batch_size, seed):
        return tensor_engines(dims, batch_size, seed, dtype, optimizer, kernel_for, decay)

    for batch_size, seed in ((1, 1), (5, 29)):
        assert_engines_match(*engines(batch_size, seed), [1, 49, 150], 1e-3 if dtype == F32 else 1e-8)
    assert_independent_of_batch(lambda: engines(6, 5)[0])
    assert_independent_of_batch(lambda: engines(6, 5)[1])


def assert_independent_of_batch(make):
    """Checks that results are bitwise equal alone and in a batch, with experiments removed and any steps per call."""
    engine = make()
    batch_size = engine.model.batch_size
    engine.advance([1, 19])
    engine.advance([30])
    kept = list(range(0, batch_size, 3))
    engine = engine.select(torch.tensor(kept))
    seen = engine.advance([7, 3])
    for position, b in enumerate(kept):
        alone = make().select(torch.tensor([b]))
        alone_seen = alone.advance([60])
        assert seen.losses[position, -1].tobytes() == alone_seen.losses[0, -1].tobytes()
        assert seen.outputs[position, -1].tobytes() == alone_seen.outputs[0, -1].tobytes()
        for view, alone_view in zip(engine.model.views, alone.model.views, strict=True):
            assert view[position].numpy().tobytes() == alone_view[0].numpy().tobytes()


def test_moved_is_reported_per_experiment():
    still, moving = (make_experiment(lr=lr, init_alpha=0.5) for lr in (1e-12, 1e-2))
    engine = make_trainer([still, moving], native=True).engine
    assert engine.advance([50, 1, 50]).moved.tolist() == [[False] * 3, [True] * 3]


def test_kernel_is_chosen_by_the_share_of_observed_entries():
    shapes = [(3, 3), (4, 3)]
    names = [native_kernel(CPFactorization, shapes, F64, GradientDescent, number).name for number in (1, 6, 7, 12)]
    assert names == ["native, observed entries"] * 2 + ["native"] * 2


class SignDescent(GradientDescent):
    """A user-defined subclass takes other steps."""


@pytest.mark.parametrize(
    "model, shapes, optimizer, num_observed, message",
    [
        (DeepMatrixFactorization, [(3, 3)] * 2, SignDescent, 5, "no kernel for SignDescent"),
        (CPFactorization, [(3, 3)] * 2, Adam, 5, "no kernel for Adam"),
        (DeepMatrixFactorization, [(3, 3)] * 2, GroupRMSprop, 5, "GroupRMSprop has no kernel for deep matrix"),
        (DeepMatrixFactorization, [(50, 50)] * 3, GradientDescent, 2499, "not faster than PyTorch for factors of sh"),
        (CPFactorization, [(50, 2500)] * 3, GradientDescent, 62501, "not faster than PyTorch"),
    ],
)
def test_no_kernel(model, shapes, optimizer, num_observed, message):
    with pytest.raises(NativeUnavailable, match=message):
        native_kernel(model, shapes, F32, optimizer, num_observed)
