"""Failures during a sweep: one line, exit status 1, the other batches are trained, and -resume completes the sweep."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import files
from common.cli import RunFailed, UserError
from common.sweeps import training
from common.sweeps.plans import Job
from common.sweeps.sweep import run_jobs, run_sweep
from common.training.trainer import Trainer
from tests.conftest import KINDS, ROOT, folders_in, runs_by_number
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


def test_sweep_continues_after_out_of_memory_batch(tmp_path, monkeypatch, capsys):
    build = training.build_engine
    experiments = parameter_list(tmp_path, {"depth": 2}, {"depth": 2, "lr": 1e-3}, {"depth": 3})

    def failing(experiments, *arguments):
        if experiments[0].parameters["depth"] == 2:
            raise MemoryError("not enough memory")
        return build(experiments, *arguments)

    with monkeypatch.context() as patched, pytest.raises(RunFailed, match=r"^2 of 3 failed: .*not enough.* -resume$"):
        patched.setattr(training, "build_engine", failing)
        run_sweep(DMF, experiments)
    assert f"2 of 3 experiments failed: {tmp_path}: MemoryError: not enough memory\n" in capsys.readouterr().out
    assert {number: runs[0][0]["status"]["finished"] for number, runs in runs_by_number(tmp_path).items()} == {3: True}
    run_sweep(DMF, experiments, resume=True)
    assert all(runs[0][0]["status"]["finished"] for runs in runs_by_number(tmp_path).values())
    assert len(runs_by_number(tmp_path)) == 3


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


def test_deleted_folder_fails_only_its_batch(tmp_path, monkeypatch, frequent_outputs):
    advance = Trainer.advance

    def delete_folder(self):
        if self.epoch == 99 and self.running[0].number == 1:  # after the first and before the last validation
            shutil.rmtree(runs_by_number(tmp_path / "out")[1][0][1])
        return advance(self)

    run_sweep(DMF, parameter_list(tmp_path / "whole", *THREE))
    experiments = parameter_list(tmp_path / "out", *THREE)
    with monkeypatch.context() as patched, pytest.raises(RunFailed, match=r"2 of 3 failed: .*No such file"):
        patched.setattr(Trainer, "advance", delete_folder)
        run_sweep(DMF, experiments)
    run_sweep(DMF, experiments, resume=True)
    assert differences(read_outputs(tmp_path / "whole"), read_outputs(tmp_path / "out")) == []


def test_file_size_limit(tmp_path):
    """Limits the file size with ulimit, so that writes of more than a few kilobytes fail."""
    script = str(ROOT / "dmf_experiment_runner.py")
    dataset = ["-dataset_path", str(ROOT / "data/dmf/completion_2x2_w_1_1_0.pt")]
    command = [sys.executable, script, *dataset, "-epochs", "30000", "-store_checkpoints", "-random_seed", "0"]
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *command]
    failed = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1
    assert re.fullmatch(
        r"dmf_experiment_runner.py: 1 of 1 failed: \S+: OSError: .*File too large.*-resume\n", failed.stderr
    )
    (folder,) = folders_in(tmp_path / "outputs/dmf")
    assert json.loads((folder / "run_params.json").read_text())["status"]["stop_reason"] == "failed"
    done = subprocess.run([*command, "-resume"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"1/1 outputs/dmf/{folder.name}: " in done.stdout
    assert json.loads((folder / "run_params.json").read_text())["status"]["finished"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output_folder_is_refused(tmp_path, run_script, dataset):
    (tmp_path / "out").mkdir(mode=0o500)
    result = run_script("dmf_experiment_runner.py", "-dataset_path", dataset, "-output_dir", "out/deep")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"cannot write in {tmp_path / 'out'}" in result.stderr


def test_sweep_continues_if_stdout_is_closed(tmp_path, dataset):
    script = [sys.executable, str(ROOT / "dmf_multiple_experiments_runner.py"), "-dataset_path", str(dataset)]
    command = [*script, "-epochs", "300", "-repetitions", "3", "-output_dir", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read().count("\n") <= 1
    assert process.wait() in (0, 1)
    assert all(runs[0][0]["status"]["finished"] for runs in runs_by_number(tmp_path / "out").values())
    assert len(runs_by_number(tmp_path / "out")) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_diverging_experiment_does_not_affect_batch(tmp_path, kind):
    """The other experiments are bitwise unchanged, and the diverging one is recorded as such."""
    # Both problems diverge with these learning rates and initializations.
    diverging = {"lr": 1e3, **({"init_alpha": 5.0} if kind == "dmf" else {"init_std": 1e3, "use_adaptive_lr": False})}
    fine = [{"epochs": 500}, {"epochs": 500, "random_seed": 8}]
    if kind == "tc":
        fine = [{**each, "use_adaptive_lr": False} for each in fine]
    native = {"engine": "native"}
    run_sweep(KINDS[kind][0], parameter_list(tmp_path / "alone", *({**each, **native} for each in fine), kind=kind))
    three = [fine[0], {**diverging, "epochs": 500}, fine[1]]
    run_sweep(KINDS[kind][0], parameter_list(tmp_path / "beside", *({**each, **native} for each in three), kind=kind))
    runs = runs_by_number(tmp_path / "beside")
    parameters, folder = runs[2][0]
    assert parameters["status"]["finished"]
    assert parameters["status"]["stop_reason"] == "diverged"
    for path in folder.glob("*.json"):
        assert "NaN" not in path.read_text()
        assert "Infinity" not in path.read_text()
    alone, beside = (
        {key: value for key, value in read_outputs(tmp_path / name).items() if "results.csv" not in key}
        for name in ("alone", "beside")
    )
    renumbered = {f"2{key[1:]}" if key[0] == "3" else key: value for key, value in beside.items() if key[0] != "2"}
    assert differences(alone, renumbered) == []
    # -resume treats the diverged run as finished.
    before = sorted(Path(tmp_path / "beside").rglob("*"))
    run_sweep(
        KINDS[kind][0],
        parameter_list(tmp_path / "beside", *({**each, **native} for each in three), kind=kind),
        resume=True,
    )
    assert sorted(Path(tmp_path / "beside").rglob("*")) == before
