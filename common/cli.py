"""Flags of the scripts: declared once, checked the same way from the command line and from a list of experiments.

Imports nothing heavy, so that `-h` and mistakes are answered at once.
"""

import argparse
import difflib
import math
import os
import random
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

_HELP_WIDTH = 110


class UserError(Exception):
    """A mistake of the user's: one line that names the flag, its value and the remedy; exit status 2."""


class RunFailed(Exception):
    """Something went wrong while running, and everything else is done; exit status 1."""


class Interrupted(Exception):
    """A signal ended the run, after everything was saved; exit status 128 and the signal's number."""

    def __init__(self, number: int, message: str = "interrupted"):
        super().__init__(message)
        self.number = number


def flag_error(name: str, value: Any, remedy: str) -> UserError:
    """The UserError of flag `name` that was given `value`."""
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value))
    shown = f"-{name}" if isinstance(value, bool) else f"-{name} {value!r}" if value == "" else f"-{name} {value}"
    return UserError(f"{shown}: {remedy}")


@dataclass(frozen=True)
class Flag:
    """One parameter of a script.

    `check` takes a string from the command line or a Python value from a list of experiments, and returns the
    value to use or raises ValueError with what would be right. A `switch` is a flag without a value; a flag with
    `num_values` takes that many values ("+": one or more), and is repeatable where `repeatable` is set.
    """

    name: str
    default: Any
    help: str
    check: Callable[[Any], Any] = str
    switch: bool = False
    required: bool = False
    num_values: int | str | None = None
    repeatable: bool = False
    metavar: str | tuple[str, ...] | None = None

    def checked(self, value: Any) -> Any:
        """The checked value; raises UserError."""
        try:
            if self.switch:
                if not isinstance(value, bool):
                    raise ValueError("must be True or False")
                return value
            if self.num_values is None:
                return self.check(value)
            if self.repeatable:
                return [replace(self, repeatable=False).checked(each) for each in _as_list(value)]
            return self._checked_list(value)
        except ValueError as error:
            shown = str(value) if isinstance(value, bool) else value
            raise flag_error(self.name, shown, str(error)) from None
        except OSError as error:
            raise flag_error(self.name, value, f"cannot be used ({error.strerror}); give another") from None

    def _checked_list(self, values: Any) -> list:
        values = _as_list(values)
        if self.num_values != "+" and len(values) != self.num_values:
            raise ValueError(f"takes {self.num_values} values, {' '.join(self.metavar or ())}")
        return [self.check(each) for each in values]


def _as_list(value: Any) -> list:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError("must be a list")
    return list(value)


def integer(minimum: int, maximum: int | None = None) -> Callable[[Any], int]:
    """A check for integers from `minimum` to `maximum`; 1e6 and the like are integers too."""
    wanted = f"must be an integer of at least {minimum}" + ("" if maximum is None else f" and at most {maximum}")

    def check(value: Any) -> int:
        try:
            if isinstance(value, bool):
                raise ValueError
            try:
                number = int(value) if isinstance(value, (int, str)) else None
            except ValueError:
                number = None
            if number is None:
                real = float(value)
                number = int(real)
                if number != real:
                    raise ValueError
            if number < minimum or (maximum is not None and number > maximum):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise ValueError(wanted) from None
        return number

    return check


def real(minimum: float = -math.inf, above: bool = False) -> Callable[[Any], float]:
    """A check for finite numbers of at least (or, with `above`, greater than) `minimum`."""
    wanted = "must be a finite number"
    if minimum > -math.inf:
        wanted += f" {'greater than' if above else 'of at least'} {minimum:g}"

    def check(value: Any) -> float:
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(wanted) from None
        if not math.isfinite(number) or number < minimum or (above and number == minimum):
            raise ValueError(wanted)
        return number

    return check


def choice(*options: str) -> Callable[[Any], str]:
    """A check for one of a few words."""

    def check(value: Any) -> str:
        if value not in options:
            raise ValueError(f"must be one of {', '.join(options)}")
        return value

    return check


