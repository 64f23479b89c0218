"""Fuzz test of the file readers. Each damaged file must either be read or be refused with a message that names the file
or its folder: no other exception, and no execution of code.

    python -m tests.stress.fuzz -cases 1500
"""

import contextlib
import copy
import io
import json
import os
import pickle
import random
import runpy
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import torch
from matplotlib import pyplot as plt

from common.cli import Parser, UserError, run_script
from common.flags import integer

ROOT = Path(__file__).resolve().parents[2]
parser = Parser(__doc__)
parser.add_argument("-cases", type=integer(1), default=1500, help="number of damaged files to read")
parser.add_argument("-random_seed", type=integer(0), default=0, help="seed of the damage")

DATASETS = {"dmf": "data/dmf/completion_2x2_w_1_1_0.pt", "tc": "data/tc/tensor_rank_1_fro_1_order_3_dim_8.pt"}
FLAGS = {"dmf": "-num_samples 3", "tc": "-num_samples 50 -use_adaptive_lr -compute_final_tensor_ranks"}
RUN = "-random_seed 0 -epochs 20 -validate_every 10 -store_checkpoints -engine torch"
# The files to damage, and a script that reads each; "here" is the folder of the case.
TARGETS = [
    ("dataset.pt", "experiment_runner", "-output_dir here/out"),
    ("runs/*/checkpoints/*.pt", "experiment_runner", "-output_dir here/out -trainer_checkpoint damaged"),
    ("runs/*/checkpoints/*.pt", "experiment_runner", "-output_dir here/runs -resume"),
    ("runs/*/run_params.json", "experiment_runner", "-output_dir here/runs -resume"),
    ("runs/*/run_params.json", "results_plotter", "-experiments_dir here/runs -save_plot_to here/plot.svg"),
]
OUTPUTS = {"dmf": ["checkpoints/*.pt"], "tc": ["targets_tensor.pt", "tensor_rank_and_reconstruction_metrics.json"]}
NUMBERS = [None, True, -1, 0, 3, 2**63, 10**400, 1e30, -0.5, float("nan"), float("inf")]
OTHERS = ["", "x", "../../x", [], {}, [1, 2], [[[]]], [1, "x"], {"a": 1}]


class _Call:
    """Object that calls a function when unpickled."""

    def __init__(self, *call: Any):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def unexpected_values(marker: Path) -> list[Any]:
    """Returns values of unexpected types and shapes, among them objects that make the folder `marker` if unpickled."""
    tensors = [torch.zeros(shape) for shape in [(0,), (), (3,), (2, 2, 2)]]
    tensors += [torch.zeros(2, 2, dtype=dtype) for dtype in (torch.int64, torch.complex64, torch.float16, torch.bool)]
    tensors += [torch.full((2, 2), float("nan")), torch.zeros(3).to_sparse(), torch.empty(10**9, device="meta")]
    code = [_Call(os.mkdir, str(marker)), _Call(eval, f"__import__('os').mkdir({str(marker)!r})")]
    return [*NUMBERS, *OTHERS, *tensors, *code, (1, "x"), b"bytes", {1: 2}, torch.nn.Linear(2, 2)]


def mutate(content: Any, values: list[Any], rng: random.Random) -> Any:
    """Returns a copy of the content with one item removed or replaced by one of the values."""
    if not isinstance(content, (dict, list)) or not content or rng.random() < 0.15:
        return rng.choice(values)
    key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
    result = copy.copy(content)
    if rng.random() < 0.15:
        del result[key]
    else:
        result[key] = mutate(content[key], values, rng)
    return result


