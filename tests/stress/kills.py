"""Kills small sweeps at random instants, resumes them until they are done, and compares what they leave with what an
undisturbed run leaves: every tensor, number and plot must be the same to the bit, and there must be no other file.

    python -m tests.stress.kills -kills 200
"""

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
    "mixed": ["-m", "tests.stress.mixed_sweep"],
}
parser = Parser(__doc__)
parser.add_argument("-kills", type=integer(1), default=200, help="how often to kill")
parser.add_argument("-random_seed", type=integer(0), default=0, help="seed of the instants")


def start(command: list[str], output_dir: Path) -> subprocess.Popen:
    """A sweep in a process group of its own."""
    command = [sys.executable, *command, "-output_dir", str(output_dir)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)


def finish(process: subprocess.Popen) -> None:
    """Waits for a sweep. Raises RuntimeError where it fails."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {output}")


def left_behind(output_dir: Path) -> dict[str, object]:
    """What must not depend on what happened on the way: of each experiment, by its number in the sweep, every file."""
    found: dict[str, object] = {"hidden": sorted(path.name for path in output_dir.glob(".*"))}
    for folder in output_dir.iterdir():
        if not folder.is_dir():
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
                raise ValueError(f"{key} is there twice")
            found[key] = content
    return found


def differences(first: object, second: object, place: str = "") -> list[str]:
    """Where two trees of dictionaries, lists, tensors and plain values differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        found = [f"{place}/{key} is missing" for key in first.keys() ^ second.keys()]
        for key in first.keys() & second.keys():
            found += differences(first[key], second[key], f"{place}/{key}")
        return found
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        same = same and first.numpy().tobytes() == second.numpy().tobytes()
        return [] if same else [f"{place} differs"]
    return [] if repr(first) == repr(second) else [f"{place} differs: {str(first)[:80]} and {str(second)[:80]}"]


def stage(output_dir: Path) -> str:
    """How far a sweep was when it was killed."""
    folders = [path for path in output_dir.glob("[!.]*") if path.is_dir()]
    statuses = [json.loads((folder / "run_params.json").read_text())["status"] for folder in folders]
    if not folders:
        return "before the first folder"
    if all(status["finished"] for status in statuses):
        return "between batches, or after the last file"
    checkpoints = list(output_dir.glob("*/checkpoints/[!.]*.pt"))
    return "with checkpoints" if checkpoints else "before the first checkpoint"


def disturbed(command: list[str], output_dir: Path, longest: float, kills: int, instants: random.Random) -> Counter:
    """Runs a sweep until it is done, killed up to `kills` times after at most `longest` seconds. Counts the stages."""
    stages: Counter = Counter()
    while True:
        process = start(command if not stages.total() else [*command, "-resume"], output_dir)
        if stages.total() == kills:
            finish(process)
            return stages
        try:
            process.wait(instants.uniform(0, longest))
            finish(process)
            return stages
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            stages[stage(output_dir)] += 1


def compared(name: str, kills: int, seed: int, directory: Path) -> Counter:
    """Kills the sweep `name` `kills` times in all, over as many disturbed runs as it takes. Counts the stages at which
    it was killed. Raises RuntimeError where anything differs.
    """
    command, instants = SWEEPS[name], random.Random(seed)
    begin = time.monotonic()
    finish(start(command, directory / "undisturbed"))
    longest = time.monotonic() - begin
    expected = left_behind(directory / "undisturbed")
    stages: Counter = Counter()
    runs = 0
    while stages.total() < kills:
        runs += 1
        output_dir = directory / f"disturbed_{runs}"
        stages += disturbed(command, output_dir, longest, kills - stages.total(), instants)
        problems = differences(expected, left_behind(output_dir))
        if problems:
            raise RuntimeError(f"{name}, {output_dir}: {len(problems)} differences: " + "; ".join(problems[:10]))
    shown = ", ".join(f"{count} {stage}" for stage, count in sorted(stages.items()))
    files = sum(content is not None for content in expected.values())
    print(f"{name}: {kills} kills ({shown}) in {runs} runs; each left the same {files} files as one undisturbed")
    return stages


def main() -> None:
    parameters = parser.parse()
    for place, name in enumerate(SWEEPS):
        share = (parameters["kills"] + place) // len(SWEEPS)
        with tempfile.TemporaryDirectory() as directory:
            if share:
                compared(name, share, parameters["random_seed"], Path(directory))


if __name__ == "__main__":
    run_script(main)