def text(value: Any) -> str:
    """A check for any string."""
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def name_part(value: Any) -> str:
    """A check for a string that can be part of the name of a file or folder."""
    value = text(value)
    if (
        not value
        or "/" in value
        or "\\" in value
        or "\0" in value
        or value.startswith(".")
        or len(os.fsencode(value)) > 150
    ):
        raise ValueError("must be part of a file's name: 1 to 150 bytes, no slashes, no dot in front")
    return value


def optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`check`, but the empty string passes too."""
    return lambda value: value if value == "" else check(value)


def dataset_file_name(value: Any) -> str:
    """A check for the exact name of a dataset file."""
    value = name_part(value)
    if not value.endswith(".pt"):
        raise ValueError("must end in .pt")
    return value


def existing_file(value: Any) -> str:
    """A check for the path of a readable file."""
    value = text(value)
    if not os.path.exists(value):
        raise ValueError("no such file; give the path of an existing one")
    if not os.path.isfile(value):
        raise ValueError("is not a file; give the path of a file")
    if not os.access(value, os.R_OK):
        raise ValueError("cannot be read; give the path of a readable file")
    return value


def existing_dir(value: Any) -> str:
    """A check for the path of a readable folder."""
    value = text(value)
    if not os.path.isdir(value):
        raise ValueError("no such folder; give the path of an existing one")
    if not os.access(value, os.R_OK | os.X_OK):
        raise ValueError("cannot be read; give the path of a readable folder")
    return value


def writable_dir(value: Any) -> str:
    """A check for a folder that exists and can be written to, or can be made. Makes nothing."""
    value = text(value)
    if not value:
        raise ValueError("must be the path of a folder")
    nearest = Path(value).absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ValueError(f"{nearest} is not a folder; give the path of one, or of one that can be made")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write in {nearest}; give a folder that can be written to")
    return value


def output_file(*endings: str) -> Callable[[Any], str]:
    """A check for the path of a file to write, with one of the endings, in a folder that exists or can be made."""
    *most, last = endings
    wanted = f"{', '.join(most)} or {last}" if most else last

    def check(value: Any) -> str:
        value = text(value)
        if Path(value).suffix.lower() not in endings:
            raise ValueError(f"must end in {wanted}")
        if Path(value).is_dir():
            raise ValueError("is a folder; give the path of a file")
        writable_dir(str(Path(value).absolute().parent))
        return value

    return check


def drawing_flags() -> list[Flag]:
    """Where a plotter's figure and its data go."""
    picture, data = optional(output_file(".png", ".pdf", ".svg")), optional(output_file(".csv"))
    return [
        Flag("plot_title", "", "title of the figure", text),
        Flag("save_plot_to", "", "write the figure to this png, pdf or svg file", picture, metavar="FILE"),
        Flag("save_data_to", "", "write what is drawn to this csv file", data, metavar="FILE"),
    ]


def seed_flag() -> Flag:
    # torch's generator on the CPU has seeds of 32 bits: larger ones would repeat the draws of others.
    return Flag("random_seed", -1, "seed; -1 draws a fresh one, which is recorded", integer(-1, 2**32 - 1))


def drawn_seed(seed: int) -> int:
    """`seed` itself, or a fresh one where it is -1."""
    return random.SystemRandom().randrange(2**31) if seed == -1 else seed


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        stray = re.match(r"unrecognized arguments: (.*)", message)
        if stray:
            raise UserError(f"{stray[1]}: belongs to no flag; -h lists the flags and how many values each takes")
        raise UserError(re.sub(r"^argument (-\w+)(/--\w+)?: ", r"\1: ", message) + "; -h lists the flags")


