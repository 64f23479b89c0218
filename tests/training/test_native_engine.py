"""Tests of the native engine: agreement with the torch engine, and bitwise reproducibility."""

import subprocess
import sys
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.models.cp_factorization import CPFactorization, full_rank, initial_factors
from common.models.deep_matrix_factorization import DeepMatrixFactorization, factor_shapes
from common.training import native_engine
from common.training.compilation import NativeUnavailable
from common.training.native_engine import NativeEngine, NotNative, native_kernel
from common.training.objectives import entry_objective
from common.training.optimizers import Adam, GradientDescent, GroupRMSprop, Momentum
from common.training.torch_engine import TorchEngine
from tests.conftest import ROOT, make_experiment, make_trainer, recorded_metrics, train

FAST = {"init_alpha": 0.3, "lr": 1e-2}


def make_generator(seed):
    return torch.Generator().manual_seed(seed)


def matrix_engines(shape, depth, batch_size, seed, dtype, width=0, optimizer=GradientDescent, decay=0.0):
    """Returns a torch and a native engine on the same random matrix completion problems, with weight decays up to
    `decay`.
    """
    generator = make_generator(seed)
    shapes = factor_shapes(*shape, depth, width)
    factors = [0.4 * torch.randn(batch_size, *each, generator=generator, dtype=dtype) for each in shapes]
    targets = torch.randn(batch_size, *shape, generator=generator, dtype=dtype)
    numel = shape[0] * shape[1]
    numbers = torch.randint(1, numel + 1, (batch_size,), generator=generator).tolist()
    entries = [torch.randperm(numel, generator=generator)[:number] for number in numbers]
    kernel = native_kernel(DeepMatrixFactorization, shapes, dtype, optimizer, numel, decay > 0)

    def engine(kind, *more):
        model = DeepMatrixFactorization(factors)
        objective = entry_objective(entries, targets, [1.0] * batch_size)
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
    for left, right in zip(native_engine.model.views, torch_engine.model.views, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
    optimizers = native_engine.optimizer, torch_engine.optimizer
    assert optimizers[0].num_steps == optimizers[1].num_steps == sum(intervals)
    for name in optimizers[0].state:
        states = [optimizer.state[name] for optimizer in optimizers]
        torch.testing.assert_close(*states, rtol=10 * tolerance, atol=tolerance)


@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    depth=st.integers(1, 5),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    width=st.integers(0, 9),
    optimizer=st.sampled_from([GradientDescent, Momentum]),
    decay=st.sampled_from([0.0, 0.03]),
)
def test_matrix_factorization_matches_torch_engine(shape, depth, batch_size, seed, dtype, width, optimizer, decay):
    engines = matrix_engines(shape, depth, batch_size, seed, dtype, width, optimizer, decay)
    # Deep products amplify rounding errors near saddle points.
    assert_engines_match(*engines, [1, 49, 950, 1000], 3e-3 if dtype == torch.float32 else 1e-10)


# Tensors of orders 2 to 6, of unequal dimensions.
SHAPES = st.lists(st.integers(1, 9), min_size=2, max_size=6).filter(lambda dims: prod(dims) <= 1000)
ALL_ENTRIES = 10**4


@given(
    dims=SHAPES,
    kernel_for=st.sampled_from([1, ALL_ENTRIES]),
    batch_size=st.integers(1, 6),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    optimizer=st.sampled_from([GradientDescent, Momentum, GroupRMSprop]),
    decay=st.sampled_from([0.0, 0.03]),
)
def test_tensor_factorization_matches_torch_engine(dims, kernel_for, batch_size, seed, dtype, optimizer, decay):
    engines = tensor_engines(tuple(dims), batch_size, seed, dtype, optimizer, kernel_for, decay)
    assert_engines_match(*engines, [1, 49, 150], 1e-3 if dtype == torch.float32 else 1e-8)


