"""Runs one tensor completion experiment: a CP factorization of full rank, fitted from small initialization to some of a
tensor's entries.
"""

from common.cli import Flag, parse_flags, real, run_script
from common.experiments.flags import RESUME, runner_flags, without_resume

FLAGS = [
    *runner_flags(
        experiment_name="tensor_comp",
        dataset_path="data/tc/tensor_rank_1_fro_1_order_3_dim_8.pt",
        num_samples=300,
        output_dir="outputs/tc/r1",
        epochs=1000000,
        stop_on_zero_loss_tol=1e-6,
        validate_every=100,
        lr=1e-2,
    ),
    Flag("use_adaptive_lr", False, "GroupRMSprop rather than plain gradient descent", switch=True),
    Flag("init_std", 1e-3, "standard deviation of the factors' entries at the start", real(0)),
    Flag(
        "tensor_rank_tol",
        1e-6,
        "CP rank: the mean squared error over all entries that an approximation must stay below",
        real(0, above=True),
    ),
    Flag(
        "compute_final_tensor_ranks",
        False,
        "estimate the CP ranks of the final tensor, of the observed entries with zeros elsewhere, and of the target",
        switch=True,
    ),
    Flag("track_tensor_rank", False, "record the CP rank at every validation", switch=True),
]


def main() -> None:
    parameters = parse_flags([*FLAGS, RESUME], __doc__)

    # Imported once the flags are known to be right: torch takes a while.
    from common.experiments import tc
    from common.experiments.sweep import run_sweep

    run_sweep(tc, [without_resume(parameters)], parameters["resume"])


if __name__ == "__main__":
    run_script(main)