@dataclass(frozen=True)
class Parameters:
    """Checked values of all flags by name, and the names of those that were given rather than left at default."""

    values: dict[str, Any]
    given: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def parse_flags(
    flags: Sequence[Flag], description: str, argv: Sequence[str] | None = None, epilog: str = ""
) -> Parameters:
    """Flags from the command line, spelled with one dash or two, range-checked. `epilog` ends what `-h` shows.

    Raises UserError; answers `-h` and exits.
    """
    parser = _Parser(
        description=textwrap.fill(" ".join(description.split()), _HELP_WIDTH),
        epilog=epilog.replace("%", "%%"),
        allow_abbrev=False,
        usage="%(prog)s [flags]",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=36, width=_HELP_WIDTH
        ),
    )
    for flag in flags:
        options: dict[str, Any] = {"dest": flag.name, "default": None, "required": flag.required}
        default = "" if flag.required or flag.default is None else f" (default: {_shown_default(flag)})"
        options["help"] = f"{flag.help}{default}".replace("%", "%%")
        if flag.switch:
            options.update(action="store_true")
        else:
            options.update(metavar=flag.metavar or _metavar(flag), action="append" if flag.repeatable else "store")
            if flag.num_values is not None:
                options["nargs"] = flag.num_values
        parser.add_argument(f"-{flag.name}", f"--{flag.name}", **options)
    argv = sys.argv[1:] if argv is None else argv
    _refuse_unknown(argv, [option for action in parser._actions for option in action.option_strings])
    # A blank in front keeps argparse from taking a negative number such as -2e-1 for a flag.
    found = vars(parser.parse_args([f" {word}" if _is_negative_number(word) else word for word in argv]))
    given = {name: _unblank(value) for name, value in found.items() if value is not None}
    return check_parameters(flags, given)


def _refuse_unknown(argv: Sequence[str], known: Sequence[str]) -> None:
    """Raises UserError for a flag that is none; argparse would take -epoch for -epochs."""
    for word, following in pairwise([*argv, ""]):
        name = word.split("=")[0]
        if len(word) > 1 and word.startswith("-") and not _is_negative_number(word) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "-h lists the flags"
            value = "" if following.startswith("-") else f" {following}"
            raise UserError(f"{word}{value}: unknown flag; {hint}")


def _metavar(flag: Flag) -> str:
    return {int: "N", float: "X"}.get(type(flag.default), "TEXT")


def _shown_default(flag: Flag) -> str:
    if flag.switch:
        return "off"
    if flag.default in ("", []):
        return "none"
    return f"{flag.default:g}" if isinstance(flag.default, float) else str(flag.default)


def _is_negative_number(word: str) -> bool:
    if not word.startswith("-"):
        return False
    try:
        float(word)
    except ValueError:
        return False
    return True


def _unblank(value: Any) -> Any:
    if isinstance(value, list):
        return [_unblank(each) for each in value]
    return value[1:] if isinstance(value, str) and value.startswith(" -") else value


def check_parameters(flags: Iterable[Flag], given: Mapping[str, Any]) -> Parameters:
    """Defaults of `flags` overridden by `given`, all checked. Raises UserError, with a hint for a misspelt name."""
    flags = {flag.name: flag for flag in flags}
    for name in given:
        if name not in flags:
            close = difflib.get_close_matches(str(name), flags, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(flags)}"
            raise UserError(f"unknown parameter {name!r} (value {given[name]!r}): {hint}")
    values = {name: flags[name].checked(value) for name, value in given.items()}
    for name, flag in flags.items():
        if name not in given:
            # A default may have been edited, or name a file that is not here.
            values[name] = flag.default if flag.default is None else flag.checked(flag.default)
    return Parameters(values, frozenset(given))


def exclusive(parameters: Parameters, first: str, second: str) -> None:
    """Raises UserError where both of two switches are on."""
    if parameters[first] and parameters[second]:
        raise flag_error(second, True, f"contradicts -{first}; give only one of the two")


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's main function: one line on standard error and a status for what goes wrong."""
    script = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        _fail(script, str(error), 2)
    except Interrupted as interruption:
        _fail(script, str(interruption), 128 + interruption.number)
    except KeyboardInterrupt:
        _fail(script, "interrupted; what was written so far is kept", 130)
    except RunFailed as error:
        _fail(script, str(error), 1)
    except BrokenPipeError:
        # Who read what this says has gone. Python would complain about it once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(script, "failed: standard output was closed", 1)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        _fail(script, f"failed: {type(error).__name__}: {error} ({place})", 1)


def _fail(script: str, message: str, status: int) -> None:
    print(f"{script}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
