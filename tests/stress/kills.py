"""Kills small sweeps at random times, resumes them until they finish, and compares the outputs with those of an
uninterrupted run: all files must exist in both, and all tensors, numbers, plots and tables must be bitwise equal.

    python -m tests.stress.kills -kills 200
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from common.cli import Parser, run_script
from common.flags import integer

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = {
    "dmf": ["dmf_multiple_experiments_runner.py", "-plan", "figure_1_depth_3", "-save_every_num_val", "5"],
    "tc": ["tc_multiple_experiments_runner.py", "-repetitions", "1"],
    "tc with momentum": [
        *("tc_multiple_experiments_runner.py", "-repetitions", "1", "-optimizer", "momentum", "-epochs", "4000"),
        *("-weight_decay", "1e-4", "-init_std", "0.1", "-track_component_norms", "3"),
    ],
    "mixed": ["-m", "tests.stress.mixed_sweep"],
}
parser = Parser(__doc__)
parser.add_argument("-kills", type=integer(1), default=200, help="total number of kills")
parser.add_argument("-random_seed", type=integer(0), default=0, help="seed of the kill times")


def start(command: list[str], output_dir: Path) -> subprocess.Popen:
    """Starts a sweep in a new process group."""
    command = [sys.executable, *command, "-output_dir", str(output_dir)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)


def finish(process: subprocess.Popen) -> None:
    """Waits for a sweep to end. Raises RuntimeError if it fails."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {output}")


def read_outputs(output_dir: Path) -> dict[str, object]:
    """Returns the content of all output files that kills must not change, by experiment number and file name."""
    found: dict[str, object] = {"hidden": sorted(path.name for path in output_dir.glob(".*"))}
    for folder in output_dir.iterdir():
        if not (folder / "run_params.json").is_file():  # made by a process that was killed
            continue
        parameters = json.loads((folder / "run_params.json").read_text())
        number = parameters.pop("provenance")["sweep"]["experiment"]
        parameters.pop("output_dir")
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.name == "run_params.json":
                content: object = parameters
            elif path.suffix == ".pt":
                name = "checkpoint" if path.parent.name == "checkpoints" else name
                content = torch.load(path, weights_only=True)
            elif path.suffix == ".log":
                name, content = "log", None
            else:
                content = path.read_bytes() if path.is_file() else None
            key = f"{number} {name}"
            if key in found:
                raise ValueError(f"{key} occurs twice")
            found[key] = content
    return found


def read_table(output_dir: Path) -> dict[str, dict[str, str]]:
    """Returns the rows of results.csv by experiment number, without what differs between two runs of a sweep."""
    with open(output_dir / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["folder"], row["sweep"], row["output_dir"]
    return {row["experiment"]: row for row in rows}


def differences(first: object, second: object, path: str = "") -> list[str]:
    """Returns a description of each difference between two nested dictionaries; tensors are compared bitwise."""
    if isinstance(first, dict) and isinstance(second, dict):
        found = [f"{path}/{key} is missing" for key in first.keys() ^ second.keys()]
        for key in first.keys() & second.keys():
            found += differences(first[key], second[key], f"{path}/{key}")
        return found
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        same = same and first.numpy().tobytes() == second.numpy().tobytes()
        return [] if same else [f"{path} differs"]
    return [] if repr(first) == repr(second) else [f"{path} differs: {str(first)[:80]} and {str(second)[:80]}"]


def stage(output_dir: Path) -> str:
    """Returns a description of the progress of a killed sweep."""
    folders = [path for path in output_dir.glob("[!.]*") if path.is_dir()]
    statuses = [json.loads((folder / "run_params.json").read_text())["status"] for folder in folders]
    if not folders:
        return "before the first folder"
    if all(status["finished"] for status in statuses):
        return "between batches, or after the last file"
    checkpoints = list(output_dir.glob("*/checkpoints/[!.]*.pt"))
    return "with checkpoints" if checkpoints else "before the first checkpoint"


def run_with_kills(command: list[str], output_dir: Path, max_seconds: float, kills: int, rng: random.Random) -> Counter:
    """Runs a sweep to its end with up to `kills` kills after at most `max_seconds` each; returns counts of stages."""
    stages: Counter = Counter()
    while True:
        process = start(command if not stages.total() else [*command, "-resume"], output_dir)
        if stages.total() == kills:
            finish(process)
            return stages
        try:
            process.wait(rng.uniform(0, max_seconds))
            finish(process)
            return stages
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            stages[stage(output_dir)] += 1


def run_kill_test(name: str, kills: int, seed: int, directory: Path) -> Counter:
    """Kills the sweep `name` `kills` times in total, over as many runs as needed. Returns the counts of the stages at
    which it was killed. Raises RuntimeError if any output differs.
    """
    command, rng = SWEEPS[name], random.Random(seed)
    begin = time.monotonic()
    finish(start(command, directory / "uninterrupted"))
    max_seconds = time.monotonic() - begin
    expected, table = read_outputs(directory / "uninterrupted"), read_table(directory / "uninterrupted")
    stages: Counter = Counter()
    runs = 0
    while stages.total() < kills:
        runs += 1
        output_dir = directory / f"killed_{runs}"
        stages += run_with_kills(command, output_dir, max_seconds, kills - stages.total(), rng)
        problems = differences(expected, read_outputs(output_dir))
        problems += differences(table, read_table(output_dir), "results.csv")
        if problems:
            raise RuntimeError(f"{name}, {output_dir}: {len(problems)} differences: " + "; ".join(problems[:10]))
    shown = ", ".join(f"{count} {stage}" for stage, count in sorted(stages.items()))
    files = sum(content is not None for key, content in expected.items() if key != "hidden")
    print(f"{name}: {kills} kills ({shown}) in {runs} runs; all {files} files equal to an uninterrupted run")
    return stages


def main() -> None:
    parameters = parser.parse()
    for index, name in enumerate(SWEEPS):
        share = (parameters["kills"] + index) // len(SWEEPS)
        with tempfile.TemporaryDirectory() as directory:
            if share:
                run_kill_test(name, share, parameters["random_seed"], Path(directory))


if __name__ == "__main__":
    run_script(main)
