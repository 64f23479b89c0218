"""Runs one tensor completion experiment: fits a CP factorization to some entries of a tensor, by gradient
descent from small initialization.
"""

from argparse import SUPPRESS
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from common.cli import Parser, run_script
from common.datasets.flags import add_random_tensor_flags
from common.flags import add_resume_flag, add_runner_flags, integer, real

if TYPE_CHECKING:
    from common.sweeps.experiment import Experiment


def add_flags(parser: Parser) -> None:
    """Adds the flags of an experiment. Add new ones here; `Parser` describes the groups."""
    add_runner_flags(
        parser,
        experiment_name="tensor_comp",
        dataset_path="data/tc/tensor_rank_1_fro_1_order_3_dim_8.pt",
        num_samples=300,
        output_dir="outputs/tc/r1",
        epochs=1000000,
        stop_on_zero_loss_tol=1e-6,
        validate_every=100,
        lr=1e-2,
    )
    add_random_tensor_flags(parser.target.add_argument)
    add = parser.add_argument
    short = {"action": "store_const", "dest": "optimizer", "const": "group_rmsprop", "default": SUPPRESS}
    add("-use_adaptive_lr", **short, help="short form of -optimizer group_rmsprop (Arora et al. 2019)")
    text = "CP ranks: an approximation must have a mean squared error over all entries below this"
    add("-tensor_rank_tol", type=real(0, above=True), default=1e-6, help=text)

    text = "components of the factorization; 0: full rank, the product of all dimensions but the largest"
    add("-num_components", type=integer(0, 10**6), default=0, help=text)

    text = "standard deviation of the initial factors"
    parser.start.add_argument("-init_std", type=real(0), default=1e-3, help=text)

    add = parser.outputs.add_argument
    text = "estimate the CP ranks of the final tensor, of the observed entries (zero elsewhere), and of the target"
    add("-compute_final_tensor_ranks", action="store_true", help=text)
    add("-track_tensor_rank", action="store_true", help="record the CP rank at every validation")
    text = "record the norms of the K largest components"
    add("-track_component_norms", type=integer(0), default=0, metavar="K", help=text)


def train(experiments: Iterable[Mapping[str, Any]]) -> list["Experiment"]:
    """Trains experiments, dictionaries of flags, and writes nothing; see `common.sweeps.sweep.train`."""
    from common.problems.tensor_completion import TensorFactorization
    from common.sweeps import sweep

    parser = Parser()
    add_flags(parser)
    return sweep.train(TensorFactorization, parser, experiments)


def main() -> None:
    parser = Parser(__doc__)
    add_flags(parser)
    add_resume_flag(parser)
    parameters = parser.parse()
    resume = parameters.values.pop("resume")

    # Imported after the flags are checked, because importing torch is slow.
    from common.problems.tensor_completion import TensorFactorization
    from common.sweeps.sweep import run_sweep

    run_sweep(TensorFactorization, [parameters], resume)


if __name__ == "__main__":
    run_script(main)
