"""The folder of an experiment in training."""

import platform
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy
import torch

import common
from common.files import json_bytes, remove_temporary_files, utc_time, write_atomically
from common.recorded_runs import newest_checkpoint
from common.tensor_files import tensor_bytes

# The numbers that are left for folders with a name: to try all of them again for each of thousands would take long.
_numbers: defaultdict[Path, Iterator[int]] = defaultdict(lambda: count(1))


@dataclass
class ExperimentFolder:
    """A folder to which nothing else writes. It records `parameters` and `provenance`, to repeat the run."""

    path: Path
    parameters: dict[str, Any]
    provenance: dict[str, Any]

    def write(self, name: str, content: bytes) -> None:
        """Writes a file."""
        write_atomically(self.path / name, content)

    def write_parameters(
        self, finished: bool, stop_reason: str | None, last_epoch: int, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Writes run_params.json: the flags, the provenance, the progress (`last_epoch` -1: not begun), and at the end
        the last value of each metric.
        """
        last = last_epoch if last_epoch >= 0 else None
        status: dict[str, Any] = {"finished": finished, "stop_reason": stop_reason, "last_epoch": last}
        if metrics is not None:
            status["metrics"] = metrics
        content = {**self.parameters, "provenance": self.provenance, "status": status}
        self.write("run_params.json", json_bytes(content))

    def log(self, *lines: str) -> None:
        """Appends lines, with the time, to the log file, if there is one."""
        if self.parameters["file_log"]:
            # The number that tells it from others begun in the same second is not part of the log's name.
            name, now = re.sub(r"(-\d\d_\d\d_\d\d)_\d+$", r"\1", self.path.name), utc_time()
            with open(self.path / f"{name}.log", "a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines([f"{now} {line}\n" for line in lines])

    def write_checkpoint(self, content: dict[str, Any]) -> None:
        """Writes a checkpoint, and removes the others."""
        directory, name = self.path / "checkpoints", f"{utc_time()}_epoch_{content['epoch']}.pt"
        directory.mkdir(exist_ok=True)
        self.write(f"checkpoints/{name}", tensor_bytes(content))
        self.remove_checkpoints_but(directory / name)

    def remove_checkpoints_but(self, kept: Path | None) -> None:
        """Removes the checkpoints but one."""
        for path in self.path.glob("checkpoints/????_??_??-??_??_??_epoch_*.pt"):  # others are the user's
            if path != kept:
                path.unlink(missing_ok=True)


def new_folder(parameters: dict[str, Any], provenance: dict[str, Any], last_epoch: int = -1) -> ExperimentFolder:
    """Makes the folder `{output_dir}/{experiment_name}_{time}`, with `_2`, … appended if that exists."""
    name = Path(parameters["output_dir"]) / f"{parameters['experiment_name']}_{utc_time()}"
    for number in _numbers[name]:
        path = name if number == 1 else name.with_name(f"{name.name}_{number}")
        with suppress(FileExistsError):
            path.mkdir()
            break
    folder = ExperimentFolder(path, parameters, provenance)
    folder.write_parameters(False, None, last_epoch)
    return folder


def reopen_folder(
    path: Path, parameters: dict[str, Any], provenance: dict[str, Any], last_epoch: int
) -> ExperimentFolder:
    """Reopens the folder of an experiment that continues. Removes the temporary files that a crash left in it."""
    folder = ExperimentFolder(path, parameters, provenance)
    for directory in (path, path / "checkpoints", path / "plots"):
        remove_temporary_files(directory)
    folder.remove_checkpoints_but(newest_checkpoint(path))
    folder.write_parameters(False, None, last_epoch)
    return folder


def host_facts(device: torch.device, engine: str) -> dict[str, Any]:
    """What is recorded to repeat a run: versions, machine, device, engine, command."""
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
    with suppress(OSError, subprocess.SubprocessError):
        if (root / ".git").exists():
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return None
