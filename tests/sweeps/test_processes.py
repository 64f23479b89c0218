"""Tests of sweeps distributed over several processes."""

import csv
import json
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

SWEEP = ["-plan", "rank_1_order_3", "-repetitions", "1", "-epochs", "700"]


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
    with folder_lock(tmp_path, two, resume=True):
        pass


def test_processes_of_one_launch_resume_together(tmp_path):
    zero, one = World("a", 0, 2), World("a", 1, 2)
    other = folder_lock(tmp_path, World("b"), resume=True)
    with folder_lock(tmp_path, zero, True), folder_lock(tmp_path, one, True), pytest.raises(UserError):
        other.__enter__()


def launch_torchrun(number, cwd, *arguments, **kwargs):
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={number}", "--standalone"]
    command = [*torchrun, str(ROOT / "tc_multiple_experiments_runner.py"), *SWEEP, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes, **kwargs)


@pytest.fixture(scope="module")
def single_process_outputs(tmp_path_factory):
    """Returns the outputs of the sweep run by a single process."""
    path = tmp_path_factory.mktemp("alone")
    script = [sys.executable, str(ROOT / "tc_multiple_experiments_runner.py"), *SWEEP, "-output_dir", str(path)]
    subprocess.run(script, cwd=ROOT, check=True, capture_output=True)
    return read_outputs(path)


@pytest.mark.parametrize("number", [3])
def test_outputs_match_single_process(number, tmp_path, single_process_outputs):
    process = launch_torchrun(number, tmp_path, "-output_dir", str(tmp_path / "out"))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert differences(single_process_outputs, read_outputs(tmp_path / "out")) == []
    assert output.count("to plot it once all processes have ended") == 1
    for rank in range(number):
        assert f"of them for process {rank} of {number}" in output
    with open(tmp_path / "out/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["folder"] for row in rows) == [path.name for path in folders_in(tmp_path / "out")]
    assert {row["finished"] for row in rows} == {"True"}


def test_resume_after_killed_process_with_other_world_size(tmp_path, single_process_outputs):
    """Kills one of two processes, after which the launcher ends the other; three processes resume."""
    out = tmp_path / "out"
    process = launch_torchrun(2, tmp_path, "-output_dir", str(out), "-save_every_num_val", "5")
    deadline = time.monotonic() + 120
    while not list(out.glob("[!.]*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(workers.split()[0]), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode
    process = launch_torchrun(3, tmp_path, "-output_dir", str(out), "-save_every_num_val", "5", "-resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert differences(single_process_outputs, read_outputs(out)) == []


def test_concurrent_processes_create_distinct_folders(tmp_path, dataset):
    """Starts six processes with the same experiment name and output folder."""
    script = [sys.executable, str(ROOT / "dmf_experiment_runner.py"), "-dataset_path", str(dataset), "-epochs", "50"]
    command = [*script, "-experiment_name", "same", "-output_dir", "out", "-save_results", "-random_seed", "3"]
    processes = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    output = "".join(process.communicate(timeout=300)[0] for process in processes)
    assert [process.returncode for process in processes] == [0] * 6
    folders = folders_in(tmp_path / "out")
    assert len(folders) == 6
    assert sorted(re.findall(r"out/(\S+):", output)) == sorted(folder.name for folder in folders)
    assert len({(folder / "final_e2e_matrix.pt").read_bytes() for folder in folders}) == 1


def test_resume_is_refused_while_another_process_runs(tmp_path, dataset):
    long = ["-lr", "1e-6", "-dtype", "float64", "-epochs", str(10**12), "-random_seed", "0", "-store_checkpoints"]
    script = [sys.executable, str(ROOT / "dmf_experiment_runner.py"), "-dataset_path", str(dataset)]
    command = [*script, *long, "-output_dir", "out", "-resume"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=tmp_path, **pipes) for _ in range(2)]
    deadline = time.monotonic() + 120
    while all(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    (refused,) = [process for process in processes if process.poll() is not None]
    (working,) = [process for process in processes if process is not refused]
    _, errors = refused.communicate()
    assert refused.returncode == 2
    assert "-resume: another process is running experiments in " in errors
    working.send_signal(signal.SIGTERM)
    _, errors = working.communicate(timeout=60)
    assert working.returncode == 143
    (folder,) = folders_in(tmp_path / "out")
    assert json.loads((folder / "run_params.json").read_text())["status"]["stop_reason"] == "interrupted"
