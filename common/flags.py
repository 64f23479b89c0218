"""Checks of flags' values (`type=` of argparse), and the flags that several scripts share."""

import argparse
import math
import os
import random
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import wraps
from pathlib import Path
from typing import Any

from common.cli import Parser

# The seeds of torch's CPU generator have 32 bits: larger ones repeat the draws of others.
LARGEST_SEED = 2**32 - 1
_PROJECT = Path(__file__).parents[1]
# The values of -optimizer, and the classes in common/training/optimizers.py that they stand for.
OPTIMIZERS = {"gd": "GradientDescent", "momentum": "Momentum", "muon": "Muon", "adam": "Adam"}
OPTIMIZERS |= {"group_rmsprop": "GroupRMSprop"}


def require(holds: Any, value: str, problem: str) -> None:
    """Raises the error of a check unless `holds`."""
    if not holds:
        raise argparse.ArgumentTypeError(f"{value or repr(value)}: {problem}")


def integer(minimum: int, maximum: float = math.inf) -> Callable[[str], int]:
    """Returns a check for integers from `minimum` to `maximum`, which may be written like 1e6."""
    wanted = f"must be an integer of at least {minimum}" + (f" and at most {maximum}" if maximum < math.inf else "")

    def integer(value: str) -> int:
        try:
            number = Decimal(value)
            number = int(number) if number.adjusted() < 100 and number == number.to_integral_value() else math.nan
        except (ArithmeticError, ValueError):
            number = math.nan
        require(minimum <= number <= maximum, value, wanted)
        return number

    return integer


