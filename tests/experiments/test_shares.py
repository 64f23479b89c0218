"""Sweeps that several processes share out among themselves."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from common.cli import UserError
from common.experiments.shares import Share, expected_steps, own_share, shared_out
from tests.conftest import ROOT
from tests.stress.kills import differences, left_behind

SWEEP = ["-plan", "rank_1_order_3", "-repetitions", "1", "-epochs", "700"]


def test_each_experiment_is_of_one_process_and_the_loads_are_even():
    costs = [3.0, 100.0, 1.0, 1.0, 100.0, 2.0, 50.0, 50.0]
    shares = shared_out(costs, 3)
    assert sorted(sum(shares, [])) == list(range(len(costs)))  # noqa: RUF017 (short)
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[index] for index in share) for share in shares]
    assert max(loads) - min(loads) <= 3
    # Neighbours of equal cost, repetitions perhaps, are spread.
    assert shared_out([1.0] * 6, 2) == [[0, 2, 4], [1, 3, 5]]
    assert shared_out([1.0], 3) == [[0], [], []]


def test_a_smaller_initialization_is_expected_to_take_longer():
    assert expected_steps(4, 1e-3, 1e-2, 10**9) == pytest.approx(100 * expected_steps(4, 1e-2, 1e-2, 10**9))
    assert expected_steps(3, 0.0, 1e-2, 10**6) == 10**6
    assert expected_steps(1, 1e-3, 1e-2, 10**6) == expected_steps(2, 1e-1, 1e-2, 10**6) == pytest.approx(100)


def test_the_launcher_says_which_process_it_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert own_share() == Share(0, 1, 0)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert own_share() == Share(5, 8, 5)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_share() == Share(5, 8, 1)
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(UserError, match="RANK=5, WORLD_SIZE=5, LOCAL_RANK=1: must be integers"):
        own_share()


def test_shares_of_different_cuts_may_overlap():
    assert not Share(0, 2).overlaps(1, 2)
    assert Share(0, 2).overlaps(0, 2)
    assert Share(0, 2).overlaps(1, 3)


def launched(number, cwd, *arguments, **kwargs):
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={number}", "--standalone"]
    command = [*torchrun, str(ROOT / "tc_multiple_experiments_runner.py"), *SWEEP, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes, **kwargs)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process leaves."""
    path = tmp_path_factory.mktemp("alone")
    script = [sys.executable, str(ROOT / "tc_multiple_experiments_runner.py"), *SWEEP, "-output_dir", str(path)]
    subprocess.run(script, cwd=ROOT, check=True, capture_output=True)
    return left_behind(path)


@pytest.mark.parametrize("number", [2, 3])
def test_the_union_is_what_one_process_leaves(number, tmp_path, alone):
    process = launched(number, tmp_path, "-output_dir", str(tmp_path / "out"))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert differences(alone, left_behind(tmp_path / "out")) == []
    assert output.count("to draw it once all processes have ended") == 1
    for rank in range(number):
        assert f"of them for process {rank} of {number}" in output


def test_a_process_that_dies_costs_what_it_had_not_finished(tmp_path, alone):
    """One of two is killed, and the other told to end by their launcher; any number goes on."""
    out = tmp_path / "out"
    process = launched(2, tmp_path, "-output_dir", str(out), "-save_every_num_val", "5")
    deadline = time.monotonic() + 120
    while not list(out.glob("[!.]*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    (one, *_) = [json.loads(path.read_text())["pid"] for path in out.glob(".running_*") if path.suffix != ".lock"]
    os.kill(one, signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode
    process = launched(3, tmp_path, "-output_dir", str(out), "-save_every_num_val", "5", "-resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert differences(alone, left_behind(out)) == []


def test_processes_that_start_together_in_one_folder_have_folders_of_their_own(tmp_path, dataset):
    """Sixteen at once, with the same names."""
    script = [sys.executable, str(ROOT / "dmf_experiment_runner.py"), "-dataset_path", str(dataset), "-epochs", "50"]
    command = [*script, "-experiment_name", "same", "-output_dir", "out", "-save_results", "-random_seed", "3"]
    processes = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(16)]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 16
    folders = list((tmp_path / "out").iterdir())
    assert len(folders) == 16
    assert sum(f"{folder.name}:" in line for folder in folders for line in said) >= 16
    found = [(folder / "final_e2e_matrix.pt").read_bytes() for folder in folders]
    assert len(set(found)) == 1
    about = [json.loads((folder / "run_params.json").read_text())["provenance"]["process"] for folder in folders]
    assert len(set(about)) == 16


def test_of_two_that_go_on_at_once_one_says_who_the_other_is(tmp_path, dataset):
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
    assert f"-resume: process {working.pid} on " in errors
    working.send_signal(signal.SIGTERM)
    _, errors = working.communicate(timeout=60)
    assert working.returncode == 143
    (folder,) = (tmp_path / "out").iterdir()
    assert json.loads((folder / "run_params.json").read_text())["status"]["stop_reason"] == "interrupted"
