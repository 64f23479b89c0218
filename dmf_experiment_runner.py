"""Runs one deep matrix factorization experiment: gradient descent on W = W_1 W_2 ⋯ W_L from small initialization."""

from common.cli import Flag, choice, integer, parse_flags, real, run_script
from common.experiments.flags import RESUME, runner_flags, without_resume

FLAGS = [
    *runner_flags(
        experiment_name="matrix_comp",
        dataset_path="data/dmf/completion_2x2_w_1_1_0.pt",
        num_samples=3,
        output_dir="outputs/dmf",
        epochs=5000000,
        stop_on_zero_loss_tol=1e-4,
        validate_every=50,
        lr=3e-3,
    ),
    Flag("save_results", False, "write the final product matrix and metrics", switch=True),
    Flag("depth", 3, "number of factors", integer(1, 10000)),
    Flag(
        "weight_init_type",
        "normal",
        "normal (Gaussian) or identity (a multiple of the identity)",
        choice("normal", "identity"),
        metavar="TYPE",
    ),
    Flag(
        "init_alpha",
        8e-3,
        "standard deviation (or multiple) of each factor; with balanced initialization, of the product matrix",
        real(),
    ),
    Flag("use_balanced_init", False, "draw the product, then split it by SVD into balanced factors", switch=True),
    Flag("enforce_pos_det", False, "redraw until the product's determinant is positive", switch=True),
    Flag("enforce_neg_det", False, "redraw until the product's determinant is negative", switch=True),
    Flag(
        "tracked_e2e_value_of",
        [],
        "record entry (I, J) of the product; repeatable",
        integer(0),
        num_values=2,
        repeatable=True,
        metavar=("I", "J"),
    ),
    Flag("track_singular_values", False, "record all singular values of the product", switch=True),
]


def main() -> None:
    parameters = parse_flags([*FLAGS, RESUME], __doc__)

    # Imported once the flags are known to be right: torch takes a while.
    from common.experiments import dmf
    from common.experiments.sweep import run_sweep

    run_sweep(dmf, [without_resume(parameters)], parameters["resume"])


if __name__ == "__main__":
    run_script(main)
