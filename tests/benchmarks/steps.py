"""Benchmark of gradient steps and of the default jobs against other implementations.

    python -m tests.benchmarks.steps

All implementations are timed in the same run because times vary on shared machines; compare the ratios. Each time is
the median of several repetitions, which alternate between the implementations. The times of this project include the
recorded history and its metrics; the other implementations record nothing.

- plain loop: batched experiments in PyTorch with autograd and in-place updates.
- JAX, if installed: the same loss, with jit(vmap(fori_loop)) over gradient steps.
  For tensors, both compute the whole tensor or only the observed entries, whichever is faster.
- BLAS, for tensors: the three matrix products of a step on the whole tensor, by PyTorch.
- floor: for matrices only the arithmetic of a step (floor.c), with the experiments in the lanes of vectors; for tensors
  the multiply-adds of a step on the observed entries, at the processor's measured peak.
"""

import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.models.cp_factorization import first_group_size
from common.sweeps.experiment import Experiment
from common.training.threads import NUM_THREADS, one_thread
from tests.conftest import ROOT, make_experiment, make_trainer

try:
    import jax
    from jax import lax
    from jax import numpy as jnp
except ImportError:
    jax = None

_REPETITIONS = 5
_SECONDS = 0.15

# No experiment stops during the benchmark or reaches denormal numbers, which are slow.
_NO_STOPPING = {"lr": 1e-6, "epochs": 10**12, "stop_on_zero_loss_tol": 0.0}

# Function that runs the given number of steps.
Steps = Callable[[int], object]


def matrix_product(factors):
    """Returns W_1 W_2 ⋯ W_L for torch or JAX arrays, with or without a leading experiment axis."""
    return reduce(lambda left, right: left @ right, factors)


def khatri_rao(left, right):
    """Returns the Khatri–Rao products of matrices (..., m, R) and (..., n, R)."""
    product = left[..., :, None, :] * right[..., None, :, :]
    return product.reshape(*product.shape[:-3], -1, product.shape[-1])


def cp_tensor(factors):
    """Returns Σ_r F_1[a, r] F_2[b, r] … for factors (..., d_k, R), as one product of two Khatri–Rao products."""
    split = first_group_size([factor.shape[-2] for factor in factors])
    left, right = (reduce(khatri_rao, group) for group in (factors[:split], factors[split:]))
    return left @ right.swapaxes(-1, -2)


def cp_entries(entries, dims):
    """Returns a function that computes only these entries (n,) of a tensor, from its factors."""
    indices = np.unravel_index(np.asarray(entries), dims)

    def observed(factors):
        rows = [factor[..., index, :] for factor, index in zip(factors, indices, strict=True)]
        return reduce(lambda left, right: left * right, rows).sum(-1)

    return observed


def our_trainer(experiments: list[Experiment], min_steps: int) -> Steps:
    """Returns the steps of this project, with history and metrics; each call runs at least `min_steps` steps."""
    trainer = make_trainer(experiments, native=True)
    trainer.engine.optimizer.is_stateless = False  # so that no experiment is stopped as stalled

    def run_steps(num_steps: int) -> int:
        begin = trainer.epoch
        while trainer.epoch - begin < max(num_steps, min_steps):
            trainer.advance()
        return trainer.epoch - begin

    return run_steps


def pytorch_loop(experiments: list[Experiment], predict: Callable, target: Tensor, weights: Tensor) -> Steps:
    factors = [torch.stack(each) for each in zip(*(e.factors for e in experiments), strict=True)]
    factors = [factor.requires_grad_() for factor in factors]
    lr = torch.tensor([e.parameters["lr"] for e in experiments])[:, None, None]

    def run_steps(num_steps: int) -> None:
        for _ in range(num_steps):
            loss = 0.5 * (weights * (predict(factors) - target).square()).sum()
            gradients = torch.autograd.grad(loss, factors)
            with torch.no_grad():
                for factor, gradient in zip(factors, gradients, strict=True):
                    factor.sub_(lr * gradient)

    return run_steps


def jax_loop(experiments: list[Experiment], predict: Callable, target: Tensor, weights: Tensor) -> Steps:
    stacked = [np.stack([f.numpy() for f in each]) for each in zip(*(e.factors for e in experiments), strict=True)]
    state = [[jnp.asarray(each) for each in stacked]]
    lr = jnp.asarray([e.parameters["lr"] for e in experiments])
    target, weights = jnp.asarray(target.numpy()), jnp.asarray(weights.numpy())

    def loss(factors, target, weights):
        return 0.5 * (weights * (predict(factors) - target) ** 2).sum()

    def run(factors, target, weights, lr, num_steps):
        def step(_, factors):
            gradients = jax.grad(loss)(factors, target, weights)
            return [factor - lr * gradient for factor, gradient in zip(factors, gradients, strict=True)]

        return lax.fori_loop(0, num_steps, step, factors)

    compiled = jax.jit(jax.vmap(run, in_axes=(0, 0, 0, 0, None)))

    def run_steps(num_steps: int) -> None:
        state[0] = jax.block_until_ready(compiled(state[0], target, weights, lr, num_steps))

    return run_steps


