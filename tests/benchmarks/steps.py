"""Benchmark of gradient steps and of the default jobs against other implementations; tests/README.md describes it.

All implementations are timed in the same run because times vary on shared machines; compare the ratios. Each time is
the median of several repetitions, which alternate between the implementations.
"""

import operator
import os
import subprocess
import sys
import tempfile
import time
from functools import partial, reduce

import numpy as np
import torch

from common.models.cp_factorization import first_group_size
from common.training.threads import NUM_THREADS, num_threads
from tests.conftest import ROOT, make_experiment, make_trainer

try:
    import jax
except ImportError:
    jax = None

REPETITIONS, SECONDS = 5, 0.15
# No experiment stops during the benchmark or reaches denormal numbers, which are slow.
NO_STOPPING = {"lr": 1e-6, "epochs": 10**12, "stop_on_zero_loss_tol": 0.0}


def matrix_product(factors):
    """Returns W_1 W_2 ⋯ W_L for torch or JAX arrays, with or without a leading experiment axis."""
    return reduce(operator.matmul, factors)


def khatri_rao(left, right):
    """Returns the Khatri–Rao products of matrices (..., m, R) and (..., n, R)."""
    return (left[..., :, None, :] * right[..., None, :, :]).reshape(*left.shape[:-2], -1, left.shape[-1])


def cp_tensor(factors):
    """Returns Σ_r F_1[a, r] F_2[b, r] … for factors (..., d_k, R), as one product of two Khatri–Rao products."""
    split = first_group_size([factor.shape[-2] for factor in factors])
    left, right = (reduce(khatri_rao, group) for group in (factors[:split], factors[split:]))
    return left @ right.swapaxes(-1, -2)


def cp_entries(indices, factors):
    """Returns only the entries of the tensor at `indices`, an array (n,) for each mode."""
    return reduce(operator.mul, (factor[..., at, :] for factor, at in zip(factors, indices, strict=True))).sum(-1)


def loss_of(predict, factors, target, weights):
    return 0.5 * (weights * (predict(factors) - target) ** 2).sum()


def our_steps(trainer, min_steps, num_steps):
    """Runs at least `min_steps` steps of this project, with history and metrics; returns how many."""
    begin = trainer.epoch
    while trainer.epoch - begin < max(num_steps, min_steps):
        trainer.advance()
    return trainer.epoch - begin


def pytorch_steps(predict, factors, lrs, targets, weights, num_steps):
    for _ in range(num_steps):
        gradients = torch.autograd.grad(loss_of(predict, factors, targets, weights), factors)
        with torch.no_grad():
            for factor, gradient in zip(factors, gradients, strict=True):
                factor.sub_(lrs * gradient)


def jax_steps(predict, *tensors):
    """Returns a function that runs steps."""
    factors, *constants = jax.tree_util.tree_map(lambda tensor: jax.numpy.asarray(tensor.numpy()), tensors)
    state = [factors]

    def run(num_steps, factors, lr, *problem):
        def step(_, factors):
            gradients = jax.grad(lambda factors: loss_of(predict, factors, *problem))(factors)
            return [factor - lr * gradient for factor, gradient in zip(factors, gradients, strict=True)]

        return jax.lax.fori_loop(0, num_steps, step, factors)

    compiled = jax.jit(jax.vmap(run, in_axes=(None, 0, 0, 0, 0)))

    def run_steps(num_steps):
        state[0] = jax.block_until_ready(compiled(num_steps, state[0], *constants))

    return run_steps


def blas_products(left, right, product, left_gradient, right_gradient, number, num_steps):
    """Takes the three matrix products of a step on the whole tensor for each experiment, with PyTorch's BLAS."""
    for _ in range(num_steps * number):
        torch.mm(left, right.T, out=product)
        torch.mm(product, right, out=left_gradient)
        torch.mm(product.T, left, out=right_gradient)


def seconds_per_step(run_steps, num_steps):
    begin = time.perf_counter()
    taken = run_steps(num_steps) or num_steps
    return (time.perf_counter() - begin) / taken


def median_times(competitors):
    """Returns the median time of a step of each implementation, in microseconds."""
    steps, times = {}, {name: [] for name in competitors}
    for name, run_steps in competitors.items():
        num_steps = 1
        run_steps(num_steps)
        while seconds_per_step(run_steps, num_steps) * num_steps < 0.2 * SECONDS:
            num_steps *= 4
        steps[name] = max(1, int(SECONDS / seconds_per_step(run_steps, num_steps)))
    for _ in range(REPETITIONS):
        for name, run_steps in competitors.items():
            times[name].append(1e6 * seconds_per_step(run_steps, steps[name]))
    return {name: np.median(each) for name, each in times.items()}


