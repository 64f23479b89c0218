"""Runs the deep matrix factorization experiments listed in this script; edit the list to run others.

Without flags it runs EXPERIMENTS; with -plan it runs a plan: the experiments of a figure of the paper, or others. A
flag given on the command line applies to all experiments.
"""

from pathlib import Path

from common.cli import Parameters, run_script
from common.naming import scientific
from common.sweeps.plans import Plan, combinations, log_spaced, planned_jobs, plans_parser
from dmf_experiment_runner import add_flags

# Each dictionary is one experiment. Its keys are the flags of dmf_experiment_runner.py (see its -h); flags that are
# left out have their defaults.
EXPERIMENTS = [
    {
        "experiment_name": "completion_2x2_c_1_1_0_exp",
        "dataset_path": "data/dmf/completion_2x2_w_1_1_0.pt",
        "num_samples": 3,
        # A representative run: the smallest seed whose run stays on the theory's curve down to loss 1e-4, and agrees
        # with the same run in float64 within 1%. example_plots/README.md shows the distribution over seeds.
        "random_seed": 205,
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

# Runs of each experiment. Repetition k of an experiment with seed N has the seed N + k.
REPETITIONS = 1
DEFAULT = Plan("Figure 1, middle: one run", EXPERIMENTS, repetitions=REPETITIONS)

SAVED = {"random_seed": 0, "save_results": True}
COMMON = {**SAVED, "file_log": True, "store_checkpoints": True, "enforce_pos_det": True}
FIGURE = {**COMMON, "plot_metrics": True, "save_every_num_val": 100, "track_singular_values": True}
NEGATIVE = {**FIGURE, "enforce_pos_det": False, "enforce_neg_det": True}

# The runs of each panel of Figure 1. init_alpha is the std of each factor's entries or, for balanced initialization, of
# the product's. The legend shows the latter.
DEPTH_2 = [
    {"depth": 2, "lr": 6e-3, "init_alpha": 2.66e-3},
    {"depth": 2, "lr": 3e-3, "init_alpha": 8.41e-4},
    {"depth": 2, "lr": 6e-3, "init_alpha": 1e-5, "use_balanced_init": True},
    {"depth": 2, "lr": 3e-3, "init_alpha": 1e-6, "use_balanced_init": True},
]
DEPTH_3 = [
    {"depth": 3, "lr": 6e-3, "init_alpha": 1.71e-2},
    {"depth": 3, "lr": 3e-3, "init_alpha": 7.94e-3},
    {"depth": 3, "lr": 6e-3, "init_alpha": 1e-5, "use_balanced_init": True},
    {"depth": 3, "lr": 3e-3, "init_alpha": 1e-6, "use_balanced_init": True},
]
DEPTH_4 = [
    {"depth": 4, "lr": 3e-3, "init_alpha": 1.37e-1},
    {"depth": 4, "lr": 1.5e-3, "init_alpha": 7.71e-2},
    {"depth": 4, "lr": 3e-3, "init_alpha": 1e-3, "use_balanced_init": True},
    {"depth": 4, "lr": 1.5e-3, "init_alpha": 1e-4, "use_balanced_init": True},
]

# The runs of Figure 1 that are repeated with other observations and shapes.
UNBALANCED, BALANCED = DEPTH_3[0], DEPTH_3[2]
DATA = "data/dmf/completion"


def figure_1(runs: list[dict], seeds: list[int], plot: str = "-show_bound") -> Plan:
    """Returns the plan of a panel of Figure 1. Of the seeds from 0 to 99, `seeds` are those whose runs of the plan
    many_seeds end nearest to the published |unobserved entry|.
    """
    experiments = [{**FIGURE, **run, "random_seed": seed} for run, seed in zip(runs, seeds, strict=True)]
    return Plan(f"Figure 1, depth {runs[0]['depth']}", experiments, plot)


def phase_diagram(depth: int, repetitions: int) -> Plan:
    """Returns a plan of learning rates and initializations, whose product has entries of std 1e-7 to 1e-2."""
    inits = [(init / 2 ** ((depth - 1) / 2)) ** (1 / depth) for init in log_spaced(1e-7, 1e-2, 11)]
    base = {**SAVED, "enforce_pos_det": True, "depth": depth, "dtype": "float64", "validate_every": 500, "epochs": 8e6}
    grid = {"lr": log_spaced(2e-3, 6e-2, 10), "init_alpha": [float(f"{init:.2g}") for init in inits]}
    about = f"the share of runs on the theory's curve at loss 1e-4, depth {depth}: learning rate and initialization"
    plot = "-map lr init_alpha -metric ratio_to_bound -above 1 -at_loss 1e-4"
    return Plan(about, combinations(base, grid), plot, repetitions=repetitions)


# The runs of the plan leaving_the_curve. The learning rates of gradient descent and momentum are so small that runs do
# not oscillate: on the curve, the sharpness is |unobserved entry|^(4/3), which is 1357 at loss 1e-5.
LEAVING = {**COMMON, "depth": 3, "dtype": "float64", "stop_on_zero_loss_tol": 1e-5}
LEAVING |= {"tracked_e2e_value_of": [[0, 0], [0, 1], [1, 0], [1, 1]]}
GD = {"optimizer": "gd", "lr": 1e-3, "epochs": 4e8, "validate_every": 5000}
MOMENTUM = {"optimizer": "momentum", "lr": 6e-4, "epochs": 1e8, "validate_every": 1000}
ADAM = {"optimizer": "adam", "lr": 3e-4, "epochs": 120_000, "validate_every": 50}
MUON = {"optimizer": "muon", "lr": 1e-3, "epochs": 3000, "validate_every": 10}

MODES = {**SAVED, "store_checkpoints": True, "track_singular_values": True, "validate_every": 20}
MODES |= {"stop_on_zero_loss_tol": 0}
SPECTRUM = {"dataset_path": "data/dmf/singular_values_32x32.pt", "num_samples": 1024, "validate_every": 5}
SPECTRUM_10 = {"dataset_path": "data/dmf/singular_values_10x10.pt", "num_samples": 100, "validate_every": 1}
SPECTRUM_10 |= {"tracked_e2e_value_of": [[0, 0], [1, 1], [2, 2]]}
DIAGONAL = {**SAVED, "dtype": "float64", "use_balanced_init": True, "lr": 1e-2, "validate_every": 100}
DIAGONAL |= {"stop_on_zero_loss_tol": 1e-8}
EDGE = {**SAVED, "dtype": "float64", "weight_init_type": "identity", "stop_on_zero_loss_tol": 0}
INITS = {"init_alpha": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]}
RECOVERY = {"random_target": True, "num_rows": 100, "num_cols": 100, "rank": 5, "num_samples": 2000}
RECOVERY |= {"epochs": 40_000, "validate_every": 50, "stop_on_zero_loss_tol": 2e-3, "use_balanced_init": True}

PLANS = {
    "figure_1_depth_2": figure_1(DEPTH_2, seeds=[67, 69, 43, 84], plot=""),
    "figure_1_depth_3": figure_1(DEPTH_3, seeds=[77, 71, 12, 39]),
    "figure_1_depth_4": figure_1(DEPTH_4, seeds=[21, 13, 76, 0]),
    "perturbed": Plan(
        "appendix: observations -2, 0.5 and z, which keep |unobserved entry| near 1/|z|",
        [
            {**NEGATIVE, **BALANCED, "dataset_path": f"{DATA}_2x2_perturbed_w_-2_05_{z}.pt"}
            for z in ("0", "001", "005", "01", "05")
        ],
        "-show_bound",
        "-plot_title 'perturbed observations' -experiments_names 'z = 0' 'z = 0.01' 'z = 0.05' 'z = 0.1' 'z = 0.5'",
    ),
    "repositioned": Plan(
        "appendix: another entry, (0, 1), is the unobserved one",
        [{**NEGATIVE, **run, "dataset_path": f"{DATA}_2x2_repositioned_w_1_0_1.pt"} for run in (BALANCED, UNBALANCED)],
        "-show_bound",
        "-plot_title 'repositioned observations'",
    ),
    "larger_matrices": Plan(
        "appendix: 3x3, 5x5 and 10x10 matrices",
        [
            {**FIGURE, **BALANCED, "dataset_path": f"{DATA}_{d}x{d}_w_1_1_0.pt", "num_samples": d**2 - 1}
            for d in (3, 5, 10)
        ],
        labels="-plot_title 'larger matrices' -experiments_names 3x3 5x5 10x10",
    ),
    "many_seeds": Plan(
        "every run of Figure 1 with 100 seeds: medians and quartiles",
        [
            {**COMMON, **run, "validate_every": 100 if run["depth"] == 2 else 500}
            for run in (*DEPTH_2, *DEPTH_3, *DEPTH_4)
        ],
        "-show_bound",
        repetitions=100,
    ),
    "float64": Plan(
        "the runs of Figure 1 that stall in float32, with 16 seeds in both precisions",
        [
            {**COMMON, **run, "validate_every": 500, "dtype": dtype}
            for run in (DEPTH_3[3], DEPTH_4[3])
            for dtype in ("float32", "float64")
        ],
        "-show_bound",
        "-plot_title 'balanced, the smaller learning rate'",
        repetitions=16,
    ),
    "phase_diagram_depth_3": phase_diagram(3, repetitions=64),
    "phase_diagram_depth_4": phase_diagram(4, repetitions=16),
    "incremental_matrix": Plan(
        "singular values against epochs: a 64x64 matrix of rank 5, half of it observed, depths 1 to 3",
        [
            {**MODES, "dataset_path": f"{DATA}_64x64_rank_5.pt", "num_samples": 2048, "epochs": 4000, **run}
            for run in (
                {"depth": 1, "lr": 2e-3, "init_alpha": 1e-3},
                {"depth": 2, "lr": 3e-4, "init_alpha": 1e-3},
                {"depth": 3, "lr": 5e-4, "init_alpha": 1e-2},
            )
        ],
        "-x epoch -y 'singular_value_[0-7]'",
    ),
    "depth_and_init": Plan(
        "the error of 100x100 matrices of rank 5 by depth and initialization (Arora et al. 2019), with 4 targets",
        [
            {**SAVED, **RECOVERY, "depth": depth, "lr": lr, "init_alpha": init}
            for depth, lr in ((1, 0.5), (2, 5e-3), (3, 7e-3), (4, 3e-3))
            for init in (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
        ],
        "-map init_alpha depth -metric reconstruction_error",
        repetitions=4,
    ),
    "leaving_the_curve": Plan(
        "the loss at which runs leave the theory's curve, by optimizer and initialization: depth 3, float64, 16 seeds",
        [
            *({**LEAVING, **GD, "init_alpha": init} for init in (1.71e-2, 7.94e-3, 3.7e-3)),
            *({**LEAVING, **each, "init_alpha": 7.94e-3} for each in (MOMENTUM, ADAM)),
            *({**LEAVING, **each, "init_alpha": 1e-6, "use_balanced_init": True} for each in (GD, MOMENTUM, ADAM)),
            {**LEAVING, **MUON, "init_alpha": 7.94e-3},
        ],
        "-y on_the_curve -min_loss 1e-5",
        "-experiments_names 'gd, init 1e-5' 'gd, init 1e-6' 'gd, init 1e-7' 'momentum, init 1e-6' 'Adam, init 1e-6' "
        "'gd, init 1e-6 (b)' 'momentum, init 1e-6 (b)' 'Adam, init 1e-6 (b)' 'Muon, init 1e-6' "
        "-plot_title 'depth 3, float64'",
        repetitions=16,
    ),
    "muon": Plan(
        "singular values against epochs: a 32x32 matrix with singular values 10/k, gradient descent and Muon",
        [
            {**MODES, **SPECTRUM, "optimizer": optimizer, "lr": lr, "depth": 2, "init_alpha": 5e-3, "epochs": 1000}
            for optimizer, lr in (("gd", 1.5e-2), ("muon", 5e-3))
        ],
        "-x epoch -y 'singular_value_[0-7]'",
    ),
    "diagonal_observations": Plan(
        "effective rank if only the diagonal is observed, by depth and initialization (Shin & Yun 2026), 16 seeds",
        [
            {**DIAGONAL, "dataset_path": f"data/dmf/diagonal_{size}x{size}.pt", "num_samples": size, **run}
            for size in (2, 5)
            for run in combinations({}, {"weight_init_type": ["normal", "identity"], "depth": [2, 3, 4], **INITS})
        ],
        "-map init_alpha depth -metric e2e_effective_rank",
        repetitions=16,
    ),
    "edge_of_stability": Plan(
        "the loss after 3000 epochs of a product of numbers whose target is 10, by learning rate and depth",
        combinations(
            {**EDGE, "dataset_path": f"{DATA}_1x1_w_10.pt", "num_samples": 1, "init_alpha": 1.0, "epochs": 3000},
            {"depth": [2, 3, 4], "lr": log_spaced(1e-2, 2e-1, 53)},
        ),
        "-map lr depth -metric sse_loss_div_2",
    ),
    "edge_of_stability_matrix": Plan(
        "entries against epochs: a diagonal matrix of 10, 9.5 and 2, at a learning rate too large for the first",
        [{**EDGE, **SPECTRUM_10, "init_alpha": 0.1, "lr": 0.032, "epochs": 250, "store_checkpoints": True}],
        "-x epoch -y 'e2e_?_?_value'",
    ),
}

parser = plans_parser(__doc__, PLANS, add_flags)


def name(parameters: Parameters) -> str:
    """Returns the default name of an experiment."""
    lr, alpha = scientific(parameters["lr"]), scientific(parameters["init_alpha"])
    dataset = Path(parameters["dataset_path"]).stem
    if parameters["random_target"]:
        dataset = f"random_{parameters['num_rows']}x{parameters['num_cols']}_rank_{parameters['rank']}"
    return f"{dataset}_depth_{parameters['depth']}_lr_{lr}_init_{alpha}{'_b' * parameters['use_balanced_init']}"


def main() -> None:
    command, plans = parser.parse(), {"": DEFAULT, **PLANS}
    jobs = planned_jobs(command, add_flags, plans, "outputs/dmf", "dmf_results_plotter.py", name)

    # Imported after the parameters are checked, because importing torch is slow.
    from common.problems.matrix_factorization import MatrixFactorization
    from common.sweeps.sweep import run_jobs

    run_jobs(MatrixFactorization, jobs, command["resume"])


if __name__ == "__main__":
    run_script(main)