def floor_function(name: str, argument_types: list, directory: Path, depth: int = 2) -> Callable:
    """Returns a function of floor.c."""
    library = directory / f"floor_{depth}.so"
    source = Path(__file__).with_name("floor.c")
    command = ["cc", "-O3", "-march=native", "-shared", "-fPIC", f"-DDEPTH={depth}", source, "-o", library]
    subprocess.run(command, check=True)
    function = getattr(ctypes.CDLL(str(library)), name)
    function.argtypes = argument_types
    return function


def arithmetic_floor(depth: int, number: int, directory: Path) -> Steps:
    """Returns the steps of floor.c on all threads."""
    function = floor_function("steps", [ctypes.c_void_p, ctypes.c_int64], directory, depth)
    num_blocks, size = -(-number // 16), (4 * depth + 9) * 64
    memory = np.zeros(num_blocks * size + 64, np.uint8)
    begin = memory.ctypes.data + -memory.ctypes.data % 64
    blocks = memory[begin - memory.ctypes.data :][: num_blocks * size].view(np.float32).reshape(num_blocks, -1, 16)
    generator = np.random.default_rng(0)
    blocks[:, : 4 * depth] = 0.1 * generator.standard_normal((num_blocks, 4 * depth, 16))
    blocks[:, 4 * depth :] = np.array([0, 1, 1, 0, 0, 1, 1, 1, _NO_STOPPING["lr"]])[:, None]
    pool = ThreadPoolExecutor(NUM_THREADS)

    def run_steps(num_steps: int) -> None:
        addresses = [begin + block * size for block in range(num_blocks)]
        list((pool.map if num_blocks > 1 else map)(lambda address: function(address, num_steps), addresses))
        assert memory.size  # lives until here

    return run_steps


def peak_floor(experiments: list[Experiment], directory: Path) -> Steps:
    """Returns the multiply-adds of a step on the observed entries, at the measured peak of all threads."""
    function = floor_function("multiply_adds", [ctypes.c_int64], directory)
    rank, pool = experiments[0].factors[0].shape[1], ThreadPoolExecutor(NUM_THREADS)
    share = 3 * rank * sum(experiment.parameters["num_samples"] for experiment in experiments) / NUM_THREADS

    def run_steps(num_steps: int) -> None:
        list(pool.map(function, [int(num_steps * share)] * NUM_THREADS))

    return run_steps


def blas_products(experiments: list[Experiment]) -> Steps:
    """Returns the three matrix products of a step on the whole tensor for each experiment, with PyTorch's BLAS."""
    factors = experiments[0].factors
    split, rank = first_group_size([len(factor) for factor in factors]), factors[0].shape[1]
    rows, cols = (int(np.prod([len(f) for f in group])) for group in (factors[:split], factors[split:]))
    first, second, product = torch.randn(rows, rank), torch.randn(cols, rank), torch.empty(rows, cols)
    first_gradient, second_gradient = torch.empty(rows, rank), torch.empty(cols, rank)

    def run_steps(num_steps: int) -> None:
        for _ in range(num_steps * len(experiments)):
            torch.mm(first, second.T, out=product)
            torch.mm(product, second, out=first_gradient)
            torch.mm(product.T, first, out=second_gradient)

    return run_steps


def microseconds_per_step(run_steps: Steps, num_steps: int) -> float:
    begin = time.perf_counter()
    taken = run_steps(num_steps) or num_steps
    return (time.perf_counter() - begin) / taken * 1e6


def median_times(competitors: dict[str, Steps]) -> dict[str, float]:
    """Returns the median time of a step of each implementation, in microseconds."""
    steps = {}
    for name, run_steps in competitors.items():
        num_steps = 1
        run_steps(num_steps)
        while microseconds_per_step(run_steps, num_steps) * num_steps < 0.2 * _SECONDS * 1e6:
            num_steps *= 4
        steps[name] = max(1, int(_SECONDS * 1e6 / microseconds_per_step(run_steps, num_steps)))
    times = {name: [] for name in competitors}
    for _ in range(_REPETITIONS):
        for name, run_steps in competitors.items():
            times[name].append(microseconds_per_step(run_steps, steps[name]))
    return {name: statistics.median(each) for name, each in times.items()}


def dmf_experiments(depth: int, number: int) -> list[Experiment]:
    # Initializations from the paper.
    parameters = {"init_alpha": {2: 8.41e-4, 3: 7.94e-3, 4: 7.71e-2}[depth], **_NO_STOPPING}
    tracked = {"tracked_e2e_value_of": [[0, 0], [0, 1], [1, 0], [1, 1]], "track_singular_values": True}
    return [make_experiment(depth=depth, random_seed=seed, **parameters, **tracked) for seed in range(number)]


def tc_experiments(order: int, dim: int, number: int, num_samples: int) -> list[Experiment]:
    parameters = {"random_target": True, "order": order, "mode_dim_size": dim, "init_std": 0.1, **_NO_STOPPING}
    return [make_experiment("tc", num_samples=num_samples, **parameters) for _ in range(number)]


def wall_time(script: str, directory: Path) -> str:
    """Returns the wall time of a script with default flags in a new process, with and without kernel compilation."""
    times = []
    environment = {**os.environ, "XDG_CACHE_HOME": str(directory / "cache")}
    for run in range(3):
        begin = time.perf_counter()
        command = [sys.executable, script, "-output_dir", str(directory / script / str(run))]
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - begin)
    return f"{times[0]:.1f} s including kernel compilation, {min(times[1:]):.1f} s with a cached kernel"