@given(dims=SHAPES, kernel_for=st.sampled_from([1, ALL_ENTRIES]), seed=st.integers(0, 1000))
def test_tensor_step_is_the_gradient_of_autograd(dims, kernel_for, seed):
    _, engine = tensor_engines(tuple(dims), 3, seed, torch.float64, GradientDescent, kernel_for)
    factors = [view.clone().requires_grad_() for view in engine.model.views]
    letters = "abcdef"[: len(dims)]
    tensors = torch.einsum(f"{','.join(f'z{letter}r' for letter in letters)}->z{letters}", *factors)
    objective = engine.objective
    losses = (objective.weights * (tensors.reshape(objective.targets.shape) - objective.targets) ** 2).sum((1, 2)) / 2
    gradients = torch.autograd.grad(losses.sum(), factors)
    observed = engine.advance([1])
    np.testing.assert_allclose(observed.losses[:, 0], losses.detach(), rtol=1e-12, atol=1e-14)
    for before, gradient, after in zip(factors, gradients, engine.model.views, strict=True):
        lrs = engine.optimizer.rates["lr"][:, None, None]
        torch.testing.assert_close(after, before - lrs * gradient, rtol=1e-12, atol=1e-14)


def test_kernel_is_chosen_by_the_share_of_observed_entries():
    def name(num_observed, dims=(8, 8, 8), rank=64):
        return native_kernel(
            CPFactorization, [(d, rank) for d in dims], torch.float32, GradientDescent, num_observed
        ).name

    assert [name(number) for number in (1, 256, 257, 512)] == ["native, observed entries"] * 2 + ["native"] * 2
    # Too large for products of all entries.
    assert name(5000, (50, 50, 50), 2500) == "native, observed entries"
    with pytest.raises(NotNative, match="not faster than PyTorch"):
        name(62501, (50, 50, 50), 2500)


