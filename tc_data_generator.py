"""Generates a dataset for tensor completion: a target tensor, and the order in which its entries are observed."""

from common.cli import Parser, print_line, run_script
from common.datasets.flags import (
    add_generator_flags,
    add_random_tensor_flags,
    check_generator_flags,
    check_random_tensor,
    make_own_dataset,
    save_dataset,
)
from common.flags import drawn_seed

parser = Parser(__doc__)
add_generator_flags(parser, "data/tc")
add_random_tensor_flags(parser.add_argument)


def main() -> None:
    parameters = parser.parse()
    check_generator_flags(parameters)
    check_random_tensor(parameters)
    cp_rank, dim, order = (parameters[name] for name in ("target_tensor_cp_rank", "mode_dim_size", "order"))

    # Imported after the flags are checked, because importing torch is slow.
    import torch

    from common.datasets.tensor_completion import as_tensor_completion, completion_content, random_tensor

    norm, seed = parameters["target_fro_norm"], drawn_seed(parameters["random_seed"])
    if parameters["target_file"]:
        make_own_dataset(parameters, seed, completion_content, as_tensor_completion)
        return
    generator = torch.Generator().manual_seed(seed)
    target = random_tensor((dim,) * order, cp_rank, norm, generator)
    content = completion_content(target, torch.randperm(target.numel(), generator=generator), cp_rank)
    content["random_seed"] = seed
    path = save_dataset(content, parameters, f"tensor_rank_{cp_rank}_fro_{int(norm)}_order_{order}_dim_{dim}")
    rank = "unconstrained CP rank" if cp_rank == -1 else f"CP rank {cp_rank}"
    print_line(f"{path}: {'x'.join(map(str, target.shape))} target of {rank}, norm {norm:g}, random_seed {seed}")


if __name__ == "__main__":
    run_script(main)