def print_times(
    problem: str,
    experiments: list[Experiment],
    min_steps: int,
    predictions: dict[str, Callable],
    more: dict[str, Steps],
) -> None:
    """Prints the row of a problem: the times of this project and of the others, `more` among them. The loops compute
    the model's `predictions` for "all" entries and, if given, for "observed" entries.
    """
    problems = [experiment.problem for experiment in experiments]
    objective = problems[0].objective(problems, experiments[0].factors[0])
    competitors = {"ours": our_trainer(experiments, min_steps), **more}
    for which, predict in predictions.items():
        target, weights = objective.targets, objective.weights
        if which == "observed":
            entries = problems[0].dataset.observed_entries
            target, weights = target.flatten(1)[:, entries], weights.flatten(1)[:, entries]
        competitors[f"plain loop, {which}"] = pytorch_loop(experiments, predict, target, weights)
        if jax is not None:
            competitors[f"JAX, {which}"] = jax_loop(experiments, predict, target, weights)
    # Small products are faster on one thread, also in PyTorch.
    with one_thread() if problems[0].multiplications < 3 * 10**6 else nullcontext():
        times = median_times(competitors)
    cells = [problem, len(experiments), f"{times['ours']:.3g}"]
    for name in ("plain loop", "JAX", "BLAS"):
        found = [time for key, time in times.items() if key.startswith(name)]
        cells.append(f"{min(found) / times['ours']:.3g}" if found else "")
    print(f"| {' | '.join(map(str, cells))} | {times['ours'] / times['floor']:.2f} |", flush=True)


def main() -> None:
    columns = "problem | experiments | µs per step | speedup over plain loop | over JAX | over BLAS | time / floor"
    print(f"| {columns} |\n|{' --- |' * 7}")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for depth in (2, 3, 4):
            for number in (1, 12, 64, 1024):
                floor = {"floor": arithmetic_floor(depth, number, directory)}
                experiments = dmf_experiments(depth, number)
                # Metrics are computed for many validations at a time.
                min_steps = 4096 * experiments[0].parameters["validate_every"]
                print_times(f"2×2, depth {depth}", experiments, min_steps, {"all": matrix_product}, floor)
        cases = [(3, 8, 50, 50), (3, 8, 50, 511), *((4, 8, 12, n) for n in (100, 500, 1000, 2000, 4095))]
        for order, dim, number, num_samples in [*cases, (4, 10, 4, 2000), (3, 50, 4, 5000)]:
            experiments = tc_experiments(order, dim, number, num_samples)
            more = {"BLAS": blas_products(experiments), "floor": peak_floor(experiments, directory)}
            problem = f"{'×'.join([str(dim)] * order)}, {num_samples} observed"
            entries = cp_entries(experiments[0].problem.dataset.observed_entries, [dim] * order)
            print_times(problem, experiments, 1, {"all": cp_tensor, "observed": entries}, more)
        for script in ("dmf_multiple_experiments_runner.py", "tc_multiple_experiments_runner.py"):
            print(f"\n`python {script}`: {wall_time(script, directory)}", flush=True)


if __name__ == "__main__":
    main()