def print_times(name, experiments, min_steps, predictions, **others):
    """Prints the row of a problem. The loops compute `predictions` of "all" and, if given, of "observed" entries."""
    problems, trainer = [each.problem for each in experiments], make_trainer(experiments, native=True)
    trainer.engine.optimizer.is_stateless = False  # so that no experiment is stopped as stalled
    factors = [torch.stack(each) for each in zip(*(each.factors for each in experiments), strict=True)]
    lrs = torch.full((len(experiments), 1, 1), NO_STOPPING["lr"])
    objective = problems[0].objective(problems, factors[0])
    competitors = {"ours": partial(our_steps, trainer, min_steps), **others}
    for which, predict in predictions.items():
        given = [objective.targets, objective.weights]
        if which == "observed":
            given = [each.flatten(1)[:, problems[0].dataset.observed_entries] for each in given]
        leaves = [factor.clone().requires_grad_() for factor in factors]
        competitors[f"plain loop, {which}"] = partial(pytorch_steps, predict, leaves, lrs, *given)
        if jax is not None:
            competitors[f"JAX, {which}"] = jax_steps(predict, factors, lrs, *given)
    # Small products are faster on one thread, also in PyTorch.
    with num_threads(1 if problems[0].multiplications < 3 * 10**6 else NUM_THREADS):
        times = median_times(competitors)
    cells = [name, len(experiments), f"{times['ours']:.3g}"]
    for kind in ("plain loop", "JAX", "BLAS"):
        found = [each for key, each in times.items() if key.startswith(kind)]
        cells.append(f"{min(found) / times['ours']:.3g}" if found else "")
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_times_of_matrices(depth, number):
    flags = {"tracked_e2e_value_of": [[0, 0], [0, 1], [1, 0], [1, 1]], "track_singular_values": True, **NO_STOPPING}
    flags |= {"depth": depth, "init_alpha": {2: 8.41e-4, 3: 7.94e-3, 4: 7.71e-2}[depth]}  # as in the paper
    experiments = [make_experiment(random_seed=seed, **flags) for seed in range(number)]
    # Metrics are computed for many validations at a time.
    min_steps = 4096 * experiments[0].parameters["validate_every"]
    print_times(f"2×2, depth {depth}", experiments, min_steps, {"all": matrix_product})


def print_times_of_tensors(order, dim, number, num_samples):
    flags = {"random_target": True, "order": order, "mode_dim_size": dim, "init_std": 0.1, **NO_STOPPING}
    experiments = [make_experiment("tc", num_samples=num_samples, **flags) for _ in range(number)]
    indices = np.unravel_index(np.asarray(experiments[0].problem.dataset.observed_entries), [dim] * order)
    predictions = {"all": cp_tensor, "observed": partial(cp_entries, indices)}
    split, rank = first_group_size([dim] * order), experiments[0].factors[0].shape[1]
    left, right = torch.randn(dim**split, rank), torch.randn(dim ** (order - split), rank)
    buffers = torch.empty(len(left), len(right)), torch.empty_like(left), torch.empty_like(right)
    blas = partial(blas_products, left, right, *buffers, number)
    print_times(f"{'×'.join([str(dim)] * order)}, {num_samples} observed", experiments, 1, predictions, BLAS=blas)


def print_time_of_script(script):
    """Prints the wall time of a script with default flags in a new process, with and without kernel compilation."""
    times = []
    with tempfile.TemporaryDirectory() as directory:
        for run in range(3):
            begin = time.perf_counter()
            command = [sys.executable, script, "-output_dir", f"{directory}/{run}"]
            environment = {**os.environ, "XDG_CACHE_HOME": f"{directory}/cache"}
            subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
            times.append(time.perf_counter() - begin)
    compiled = f"{times[0]:.1f} s including kernel compilation, {min(times[1:]):.1f} s with a cached kernel"
    print(f"\n`python {script}`: {compiled}", flush=True)


def main():
    columns = "problem | experiments | µs per step | speedup over plain loop | over JAX | over BLAS"
    print(f"| {columns} |\n|{' --- |' * 6}")
    for depth in (2, 3, 4):
        for number in (1, 12, 64, 1024):
            print_times_of_matrices(depth, number)
    cases = [(3, 8, 50, 50), (3, 8, 50, 511), *((4, 8, 12, n) for n in (100, 500, 1000, 2000, 4095))]
    for case in [*cases, (4, 10, 4, 2000), (3, 50, 4, 5000)]:
        print_times_of_tensors(*case)
    for script in ("dmf_multiple_experiments_runner.py", "tc_multiple_experiments_runner.py"):
        print_time_of_script(script)


if __name__ == "__main__":
    main()
