"""Runs the deep matrix factorization experiments listed in this script; edit the list to run others.

Experiments of the same depth and shape are trained side by side, at hardly more cost than one. A flag given on the
command line holds for all of them.
"""

from common.cli import parse_flags, run_script
from common.experiments.flags import list_flags, listed_experiments
from dmf_experiment_runner import FLAGS as EXPERIMENT_FLAGS

# Each dictionary is one experiment. Its keys are the flags of dmf_experiment_runner.py (see its -h); what is left out
# keeps that script's default.
EXPERIMENTS = [
    {
        "experiment_name": "completion_2x2_c_1_1_0_exp",
        "dataset_path": "data/dmf/completion_2x2_w_1_1_0.pt",
        "num_samples": 3,
        # The smallest seed from 0 whose run stays on the theory's curve down to loss 1e-4: a representative run. How
        # runs with other seeds end is in the README.
        "random_seed": 0,
        "output_dir": "outputs/dmf",
        "file_log": True,
        "store_checkpoints": True,
        "plot_metrics": True,
        "save_results": True,
        "depth": 3,
        "weight_init_type": "normal",
        "init_alpha": 8e-3,
        "use_balanced_init": False,
        "enforce_pos_det": True,
        "epochs": 5000000,
        "stop_on_zero_loss_tol": 1e-4,
        "validate_every": 50,
        "save_every_num_val": 100,
        "lr": 3e-3,
        "tracked_e2e_value_of": [[0, 0], [0, 1], [1, 0], [1, 1]],
        "track_singular_values": True,
    },
]

# How often each experiment is run. Repetition k of an experiment with seed N has the seed N + k.
REPETITIONS = 1


FLAGS = list_flags(EXPERIMENT_FLAGS, REPETITIONS)


def main() -> None:
    given = parse_flags(FLAGS, __doc__)
    experiments = listed_experiments(EXPERIMENT_FLAGS, EXPERIMENTS, given)

    # Imported once the parameters are known to be right: torch takes a while.
    from common.experiments import dmf
    from common.experiments.sweep import run_sweep

    run_sweep(dmf, experiments)


if __name__ == "__main__":
    run_script(main)
