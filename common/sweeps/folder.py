"""The folder of an experiment in training."""

import os
import platform
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch

import common
from common.files import Written, json_bytes, remove_temporary_files, utc_time, write_temporary
from common.recorded_runs import newest_checkpoint
from common.sweeps.processes import discard
from common.tensor_files import tensor_bytes

# The names of checkpoints. Files with other names are the user's.
_CHECKPOINT = re.compile(r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d_epoch_\d+\.pt")
# The number of the last folder that this process made with a name.
_last_numbers: dict[Path, int] = defaultdict(int)


@dataclass
class ExperimentFolder:
    """A folder to which nothing else writes. It records `parameters` and `provenance`, to repeat the run.

    Files are written under temporary names; see `DiskQueue.after_syncs`.
    """

    path: Path
    parameters: dict[str, Any]
    provenance: dict[str, Any]

    def write(self, name: str, content: bytes) -> Written:
        """Writes a temporary file. Returns its path, and the path of the file `name`."""
        return write_temporary(self.path / name, lambda temporary: temporary.write_bytes(content))

    def write_parameters(
        self, finished: bool, stop_reason: str | None, last_epoch: int, metrics: Mapping[str, float] | None = None
    ) -> Written:
        """Writes run_params.json: the flags, the provenance, the progress (`last_epoch` -1: not begun), and at the end
        the last value of each metric.
        """
        last = last_epoch if last_epoch >= 0 else None
        status: dict[str, Any] = {"finished": finished, "stop_reason": stop_reason, "last_epoch": last}
        if metrics is not None:
            status["metrics"] = metrics
        content = {**self.parameters, "provenance": self.provenance, "status": status}
        return self.write("run_params.json", json_bytes(content))

    def log(self, *lines: str) -> None:
        """Appends lines, with the time, to the log file, if there is one."""
        if self.parameters["file_log"]:
            # The number that tells it from others begun in the same second is not part of the log's name.
            name = re.sub(r"(-\d\d_\d\d_\d\d)_\d+$", r"\1", self.path.name)
            with open(self.path / f"{name}.log", "a", encoding="utf-8") as file:
                file.writelines(f"{utc_time()} {line}\n" for line in lines)

    def write_checkpoint(self, content: dict[str, Any]) -> Written:
        """Writes a checkpoint."""
        (self.path / "checkpoints").mkdir(exist_ok=True)
        return self.write(f"checkpoints/{utc_time()}_epoch_{content['epoch']}.pt", tensor_bytes(content))

    def remove_old_checkpoints(self) -> None:
        """Removes all checkpoints but the newest, which must be on the disk."""
        newest = newest_checkpoint(self.path)
        for path in self.path.glob("checkpoints/*_epoch_*.pt"):
            if path != newest and _CHECKPOINT.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def publish(self) -> None:
        """Renames a new folder to `{output_dir}/{experiment_name}_{time}`, with `_2`, … appended if that exists."""
        name = Path(self.parameters["output_dir"]) / f"{self.parameters['experiment_name']}_{utc_time()}"
        while True:
            _last_numbers[name] += 1
            path = name if _last_numbers[name] == 1 else name.with_name(f"{name.name}_{_last_numbers[name]}")
            try:
                # Succeeds unless something else than an empty folder has this name.
                os.replace(self.path, path)
                self.path = path
                return
            except OSError:
                if not os.path.lexists(path):
                    raise

    def plots(self) -> Path:
        """The folder of the plots of the metrics, made if missing."""
        directory = self.path / "plots"
        directory.mkdir(exist_ok=True)
        return directory


def new_folder(
    parameters: dict[str, Any], provenance: dict[str, Any], making: str, name: str, last_epoch: int = -1
) -> ExperimentFolder:
    """Makes a folder with its run_params.json in the hidden folder `making`, which no other process uses. It is
    published when it is on the disk, so that no folder is without a run_params.json.
    """
    directory = Path(parameters["output_dir"]) / making
    if directory.is_symlink() or not directory.is_dir():
        discard(directory)
    folder = ExperimentFolder(directory / name, parameters, provenance)
    discard(folder.path)  # of a process of the same launch that died
    folder.path.mkdir(parents=True)
    os.replace(*folder.write_parameters(False, None, last_epoch))
    return folder


def reopen_folder(path: Path, parameters: dict[str, Any], provenance: dict[str, Any]) -> ExperimentFolder:
    """Reopens the folder of an experiment that continues. Removes the temporary files that a crash left in it."""
    folder = ExperimentFolder(path, parameters, provenance)
    for directory in (path, path / "checkpoints", path / "plots"):
        remove_temporary_files(directory)
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
    try:
        if (root / ".git").exists():
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return None
