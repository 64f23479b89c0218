"""Damages files in many ways, and reads them as the scripts do. Each must be taken for what it is, or be refused with a
line that names the file: no other error, nothing executed, and never a gigabyte of memory.

    python -m tests.stress.fuzz -cases 10000
"""

import contextlib
import copy
import io
import json
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt

from common.cli import Parser, UserError, flag_errors, run_script
from common.files import sha256_of_file
from common.flags import integer, load_samples
from common.plotting.against_loss import draw_against_loss
from common.plotting.curves import Wanted, read_lines
from common.plotting.tensor_completion import common_target_rank, read_results, summarize, table
from common.sweeps.experiment import _load_checkpoint
from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, parsed

parser = Parser(__doc__)
parser.add_argument("-cases", type=integer(1), default=10_000, help="how many damaged files to read")
parser.add_argument("-random_seed", type=integer(0), default=0, help="seed of the damage")

# What a small bad file may cost beyond what the process takes anyway.
MOST_MEMORY = 2**30


class _Code:
    """What unpickles by making a folder."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class _Call:
    """What unpickles by calling a function."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def odd_values(marker: Path) -> list[Any]:
    """What does not belong where it is put."""
    deep: list = []
    for _ in range(200):
        deep = [deep]
    shared: list = [1]
    for _ in range(64):
        shared = [shared, shared]
    return [
        None, True, -1, 0, 3, 2**31, 2**63, 10**400, 1e30, float("nan"), float("inf"), -0.5, "", "x", "../../x", [], {},
        [1, 2], {"a": 1}, deep, shared, (1, "x"), b"bytes", {1: 2}, [float("nan")] * 3,
        torch.zeros(0), torch.zeros(2, 2, 2), torch.zeros(3, dtype=torch.int64), torch.full((2, 2), float("nan")),
        torch.zeros(2, dtype=torch.complex64), torch.zeros(1).expand(10**11), torch.zeros(3).to_sparse(),
        torch.zeros(2, 2, dtype=torch.float16), torch.zeros((), dtype=torch.float64), torch.tensor(5),
        torch.zeros(2, 2, dtype=torch.float8_e4m3fn), torch.empty(10**9, device="meta"), torch.nn.Linear(2, 2),
        _Code(marker), _Call(bytearray, 2**33), _Call(torch.Tensor, 2**31), _Call(eval, "1"),
    ]  # fmt: skip


def changed(content: Any, values: list[Any], rng: random.Random) -> Any:
    """The content with something in it removed or replaced by one of the values."""
    if not isinstance(content, (dict, list)) or not content or rng.random() < 0.15:
        return rng.choice(values)
    keys = list(content) if isinstance(content, dict) else range(len(content))
    key = rng.choice(keys)
    result = copy.copy(content)
    if rng.random() < 0.15:
        del result[key]
    else:
        result[key] = changed(content[key], values, rng)
    return result


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """The bytes with some of them changed, cut off, or put in."""
    data = bytearray(raw)
    kind = rng.randrange(6)
    place = rng.randrange(len(data))
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[place : place + rng.choice((1, 4, 64))] = bytes(rng.choice((4, 8, 64)))
    elif kind == 3:
        data[place:place] = rng.randbytes(rng.choice((1, 4, 100)))
    elif kind == 4:
        data[place : place + 8] = rng.choice((b"\xff" * 8, b"\xff\xff\xff\x7f", (2**40).to_bytes(8, "little")))
    else:
        end = min(len(data), place + rng.choice((10, 100, 1000)))
        data[place:place] = data[rng.randrange(end) : end]
    return bytes(data)


