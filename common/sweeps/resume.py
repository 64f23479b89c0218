"""What makes a run the same as another one, and the folders of earlier runs in which -resume continues."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.cli import Parameters, flag_errors
from common.files import sha256_of_file
from common.recorded_runs import RecordedRun, canonical, read_run


@dataclass(frozen=True)
class Identity:
    """What makes a run the same as another one: `key`. `group` is what it does, without the seed, and `record` is how
    the folder records it (see `RecordedRun.identity`).
    """

    group: str
    record: dict[str, Any]

    @property
    def key(self) -> tuple[str, int, int]:
        return self.group, self.record["seed"], self.record["occurrence"]


def identities(experiments: Sequence[Parameters], values: Sequence[Mapping[str, Any]]) -> list[Identity]:
    """The identities of a list of experiments, from what the flags declare (see `Parser`) and from their `values`,
    which may be those of a checkpoint. Raises UserError if an input file cannot be read.
    """
    equal: Counter = Counter()
    found = []
    for parameters, resolved in zip(experiments, values, strict=True):
        inputs = {}
        for name in parameters.names("inputs"):
            if resolved[name]:
                with flag_errors(name, resolved[name]):
                    inputs[name] = sha256_of_file(resolved[name])
        record = {"run": parameters.names("run"), "outputs": parameters.names("outputs"), "inputs": inputs}
        group = canonical([{name: resolved[name] for name in (*record["run"], *record["outputs"])}, inputs])
        seed = parameters["random_seed"]
        key = group, seed, Path(resolved["output_dir"]).resolve()
        equal[key] += 1
        found.append(Identity(group, {**record, "seed": seed, "occurrence": equal[key]}))
    return found


def previous_runs(directory: Path) -> tuple[list[RecordedRun], list[str]]:
    """The runs in a folder that could be continued, and a line for each that is damaged. Those of other code are
    ignored.
    """
    runs, problems = [], []
    for path in sorted(each for each in directory.glob("[!.]*") if each.is_dir()):
        try:
            run = read_run(path)
        except ValueError as error:
            problems.append(f"{path}: {error}")
            continue
        if run.sweep and run.status and run.inputs and run.parameters.get("random_seed") is not None:
            runs.append(run)
    return runs, problems


def match_previous_runs(
    wanted: Mapping[int, Identity], runs: Sequence[RecordedRun], parameters: Parameters
) -> dict[int, RecordedRun]:
    """The run that each experiment continues, by its index in the list: the newest with the same key.

    `parameters` declare the flags: a run that was recorded before a flag existed has its default.
    """
    asked = {name for identity in wanted.values() for name in (*identity.record["run"], *identity.record["outputs"])}
    table: dict[tuple, RecordedRun] = {}
    equal: Counter = Counter()
    for run in sorted(runs, key=lambda run: run.order):
        names = asked.union(run.identity.get("run", ()), run.identity.get("outputs", ()))
        compared = {name: run.parameters.get(name, parameters.parser.get_default(name)) for name in names}
        group = canonical([compared, run.inputs])
        # A folder without an identity may be of a list with this seed, or with -1.
        for seed in [run.identity.get("seed")] if run.identity else [run.parameters["random_seed"], -1]:
            equal[run.sweep.get("id"), group, seed] += 1
            table[group, seed, run.identity.get("occurrence", equal[run.sweep.get("id"), group, seed])] = run
    matches: dict[int, RecordedRun] = {}
    taken: set[Path] = set()
    for index, identity in wanted.items():
        run = table.get(identity.key)
        if run is not None and run.path not in taken:
            matches[index] = run
            taken.add(run.path)
    return matches
