"""Which folders of earlier runs the experiments of a sweep go on in."""

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common.cli import Parameters, UserError
from common.run_files import run_parameters

# What may differ between a run and its continuation: names and places (of files, their content is compared), the seed,
# which is looked at by itself, and what is found out from the rest.
_NOT_COMPARED = {"experiment_name", "output_dir", "disable_gpu", "gpu_id", "random_seed", "unobserved_entry"}
_NOT_COMPARED |= {"dataset_path", "trainer_checkpoint", "provenance", "status"}


@dataclass(frozen=True)
class Earlier:
    """An experiment's folder of an earlier run: what its run_params.json says, of which `key` is what was run."""

    path: Path
    parameters: Mapping[str, Any]
    key: str

    @property
    def seed(self) -> int | None:
        return self.parameters.get("random_seed")

    @property
    def finished(self) -> bool:
        return bool(self.parameters["status"].get("finished"))

    @property
    def provenance(self) -> dict[str, Any]:
        return self.parameters["provenance"]

    @property
    def sweep(self) -> tuple[str, str]:
        """When its sweep began, and the sweep's id."""
        sweep = self.provenance["sweep"]
        return sweep.get("start_time") or "", str(sweep.get("id"))

    @property
    def number(self) -> int | None:
        """Its place in its sweep."""
        return self.provenance["sweep"].get("experiment")


def key_of(parameters: Mapping[str, Any], inputs: str) -> str:
    """What is run, the seed apart, in a form to be compared: runs with equal keys and seeds have equal results.
    `inputs` are the digests of the files that it reads.
    """
    compared = {name: value for name, value in parameters.items() if name not in _NOT_COMPARED}
    return json.dumps([compared, inputs], sort_keys=True)


def digest_of_inputs(parameters: Mapping[str, Any]) -> str:
    """Of the dataset, and of the checkpoint that is continued, if there is one."""
    paths = (parameters["dataset_path"], parameters["trainer_checkpoint"])
    return " ".join(digest_of_file(path) for path in paths if path)


@cache
def digest_of_file(path: str) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def digest_of_sweep(experiments: Sequence[Parameters]) -> str:
    """Two processes that run the same list of experiments have it in common."""
    digest = hashlib.sha256()
    for each in experiments:
        digest.update(key_of(each.values, digest_of_inputs(each.values)).encode())
        digest.update(str(each["random_seed"]).encode())
    return digest.hexdigest()


def earlier_runs(directory: Path) -> tuple[list[Earlier], list[str]]:
    """Those of all experiments in a folder that could be gone on with, and a line for each that is damaged. Runs of
    other code are none.
    """
    runs, problems = [], []
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.name.startswith(".") or not path.is_dir():
            continue
        try:
            parameters = run_parameters(path)
        except FileNotFoundError:
            continue
        except ValueError as error:
            problems.append(f"{path}: {error}")
            continue
        about = parameters.get("provenance") or {}
        if about.get("sweep") and about.get("inputs_sha256") and parameters.get("status"):
            runs.append(Earlier(path, parameters, key_of(parameters, str(about["inputs_sha256"]))))
    return runs, problems


def matched(experiments: Mapping[int, Parameters], runs: Sequence[Earlier]) -> dict[int, Earlier]:
    """The run that each experiment, by its place in the list from 0, goes on with; each run is used once.

    A run is of the same parameters and seed, in the newest sweep that has one; for a seed of -1, only in the newest of
    all that have the parameters. Of several, it is the one that stood at the same place of its list.
    """
    keys = {index: key_of(each.values, digest_of_inputs(each.values)) for index, each in experiments.items()}
    asked = set(keys.values())
    candidates = sorted((run for run in runs if run.key in asked), key=lambda run: run.sweep, reverse=True)
    # Of processes that were started together, each notes a time of its own, but the id is the same.
    newest = candidates[0].sweep[1] if candidates else None
    matches: dict[int, Earlier] = {}
    used: set[Path] = set()
    for same_place in (True, False):
        waiting = defaultdict(deque)
        for run in candidates:
            if run.path not in used:
                place = (run.number,) if same_place else ()
                waiting[(run.key, run.seed, *place)].append(run)
                if run.sweep[1] == newest:
                    waiting[(run.key, -1, *place)].append(run)
        for index, key in keys.items():
            if index in matches:
                continue
            place = (index + 1,) if same_place else ()
            fitting = waiting[(key, experiments[index]["random_seed"], *place)]
            while fitting and fitting[0].path in used:
                fitting.popleft()
            if fitting:
                matches[index] = fitting.popleft()
                used.add(matches[index].path)
    return matches


def held_by(other: Mapping[str, Any]) -> UserError:
    """The UserError that another process is at it."""
    return UserError(
        f"-resume: process {other['pid']} on {other['host']} has been at these experiments since "
        f"{other['start_time']}; wait until it has ended, or end it"
    )
