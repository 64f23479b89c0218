"""Fuzz test of the file readers. Each corrupted file must either be read or be refused with a message that names the
file: no other exception, no code execution, and less than 1 GiB of additional memory.

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
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.cli import Parser, UserError, flag_errors, run_script
from common.datasets.flags import load_samples
from common.files import sha256_of_file
from common.flags import integer
from common.plotting.against_loss import draw_against_loss
from common.plotting.histories import load_curve
from common.plotting.runs import read_groups, require_matrix_run
from common.plotting.tensor_completion import common_target_rank, read_results, summarize, table
from common.sweeps.experiment import _load_checkpoint
from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, folders_in, parse_parameters

parser = Parser(__doc__)
parser.add_argument("-cases", type=integer(1), default=10_000, help="number of corrupted files to read")
parser.add_argument("-random_seed", type=integer(0), default=0, help="seed of the corruption")

# Maximal growth of the peak memory of the process, in bytes, and maximal time of a case.
MAX_MEMORY, MAX_SECONDS = 2**30, 10


class _MaliciousPickle:
    """Object that creates a folder when unpickled."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class _PickledCall:
    """Object that calls a function when unpickled."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def unexpected_values(marker: Path) -> list[Any]:
    """Returns values of unexpected types, shapes and sizes."""
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
        _MaliciousPickle(marker), _PickledCall(bytearray, 2**33), _PickledCall(torch.Tensor, 2**31),
        _PickledCall(eval, "1"),
    ]  # fmt: skip


def mutate(content: Any, values: list[Any], rng: random.Random) -> Any:
    """Returns a copy of the content with one item removed or replaced by one of the values."""
    if not isinstance(content, (dict, list)) or not content or rng.random() < 0.15:
        return rng.choice(values)
    keys = list(content) if isinstance(content, dict) else range(len(content))
    key = rng.choice(keys)
    result = copy.copy(content)
    if rng.random() < 0.15:
        del result[key]
    else:
        result[key] = mutate(content[key], values, rng)
    return result


def corrupt_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Returns a copy with bytes changed, removed or inserted."""
    data = bytearray(raw)
    kind = rng.randrange(6)
    position = rng.randrange(len(data))
    if kind == 0:
        return bytes(data[:position])
    if kind == 1:
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[position : position + rng.choice((1, 4, 64))] = bytes(rng.choice((4, 8, 64)))
    elif kind == 3:
        data[position:position] = rng.randbytes(rng.choice((1, 4, 100)))
    elif kind == 4:
        data[position : position + 8] = rng.choice((b"\xff" * 8, b"\xff\xff\xff\x7f", (2**40).to_bytes(8, "little")))
    else:
        end = min(len(data), position + rng.choice((10, 100, 1000)))
        data[position:position] = data[rng.randrange(end) : end]
    return bytes(data)


def corrupt_tensor_file(raw: bytes, content: Any, marker: Path, rng: random.Random) -> bytes:
    """Returns a corrupted version of a file written by torch.save."""
    kind = rng.random()
    if kind < 0.45:
        return corrupt_bytes(raw, rng)
    buffer = io.BytesIO()
    # In the zip format, or in the legacy format.
    torch.save(
        mutate(content, unexpected_values(marker), rng), buffer, _use_new_zipfile_serialization=rng.random() < 0.8
    )
    if kind < 0.85:
        return buffer.getvalue()
    if kind < 0.9:
        return pickle.dumps(_MaliciousPickle(marker))
    if kind < 0.95:
        return corrupt_bytes(buffer.getvalue(), rng)
    if kind < 0.97:
        return recompress(raw, rng)
    if kind < 0.985:
        return hide_pickle(pickle.dumps(_PickledCall(bytearray, 2**31 - 1), 2), rng)
    return hide_pickle(huge_pickle(rng), rng)


