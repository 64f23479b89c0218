"""Runs the tensor completion experiments described in this script; edit it to run others.

Without flags it runs those of BASE and OPTIONS, with -plan one of the paper's figures. Experiments on tensors of one
shape are trained side by side. A flag given on the command line holds for all of them.
"""

from dataclasses import replace
from pathlib import Path

from common.cli import Parameters, Parser, run_script
from common.naming import scientific
from common.sweeps.plans import Plan, combinations, planned_jobs, plans_parser
from tc_experiment_runner import add_flags

# What all experiments have in common. The keys are the flags of tc_experiment_runner.py (see its -h); what is left out
# keeps that script's default.
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
    "use_adaptive_lr": True,
    "stop_on_zero_loss_tol": 1e-6,
    "tensor_rank_tol": 1e-6,
    "compute_final_tensor_ranks": True,
}

# Every combination of these is an experiment.
OPTIONS = {
    "num_samples": [50, 100, 150, 200, 250, 300, 350, 400, 450, 511],
    "init_std": [1e-2, 1e-3],
}

# How often each experiment is run. Repetition k of an experiment with seed N has the seed N + k.
REPETITIONS = 5

DEFAULT = Plan(
    "rank 1, order 3",
    combinations(BASE, OPTIONS),
    "-plot_title '8x8x8 (order 3) rank 1 tensor completion'",
    REPETITIONS,
)

# The numbers of observations of the paper's figures of order 4.
ORDER_4 = {**OPTIONS, "num_samples": [100, 500, 1000, 1500, 2000, 2500, 3000, 3500, 4095]}

PLANS = {
    "rank_1_order_3": replace(DEFAULT, about="Figure 2, left: an 8x8x8 tensor of rank 1; the default"),
    "rank_1_order_4": Plan(
        "Figure 2, right: an 8x8x8x8 tensor of rank 1",
        combinations({**BASE, "dataset_path": "data/tc/tensor_rank_1_fro_1_order_4_dim_8.pt"}, ORDER_4),
        "-plot_title '8x8x8x8 (order 4) rank 1 tensor completion'",
        repetitions=5,
    ),
    "rank_3_order_3": Plan(
        "appendix: an 8x8x8 tensor of rank 3",
        combinations({**BASE, "dataset_path": "data/tc/tensor_rank_3_fro_1_order_3_dim_8.pt"}, OPTIONS),
        "-plot_title '8x8x8 (order 3) rank 3 tensor completion'",
        repetitions=5,
    ),
    "rank_3_order_4": Plan(
        "appendix: an 8x8x8x8 tensor of rank 3",
        combinations({**BASE, "dataset_path": "data/tc/tensor_rank_3_fro_1_order_4_dim_8.pt"}, ORDER_4),
        "-plot_title '8x8x8x8 (order 4) rank 3 tensor completion'",
        repetitions=5,
    ),
}

parser = plans_parser(__doc__, PLANS, add_flags)
experiment_parser = Parser()
add_flags(experiment_parser)


def name(parameters: Parameters) -> str:
    """The experiment's name, where none is given."""
    dataset = Path(parameters["dataset_path"]).stem
    return f"c_{dataset}_samples_{parameters['num_samples']}_init_{scientific(parameters['init_std'])}"


def main() -> None:
    command, plans = parser.parse(), {"": DEFAULT, **PLANS}
    jobs = planned_jobs(command, experiment_parser, plans, "outputs/tc", "tc_results_plotter.py", name)

    # Imported once the parameters are known to be right: torch takes a while.
    from common.problems.tensor_completion import TensorFactorization
    from common.sweeps.sweep import run_jobs

    run_jobs(TensorFactorization, jobs, command["resume"])


if __name__ == "__main__":
    run_script(main)
