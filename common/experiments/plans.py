"""Plans: lists of experiments, each list with a folder and a figure of its own."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from common.cli import Flag, Parameters, UserError, check_parameters, choice, integer, optional, seed_flag
from common.experiments.flags import RESUME

_PROJECT = Path(__file__).parents[2]
_ALL = "all"
_REPETITIONS = Flag("repetitions", 1, "runs of each experiment, with seeds N, N + 1, …", integer(1), metavar="N")


@dataclass(frozen=True)
class Plan:
    """Experiments that are drawn together.

    Attributes
    ----------
    about : what it shows, in a line.
    experiments : for each a dictionary of the flags of the experiment's runner.
    plot : what the command that draws them has beside folder and file, as it is typed in a shell.
    repetitions : how often each experiment is run. Repetition k of one with seed N has the seed N + k.
    """

    about: str
    experiments: Sequence[Mapping[str, Any]]
    plot: str = ""
    repetitions: int = 1


@dataclass(frozen=True)
class Job:
    """A plan to be run now: what to say first, its checked experiments, and the command that draws them."""

    heading: str
    experiments: list[Parameters]
    plot_command: str


def combinations(base: Mapping[str, Any], options: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """`base` with every combination of the values of `options`, the last option varying fastest."""
    return [{**base, **dict(zip(options, values, strict=True))} for values in product(*options.values())]


def plan_flags(flags: Sequence[Flag], plans: Mapping[str, Plan]) -> list[Flag]:
    """The flags of a script that runs plans of experiments that `flags` describe: one that is given holds for all."""
    particular = {
        "random_seed": "added to the seeds of all experiments; -1 draws fresh ones, which are recorded",
        "output_dir": "where the experiments' folders are made; with -plan all, in a folder for each plan",
    }
    return [
        Flag(
            "plan",
            "",
            "run this plan (see below), or all, in place of the default",
            optional(choice(*plans, _ALL)),
            metavar="NAME",
        ),
        *(
            replace(
                flag,
                default=None,
                help=particular.get(flag.name, f"{flag.help}; for every experiment (default: as listed)"),
            )
            for flag in flags
        ),
        replace(_REPETITIONS, default=None, help=f"{_REPETITIONS.help} (default: as listed)"),
        RESUME,
    ]


def plans_help(plans: Mapping[str, Plan]) -> str:
    """A line for each plan."""
    for name, plan in plans.items():
        if not isinstance(plan, Plan):
            raise UserError(f"plan {name}: is a {type(plan).__name__}; must be Plan(about, experiments)")
    lines = {**{name: plan.about for name, plan in plans.items()}, _ALL: "every plan, one after the other"}
    width = max(map(len, lines))
    return "\n".join(["plans:", *(f"  {name:<{width}}  {about}" for name, about in lines.items())])


def planned_jobs(
    flags: Sequence[Flag],
    default: Plan,
    plans: Mapping[str, Plan],
    given: Parameters,
    directory: str,
    plotter: str,
    name: Callable[[Parameters], str],
) -> list[Job]:
    """What the command line (`plan_flags`) asks for, checked: `default` where it names no plan.

    A plan's experiments go into a folder of its name in `directory`, the default's where they say themselves;
    `-output_dir` overrides both. `plotter` is the script that draws them. `name` makes the names of the experiments
    that have none.

    Raises UserError that says which experiment it is about.
    """
    overriding = {flag.name: given[flag.name] for flag in flags if flag.name in given.given}
    if not given["plan"]:
        return [_job("", default, flags, given, overriding, plotter, name)]
    jobs = []
    for plan_name in plans if given["plan"] == _ALL else [given["plan"]]:
        folder = overriding.get("output_dir", f"{directory}/{plan_name}")
        if given["plan"] == _ALL and "output_dir" in overriding:
            folder = f"{folder}/{plan_name}"
        here = {**overriding, "output_dir": folder}
        jobs.append(_job(plan_name, plans[plan_name], flags, given, here, plotter, name))
    return jobs


def _job(
    plan_name: str,
    plan: Plan,
    flags: Sequence[Flag],
    given: Parameters,
    overriding: Mapping[str, Any],
    plotter: str,
    name: Callable[[Parameters], str],
) -> Job:
    of_plan = f"plan {plan_name}: " if plan_name else ""
    if isinstance(plan.experiments, str) or not isinstance(plan.experiments, Sequence):
        raise UserError(f"{of_plan}its experiments are {plan.experiments!r}; must be a list of dictionaries")
    try:
        plot = shlex.split(str(plan.plot))
    except ValueError as error:
        raise UserError(f"{of_plan}its plot is {plan.plot!r} ({error}); must be as typed in a shell") from None
    fixed = {flag: value for flag, value in overriding.items() if flag != "random_seed"}
    # A plan may have been edited.
    repetitions = given["repetitions"] or _REPETITIONS.checked(plan.repetitions)
    checked = []
    for number, experiment in enumerate(plan.experiments, start=1):
        try:
            if not isinstance(experiment, Mapping):
                raise UserError(f"{experiment!r}: must be a dictionary of flags and values")
            parameters = check_parameters(flags, {**experiment, **fixed})
            seed = parameters["random_seed"]
            if "random_seed" in overriding:
                shift = overriding["random_seed"]
                seed = shift if min(seed, shift) < 0 else seed + shift
            if seed >= 0:
                seed_flag().checked(seed + repetitions - 1)
        except UserError as error:
            of_plan = f" of plan {plan_name}" if plan_name else ""
            raise UserError(f"experiment {number} of the list{of_plan}: {error}") from None
        values = dict(parameters.values)
        if "experiment_name" not in parameters.given:
            values["experiment_name"] = name(parameters)
        for repetition in range(repetitions):
            values["random_seed"] = seed + repetition if seed >= 0 else seed
            checked.append(Parameters(dict(values), parameters.given))
    if not checked:
        raise UserError(f"the list{f' of plan {plan_name}' if plan_name else ''} is empty: write experiments into it")
    folder = checked[0]["output_dir"]
    drawn = ["-experiments_dir", folder, *plot, "-save_plot_to", f"{folder.rstrip('/')}.png"]
    command = shlex.join(["python", os.path.relpath(_PROJECT / plotter), *drawn])
    return Job(f"plan {plan_name}: {plan.about}" if plan_name else "", checked, command)
