"""Time of a gradient step, beside a plain PyTorch loop in the same run: `python -m tests.benchmarks.steps`.

The plain loop is what a careful user would write for one experiment: parameters that require gradients, a masked
loss, torch.autograd.grad, an update in place. Times are medians over repetitions that alternate
between the two, for machines are shared and noisy; what counts are the ratios.
"""

import statistics
import time
from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from common.experiments import dmf, tc
from common.experiments.experiment import Experiment
from common.models.cp_factorization import first_group_size
from common.training.lockstep import LockstepTrainer
from common.training.objectives import EntryObjective
from common.training.threads import one_thread
from tests.conftest import ROOT, prepared, prepared_tc

_REPETITIONS = 7


def plain_loop(experiment: Experiment, end_to_end: Callable[[list[Tensor]], Tensor], objective: EntryObjective):
    """A function that takes a number of steps of plain gradient descent with automatic differentiation."""
    factors = [factor.clone().requires_grad_() for factor in experiment.factors]
    lr = experiment.parameters["lr"]
    mask, target = objective.weights[0] > 0, objective.targets[0]

    def advance(num_steps: int) -> None:
        for _ in range(num_steps):
            residuals = (end_to_end(factors).view_as(target) - target) * mask
            gradients = torch.autograd.grad(0.5 * (residuals * residuals).sum(), factors)
            with torch.no_grad():
                for factor, gradient in zip(factors, gradients, strict=True):
                    factor.sub_(gradient, alpha=lr)

    return advance


def matrix_product(factors: list[Tensor]) -> Tensor:
    return reduce(torch.matmul, factors)


def cp_tensor(factors: list[Tensor]) -> Tensor:
    """Σ_r F_1[a, r] F_2[b, r] …, as one product of two Khatri–Rao products."""
    split = first_group_size([len(factor) for factor in factors])
    left, right = (
        reduce(lambda k, factor: (k[:, None] * factor).flatten(0, 1), group)
        for group in (factors[:split], factors[split:])
    )
    return left @ right.T


def microseconds(function: Callable[[int], object], num_steps: int) -> float:
    begin = time.perf_counter()
    function(num_steps)
    return (time.perf_counter() - begin) / num_steps * 1e6


def dmf_experiments(depth: int, number: int) -> list[Experiment]:
    # The paper's initializations, and a learning rate with which none of them converges or stalls meanwhile.
    endless = {"init_alpha": {2: 8.41e-4, 3: 7.94e-3, 4: 7.71e-2}[depth], "lr": 1e-4, "epochs": 10**9}
    return [prepared(depth=depth, random_seed=seed, **endless) for seed in range(number)]


def tc_experiments(order: int, number: int) -> list[Experiment]:
    path = str(ROOT / f"data/tc/tensor_rank_1_fro_1_order_{order}_dim_8.pt")
    endless = {"init_std": 0.1, "lr": 1e-4, "epochs": 10**9}
    return [prepared_tc(dataset_path=path, random_seed=seed, **endless) for seed in range(number)]


def main() -> None:
    header = (
        f"{'problem':<26}{'experiments':>12}{'µs a step of all':>18}{'of one':>8}{'plain loop':>12}{'times faster':>14}"
    )
    print("with validation every 50 (dmf) or 100 (tc) epochs; plain loop: one experiment, no validation\n" + header)
    cases = [("2x2, depth 3", dmf, dmf_experiments, 3, n, 2000) for n in (1, 12, 64, 512)]
    cases += [("2x2, depth 2", dmf, dmf_experiments, 2, 12, 2000), ("2x2, depth 4", dmf, dmf_experiments, 4, 12, 2000)]
    cases += [("8x8x8, 64 components", tc, tc_experiments, 3, n, 200) for n in (1, 50)]
    cases += [("8x8x8x8, 512 components", tc, tc_experiments, 4, n, 100) for n in (1, 5)]
    for name, problem, make, size, number, num_steps in cases:
        experiments = make(size, number)
        first = experiments[0]
        with one_thread(problem.multiplications_per_step(first) < 3 * 10**6):
            every = first.parameters["validate_every"]
            engine = problem.stack(experiments, torch.device("cpu"))
            plain = plain_loop(first, matrix_product if problem is dmf else cp_tensor, engine.objective)
            trainer = LockstepTrainer(engine, experiments, every, 10)

            def lockstep(num_steps: int, trainer: LockstepTrainer = trainer, every: int = every) -> None:
                for _ in range(num_steps // every):
                    trainer.advance()

            lockstep(2 * every), plain(20)
            times, plain_times = [], []
            for _ in range(_REPETITIONS):
                times.append(microseconds(lockstep, num_steps))
                plain_times.append(microseconds(plain, num_steps // 10))
        ours, theirs = statistics.median(times), statistics.median(plain_times)
        print(f"{name:<26}{number:>12}{ours:>18.1f}{ours / number:>8.1f}{theirs:>12.1f}{theirs * number / ours:>14.1f}")


if __name__ == "__main__":
    main()
