"""Generates a dataset for tensor completion: a target tensor, and the order in which its entries are observed."""

from common.cli import Parser, exclusive, flag_error, print_line, run_script
from common.flags import add_generator_flags, drawn_seed, integer, real, save_dataset

parser = Parser(__doc__)
add_generator_flags(parser, "data/tc")
add = parser.add_argument
text = "CP rank of the random target; -1: no constraint, Gaussian entries"
add("-target_tensor_cp_rank", type=integer(-1, 10**6), default=1, help=text)
add("-target_fro_norm", type=real(0, above=True), default=1.0, help="Frobenius norm of the target")
add("-mode_dim_size", type=integer(1), default=10, help="dimension of each mode")
add("-order", type=integer(2, 25), default=3, help="number of modes")


def main() -> None:
    parameters = parser.parse()
    exclusive(parameters, "custom_file_name", "file_name")
    cp_rank, dim, order = (parameters[name] for name in ("target_tensor_cp_rank", "mode_dim_size", "order"))
    if cp_rank == 0:
        raise flag_error("target_tensor_cp_rank", 0, "must be at least 1, or -1 for no constraint")
    if dim**order > 10**8:
        remedy = f"of order {order} makes {dim**order:.1e} entries; at most 1e8 are possible"
        raise flag_error("mode_dim_size", dim, remedy)

    # Imported after the flags are checked, because importing torch is slow.
    import torch

    from common.datasets.tensor_completion import random_tensor

    norm, seed = parameters["target_fro_norm"], drawn_seed(parameters["random_seed"])
    generator = torch.Generator().manual_seed(seed)
    target = random_tensor((dim,) * order, cp_rank, norm, generator)
    if not target.isfinite().all() or not target.any():
        raise flag_error("target_fro_norm", norm, "makes entries that float32 cannot hold; give another")
    content = {
        "target_tensor": target,
        "target_cp_rank": cp_rank,
        "train_indices_order": torch.randperm(target.numel(), generator=generator).tolist(),
        "random_seed": seed,
    }
    path = save_dataset(content, parameters, f"tensor_rank_{cp_rank}_fro_{int(norm)}_order_{order}_dim_{dim}")
    rank = "unconstrained CP rank" if cp_rank == -1 else f"CP rank {cp_rank}"
    print_line(f"{path}: {'x'.join(map(str, target.shape))} target of {rank}, norm {norm:g}, random_seed {seed}")


if __name__ == "__main__":
    run_script(main)