def huge_pickle(rng: random.Random) -> bytes:
    """Returns a pickle that would take gigabytes, or minutes, if nothing were limited."""
    huge, number = b"\x8a\x05\x00\x00\x00\x00\x01", rng.choice((10**3, 10**5, 10**6))  # 2**32
    long_tuple, calls = b"(" + b"K\1" * number + b"t\x85q\1", b"h\0h\1R" * number
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu%btQ" % huge
    return b"\x80\x02" + rng.choice(
        (
            b"ctorch\n_utils bytearray\n" + huge + b"\x85R.",
            b"(ctorch\nSize\nq\0" + long_tuple + calls + b"t.",
            b"(ccollections\nOrderedDict\nq\0)q\1" + calls + b"t.",
            b"(ccollections\nCounter\nq\0" + long_tuple + calls + b"t.",
            b"](" + rng.choice((b"]", b"}", b")", b"N")) * 6 * number + b"e.",
            b"}(" + b"".join(b"\x8a\x0a%bN" % (k * (2**61 - 1)).to_bytes(10, "little") for k in range(50_000)) + b"u.",
            b"}K\1" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(40)) + b"K\2s.",
            b"N" + b"q\0h\0\x86" * number + b".",
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0K\1\x85K\1\x85\x89NtR.",
        )
    )


def hide_pickle(pickled: bytes, rng: random.Random) -> bytes:
    """Returns a zip archive or a legacy file with a pickle that checks of the member name, of the end of the file or of
    one of two lists of members would miss.
    """
    result = io.BytesIO()
    if rng.random() < 0.3:
        torch.save(None, result, _use_new_zipfile_serialization=False)
        begin = result.getvalue().partition(b"N.\x80\x02]")[0].removesuffix(b"\x80\x02")
        return begin + pickled + rng.choice((b"", pickle.dumps(["0"], 2) + (2**32).to_bytes(8, "little")))
    result.write(rng.choice((b"", pickled)))
    with zipfile.ZipFile(result, "a") as archive:
        for name in ("DATA.PKL", "data.pkl", "version", "byteorder"):
            if rng.random() < 0.7:
                content = {"version": b"3\n", "byteorder": b"little"}.get(name, pickled)
                member = zipfile.ZipInfo(f"archive/{name}")
                if rng.random() < 0.3:  # a field that renames it for newer versions of zipfile
                    new = f"archive/{rng.choice(('data.pkl', 'data/0'))}".encode()
                    member.extra = (
                        struct.pack("<HHBL", 0x7075, 5 + len(new), 1, zlib.crc32(member.filename.encode())) + new
                    )
                archive.writestr(member, content)
    first = result.getvalue()
    if rng.random() < 0.3:  # a second archive, after or before the first
        buffer = io.BytesIO()
        torch.save({}, buffer)
        return rng.choice((first + buffer.getvalue(), buffer.getvalue() + first))
    return first


