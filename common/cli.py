"""The command line of the scripts: argparse with one-line errors, and exit statuses.

It imports no large package, so that `-h` and errors appear at once.
"""

import argparse
import difflib
import io
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

from common.signals import Interrupted

_NEGATIVE_NUMBER = re.compile(r"^-((\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|inf|nan)$")
_HELP_WIDTH = 110
_ShortForm = argparse._StoreConstAction  # those of switches are subclasses


class UserError(Exception):
    """A mistake in the input: one line that names the flag, its value and the remedy. Exit status 2."""


class RunFailed(Exception):
    """Part of a run failed, and the rest of it is done. Exit status 1."""


def flag_error(name: str, value: Any, remedy: str) -> UserError:
    """Returns the UserError of flag `name` with `value`; a switch has the value True."""
    value = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    shown = "" if value is True else f" {value!r}" if value == "" else f" {value}"
    return UserError(f"-{name}{shown}: {remedy}")


@contextmanager
def flag_errors(name: str, value: Any, remedy: str = "", only: Any = (OSError, ValueError)) -> Iterator[None]:
    """Turns errors of the types `only` that the block raises into the UserError of flag `name` with `value`."""
    try:
        yield
    except only as error:
        problem = str(error)
        if isinstance(error, OSError):
            problem, remedy = f"cannot be read: {error.strerror}", remedy or "give a readable file"
        raise flag_error(name, value, f"{problem}; {remedy}" if remedy else problem) from None


def exclusive(parameters: Any, first: str, second: str) -> None:
    """Raises UserError if both of two flags are given."""
    if parameters[first] and parameters[second]:
        raise flag_error(second, True, f"contradicts -{first}; give only one of the two")


def default_text(action: argparse.Action) -> str:
    """Returns the default of a flag as -h shows it; "" if it has none."""
    default = action.default
    if action.required or default is None or default is argparse.SUPPRESS:
        return ""
    shown = {"": "none", "[]": "none", "False": "off"}.get(str(default), default)
    return f"{shown:g}" if isinstance(shown, float) else str(shown)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows the types and defaults of flags."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        # The check existing_file is shown as FILE.
        return getattr(action.type, "__name__", "text").rpartition("_")[2].upper()

    def _get_help_string(self, action: argparse.Action) -> str:
        default = default_text(action)
        return f"{action.help} (default: {default})" if default else action.help


