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
from pathlib import Path

import torch

from common.cli import Parser, run_script
from common.flags import integer

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = {
    "many seeds": "dmf_multiple_experiments_runner.py -plan many_seeds -repetitions 1 -epochs 300000",
    "dmf": "dmf_multiple_experiments_runner.py -plan figure_1_depth_3 -save_every_num_val 5",
    "tc": "tc_multiple_experiments_runner.py -repetitions 1",
    "tc with momentum": "tc_multiple_experiments_runner.py -repetitions 1 -optimizer momentum -epochs 4000 "
    "-weight_decay 1e-4 -init_std 0.1 -track_component_norms 3",
    "mixed": "-m tests.stress.mixed_sweep",
}
parser = Parser(__doc__)
parser.add_argument("-kills", type=integer(1), default=200, help="total number of kills")
parser.add_argument("-random_seed", type=integer(0), default=0, help="seed of the kill times")


def run(command: list[str], seconds: float | None = None) -> bool:
    """Runs a sweep, and kills it and its children after `seconds`. Returns whether it ended before that. Raises
    RuntimeError if it fails.
    """
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, start_new_session=True, **quiet)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {output}")
    return True


def read_outputs(output_dir: Path) -> dict[str, object]:
    """Returns all that kills must not change, by name: the content of each experiment's files, and the table's rows."""
    found: dict[str, object] = {"hidden": sorted(path.name for path in output_dir.glob(".*"))}
    for path in output_dir.glob("*/*"):
        folder = path.parent
        if not (folder / "run_params.json").is_file():  # of a process that was killed just after it made the folder
            continue
        parameters = json.loads((folder / "run_params.json").read_text())
        number = parameters.pop("provenance")["sweep"]["experiment"]
        for file in path.rglob("*") if path.is_dir() else [path]:
            name = file.relative_to(folder).as_posix()
            content: object = file.read_bytes()
            if file.name == "run_params.json":
                content = {key: value for key, value in parameters.items() if key != "output_dir"}
            elif file.suffix == ".pt":
                name = "checkpoint" if path.name == "checkpoints" else name
                content = torch.load(file, weights_only=True)
            elif file.suffix == ".log":
                name, content = "log", None
            if f"{number} {name}" in found:
                raise ValueError(f"{number} {name} occurs twice")
            found[f"{number} {name}"] = content
    with open(output_dir / "results.csv", newline="") as file:
        for row in csv.DictReader(file):
            for name in ("folder", "sweep", "output_dir"):
                del row[name]
            found[f"{row['experiment']} results.csv"] = row
    return found


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


def run_kill_test(name: str, kills: int, seed: int, directory: Path) -> int:
    """Kills the sweep `name` `kills` times in total, over as many runs as needed. Returns the number of files that were
    compared after each. Raises RuntimeError if any output differs.
    """
    rng, begin = random.Random(seed), time.monotonic()
    run([*SWEEPS[name].split(), "-output_dir", str(directory / "uninterrupted")])
    seconds = time.monotonic() - begin
    expected, done, runs = read_outputs(directory / "uninterrupted"), 0, 0
    while done < kills:
        runs += 1
        output_dir = directory / f"killed_{runs}"
        command, resume = [*SWEEPS[name].split(), "-output_dir", str(output_dir)], []
        while not run([*command, *resume], rng.uniform(0, seconds) if done < kills else None):
            done, resume = done + 1, ["-resume"]
        if found := differences(expected, read_outputs(output_dir)):
            raise RuntimeError(f"{name}, {output_dir}: {len(found)} differences: {'; '.join(found[:10])}")
    print(f"{name}: {kills} kills in {runs} runs; all {len(expected)} files equal to those of an uninterrupted run")
    return len(expected)


def main() -> None:
    parameters = parser.parse()
    for index, name in enumerate(SWEEPS):
        share = (parameters["kills"] + index) // len(SWEEPS)
        with tempfile.TemporaryDirectory() as directory:
            if share:
                run_kill_test(name, share, parameters["random_seed"], Path(directory))


if __name__ == "__main__":
    run_script(main)
