"""Runs one deep matrix factorization experiment: gradient descent on W = W_1 W_2 ⋯ W_L from small initialization."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from common.cli import Parser, run_script
from common.datasets.flags import add_random_matrix_flags
from common.flags import add_resume_flag, add_runner_flags, integer, real

if TYPE_CHECKING:
    from common.sweeps.experiment import Experiment


def add_flags(parser: Parser) -> None:
    """Adds the flags of an experiment. Add new ones here; `Parser` describes the groups."""
    add_runner_flags(
        parser,
        not_offered=["group_rmsprop"],
        experiment_name="matrix_comp",
        dataset_path="data/dmf/completion_2x2_w_1_1_0.pt",
        num_samples=3,
        output_dir="outputs/dmf",
        epochs=5000000,
        stop_on_zero_loss_tol=1e-4,
        validate_every=50,
        lr=3e-3,
    )
    add_random_matrix_flags(parser.target.add_argument)
    add = parser.add_argument
    add("-depth", type=integer(1, 10000), default=3, help="number of factors")
    text = "width of the inner factors, that is their rows and columns; 0: the smaller dimension of the matrix"
    add("-hidden_dim", type=integer(0, 10000), default=0, help=text)
    add = parser.start.add_argument
    text = "normal (Gaussian) or identity (a multiple of the identity)"
    add("-weight_init_type", choices=["normal", "identity"], default="normal", help=text)
    text = "standard deviation (or multiple) of each factor; with balanced initialization, of the product matrix"
    add("-init_alpha", type=real(), default=8e-3, help=text)
    text = "draw the product, then split it by SVD into balanced factors; a small -hidden_dim truncates the SVD"
    add("-use_balanced_init", action="store_true", help=text)
    add("-enforce_pos_det", action="store_true", help="redraw until the product's determinant is positive")
    add("-enforce_neg_det", action="store_true", help="redraw until the product's determinant is negative")

    add = parser.outputs.add_argument
    add("-save_results", action="store_true", help="write the final product matrix and metrics")
    pairs = {"nargs": 2, "action": "append", "default": [], "metavar": ("I", "J")}
    add("-tracked_e2e_value_of", type=integer(0), **pairs, help="record entry (I, J) of the product; repeatable")
    add("-track_singular_values", action="store_true", help="record all singular values of the product")
    text = "record the Schatten-1/2 quasi-norm of the product"
    add("-track_schatten_norm", action="store_true", help=text)
    text = "record the largest ‖W_lᵀ W_l − W_{l+1} W_{l+1}ᵀ‖_F of successive factors"
    add("-track_balancedness", action="store_true", help=text)


def train(experiments: Iterable[Mapping[str, Any]]) -> list["Experiment"]:
    """Trains experiments, dictionaries of flags, and writes nothing; see `common.sweeps.sweep.train`."""
    from common.problems.matrix_factorization import MatrixFactorization
    from common.sweeps import sweep

    parser = Parser()
    add_flags(parser)
    return sweep.train(MatrixFactorization, parser, experiments)


def main() -> None:
    parser = Parser(__doc__)
    add_flags(parser)
    add_resume_flag(parser)
    parameters = parser.parse()
    resume = parameters.values.pop("resume")

    # Imported after the flags are checked, because importing torch is slow.
    from common.problems.matrix_factorization import MatrixFactorization
    from common.sweeps.sweep import run_sweep

    run_sweep(MatrixFactorization, [parameters], resume)


if __name__ == "__main__":
    run_script(main)