class Parser(argparse.ArgumentParser):
    """An argparse.ArgumentParser for flags with one dash or two, whose errors are UserErrors.

    The group in which a runner's flag is declared says whether runs that differ in it are different runs:

    - the parser itself, and `target`: yes. -resume and plotters tell them apart.
    - `start`: yes, too. Runs that continue a checkpoint have the values of the run that they continue.
    - `inputs`: yes, if the content of the files differs.
    - `outputs`: only for -resume. Plotters pool them.
    - `places`: no.

    A flag with `action="store_const"` and the `dest` of another flag is a short form of that flag with this value. Only
    the other flag is recorded.
    """

    def __init__(self, description: str = "", epilog: str = ""):
        super().__init__(
            description=textwrap.fill(" ".join(description.split()), _HELP_WIDTH),
            epilog=epilog,
            usage="%(prog)s [flags]",
            formatter_class=lambda prog: _Formatter(prog, max_help_position=36, width=_HELP_WIDTH),
            allow_abbrev=False,
        )
        self.start = self.add_argument_group("initialization; without effect if -trainer_checkpoint is given")
        self.target = self.add_argument_group("random target; only with -random_target")
        self.inputs = self.add_argument_group("input files")
        self.outputs = self.add_argument_group("outputs, which do not change the run")
        self.places = self.add_argument_group("names, places and devices")
        # argparse's own pattern takes -2e-1 for a flag.
        self._negative_number_matcher = _NEGATIVE_NUMBER

    def parse(self, words: Sequence[str] | None = None) -> "Parameters":
        """Returns the values of all flags in `words`, by default the command line. Raises UserError; answers `-h`."""
        words, known = list(sys.argv[1:] if words is None else words), self._option_string_actions
        given, short_forms, others = set(), [], []
        for index, word in enumerate(words):
            if word[:1] != "-" or word == "-" or _NEGATIVE_NUMBER.match(word):
                others.append(word)
                continue
            flag, *value = word.split("=", 1)
            flag = flag[1:] if flag not in known and flag[1:] in known else flag
            following = "".join(f" {each}" for each in words[index + 1 : index + 2] if each[:1] != "-")
            if flag not in known:
                # argparse would take -epoch for -epochs.
                raise self._unknown_flag(flag, word + following)
            if isinstance(known[flag], _ShortForm) and (value or following):
                raise UserError(f"{word}{following}: takes no value; give {flag} alone, or leave it out")
            if type(known[flag]) is _ShortForm:
                short_forms.append(flag)
            else:
                others.append("=".join([flag, *value]))
                given.add(known[flag].dest)
        values = vars(self.parse_args(others))
        for flag in short_forms:
            name, wanted = known[flag].dest, known[flag].const
            if name in given and values[name] != wanted:
                raise UserError(f"{flag}: contradicts -{name} {values[name]}; give only one of the two")
            values[name] = wanted
            given.add(name)
        return Parameters(values, frozenset(given), self)

    def _unknown_flag(self, flag: str, shown: str) -> UserError:
        """Returns the error of an unknown flag. It suggests a flag that begins with it (-rep), that is the end of it
        (-experiment_random_seed), or that is similar, or the script that has it.
        """
        known, flag = self._option_string_actions, f"-{flag.lstrip('-')}"
        if flag in ("-plan", "-repetitions") and (kind := re.fullmatch(r"(.*)_experiment_runner.py", self.prog)):
            return UserError(f"{shown}: is a flag of {kind[1]}_multiple_experiments_runner.py; run that script")
        similar = [name for name in known if len(flag) > 1 and name.startswith(flag)]
        similar += [name for name in known if flag.endswith(f"_{name[1:]}")]
        similar += difflib.get_close_matches(flag, known, n=1)
        return UserError(f"{shown}: unknown flag; {f'did you mean {similar[0]}?' if similar else '-h lists the flags'}")

    def words(self, parameters: Mapping[str, Any]) -> list[str]:
        """Returns the command line with these `parameters`, flags and their Python values. Raises UserError."""
        words = []
        for name, value in parameters.items():
            action = self._option_string_actions.get(f"-{name}")
            is_short_form = type(action) is _ShortForm
            if action is None or (action.dest != name and not is_short_form):
                raise self._unknown_flag(f"-{name}", f"-{name} {value}")
            if action.nargs == 0:
                if not isinstance(value, bool):
                    raise flag_error(name, value, "must be True or False")
                if is_short_form and not value and parameters.get(action.dest) == action.const:
                    raise flag_error(name, value, f"contradicts -{action.dest} {action.const}; leave it out")
                words += [f"-{name}"] * value
                continue
            repeats = isinstance(action, argparse._AppendAction)
            is_nested = isinstance(value, (list, tuple)) and all(isinstance(each, (list, tuple)) for each in value)
            for each in value if repeats and is_nested else [value]:
                items = each if action.nargs and isinstance(each, (list, tuple)) else [each]
                right_number = action.nargs == "+" or len(items) == (action.nargs or 1)
                if not (right_number and all(isinstance(item, (str, Path, Real)) for item in items)):
                    wanted = f"a list of {action.nargs} values" if action.nargs else "a number or a string"
                    if repeats:
                        wanted = f"a list of lists of {action.nargs} values, such as {[[0] * action.nargs]}"
                    raise flag_error(name, [value], f"must be {wanted}")
                words += [f"-{name}", *map(str, items)] if action.nargs else [f"-{name}={each}"]
        return words

    def error(self, message: str):
        remedy = "-h lists the flags and how many values each takes"
        if stray := re.match(r"unrecognized arguments: (.*)", message):
            raise UserError(f"{stray[1]}: belongs to no flag; {remedy}") from None
        # Messages of common/flags.py begin with the value, those of argparse with one of these words.
        if checked := re.match(r"argument (-\w+): (?!expected|invalid|ignored)(.*)", message, re.DOTALL):
            raise UserError(f"{checked[1]} {checked[2]}") from None
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        similar = difflib.get_close_matches(choice[1], re.findall(r"\w+", choice[2]), n=1) if choice else []
        hint = f"did you mean {similar[0]}?" if similar else "-h lists the flags"
        raise UserError(f"{message.removeprefix('argument ')}; {hint}") from None


@dataclass(frozen=True)
class Parameters:
    """The values of all flags."""

    values: dict[str, Any]
    given: frozenset[str]  # the names of the flags that were given
    parser: Parser  # which declares them

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def names(self, *groups: str) -> list[str]:
        """Returns the sorted names of the parameters in groups of the parser: "start", "inputs", "outputs", "places",
        or "run" for the parser itself, without the seed.
        """
        known = ("start", "inputs", "outputs", "places")
        group_of = {action.dest: each for each in known for action in getattr(self.parser, each)._group_actions}
        return sorted(name for name in self.values if name != "random_seed" and group_of.get(name, "run") in groups)


@cache
def warn_once(line: str) -> None:
    """Prints a line on standard error, unless this process has printed it before."""
    print(line, file=sys.stderr, flush=True)


def print_line(line: str) -> None:
    """Prints a line on standard output. Drops it if that cannot be written to, as when `head` has closed it, so that
    files are still written.
    """
    try:
        print(line, flush=True)
    except OSError:
        # What is printed from now on is dropped, too. Otherwise Python would report it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's main function. An error is reported by one line on standard error and the exit status."""
    sys.stderr = sys.stderr or io.StringIO()  # None if the shell has closed it
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # None, or replaced
            stream.reconfigure(errors="replace")
    try:
        main()
        return
    except (UserError, RunFailed) as error:
        status, message = 2 if isinstance(error, UserError) else 1, str(error)
    except Interrupted as interruption:
        status, message = 128 + interruption.args[0], interruption.args[1]
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        status, message = 1, f"failed: {type(error).__name__}: {error} ({place})"
    print(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
