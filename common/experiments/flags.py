"""Flags that the experiment runners for matrices and tensors share."""

from common.cli import (
    Flag,
    Parameters,
    choice,
    existing_file,
    integer,
    name_part,
    optional,
    real,
    seed_flag,
    writable_dir,
)

RESUME = Flag(
    "resume",
    False,
    "go on with what an earlier run of the same command left unfinished, and leave alone what is finished",
    switch=True,
)


def without_resume(parameters: Parameters) -> Parameters:
    """The experiment's own parameters."""
    values = {name: value for name, value in parameters.values.items() if name != RESUME.name}
    return Parameters(values, parameters.given - {RESUME.name})


def runner_flags(
    experiment_name: str,
    dataset_path: str,
    num_samples: int,
    output_dir: str,
    epochs: int,
    stop_on_zero_loss_tol: float,
    validate_every: int,
    lr: float,
) -> list[Flag]:
    """The shared flags, with the given defaults."""
    return [
        Flag("experiment_name", experiment_name, "first part of the name of the experiment's folder", name_part),
        Flag("dataset_path", dataset_path, "dataset file", existing_file, metavar="FILE"),
        Flag("num_samples", num_samples, "observe the first N samples of the dataset", integer(1)),
        seed_flag(),
        Flag("output_dir", output_dir, "where the experiment's folder is made", writable_dir, metavar="DIR"),
        Flag("file_log", False, "log to a file in the experiment's folder instead of the console", switch=True),
        Flag("store_checkpoints", False, "keep the newest checkpoint", switch=True),
        Flag("plot_metrics", False, "draw the metrics into the experiment's folder", switch=True),
        Flag("disable_gpu", False, "do not use a GPU", switch=True),
        Flag("gpu_id", 0, "which GPU to use, where there are several", integer(0)),
        Flag(
            "engine",
            "auto",
            "what takes the gradient steps: native (C, compiled at first use), torch, or auto: what is fastest",
            choice("auto", "native", "torch"),
            metavar="ENGINE",
        ),
        Flag(
            "dtype",
            "float32",
            "floating-point type: float32 or float64; a checkpoint's where one is continued",
            choice("float32", "float64"),
            metavar="TYPE",
        ),
        Flag("epochs", epochs, "gradient steps to take at most", integer(1, 2**62)),
        Flag(
            "stop_on_zero_loss_tol",
            stop_on_zero_loss_tol,
            "stop once the loss was below this at several validations in a row",
            real(0),
        ),
        Flag("validate_every", validate_every, "epochs between validations", integer(1, 2**62)),
        Flag("save_every_num_val", 5, "validations between checkpoints and metric plots", integer(1, 2**62)),
        Flag("lr", lr, "learning rate; a checkpoint's where one is continued", real(0, above=True)),
        Flag(
            "trainer_checkpoint",
            "",
            "continue from this checkpoint for -epochs more epochs",
            optional(existing_file),
            metavar="FILE",
        ),
    ]
