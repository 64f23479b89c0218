"""Tests of sweeps distributed over several processes."""

import csv
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


def test_two_processes_complete_the_sweep_of_a_killed_one(tmp_path, run_main):
    """The outputs are those of one process."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    script = "dmf_multiple_experiments_runner.py"
    sweep = "-plan", "many_seeds", "-repetitions", "1", "-epochs", "300000", "-output_dir"
    assert run_main(script, *sweep, "alone").returncode == 0
    command = [str(ROOT / script), *sweep, "out"]
    process = subprocess.Popen([sys.executable, *command], cwd=tmp_path)
    deadline, out = time.monotonic() + 120, tmp_path / "out"
    while not list(out.glob("*/run_params.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    resumed = subprocess.run([*torchrun, *command, "-resume"], cwd=tmp_path, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("to plot it once all processes have ended") == 1
    assert all(f"6 of them for process {rank} of 2" in resumed.stdout for rank in (0, 1))
    assert differences(read_outputs(tmp_path / "alone"), read_outputs(out)) == []
    with open(out / "results.csv", newline="") as file:
        folders = sorted(row["folder"] for row in csv.DictReader(file))
    # The kill may have left a folder without run_params.json, which is no experiment.
    assert folders == [path.name for path in folders_in(out) if (path / "run_params.json").exists()]