def real(minimum: float = -math.inf, above: bool = False, below: float = math.inf) -> Callable[[str], float]:
    """Returns a check for finite numbers of at least (with `above`: greater than) `minimum`, and less than `below`."""
    bound = f" {'greater than' if above else 'of at least'} {minimum:g}" if minimum > -math.inf else ""
    bound += f" and less than {below:g}" if below < math.inf else ""

    def real(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        within = number > minimum if above else number >= minimum
        require(math.isfinite(number) and within and number < below, value, f"must be a finite number{bound}")
        return number

    return real


def part_of_name(value: str) -> str:
    """Checks a string that becomes part of the name of a file or folder."""
    plain = value.isprintable() and value and not {"/", "\\"} & set(value) and not value.startswith(".")
    problem = "must be part of a file name: 1 to 150 bytes, printable, no slashes, no leading dot"
    require(plain and len(os.fsencode(value)) <= 150, value, problem)
    return value


def existing_file(value: str) -> str:
    """Checks the path of a regular file."""
    return _existing(value, os.path.isfile, "file", "a regular file")


def checkpoint_file(value: str) -> str:
    """Checks the path of a checkpoint to plot."""
    require(not os.path.isdir(value), value, "is a folder; give a checkpoint file, or the folder to -experiments_dir")
    return existing_file(value)


def existing_dir(value: str) -> str:
    """Checks the path of a folder."""
    return _existing(value, os.path.isdir, "folder", "a folder")


def _existing(value: str, holds: Callable[[str], bool], name: str, wanted: str) -> str:
    remedy = "give the path of an existing one"
    if value and os.path.exists(_PROJECT / value):
        # Such as the default dataset, when the script is run from elsewhere.
        remedy = f"run from the repository's root, {_PROJECT}, or {remedy}"
    require(os.path.exists(value), value, f"no such {name}; {remedy}")
    require(holds(value), value, f"is not {wanted}; give the path of one")
    return value


def writable_dir(value: str) -> str:
    """Checks the path of a folder that can be written to or made. Makes nothing."""
    require(value, value, "give the path of a folder")
    _require_writable(value, value)
    return value


def _require_writable(directory: str, value: str) -> None:
    nearest = Path(directory).absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    problem = f"{nearest} is not a folder; give the path of one, or of one that can be made"
    require(os.path.isdir(nearest), value, problem)
    problem = f"cannot write in {nearest}; give a folder that can be written to"
    require(os.access(nearest, os.W_OK | os.X_OK), value, problem)


def output_file(*endings: str) -> Callable[[str], str]:
    """Returns a check for the path of a file to write with one of `endings`, in a folder that exists or can be made."""

    def output_file(value: str) -> str:
        require(Path(value).suffix.lower() in endings, value, f"must end in {' or '.join(endings)}")
        require(not os.path.isdir(value), value, "is a folder; give the path of a file")
        # The name of the temporary file is longer.
        require(len(os.fsencode(Path(value).name)) <= 240, value, "give a name of at most 240 bytes")
        _require_writable(os.path.dirname(value), value)
        return value

    return output_file


def optional(check: Callable[[str], str]) -> Callable[[str], str]:
    """Returns a check that also accepts the empty string."""

    @wraps(check)
    def optional(value: str) -> str:
        return value and check(value)

    return optional


def drawn_seed(seed: int) -> int:
    """Returns `seed`, or a random seed if it is -1."""
    return random.SystemRandom().randrange(2**31) if seed == -1 else seed


def add_seed_flag(parser: Parser) -> None:
    """Adds -random_seed."""
    text = "seed; -1 draws a fresh one, which is recorded"
    parser.add_argument("-random_seed", type=integer(-1, LARGEST_SEED), default=-1, help=text)


def add_runner_flags(parser: Parser, not_offered: Sequence[str] = (), **defaults: Any) -> None:
    """Adds the flags that both experiment runners share, with these defaults; optimizers in `not_offered` are not
    choices of -optimizer.
    """
    many = integer(1, 2**62)
    add = parser.add_argument
    add("-num_samples", type=integer(1), help="observe the first N samples of the dataset")
    add_seed_flag(parser)
    add("-epochs", type=many, help="maximum number of gradient steps")
    add("-lr", type=real(0, above=True), help="learning rate; see -trainer_checkpoint")
    text = "gd (plain gradient descent), or another optimizer; momentum and adam are those of torch.optim"
    choices = [name for name in OPTIMIZERS if name not in not_offered]
    add("-optimizer", choices=choices, default="gd", help=text)
    text = "momentum coefficient, used only with -optimizer momentum or muon; see -trainer_checkpoint"
    add("-momentum", type=real(0, below=1), default=0.9, help=text)
    text = "L2 penalty coefficient, as in torch.optim; see -trainer_checkpoint"
    add("-weight_decay", type=real(0), default=0.0, help=text)
    text = "stop once the loss is below this at several validations in a row"
    add("-stop_on_zero_loss_tol", type=real(0), help=text)
    add("-validate_every", type=many, help="epochs between validations")
    text = "floating-point type; see -trainer_checkpoint"
    add("-dtype", choices=["float32", "float64"], default="float32", help=text)
    text = "engine for the gradient steps: native (C, compiled at first use), torch, or auto (the faster of the two)"
    add("-engine", choices=["auto", "native", "torch"], default="auto", help=text)

    add = parser.inputs.add_argument
    add("-dataset_path", type=existing_file, help="dataset file")
    text = "instead of -dataset_path: draw the target and the order of its entries from the seed; see the flags below"
    parser.add_argument("-random_target", action="store_true", help=text)
    text = "continue from this checkpoint for -epochs more epochs; its -lr, -momentum, -weight_decay and -dtype "
    text += "hold unless they are given"
    add("-trainer_checkpoint", type=optional(existing_file), default="", help=text)

    add = parser.outputs.add_argument
    add("-file_log", action="store_true", help="log to a file in the experiment's folder instead of the console")
    add("-store_checkpoints", action="store_true", help="keep the newest checkpoint")
    add("-plot_metrics", action="store_true", help="plot the metrics in the experiment's folder")
    text = "record the largest eigenvalue of the loss's Hessian at every validation"
    add("-track_sharpness", action="store_true", help=text)
    text = "validations between checkpoints, and between plots of the metrics"
    add("-save_every_num_val", type=many, default=5, help=text)

    add = parser.places.add_argument
    add("-experiment_name", type=part_of_name, help="first part of the folder's name")
    add("-output_dir", type=writable_dir, help="where the experiment's folder is made")
    add("-disable_gpu", action="store_true", help="do not use a GPU")
    add(
        "-gpu_id",
        type=integer(0),
        default=0,
        help="which GPU to use, counted from 0; the CPU is used where there is none",
    )
    parser.set_defaults(**defaults)


def add_resume_flag(parser: Parser) -> None:
    """Adds -resume."""
    text = "continue an earlier run of the same command; finished experiments are not run again"
    parser.add_argument("-resume", action="store_true", help=text)
