"""Runs the tensor completion experiments described in this script; edit it to run others.

Without flags it runs every combination of BASE and OPTIONS; with -plan it runs one of the paper's figures, or further
experiments. Experiments on tensors of the same shape are trained in one batch. A flag given on the command line applies
to all experiments.
"""

from pathlib import Path

from common.cli import Parameters, run_script
from common.naming import scientific
from common.sweeps.plans import Plan, combinations, planned_jobs, plans_parser
from tc_experiment_runner import add_flags

# Parameters that all experiments share. The keys are the flags of tc_experiment_runner.py (see its -h); flags that are
# left out have their defaults.
BASE = {
    "dataset_path": "data/tc/tensor_rank_1_fro_1_order_3_dim_8.pt",
    "random_seed": 0,
    "output_dir": "outputs/tc/r1",
    "file_log": True,
    "store_checkpoints": True,
    "plot_metrics": True,
    "epochs": 1000000,
    "validate_every": 100,
    "save_every_num_val": 5,
    "lr": 1e-2,
    "optimizer": "group_rmsprop",
    "stop_on_zero_loss_tol": 1e-6,
    "tensor_rank_tol": 1e-6,
    "compute_final_tensor_ranks": True,
}

# Every combination of these is an experiment.
OPTIONS = {
    "num_samples": [50, 100, 150, 200, 250, 300, 350, 400, 450, 511],
    "init_std": [1e-2, 1e-3],
}

# Runs of each experiment. Repetition k of an experiment with seed N has the seed N + k.
REPETITIONS = 5
DEFAULT = Plan("rank 1, order 3", combinations(BASE, OPTIONS), repetitions=REPETITIONS)

# The numbers of observations in the paper's figures of order 4.
ORDER_4 = {**OPTIONS, "num_samples": [100, 500, 1000, 1500, 2000, 2500, 3000, 3500, 4095]}


def figure(about: str, rank: int, order: int, options: dict) -> Plan:
    """Returns the plan of a panel of the paper's figures: completion of a tensor of dimension 8 in each mode."""
    base = {**BASE, "dataset_path": f"data/tc/tensor_rank_{rank}_fro_1_order_{order}_dim_8.pt"}
    return Plan(about, combinations(base, options), repetitions=5)


# Parameters of the plan rank_1_order_3_targets: each seed has a target of its own.
TARGETS = {name: value for name, value in BASE.items() if name not in ("dataset_path", "file_log", "plot_metrics")}
TARGETS |= {"random_target": True, "mode_dim_size": 8, "store_checkpoints": False}

# Parameters of the plans recovery_rank and recovery_dimension. A run ends when its RMS residual is 0.2% of the target's
# RMS entry.
RECOVERY = {
    "random_target": True,
    "random_seed": 0,
    "init_std": 1e-3,
    "epochs": 60_000,
    "validate_every": 100,
    # With larger steps, the loss oscillates above the tolerance.
    "lr": 2e-3,
    "optimizer": "group_rmsprop",
}
MAP = "-metric reconstruction_error -below 0.01"


def recovery(rank: int, dim: int, num_samples: list[int]) -> list[dict]:
    """Returns experiments on random tensors of order 3, with each number of observations below that of the entries."""
    target = {"target_tensor_cp_rank": rank, "mode_dim_size": dim}
    base = {**RECOVERY, **target, "stop_on_zero_loss_tol": 4e-6 / dim**3}
    return combinations(base, {"num_samples": [number for number in num_samples if number < dim**3]})


PLANS = {
    "rank_1_order_3": figure("Figure 2, left: an 8x8x8 tensor of rank 1; the default", 1, 3, OPTIONS),
    "rank_1_order_4": figure("Figure 2, right: an 8x8x8x8 tensor of rank 1", 1, 4, ORDER_4),
    "rank_3_order_3": figure("appendix: an 8x8x8 tensor of rank 3", 3, 3, OPTIONS),
    "rank_3_order_4": figure("appendix: an 8x8x8x8 tensor of rank 3", 3, 4, ORDER_4),
    "incremental_tensor": Plan(
        "norms of the components against epochs: a 10x10x10x10 tensor of rank 5, 2000 entries observed",
        [
            {
                "random_seed": 0,
                "dataset_path": "data/tc/tensor_rank_5_fro_1_order_4_dim_10.pt",
                "num_samples": 2000,
                "init_std": init_std,
                "epochs": 16_000,
                "validate_every": 100,
                "lr": 1e-2,
                "use_adaptive_lr": True,
                "stop_on_zero_loss_tol": 0,
                "store_checkpoints": True,
                "track_component_norms": 8,
            }
            for init_std in (5e-3, 1e-2, 5e-2)
        ],
        "-against_epochs 'component_norm_*'",
    ),
    "rank_1_order_3_targets": Plan(
        "8x8x8 tensors of rank 1, as in Figure 2, with 16 targets",
        combinations(TARGETS, {"num_samples": [50, 100, 200, 300, 511], "init_std": [1e-2, 1e-3]}),
        repetitions=16,
    ),
    "recovery_rank": Plan(
        "the share of 8x8x8 tensors that are recovered, by their rank and the number of observations, with 16 targets",
        [each for rank in range(1, 9) for each in recovery(rank, 8, [25, 50, 75, 100, 150, 200, 250, 300, 400, 500])],
        f"-map target_tensor_cp_rank num_samples {MAP}",
        repetitions=16,
    ),
    "recovery_dimension": Plan(
        "the share of tensors of rank 2 that are recovered, by dimension and number of observations, with 16 targets",
        [
            each
            for dim in range(6, 15, 2)
            for each in recovery(2, dim, [50, 75, 100, 150, 200, 300, 400, 500, 700, 1000])
        ],
        f"-map mode_dim_size num_samples {MAP}",
        repetitions=16,
    ),
}

parser = plans_parser(__doc__, PLANS, add_flags)


def name(parameters: Parameters) -> str:
    """Returns the default name of an experiment."""
    dataset = Path(parameters["dataset_path"]).stem
    if parameters["random_target"]:
        rank, order, dim = (parameters[each] for each in ("target_tensor_cp_rank", "order", "mode_dim_size"))
        dataset = f"random_rank_{rank}_order_{order}_dim_{dim}"
    return f"c_{dataset}_samples_{parameters['num_samples']}_init_{scientific(parameters['init_std'])}"


def main() -> None:
    command, plans = parser.parse(), {"": DEFAULT, **PLANS}
    jobs = planned_jobs(command, add_flags, plans, "outputs/tc", "tc_results_plotter.py", name)

    # Imported after the parameters are checked, because importing torch is slow.
    from common.problems.tensor_completion import TensorFactorization
    from common.sweeps.sweep import run_jobs

    run_jobs(TensorFactorization, jobs, command["resume"])


if __name__ == "__main__":
    run_script(main)
