"""The folder of one experiment, and the files in it."""

import os
import platform
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch

import common
from common.files import remove_temporary_files, save_json, sync_directory, utc_time
from common.run_files import newest_checkpoint
from common.tensor_files import save_tensors

# The names of checkpoints; a copy of another name is the user's.
_CHECKPOINT = re.compile(r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d_epoch_\d+\.pt")
# The number of the last folder that was made here with a name.
_last_numbers: dict[Path, int] = defaultdict(int)


class ExperimentFolder:
    """A folder that exists, and is this experiment's alone. `provenance` is recorded beside the parameters."""

    def __init__(self, path: Path, parameters: dict[str, Any], provenance: dict[str, Any]):
        self.path, self._parameters, self._provenance = path, parameters, provenance
        # The number that tells it from others begun in the same second is no part of the log's name.
        name = re.sub(r"(-\d\d_\d\d_\d\d)_\d+$", r"\1", path.name)
        self._log = path / f"{name}.log"
        self._checkpoints = {each for each in path.glob("checkpoints/*.pt") if _CHECKPOINT.fullmatch(each.name)}

    def write_parameters(self, finished: bool, stop_reason: str | None, last_epoch: int) -> None:
        """Writes run_params.json: the flags, what repeats the run, and how far it got (`last_epoch` -1: nowhere)."""
        _write_parameters(self.path, self._parameters, self._provenance, finished, stop_reason, last_epoch)

    def log(self, line: str) -> None:
        """Appends a line, with the time, to the log file."""
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(f"{utc_time()} {line}\n")

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Writes a checkpoint, then removes those before it."""
        directory = self.path / "checkpoints"
        if not directory.is_dir():
            directory.mkdir()
            sync_directory(self.path)
        newest = directory / f"{utc_time()}_epoch_{state['epoch']}.pt"
        save_tensors(state, newest)
        for older in self._checkpoints - {newest}:
            older.unlink(missing_ok=True)
        self._checkpoints = {newest}

    @property
    def plots(self) -> Path:
        """The folder of the metric plots, made if missing."""
        directory = self.path / "plots"
        directory.mkdir(exist_ok=True)
        return directory


def new_folder(parameters: dict[str, Any], provenance: dict[str, Any], last_epoch: int = -1) -> ExperimentFolder:
    """Makes `{output_dir}/{experiment_name}_{time}/`, with `_2`, `_3`, … appended where that exists.

    It appears with its run_params.json in it, so that none is without, whatever happens; and no two processes get the
    same. `provenance["process"]` says which one makes it.
    """
    directory = Path(parameters["output_dir"])
    directory.mkdir(parents=True, exist_ok=True)
    making = directory / f".making_{provenance['process']}"
    making.mkdir(exist_ok=True)
    try:
        _write_parameters(making, parameters, provenance, False, None, last_epoch)
        name = directory / f"{parameters['experiment_name']}_{utc_time()}"
        while True:
            _last_numbers[name] += 1
            path = name if _last_numbers[name] == 1 else name.with_name(f"{name.name}_{_last_numbers[name]}")
            try:
                # Succeeds where nothing is in the way but an empty folder.
                os.rename(making, path)
                break
            except OSError:
                if not os.path.lexists(path):
                    raise
        sync_directory(directory)
    except BaseException:
        discard_folder(making)
        raise
    return ExperimentFolder(path, parameters, provenance)


def discard_folder(making: Path) -> None:
    """Removes what is left of a folder that was being made."""
    if making.is_dir():
        for path in making.iterdir():
            path.unlink(missing_ok=True)
        making.rmdir()


def taken_up(path: Path, parameters: dict[str, Any], provenance: dict[str, Any]) -> ExperimentFolder:
    """The folder of an experiment that goes on from its newest checkpoint, without what a crash left: files that were
    being written, and older checkpoints.
    """
    for directory in (path, path / "checkpoints", path / "plots"):
        remove_temporary_files(directory)
    newest = newest_checkpoint(path)
    for checkpoint in path.glob("checkpoints/*_epoch_*.pt"):
        if checkpoint != newest and _CHECKPOINT.fullmatch(checkpoint.name):
            checkpoint.unlink(missing_ok=True)
    return ExperimentFolder(path, parameters, provenance)


def _write_parameters(
    directory: Path,
    parameters: dict[str, Any],
    provenance: dict[str, Any],
    finished: bool,
    stop_reason: str | None,
    last_epoch: int,
) -> None:
    status = {
        "finished": finished,
        "stop_reason": stop_reason,
        "last_epoch": last_epoch if last_epoch >= 0 else None,
    }
    save_json({**parameters, "provenance": provenance, "status": status}, directory / "run_params.json")


def host_facts(device: torch.device, engine: str) -> dict[str, Any]:
    """What is needed beside the parameters to repeat a run: versions, machine, device, engine."""
    if device.type == "cuda":
        device_name = f"{device} ({torch.cuda.get_device_name(device)})"
    else:
        device_name = f"cpu ({torch.get_num_threads()} threads)"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "project": common.__version__,
        "commit": _commit(),
        "machine": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": device_name,
        "engine": engine,
        "command": sys.argv,
    }


@cache
def _commit() -> str | None:
    """The project's commit, with "-dirty" where files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