def recompress(raw: bytes, rng: random.Random) -> bytes:
    """Returns a compressed copy of the archive, with some records replaced by records of other sizes."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            record = old.read(member)
            if "/data/" in member.filename and rng.random() < 0.5:
                record = bytes(rng.choice((0, 1, 10**7)))
            new.writestr(member.filename, record)
    return result.getvalue()


def corrupt_json(raw: bytes, content: Any, marker: Path, rng: random.Random) -> bytes:
    """Returns a corrupted version of a JSON file."""
    if rng.random() < 0.3:
        return corrupt_bytes(raw, rng)
    values = [
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
    text = json.dumps(mutate(content, values, rng))
    if rng.random() < 0.05:
        text = "[" * 100_000
    return text.encode()


class FuzzTarget:
    """A file, with functions that corrupt and read it."""

    def __init__(self, path: Path, corrupt: Callable[..., bytes], read: Callable[[], Any]):
        self.path, self.read = path, read
        self.raw = path.read_bytes()
        content = json.loads(self.raw) if path.suffix == ".json" else torch.load(path, weights_only=True)
        self.corrupted = lambda marker, rng: corrupt(self.raw, content, marker, rng)

    def run_case(self, marker: Path, rng: random.Random) -> str:
        """Corrupts and reads the file. Returns "read" or "refused"; raises AssertionError on any other outcome."""
        self.path.write_bytes(self.corrupted(marker, rng))
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.read()
            outcome = "read"
        except UserError as error:
            line = str(error)
            folders = [folder.name for folder in self.path.parents if (folder / "run_params.json").exists()]
            assert any(name in line for name in (self.path.name, *folders)), line
            assert len(line) < 1000, line[:2000]
            outcome = "refused"
        finally:
            self.path.write_bytes(self.raw)
        assert not marker.exists(), f"code in {self.path} was executed"
        return outcome


def make_targets(directory: Path) -> list[FuzzTarget]:
    """Returns the fuzz targets: the datasets, and output files of a run of each problem."""
    targets = []
    for kind, (problem, _, dataset) in KINDS.items():
        path, runs, out = Path(shutil.copy(dataset, directory)), directory / f"runs_{kind}", directory / "out"
        given = {"dataset_path": path, "num_samples": 3 if kind == "dmf" else 50, "validate_every": 10, "epochs": 50}
        given |= {"store_checkpoints": True, "engine": "torch", "output_dir": runs}
        if kind == "tc":
            given |= {"use_adaptive_lr": True, "compute_final_tensor_ranks": True}

        def sweep(resume=False, kind=kind, problem=problem, given=given, **more: Any) -> None:
            for cached in (load_samples, _load_checkpoint, sha256_of_file):
                cached.cache_clear()
            run_sweep(problem, [parse_parameters(kind, **given | more)], resume)

        def run(sweep=sweep, out=out, **more: Any) -> None:
            try:
                # Train for two validations, so that what was read is also used.
                sweep(epochs=20, output_dir=out, **more)
            finally:
                shutil.rmtree(out, ignore_errors=True)

        with contextlib.redirect_stdout(io.StringIO()):
            sweep()
        (folder,) = folders_in(runs)
        (checkpoint,) = (folder / "checkpoints").iterdir()

        def resume(sweep=sweep, folder=folder, out=out) -> None:
            """Resumes a copy of the run, marked as unfinished."""
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

        targets.append(FuzzTarget(path, corrupt_tensor_file, run))
        targets.append(
            FuzzTarget(
                checkpoint, corrupt_tensor_file, lambda run=run, path=checkpoint: run(trainer_checkpoint=str(path))
            )
        )
        targets.append(FuzzTarget(checkpoint, corrupt_tensor_file, resume))
        targets.append(FuzzTarget(folder / "run_params.json", corrupt_json, resume))

        def draw(runs=runs) -> None:
            with flag_errors("experiments_dir", runs):
                groups, _ = read_groups(str(runs), require_matrix_run, load_curve)
                draw_against_loss(groups, "", 1e-4)

        def summary(runs=runs) -> None:
            with flag_errors("experiments_dir", runs):
                results, _ = read_results(str(runs))
            table(summarize(results))
            common_target_rank(results)

        plotted = draw if kind == "dmf" else summary
        targets.append(FuzzTarget(folder / "run_params.json", corrupt_json, plotted))
        if kind == "dmf":
            targets.append(FuzzTarget(checkpoint, corrupt_tensor_file, plotted))
            continue
        targets.append(FuzzTarget(folder / "targets_tensor.pt", corrupt_tensor_file, plotted))
        targets.append(FuzzTarget(folder / "tensor_rank_and_reconstruction_metrics.json", corrupt_json, plotted))
    return targets


def run_fuzz(cases: int, seed: int, directory: Path) -> Counter:
    """Reads the given number of corrupted files and returns the counts of the outcomes. Raises RuntimeError with the
    number of the case if a reader misbehaves or uses too much memory.
    """
    outcomes: Counter = Counter()
    targets = make_targets(directory)
    marker = directory / "marker"
    initial_memory, longest = _peak_memory(), 0.0
    for case in range(cases):
        target, begin = targets[case % len(targets)], time.monotonic()
        try:
            outcomes[target.run_case(marker, random.Random(f"{seed} {case}"))] += 1
        except Exception as error:
            raise RuntimeError(
                f"case {case}, {target.path.name}: {type(error).__name__}: {str(error)[:500]}"
            ) from error
        memory, seconds = _peak_memory() - initial_memory, time.monotonic() - begin
        longest = max(longest, seconds)
        if memory > MAX_MEMORY or seconds > MAX_SECONDS:
            raise RuntimeError(f"case {case}, {target.path.name}: used {memory:,} bytes of memory and {seconds:.1f} s")
    outcomes["milliseconds"] = round(1000 * longest)
    outcomes["peak_memory_bytes"] = _peak_memory() - initial_memory
    return outcomes


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parameters = parser.parse()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as directory:
        outcomes = run_fuzz(parameters["cases"], parameters["random_seed"], Path(directory))
    memory, seconds = outcomes.pop("peak_memory_bytes") / 2**20, outcomes.pop("milliseconds") / 1000
    most = f"peak memory grew by {memory:.0f} MiB, the longest took {seconds:.1f} s"
    print(f"{parameters['cases']} cases: {dict(outcomes)}; {most}")


if __name__ == "__main__":
    run_script(main)
