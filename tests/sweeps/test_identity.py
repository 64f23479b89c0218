"""Tests of which earlier runs -resume continues."""

import json
import shutil
from collections import Counter

import pytest
import torch

from common.cli import UserError
from common.sweeps.experiment import identify
from common.sweeps.processes import World, folder_lock
from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, MATRIX, folders_in, parse_parameters, runs_by_number
from tests.sweeps.test_resume import DMF, interrupt_at_epoch, parameter_list


def test_what_starts_a_new_run(tmp_path, monkeypatch):
    """Other parameters and other content of a dataset, not other names, paths and order."""
    monkeypatch.chdir(tmp_path)
    same, changed = shutil.copy(MATRIX, "same.pt"), str(tmp_path / "changed.pt")
    content = torch.load(MATRIX, weights_only=True)
    torch.save({**content, "y": content["y"] * 2}, changed)
    changes = [{"random_seed": 6}, {"lr": 1e-3}, {"epochs": 200}, {"save_results": False}, {"dataset_path": changed}]
    experiments = [{"epochs": 100, **change} for change in ({}, *changes)]
    for number in range(1, 1 + len(experiments)):
        run_sweep(DMF, parameter_list("out", *experiments[:number]), resume=True)
        assert len(folders_in(tmp_path / "out")) == number
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/**/*.*") if path.is_file()}
    elsewhere = {"output_dir": tmp_path / "out", "experiment_name": "x"}
    experiments = [{**elsewhere, "dataset_path": same, **each} for each in reversed(experiments)]
    run_sweep(DMF, parameter_list("out", *experiments), resume=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(folders_in(tmp_path / "out")) == len(experiments)


def test_random_seeds_continue_the_newest_sweep_only(tmp_path, monkeypatch):
    experiments = parameter_list(tmp_path, {"random_seed": -1}, {"random_seed": -1}, {"random_seed": -1, "lr": 1e-3})
    run_sweep(DMF, experiments)
    monkeypatch.setattr("common.sweeps.sweep.utc_time", lambda: "2100_01_01-00_00_00")
    interrupt_at_epoch(500, experiments[:2], monkeypatch)

    def seeds():
        runs = runs_by_number(tmp_path).items()
        return {number: [parameters["random_seed"] for parameters, _ in found] for number, found in runs}

    before = seeds()
    for _ in range(2):  # the second time does nothing
        run_sweep(DMF, experiments[:2], resume=True)
        assert seeds() == before
    found = runs_by_number(tmp_path)
    assert all(parameters["status"]["finished"] for runs in found.values() for parameters, _ in runs)
    run_sweep(DMF, experiments, resume=True)
    assert len(folders_in(tmp_path)) == 6


@pytest.mark.parametrize("damage", [None, {"random_seed": None}, {"provenance": {}}, {"status": None}])
def test_resume_ignores_folders_without_identity(tmp_path, damage, capsys):
    run_sweep(DMF, parameter_list(tmp_path, {"epochs": 100, "random_seed": -1}))
    ((parameters, folder),) = runs_by_number(tmp_path)[1]
    (folder / "run_params.json").write_text("{" if damage is None else json.dumps({**parameters, **damage}))
    before = sorted(folder.rglob("*"))
    run_sweep(DMF, parameter_list(tmp_path, {"epochs": 100, "random_seed": -1}), resume=True)
    assert sorted(folder.rglob("*")) == before
    assert len(folders_in(tmp_path)) == 2
    skipped = f"skipped {folder}: damaged: run_params.json is not JSON"
    assert (skipped in capsys.readouterr().out) == (damage is None)


def test_resume_is_refused_while_lock_is_held(tmp_path, monkeypatch):
    experiments = parameter_list(tmp_path, {})
    interrupt_at_epoch(500, experiments, monkeypatch)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/**/*.*") if path.is_file()}
    with folder_lock(tmp_path, World("other"), resume=False):
        with pytest.raises(UserError, match=f"-resume: another process is running experiments in {tmp_path}"):
            run_sweep(DMF, experiments, resume=True)
        # A new run without -resume is allowed, and changes no other.
        run_sweep(DMF, experiments)
    assert {path: path.read_bytes() for path in before} == before
    assert len(folders_in(tmp_path)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_flags_that_change_a_run(kind):
    """The flags of a run's identity, by which -resume and plotters tell runs apart."""
    common = "dtype engine epochs lr momentum num_samples optimizer random_target stop_on_zero_loss_tol"
    common += " validate_every weight_decay"
    own = {
        "dmf": "depth enforce_neg_det enforce_pos_det hidden_dim init_alpha use_balanced_init weight_init_type "
        "num_cols num_rows rank",
        "tc": "init_std mode_dim_size num_components order target_fro_norm target_tensor_cp_rank tensor_rank_tol",
    }
    parameters = parse_parameters(kind)
    _, record = identify(parameters, parameters.values, Counter())
    assert sorted(record["run"]) == sorted(f"{common} {own[kind]}".split())