@pytest.mark.parametrize("shape, depth", [((2, 2), 3), ((3, 5), 2), ((4, 4), 1), ((6, 7), 4), ((12, 12), 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer, decay", [(GradientDescent, 0.0), (Momentum, 0.03)])
def test_matrix_factorization_does_not_depend_on_batch(shape, depth, dtype, optimizer, decay):
    assert_independent_of_batch(lambda: matrix_engines(shape, depth, 37, 5, dtype, 4, optimizer, decay)[1])


@pytest.mark.parametrize("dims", [(3, 4), (8, 8, 8), (5, 2, 7), (3, 4, 5, 6), (1, 3, 2)])
@pytest.mark.parametrize("optimizer, decay", [(GradientDescent, 0.0), (Momentum, 0.03), (GroupRMSprop, 0.0)])
@pytest.mark.parametrize("kernel_for", [1, ALL_ENTRIES])
def test_tensor_factorization_does_not_depend_on_batch(dims, optimizer, decay, kernel_for):
    assert_independent_of_batch(lambda: tensor_engines(dims, 6, 5, torch.float32, optimizer, kernel_for, decay)[1])


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matrix_factorization_stops_at_same_epoch_as_torch_engine(dtype):
    def experiments():
        return [
            make_experiment(random_seed=seed, depth=3, epochs=20_000, stop_on_zero_loss_tol=1e-3, dtype=dtype, **FAST)
            for seed in range(24)
        ]

    on_torch, on_native = experiments(), experiments()
    train(on_torch)
    train(on_native, native=True)
    assert [each.stop_reason for each in on_native] == [each.stop_reason for each in on_torch]
    assert [each.epoch for each in on_native] == [each.epoch for each in on_torch]
    assert "zero_loss" in {each.stop_reason for each in on_native}
    for left, right in zip(on_native, on_torch, strict=True):
        assert left.history.train["mse_loss"].epochs.tolist() == right.history.train["mse_loss"].epochs.tolist()


def test_tensor_completion_stops_at_same_epoch_as_torch_engine():
    def experiments():
        return [
            make_experiment(
                "tc", num_samples=n, init_std=0.05, use_adaptive_lr=True, random_seed=n, epochs=1500, validate_every=20
            )
            for n in (50, 200, 300, 511)
        ]

    on_torch, on_native = experiments(), experiments()
    train(on_torch)
    train(on_native, native=True)
    assert [(each.stop_reason, each.epoch) for each in on_native] == [(e.stop_reason, e.epoch) for e in on_torch]


def test_results_do_not_depend_on_steps_per_call(monkeypatch):
    """Compares calls that span several validations with calls of one validation each, bitwise."""

    def train_all():
        runs = [
            make_experiment(random_seed=s, epochs=3000 + 170 * s, stop_on_zero_loss_tol=1e-3, **FAST) for s in range(20)
        ]
        return runs, train(runs, native=True)

    runs, factors = train_all()
    assert make_trainer([make_experiment()], native=True).engine.max_steps_per_chunk > 1000
    monkeypatch.setattr(native_engine, "_MAX_MULTIPLICATIONS_PER_CHUNK", 0)
    stepwise, stepwise_factors = train_all()
    assert len({run.epoch for run in runs}) > 10
    for run, other in zip(runs, stepwise, strict=True):
        assert (run.stop_reason, run.epoch) == (other.stop_reason, other.epoch)
        assert run.zero_loss_validations == other.zero_loss_validations
        metrics = recorded_metrics(run)
        for name, series in recorded_metrics(other).items():
            assert series.epochs.tolist() == metrics[name].epochs.tolist()
            assert series.values.tobytes() == metrics[name].values.tobytes()
    for mine, others in zip(factors, stepwise_factors, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(mine, others, strict=True))


def test_optimizer_without_kernel_uses_torch_engine():
    """A user-defined subclass of GradientDescent must not use the gradient descent kernel."""

    class SignDescent(GradientDescent):
        def update(self, model):
            model.gradients.sign_()
            super().update(model)

    experiments = [make_experiment(depth=3), make_experiment(depth=3, random_seed=1)]
    shapes = [factor.shape for factor in experiments[0].factors]
    with pytest.raises(NotNative, match="no kernel for SignDescent"):
        native_kernel(DeepMatrixFactorization, shapes, torch.float32, SignDescent, 1)
    engine = make_trainer(experiments).engine
    engine.optimizer = SignDescent({"lr": [0.25, 0.5]}, engine.model)
    before = engine.model.values.clone()
    engine.advance([1])
    moved = (engine.model.values - before).abs()
    assert set(moved.round(decimals=4).unique().tolist()) - {0.0} == {0.25, 0.5}
    assert isinstance(engine.select(torch.tensor([1])).optimizer, SignDescent)


@pytest.mark.parametrize("kind", [DeepMatrixFactorization, CPFactorization])
def test_adam_has_no_kernel(kind):
    with pytest.raises(NotNative, match="no kernel for Adam"):
        native_kernel(kind, [(3, 3), (3, 3)], torch.float32, Adam, 5)


def test_group_rmsprop_has_no_kernel_for_matrices():
    with pytest.raises(NativeUnavailable, match="GroupRMSprop has no kernel for deep matrix factorizations"):
        native_kernel(DeepMatrixFactorization, [(3, 3), (3, 3)], torch.float32, GroupRMSprop, 5)


def test_no_kernel_for_large_matrices():
    with pytest.raises(NotNative, match="not faster than PyTorch for factors of shapes"):
        native_kernel(DeepMatrixFactorization, [(50, 50)] * 3, torch.float32, GradientDescent, 2499)


def test_deep_factorization_with_small_stack(tmp_path):
    script = """
import resource
resource.setrlimit(resource.RLIMIT_STACK, (2 * 2**20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
from tests.conftest import make_experiment, train
train([make_experiment(depth=20000 // 6, epochs=50, random_seed=seed) for seed in range(20)], native=True)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
