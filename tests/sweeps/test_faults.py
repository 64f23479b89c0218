"""Failures during a sweep: one line, exit status 1, the other batches are trained, and -resume completes the sweep."""

import errno
import json
import os
import re

import pytest
import torch

from common import files
from common.cli import RunFailed, UserError
from common.sweeps.plans import Job
from common.sweeps.sweep import run_jobs, run_sweep
from tests.conftest import KINDS, MATRIX, runs_by_number
from tests.stress.kills import differences, read_outputs
from tests.sweeps.test_resume import DMF, parameter_list

# Two experiments in one batch, and one in another.
THREE = [{"epochs": 200, "save_every_num_val": 1, **each} for each in ({"lr": 1e-3}, {"lr": 2e-3}, {"depth": 2})]


def fail_nth_replace(monkeypatch, number):
    """Makes the `number`-th os.replace fail with ENOSPC; returns the counter of calls."""
    replace, count = os.replace, [0]

    def failing(source, target):
        count[0] += 1
        if count[0] == number:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    return count


def test_failed_write_fails_only_its_batch(tmp_path, monkeypatch, frequent_outputs, capsys):
    """Fails each write of the sweep in turn and checks that -resume completes the sweep."""
    run_sweep(DMF, parameter_list(tmp_path / "whole", *THREE))
    expected = read_outputs(tmp_path / "whole")
    with monkeypatch.context() as patched:
        count = fail_nth_replace(patched, -1)
        run_sweep(DMF, parameter_list(tmp_path / "counted", *THREE))
    assert count[0] > 20
    # The last one is of results.csv, whose failure fails no experiment.
    for number in range(1, count[0]):
        path = tmp_path / str(number)
        capsys.readouterr()
        with monkeypatch.context() as patched:
            fail_nth_replace(patched, number)
            with pytest.raises(RunFailed, match=r"^[12] of 3 failed: \S+: OSError: .*No space left.*-resume$") as error:
                run_sweep(DMF, parameter_list(path, *THREE))
        assert capsys.readouterr().out.count(" failed: ") == 1
        assert [each.name for each in path.rglob(".*")] == [".lock"]
        statuses = [json.loads(each.read_text())["status"] for each in path.glob("*/run_params.json")]
        assert sum(status["finished"] for status in statuses) == 3 - int(str(error.value)[0])
        for checkpoint in path.glob("*/checkpoints/*"):
            torch.load(checkpoint, weights_only=True)
        run_sweep(DMF, parameter_list(path, *THREE), resume=True)
        assert differences(expected, read_outputs(path)) == []


def test_next_plan_runs_after_failed_plan(tmp_path, monkeypatch, capsys):
    jobs = [Job(name, parameter_list(tmp_path / name, {"epochs": 100}), f"draw {name}") for name in ("a", "b")]
    with monkeypatch.context() as patched, pytest.raises(RunFailed, match=f"1 of 1 failed: {tmp_path / 'a'}"):
        fail_nth_replace(patched, 1)
        run_jobs(DMF, jobs)
    assert runs_by_number(tmp_path / "b")[1][0][0]["status"]["finished"]
    assert "draw b" in capsys.readouterr().out


def test_no_plan_runs_if_one_is_invalid(tmp_path):
    wrong = {"weight_init_type": "identity", "enforce_neg_det": True}
    jobs = [
        Job(f"plan {name}: x", parameter_list(tmp_path / name, each), "") for name, each in (("a", {}), ("b", wrong))
    ]
    with pytest.raises(UserError, match=r"plan b: .*-enforce_neg_det: cannot be reached"):
        run_jobs(DMF, jobs)
    assert list(tmp_path.iterdir()) == []


def test_failing_run_exits_with_1(tmp_path, run_main, monkeypatch):
    command = ["dmf_experiment_runner.py", "-dataset_path", MATRIX, "-epochs", 3000, "-store_checkpoints"]
    command += ["-random_seed", 0, "-output_dir", tmp_path / "out"]
    with monkeypatch.context() as patched:
        fail_nth_replace(patched, 2)
        failed = run_main(*command)
    assert failed.returncode == 1
    assert re.fullmatch(
        r"dmf_experiment_runner.py: 1 of 1 failed: \S+: OSError: .*No space left.*-resume\n", failed.stderr
    )
    ((parameters, _),) = runs_by_number(tmp_path / "out")[1]
    assert parameters["status"]["stop_reason"] == "failed"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output_folder_is_refused(tmp_path, run_main):
    (tmp_path / "out").mkdir(mode=0o500)
    result = run_main("dmf_experiment_runner.py", "-dataset_path", MATRIX, "-output_dir", "out/deep")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"cannot write in {tmp_path / 'out'}" in result.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_diverging_experiment_does_not_affect_batch(tmp_path, kind):
    """The other experiments are bitwise unchanged, and the diverging one is recorded as such."""
    given = {"epochs": 500, "engine": "native", **({} if kind == "dmf" else {"use_adaptive_lr": False})}
    diverging = {**given, "lr": 1e3, **({"init_alpha": 5.0} if kind == "dmf" else {"init_std": 1e3})}
    fine = [given, {**given, "random_seed": 8}]
    three = parameter_list(tmp_path / "beside", fine[0], diverging, fine[1], kind=kind)
    run_sweep(KINDS[kind][0], parameter_list(tmp_path / "alone", *fine, kind=kind))
    run_sweep(KINDS[kind][0], three)
    parameters, folder = runs_by_number(tmp_path / "beside")[2][0]
    assert (parameters["status"]["finished"], parameters["status"]["stop_reason"]) == (True, "diverged")
    assert not any(word in path.read_text() for path in folder.glob("*.json") for word in ("NaN", "Infinity"))
    alone, beside = (
        {key: value for key, value in read_outputs(tmp_path / name).items() if "results.csv" not in key}
        for name in ("alone", "beside")
    )
    renumbered = {f"2{key[1:]}" if key[0] == "3" else key: value for key, value in beside.items() if key[0] != "2"}
    assert differences(alone, renumbered) == []
    # -resume treats the diverged run as finished.
    before = sorted((tmp_path / "beside").rglob("*"))
    run_sweep(KINDS[kind][0], three, resume=True)
    assert sorted((tmp_path / "beside").rglob("*")) == before