def damage_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Returns a copy with bytes changed, removed or inserted."""
    data, position, kind = bytearray(raw), rng.randrange(len(raw)), rng.randrange(4)
    if kind == 0:
        del data[position:]
    elif kind == 1:
        for _ in range(rng.choice((1, 2, 8, 64))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[position : position + rng.choice((0, 1, 4, 64))] = rng.randbytes(rng.choice((1, 4, 100)))
    else:  # what a power cut leaves
        data[:] = rng.choice((b"", bytes(len(data))))
    return bytes(data)


def damaged(path: Path, marker: Path, rng: random.Random) -> bytes:
    """Returns a damaged version of the content of a JSON file or of a file written by torch.save."""
    raw, kind = path.read_bytes(), rng.random()
    if kind < 0.4:
        return damage_bytes(raw, rng)
    if path.suffix == ".json":
        return json.dumps(mutate(json.loads(raw), NUMBERS + OTHERS, rng)).encode()
    buffer = io.BytesIO()
    content = mutate(torch.load(path, weights_only=True), unexpected_values(marker), rng)
    torch.save(content, buffer, _use_new_zipfile_serialization=kind < 0.75)
    if kind < 0.85:
        return buffer.getvalue()
    return pickle.dumps(_Call(os.mkdir, str(marker)), 2)


def call_script(script: str, arguments: list[str]) -> None:
    """Runs a script in this process. Raises UserError."""
    main = runpy.run_path(str(ROOT / script))["main"]
    with mock.patch.object(sys, "argv", [script, *arguments]), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        finally:
            plt.close("all")


def make_files(kind: str, directory: Path) -> None:
    """Makes a dataset, and a run that has all its files but is not marked as finished."""
    directory.mkdir()
    shutil.copy(ROOT / DATASETS[kind], directory / "dataset.pt")
    flags = [*RUN.split(), *FLAGS[kind].split(), "-dataset_path", str(directory / "dataset.pt")]
    call_script(f"{kind}_experiment_runner.py", [*flags, "-output_dir", str(directory / "runs")])


def run_case(kind: str, target: tuple[str, str, str], files: Path, here: Path, rng: random.Random) -> str:
    """Damages a copy of a file and reads it. Returns "read" or "refused"; raises AssertionError on another outcome."""
    shutil.copytree(files, here)
    pattern, script, arguments = target
    (path,) = here.glob(pattern)
    if "-resume" in arguments:
        (parameters,) = here.glob("runs/*/run_params.json")
        parameters.write_text(parameters.read_text().replace('"finished": true', '"finished": false'))
    marker = here / "marker"
    path.write_bytes(damaged(path, marker, rng))
    arguments = arguments.replace("here", str(here)).replace("damaged", str(path))
    if script == "experiment_runner":
        arguments = f"{RUN} {FLAGS[kind]} -dataset_path {here}/dataset.pt {arguments}"
    try:
        call_script(f"{kind}_{script}.py", arguments.split())
        outcome = "read"
    except UserError as error:
        line = str(error)
        folders = [folder.name for folder in path.parents if (folder / "run_params.json").exists()]
        assert any(name in line for name in (path.name, *folders)), line
        assert len(line) < 1000, line[:2000]
        outcome = "refused"
    assert not marker.exists(), f"code in {path} was executed"
    shutil.rmtree(here)
    return outcome


def run_fuzz(cases: int, seed: int, directory: Path) -> Counter:
    """Reads the given number of damaged files and returns the counts of the outcomes. Raises RuntimeError with the
    number of the case if a reader misbehaves.
    """
    matplotlib.use("agg")
    targets = [(kind, target) for kind in DATASETS for target in TARGETS]
    for kind, names in OUTPUTS.items():
        targets += [(kind, (f"runs/*/{name}", *TARGETS[-1][1:])) for name in names]
        make_files(kind, directory / kind)
    outcomes: Counter = Counter()
    for case in range(cases):
        kind, target = targets[case % len(targets)]
        # A folder of its own, so that what is cached by path is not taken for another file's.
        here = directory / f"case_{case}"
        try:
            outcomes[run_case(kind, target, directory / kind, here, random.Random(f"{seed} {case}"))] += 1
        except Exception as error:
            text = f"case {case}, {kind} {target}: {type(error).__name__}: {str(error)[:500]}"
            raise RuntimeError(text) from error
    return outcomes


def main() -> None:
    parameters = parser.parse()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as directory:
        outcomes = run_fuzz(parameters["cases"], parameters["random_seed"], Path(directory))
    print(f"{parameters['cases']} cases: {dict(outcomes)}")


if __name__ == "__main__":
    run_script(main)
