"""Plans: lists of experiments, each list with a folder and a figure of its own."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from common.cli import Parameters, Parser, UserError, default_text, flag_error
from common.flags import LARGEST_SEED, add_resume_flag, integer

_PROJECT = Path(__file__).parents[2]
_ALL = "all"


@dataclass(frozen=True)
class Plan:
    """Experiments that are plotted together."""

    about: str  # one line
    experiments: Sequence[Mapping[str, Any]]  # for each the flags of the experiment's runner
    plot: str = ""  # further arguments of the command that plots them, as they are typed in a shell
    labels: str = ""  # the same, for titles and names that are true only of the experiments as listed
    repetitions: int = 1  # repetition k of an experiment with seed N has the seed N + k


@dataclass(frozen=True)
class Job:
    """A plan whose experiments have been checked."""

    heading: str  # printed before it runs
    experiments: list[Parameters]
    plot_command: str  # printed after it has run


def combinations(base: Mapping[str, Any], options: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns `base` with every combination of the values of `options`, lists or single values. The last option varies
    fastest.
    """
    values = [each if isinstance(each, (list, tuple)) else [each] for each in options.values()]
    return [{**base, **dict(zip(options, each, strict=True))} for each in product(*values)]


def log_spaced(begin: float, end: float, number: int) -> list[float]:
    """Returns log-spaced numbers from `begin` to `end`, rounded to two digits."""
    return [float(f"{begin * (end / begin) ** (k / (number - 1)):.2g}") for k in range(number)]


def plans_parser(description: str, plans: Mapping[str, Plan], add_experiment_flags: Callable[[Parser], None]) -> Parser:
    """Returns the parser of a script that runs plans. It has the flags of an experiment, for all experiments."""
    lines = {**{name: getattr(plan, "about", "") for name, plan in plans.items()}, _ALL: "every plan, one by one"}
    width = max(map(len, lines))
    parser = Parser(description, "\n".join(["plans:", *(f"  {name:<{width}}  {text}" for name, text in lines.items())]))
    add_experiment_flags(parser)
    own_help = {
        "random_seed": "added to the seeds of all experiments; -1 draws fresh ones, which are recorded",
        "output_dir": "where the experiments' folders are made (default: as listed, or a folder for each plan)",
        "experiment_name": "first part of the folders' names (default: as listed, or made from the parameters)",
    }
    for action in parser._actions:
        if action.dest in own_help:
            action.help, action.default = own_help[action.dest], None
        elif default := default_text(action):
            action.help, action.default = f"{action.help} (default: as listed, else {default})", None
    text = "run this plan (see below), or all, instead of the default"
    parser.add_argument("-plan", choices=list(lines), default="", metavar="NAME", help=text)
    text = "runs of each experiment, with seeds N, N + 1, … (default: as listed)"
    parser.add_argument("-repetitions", type=integer(1, 10**7), help=text)
    add_resume_flag(parser)
    return parser


def planned_jobs(
    command: Parameters,
    add_experiment_flags: Callable[[Parser], None],
    plans: Mapping[str, Plan],
    directory: str,
    plotter: str,
    name: Callable[[Parameters], str],
) -> list[Job]:
    """Returns the jobs that the command line of `plans_parser` asks for: the plan called "" if it names none.

    `name` names experiments without a name, and `plotter` is the script that plots them. The output folder is
    `-output_dir`, else `directory`/plan; for the plan "", that of each experiment. Raises UserError.
    """
    parser = Parser()
    add_experiment_flags(parser)
    overriding = {flag: command[flag] for flag in command.given - {"plan", "repetitions", "resume"}}
    jobs, all_plans = [], command["plan"] == _ALL
    for plan_name in filter(None, plans) if all_plans else [command["plan"]]:
        plan, here = plans[plan_name], dict(overriding)
        of_plan = f" of plan {plan_name}" if plan_name else ""
        if all_plans or (plan_name and "output_dir" not in overriding):
            here["output_dir"] = f"{overriding.get('output_dir', directory)}/{plan_name}"
        listed = getattr(plan, "experiments", None)
        if not (isinstance(listed, (list, tuple)) and listed and all(isinstance(each, Mapping) for each in listed)):
            raise UserError(f"the list{of_plan} is {plan!r:.100}: must be a Plan of a list of dictionaries of flags")
        run = {flag: overriding[flag] for flag in command.names("run", "start", "inputs") if flag in overriding}
        changed = any(each.get(flag, value) != value for each in plan.experiments for flag, value in run.items())
        plot = shlex.split(plan.plot) + ([] if changed else shlex.split(plan.labels))
        experiments = []
        for number, experiment in enumerate(plan.experiments, start=1):
            try:
                experiments += _repeated(parser, experiment, here, command["repetitions"] or plan.repetitions, name)
            except UserError as error:
                raise UserError(f"experiment {number} of the list{of_plan}: {error}") from None
        folder = experiments[0]["output_dir"]
        arguments = ["-experiments_dir", folder, *plot, "-save_plot_to", f"{folder.rstrip('/')}.png"]
        plot_command = shlex.join(["python", os.path.relpath(_PROJECT / plotter), *arguments])
        jobs.append(Job(f"plan {plan_name}: {plan.about}" if plan_name else "", experiments, plot_command))
    return jobs


def _repeated(
    parser: Parser,
    experiment: Mapping[str, Any],
    overriding: Mapping[str, Any],
    repetitions: int,
    name: Callable[[Parameters], str],
) -> list[Parameters]:
    """Returns the parameters of each repetition of an experiment. Raises UserError."""
    flags = {**experiment, **{flag: value for flag, value in overriding.items() if flag != "random_seed"}}
    if flags.get("experiment_name") == "":  # no name, in lists for the original code
        del flags["experiment_name"]
    parameters = parser.parse(parser.words(flags))
    seed = parameters["random_seed"]
    if (shift := overriding.get("random_seed")) is not None:
        seed = shift if min(seed, shift) < 0 else seed + shift
    if seed + repetitions - 1 > LARGEST_SEED:
        raise flag_error("random_seed", seed + repetitions - 1, f"must be at most {LARGEST_SEED}")
    made_name, repeated = None if "experiment_name" in parameters.given else name(parameters), []
    for own_seed in range(seed, seed + repetitions) if seed >= 0 else [seed] * repetitions:
        values = {**parameters.values, "random_seed": own_seed}
        if made_name:
            is_one = repetitions == 1 or seed < 0
            values["experiment_name"] = made_name if is_one else f"{made_name}_seed_{own_seed}"
        repeated.append(replace(parameters, values=values))
    return repeated
