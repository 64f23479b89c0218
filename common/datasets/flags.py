"""Flags that the data generators for matrices and tensors share."""

from common.cli import Flag, dataset_file_name, name_part, optional, seed_flag, writable_dir


def generator_flags(output_dir: str) -> list[Flag]:
    """The shared flags, with the given default folder."""
    return [
        Flag("custom_file_name", "", "name the file {TEXT}_{time}.pt", optional(name_part)),
        Flag(
            "file_name", "", "name the file exactly so; it must not exist", optional(dataset_file_name), metavar="X.pt"
        ),
        seed_flag(),
        Flag("output_dir", output_dir, "where the file is written; made if missing", writable_dir, metavar="DIR"),
    ]
