"""The folder of an experiment in training."""

import os
import platform
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch

import common
from common.files import remove_temporary_files, save_json, sync_directory, utc_time
from common.recorded_runs import newest_checkpoint
from common.sweeps.processes import discard
from common.tensor_files import save_tensors

# The names of checkpoints. Files with other names are the user's.
_CHECKPOINT = re.compile(r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d_epoch_\d+\.pt")
# The number of the last folder that this process made with a name.
_last_numbers: dict[Path, int] = defaultdict(int)


@dataclass
class ExperimentFolder:
    """A folder to which nothing else writes. It records `parameters` and `provenance`, which repeat the run."""

    path: Path
    parameters: dict[str, Any]
    provenance: dict[str, Any]

    def write_parameters(self, finished: bool, stop_reason: str | None, last_epoch: int) -> None:
        """Writes run_params.json: the flags, what repeats the run, and how far it is (`last_epoch` -1: nowhere)."""
        last = last_epoch if last_epoch >= 0 else None
        status = {"finished": finished, "stop_reason": stop_reason, "last_epoch": last}
        content = {**self.parameters, "provenance": self.provenance, "status": status}
        save_json(content, self.path / "run_params.json")

    def log(self, *lines: str) -> None:
        """Appends lines, with the time, to the log file, if there is one."""
        if self.parameters["file_log"]:
            # The number that tells it from others begun in the same second is not part of the log's name.
            name = re.sub(r"(-\d\d_\d\d_\d\d)_\d+$", r"\1", self.path.name)
            with open(self.path / f"{name}.log", "a", encoding="utf-8") as file:
                file.writelines(f"{utc_time()} {line}\n" for line in lines)

    def write_checkpoint(self, content: dict[str, Any]) -> None:
        """Writes a checkpoint, then removes those before it."""
        directory = self.path / "checkpoints"
        if not directory.is_dir():
            directory.mkdir()
            sync_directory(self.path)
        newest = directory / f"{utc_time()}_epoch_{content['epoch']}.pt"
        save_tensors(content, newest)
        self.remove_checkpoints(but=newest)

    def remove_checkpoints(self, but: Path | None) -> None:
        """Removes all checkpoints but one."""
        for path in self.path.glob("checkpoints/*_epoch_*.pt"):
            if path != but and _CHECKPOINT.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def plots(self) -> Path:
        """The folder of the plots of the metrics, made if missing."""
        directory = self.path / "plots"
        directory.mkdir(exist_ok=True)
        return directory


def new_folder(
    parameters: dict[str, Any], provenance: dict[str, Any], making: str, last_epoch: int = -1
) -> ExperimentFolder:
    """Makes `{output_dir}/{experiment_name}_{time}/`, with `_2`, `_3`, … appended if that exists.

    It appears with its run_params.json in it, so that no folder is without, whatever happens; and no two processes get
    the same one. `making` is the name that it has before, which no other process uses.
    """
    directory = Path(parameters["output_dir"])
    directory.mkdir(parents=True, exist_ok=True)
    folder = ExperimentFolder(directory / making, parameters, provenance)
    try:
        discard(folder.path)
        folder.path.mkdir()
        folder.write_parameters(False, None, last_epoch)
        name = directory / f"{parameters['experiment_name']}_{utc_time()}"
        while True:
            _last_numbers[name] += 1
            path = name if _last_numbers[name] == 1 else name.with_name(f"{name.name}_{_last_numbers[name]}")
            try:
                # Succeeds unless something else than an empty folder has this name.
                folder.path = folder.path.rename(path)
                break
            except OSError:
                if not os.path.lexists(path):
                    raise
        sync_directory(directory)
    except BaseException:
        discard(directory / making)
        raise
    return folder


def reopen_folder(
    path: Path, parameters: dict[str, Any], provenance: dict[str, Any], last_epoch: int
) -> ExperimentFolder:
    """Reopens the folder of an experiment that continues from its newest checkpoint. Removes what a crash left in it:
    unfinished files, and older checkpoints.
    """
    folder = ExperimentFolder(path, parameters, provenance)
    for directory in (path, path / "checkpoints", path / "plots"):
        remove_temporary_files(directory)
    folder.remove_checkpoints(but=newest_checkpoint(path))
    folder.write_parameters(False, None, last_epoch)
    return folder


def host_facts(device: torch.device, engine: str) -> dict[str, Any]:
    """What repeats a run besides its parameters: versions, machine, device, engine."""
    cpu = f"cpu ({torch.get_num_threads()} threads)"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "project": common.__version__,
        "commit": _commit(),
        "machine": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else cpu,
        "engine": engine,
        "command": sys.argv,
    }


@cache
def _commit() -> str | None:
    """The project's commit, with "-dirty" if files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        if (root / ".git").exists():
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return None
