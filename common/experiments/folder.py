"""The folder of one experiment, and the files in it."""

import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch

import common
from common.files import save_json, utc_time
from common.tensor_files import save_tensors


class ExperimentFolder:
    """`{output_dir}/{experiment_name}_{time}/`, made here; `_2`, `_3`, … is appended where that exists.

    `provenance` is recorded beside the parameters.
    """

    def __init__(self, parameters: dict[str, Any], provenance: dict[str, Any]):
        self._parameters, self._provenance = parameters, provenance
        self._name = f"{parameters['experiment_name']}_{utc_time()}"
        directory = Path(parameters["output_dir"])
        directory.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            self.path = directory / (self._name if number == 1 else f"{self._name}_{number}")
            try:
                self.path.mkdir()
                break
            except FileExistsError:
                number += 1
        self._checkpoint: Path | None = None

    def write_parameters(self, finished: bool, stop_reason: str | None, last_epoch: int) -> None:
        """Writes run_params.json: the flags, what repeats the run, and how far it got (`last_epoch` -1: nowhere)."""
        status = {
            "finished": finished,
            "stop_reason": stop_reason,
            "last_epoch": last_epoch if last_epoch >= 0 else None,
        }
        content = {**self._parameters, "provenance": self._provenance, "status": status}
        save_json(content, self.path / "run_params.json")

    def log(self, line: str) -> None:
        """Appends a line, with the time, to the log file."""
        with open(self.path / f"{self._name}.log", "a", encoding="utf-8") as file:
            file.write(f"{utc_time()} {line}\n")

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Writes a checkpoint, then removes the one before it."""
        directory = self.path / "checkpoints"
        directory.mkdir(exist_ok=True)
        newest = directory / f"{utc_time()}_epoch_{state['epoch']}.pt"
        save_tensors(state, newest)
        if self._checkpoint is not None and self._checkpoint != newest:
            self._checkpoint.unlink(missing_ok=True)
        self._checkpoint = newest

    @property
    def plots(self) -> Path:
        """The folder of the metric plots, made if missing."""
        directory = self.path / "plots"
        directory.mkdir(exist_ok=True)
        return directory


def provenance(device: torch.device, engine: str, sweep: dict[str, Any]) -> dict[str, Any]:
    """What is needed beside the parameters to repeat a run: versions, machine, device, engine, start, sweep."""
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
        "start_time": utc_time(),
        "sweep": sweep,
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
