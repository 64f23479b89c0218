"""Runs the tensor completion experiments described in this script; edit it to run others.

Experiments on tensors of one shape are trained side by side. A flag given on the command line holds for all of them.
"""

from pathlib import Path

from common.cli import Parameters, parse_flags, run_script
from common.experiments.flags import combinations, list_flags, listed_experiments
from common.naming import scientific
from tc_experiment_runner import FLAGS as EXPERIMENT_FLAGS

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

FLAGS = list_flags(EXPERIMENT_FLAGS, REPETITIONS)


def name(parameters: Parameters) -> str:
    """The experiment's name, where none is given."""
    dataset = Path(parameters["dataset_path"]).stem
    return f"c_{dataset}_samples_{parameters['num_samples']}_init_{scientific(parameters['init_std'])}"


def main() -> None:
    given = parse_flags(FLAGS, __doc__)
    experiments = listed_experiments(EXPERIMENT_FLAGS, combinations(BASE, OPTIONS), given, name)

    # Imported once the parameters are known to be right: torch takes a while.
    from common.experiments import tc
    from common.experiments.sweep import run_sweep

    run_sweep(tc, experiments)


if __name__ == "__main__":
    run_script(main)