def bad_tensors(raw: bytes, content: Any, marker: Path, rng: random.Random) -> bytes:
    """A bad version of a file that torch.save wrote."""
    kind = rng.random()
    if kind < 0.45:
        return damaged(raw, rng)
    buffer = io.BytesIO()
    # Whole, or in the format of old versions.
    torch.save(changed(content, odd_values(marker), rng), buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
    if kind < 0.85:
        return buffer.getvalue()
    if kind < 0.9:
        return pickle.dumps(_Code(marker))
    if kind < 0.95:
        return damaged(buffer.getvalue(), rng)
    if kind < 0.98:
        return rezipped(raw, rng)
    return disguised(pickle.dumps(_Call(bytearray, 2**31 - 1), 2), rng)


def disguised(pickled: bytes, rng: random.Random) -> bytes:
    """A pickle where a reader that looks at the name alone, or at the end of the file, does not see it."""
    result = io.BytesIO()
    result.write(rng.choice((b"", pickled)))
    with zipfile.ZipFile(result, "a") as archive:
        for name in ("DATA.PKL", "data.pkl", "version", "byteorder"):
            if rng.random() < 0.7:
                content = {"version": b"3\n", "byteorder": b"little"}.get(name, pickled)
                archive.writestr(f"archive/{name}", content)
    return result.getvalue()


def rezipped(raw: bytes, rng: random.Random) -> bytes:
    """The archive, compressed, with other sizes of its records."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            record = old.read(member)
            if "/data/" in member.filename and rng.random() < 0.5:
                record = bytes(rng.choice((0, 1, 10**7)))
            new.writestr(member.filename, record)
    return result.getvalue()


def bad_json(raw: bytes, content: Any, marker: Path, rng: random.Random) -> bytes:
    """A bad version of a JSON file."""
    if rng.random() < 0.3:
        return damaged(raw, rng)
    odd = [
        None,
        True,
        -1,
        0,
        2**63,
        10**400,
        1e30,
        float("nan"),
        float("inf"),
        "",
        "x",
        [],
        {},
        [[[]]],
        [1, "x"],
        {"a": 1},
    ]
    text = json.dumps(changed(content, odd, rng))
    if rng.random() < 0.05:
        text = "[" * 100_000
    return text.encode()


class Subject:
    """A file, how it is spoiled, and how it is read."""

    def __init__(self, path: Path, spoil: Callable[..., bytes], read: Callable[[], Any]):
        self.path, self.read = path, read
        self.raw = path.read_bytes()
        content = json.loads(self.raw) if path.suffix == ".json" else torch.load(path, weights_only=True)
        self.spoiled = lambda marker, rng: spoil(self.raw, content, marker, rng)

    def case(self, marker: Path, rng: random.Random) -> str:
        """Spoils and reads it once. Says what came of it; raises AssertionError where it was not as it should be."""
        self.path.write_bytes(self.spoiled(marker, rng))
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.read()
            outcome = "read"
        except UserError as error:
            line = str(error)
            assert any(name in line for name in (self.path.name, self.path.parent.name, self.path.parents[1].name)), (
                line
            )
            assert len(line) < 1000, line[:2000]
            outcome = "refused"
        finally:
            self.path.write_bytes(self.raw)
        assert not marker.exists(), f"code in {self.path} was executed"
        return outcome


def subjects(directory: Path) -> list[Subject]:
    """Datasets, and what a run of each kind leaves."""
    found = []
    for kind, (problem, _, dataset) in KINDS.items():
        path, runs, out = Path(shutil.copy(dataset, directory)), directory / f"runs_{kind}", directory / "out"
        given = {"dataset_path": path, "num_samples": 3 if kind == "dmf" else 50, "validate_every": 10, "epochs": 50}
        given |= {"store_checkpoints": True, "engine": "torch", "output_dir": runs}
        if kind == "tc":
            given |= {"use_adaptive_lr": True, "compute_final_tensor_ranks": True}

        def sweep(resume=False, kind=kind, problem=problem, given=given, **more: Any) -> None:
            for cached in (load_samples, _load_checkpoint, sha256_of_file):
                cached.cache_clear()
            run_sweep(problem, [parsed(kind, **given | more)], resume)

        def run(sweep=sweep, out=out, **more: Any) -> None:
            try:
                # Two validations more: what is read must also serve.
                sweep(epochs=20, output_dir=out, **more)
            finally:
                shutil.rmtree(out, ignore_errors=True)

        with contextlib.redirect_stdout(io.StringIO()):
            sweep()
        (folder,) = runs.iterdir()
        (checkpoint,) = (folder / "checkpoints").iterdir()

        def resume(sweep=sweep, folder=folder, out=out) -> None:
            """Continues a copy, as of an unfinished run."""
            try:
                shutil.copytree(folder, out / folder.name)
                parameters = out / folder.name / "run_params.json"
                with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    content = json.loads(parameters.read_text())
                    content["status"]["finished"] = False
                    parameters.write_text(json.dumps(content))
                sweep(resume=True, output_dir=out)
            finally:
                shutil.rmtree(out, ignore_errors=True)

        found.append(Subject(path, bad_tensors, run))
        found.append(
            Subject(checkpoint, bad_tensors, lambda run=run, path=checkpoint: run(trainer_checkpoint=str(path)))
        )
        found.append(Subject(checkpoint, bad_tensors, resume))
        found.append(Subject(folder / "run_params.json", bad_json, resume))

        def draw(runs=runs) -> None:
            with flag_errors("experiments_dir", runs):
                lines, _ = read_lines(str(runs), Wanted())
                figure, _ = draw_against_loss(lines, "", 1e-4)
            plt.close(figure)

        def summary(runs=runs) -> None:
            with flag_errors("experiments_dir", runs):
                results, _ = read_results(str(runs))
            table(summarize(results))
            common_target_rank(results)

        plotted = draw if kind == "dmf" else summary
        found.append(Subject(folder / "run_params.json", bad_json, plotted))
        if kind == "dmf":
            found.append(Subject(checkpoint, bad_tensors, plotted))
            continue
        found.append(Subject(folder / "targets_tensor.pt", bad_tensors, plotted))
        found.append(Subject(folder / "tensor_rank_and_reconstruction_metrics.json", bad_json, plotted))
    return found


def fuzzed(cases: int, seed: int, directory: Path) -> Counter:
    """Reads that many bad files in turn. Counts what came of them; raises RuntimeError, with the case's number, where
    one was not as it should be, or took too much memory.
    """
    outcomes: Counter = Counter()
    everything = subjects(directory)
    marker = directory / "marker"
    before = _peak_memory()
    for case in range(cases):
        subject = everything[case % len(everything)]
        try:
            outcomes[subject.case(marker, random.Random(f"{seed} {case}"))] += 1
        except Exception as error:
            raise RuntimeError(
                f"case {case}, {subject.path.name}: {type(error).__name__}: {str(error)[:500]}"
            ) from error
        if _peak_memory() - before > MOST_MEMORY:
            raise RuntimeError(f"case {case}, {subject.path.name}: took {_peak_memory() - before:,} bytes of memory")
    outcomes["bytes at most"] = _peak_memory() - before
    return outcomes


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parameters = parser.parse()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as directory:
        outcomes = fuzzed(parameters["cases"], parameters["random_seed"], Path(directory))
    memory = outcomes.pop("bytes at most") / 2**20
    print(f"{parameters['cases']} cases: {dict(outcomes)}; at most {memory:.0f} MiB of memory for one")


if __name__ == "__main__":
    run_script(main)
