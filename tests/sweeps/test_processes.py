"""Tests of sweeps distributed over several processes."""

import csv
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli import UserError
from common.sweeps.processes import World, folder_lock, partition, world_from_env
from tests.conftest import ROOT, folders_in
from tests.stress.kills import differences, read_outputs


@given(keys=st.lists(st.sampled_from("abcde"), max_size=40), size=st.integers(1, 6))
def test_partition_is_complete_and_balanced(keys, size):
    parts = [partition(keys, World("x", rank, size)) for rank in range(size)]
    assert sorted(sum(parts, [])) == list(range(len(keys)))  # noqa: RUF017 (short)
    assert all(part == sorted(part) for part in parts)
    for key in set(keys):
        counts = [sum(keys[index] == key for index in part) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_world_from_env(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)

    def world():
        found = world_from_env()
        return found.rank, found.size, found.local_rank

    assert world() == (0, 1, 0)
    assert world_from_env().launch != world_from_env().launch
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert world() == (5, 8, 5)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert world() == (5, 8, 1)
    assert world_from_env().launch == world_from_env().launch
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(UserError, match="RANK=5, WORLD_SIZE=5, LOCAL_RANK=1: must be integers"):
        world_from_env()


def test_lock_is_shared_by_runs_and_exclusive_for_resume(tmp_path):
    one, two = World("a"), World("b")
    with folder_lock(tmp_path, one, resume=False), folder_lock(tmp_path, two, resume=False):
        pass
    for resumes in (False, True):
        with folder_lock(tmp_path, one, resumes):
            with pytest.raises(UserError, match=f"-resume: another process is running experiments in {tmp_path}"):
                folder_lock(tmp_path, two, resume=True).__enter__()
            with folder_lock(tmp_path, two, resume=False):
                pass
    # Processes of one launch resume together.
    with folder_lock(tmp_path, World("b", 0, 2), resume=True), folder_lock(tmp_path, World("b", 1, 2), resume=True):
        pass


def start(*command):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, start_new_session=True, **pipes)


def test_killed_process_and_resume_with_other_world_size(tmp_path):
    """Kills one of two processes, after which the launcher ends the other; three processes complete the sweep, whose
    outputs are those of one process.
    """
    sweep = ROOT / "dmf_multiple_experiments_runner.py", "-plan", "figure_1_depth_3", "-save_every_num_val", 5
    out, torchrun = tmp_path / "out", ("-m", "torch.distributed.run", "--standalone")
    process = start(*torchrun, "--nproc_per_node=2", *sweep, "-output_dir", out)
    deadline = time.monotonic() + 120
    while not list(out.glob("[!.]*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(workers.split()[0]), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode
    process = start(*torchrun, "--nproc_per_node=3", *sweep, "-output_dir", out, "-resume")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.count("to plot it once all processes have ended") == 1
    assert all(f"of them for process {rank} of 3" in output for rank in range(3))
    alone = start(*sweep, "-output_dir", tmp_path / "alone")
    _, errors = alone.communicate(timeout=300)
    assert alone.returncode == 0, errors
    assert differences(read_outputs(tmp_path / "alone"), read_outputs(out)) == []
    with open(out / "results.csv", newline="") as file:
        assert sorted(row["folder"] for row in csv.DictReader(file)) == [path.name for path in folders_in(out)]


def test_concurrent_processes_create_distinct_folders(tmp_path):
    """Starts four processes with the same experiment name and output folder."""
    flags = ["-experiment_name", "same", "-output_dir", tmp_path, "-save_results", "-random_seed", 3, "-epochs", 50]
    processes = [start(ROOT / "dmf_experiment_runner.py", *flags) for _ in range(4)]
    output = "".join(process.communicate(timeout=300)[0] for process in processes)
    assert [process.returncode for process in processes] == [0] * 4
    folders = folders_in(tmp_path)
    assert sorted(re.findall(rf"{tmp_path}/(\S+):", output)) == [folder.name for folder in folders]
    assert len({(folder / "final_e2e_matrix.pt").read_bytes() for folder in folders}) == 1
    assert len(folders) == 4
