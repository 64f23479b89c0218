"""Tests of interrupted and resumed sweeps; see also tests/stress/kills.py."""

import json
import os
import re
import shutil
import signal
from collections import Counter

import pytest
import torch

from common.cli import UserError
from common.problems import tensor_completion
from common.signals import Interrupted
from common.sweeps.experiment import identify
from common.sweeps.processes import World, folder_lock
from common.sweeps.sweep import run_sweep
from common.training import native_engine
from common.training.trainer import Trainer
from tests.conftest import KINDS, MATRIX, folders_in, parse_parameters, runs_by_number
from tests.stress.kills import differences, read_outputs

BASES = {
    "dmf": {"epochs": 3000, "random_seed": 5, "store_checkpoints": True, "save_results": True, "file_log": True},
    "tc": {"epochs": 3000, "random_seed": 5, "store_checkpoints": True, "use_adaptive_lr": True},
}
BASES["tc"] |= {"compute_final_tensor_ranks": True, "tensor_rank_tol": 1e-3}
DMF, TC = KINDS["dmf"][0], KINDS["tc"][0]


def parameter_list(output_dir, *experiments, kind="dmf"):
    return [parse_parameters(kind, **BASES[kind] | {"output_dir": output_dir} | each) for each in experiments]


def signal_during_training(monkeypatch, number, when=lambda trainer: True):
    """Sends a signal before each Trainer.advance for which `when` holds; each advance spans at most one validation."""
    advance = Trainer.advance

    def signalling(self):
        if when(self):
            os.kill(os.getpid(), number)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", signalling)
    monkeypatch.setattr(native_engine, "_MAX_MULTIPLICATIONS_PER_CHUNK", 0)


def interrupt_at_epoch(epoch, experiments, monkeypatch, resume=False, kind="dmf"):
    """Runs a sweep that receives SIGTERM at the given epoch."""
    with monkeypatch.context() as patched:
        signal_during_training(patched, signal.SIGTERM, lambda trainer: trainer.epoch >= epoch)
        with pytest.raises(Interrupted) as interruption:
            run_sweep(KINDS[kind][0], experiments, resume)
    number, message = interruption.value.args
    assert number == signal.SIGTERM
    assert message.endswith(" -resume")


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_resumed_sweep_matches_uninterrupted_sweep(tmp_path, monkeypatch, engine):
    several = [{"engine": engine, "validate_every": 70}, {"engine": engine, "validate_every": 70, "depth": 2}]
    several.append({"engine": engine, "lr": 1e-2, "init_alpha": 0.5})  # stops before the last epoch
    run_sweep(DMF, parameter_list(tmp_path / "a", *several))
    again = parameter_list(tmp_path / "b", *several)
    # Batches that had not started at the first signal start when the sweep is resumed.
    interrupt_at_epoch(10, again, monkeypatch)
    interrupt_at_epoch(1000, again, monkeypatch, resume=True)
    run_sweep(DMF, again, resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


def test_resume_after_interruption_between_validations(tmp_path, monkeypatch):
    long = {"validate_every": 2500, "engine": "torch"}
    run_sweep(DMF, parameter_list(tmp_path / "a", long))
    interrupt_at_epoch(400, parameter_list(tmp_path / "b", long), monkeypatch)
    ((parameters, folder),) = runs_by_number(tmp_path / "b")[1]
    assert (parameters["status"]["last_epoch"] + 1) % 2500
    run_sweep(DMF, parameter_list(tmp_path / "b", long), resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []
    assert "resumed after epoch" in next(folder.glob("*.log")).read_text()


def test_missing_results_are_computed_without_training(tmp_path, monkeypatch):
    """Interrupts a sweep during the first rank computation, when the last checkpoints of both runs are written."""
    pair = [{}, {"init_std": 1e-2}]
    pair = [{**each, "epochs": 200, "stop_on_zero_loss_tol": 0} for each in pair]
    run_sweep(TC, parameter_list(tmp_path / "a", *pair, kind="tc"))
    experiments = parameter_list(tmp_path / "b", *pair, kind="tc")
    compute, signals = tensor_completion.estimate_cp_rank, [signal.SIGINT]

    def signal_and_compute(*arguments):
        if signals:  # a second one would end the process
            os.kill(os.getpid(), signals.pop())
        return compute(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(tensor_completion, "estimate_cp_rank", signal_and_compute)
        run_sweep(TC, experiments)
    ((parameters, folder),) = runs_by_number(tmp_path / "b")[2]
    assert not parameters["status"]["finished"]
    assert not (folder / "tensor_rank_and_reconstruction_metrics.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "advance", None)
        run_sweep(TC, experiments, resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


def test_resume_skips_finished_runs_and_starts_new_ones(tmp_path):
    run_sweep(DMF, parameter_list(tmp_path, {}, {"depth": 2}))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*.*") if path.is_file()}
    # Order and names do not matter, only parameters and seed.
    run_sweep(DMF, parameter_list(tmp_path, {"lr": 1e-3}, {"depth": 2, "experiment_name": "x"}, {}), resume=True)
    assert len(folders_in(tmp_path)) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_starts_a_new_run(tmp_path, monkeypatch):
    """Other parameters and other content of a dataset, not another path of the dataset or of the folder."""
    monkeypatch.chdir(tmp_path)
    same, changed = shutil.copy(MATRIX, "same.pt"), str(tmp_path / "changed.pt")
    content = torch.load(MATRIX, weights_only=True)
    torch.save({**content, "y": content["y"] * 2}, changed)
    changes = [{"random_seed": 6}, {"lr": 1e-3}, {"epochs": 4000}, {"save_results": False}, {"dataset_path": changed}]
    for number, change in enumerate([{}, *changes], start=1):
        for more in ({}, {"output_dir": tmp_path / "out"}, {"dataset_path": same}):
            if more.keys() <= {"output_dir"} or "dataset_path" not in change:
                run_sweep(DMF, parameter_list("out", {"epochs": 100, **change, **more}), resume=True)
        assert len(folders_in(tmp_path / "out")) == number


def test_resume_uses_random_seeds_of_newest_sweep(tmp_path, monkeypatch):
    random_seeds = [{"random_seed": -1}, {"random_seed": -1}]
    run_sweep(DMF, parameter_list(tmp_path, *random_seeds))
    monkeypatch.setattr("common.sweeps.sweep.utc_time", lambda: "2100_01_01-00_00_00")
    interrupt_at_epoch(500, parameter_list(tmp_path, *random_seeds), monkeypatch)
    seeds = {
        number: [parameters["random_seed"] for parameters, _ in found]
        for number, found in runs_by_number(tmp_path).items()
    }
    run_sweep(DMF, parameter_list(tmp_path, *random_seeds), resume=True)
    found = runs_by_number(tmp_path)
    assert {number: [each["random_seed"] for each, _ in runs] for number, runs in found.items()} == seeds
    assert all(parameters["status"]["finished"] for runs in found.values() for parameters, _ in runs)
    # Resuming again does nothing.
    run_sweep(DMF, parameter_list(tmp_path, *random_seeds), resume=True)
    assert len(folders_in(tmp_path)) == 4


def test_run_without_checkpoint_restarts_in_same_folder(tmp_path, monkeypatch):
    without = {"store_checkpoints": False}
    run_sweep(DMF, parameter_list(tmp_path / "a", without))
    with monkeypatch.context() as patched:
        signal_during_training(patched, signal.SIGTERM, lambda trainer: trainer.epoch >= 0)
        with pytest.raises(Interrupted) as interruption:
            run_sweep(DMF, parameter_list(tmp_path / "b", without))
    assert "there are no checkpoints to continue from" in interruption.value.args[1]
    run_sweep(DMF, parameter_list(tmp_path / "b", without), resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


def test_resume_of_run_started_from_checkpoint(tmp_path, monkeypatch):
    run_sweep(DMF, parameter_list(tmp_path / "first", {"epochs": 510, "lr": 2e-3}))
    ((_, folder),) = runs_by_number(tmp_path / "first")[1]
    start = {"trainer_checkpoint": str(next((folder / "checkpoints").iterdir())), "engine": "torch"}
    run_sweep(DMF, parameter_list(tmp_path / "a", start))
    interrupt_at_epoch(1000, parameter_list(tmp_path / "b", start), monkeypatch)
    run_sweep(DMF, parameter_list(tmp_path / "b", start), resume=True)
    assert len(folders_in(tmp_path / "b")) == 1
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


@pytest.mark.parametrize("kind, damage", [("dmf", "cut"), ("tc", "empty"), ("dmf", "misshapen"), ("tc", "misshapen")])
def test_run_with_damaged_checkpoint_begins_again(tmp_path, capsys, kind, damage):
    experiments = parameter_list(tmp_path, {"epochs": 100}, {"epochs": 100, "random_seed": 6}, kind=kind)
    run_sweep(KINDS[kind][0], experiments)
    expected = read_outputs(tmp_path)
    ((parameters, folder),) = runs_by_number(tmp_path)[1]
    parameters["status"]["finished"] = False
    (folder / "run_params.json").write_text(json.dumps(parameters))
    checkpoint = next((folder / "checkpoints").iterdir())
    content = torch.load(checkpoint)
    content["trainer"]["output"] = torch.zeros(1)  # would be written as the final matrix or tensor
    if damage == "misshapen":
        torch.save(content, checkpoint)
    else:
        checkpoint.write_bytes(checkpoint.read_bytes()[: 100 if damage == "cut" else 0])
    capsys.readouterr()
    run_sweep(KINDS[kind][0], experiments, resume=True)
    reason = r"has a last output of shape \(1,\)" if damage == "misshapen" else "is damaged"
    assert re.search(f"{checkpoint}: .*{reason}.*; this experiment begins again\n", capsys.readouterr().out)
    assert differences(expected, read_outputs(tmp_path)) == []


def test_checkpoint_with_changed_learning_rate_starts_new_run(tmp_path):
    run_sweep(DMF, parameter_list(tmp_path / "first", {"epochs": 100}))
    ((_, folder),) = runs_by_number(tmp_path / "first")[1]
    start = {"trainer_checkpoint": str(next((folder / "checkpoints").iterdir()))}
    for lr in (1e-3, 2e-3, 1e-3):
        run_sweep(DMF, parameter_list(tmp_path / "second", {**start, "lr": lr}), resume=True)
    assert len(folders_in(tmp_path / "second")) == 2
    # The learning rate of the checkpoint is 3e-3.
    for given in ({}, {"lr": 3e-3}):
        run_sweep(DMF, parameter_list(tmp_path / "second", {**start, **given}), resume=True)
    assert len(folders_in(tmp_path / "second")) == 3


def test_resume_of_diverged_adaptive_run(tmp_path):
    """Resumes a diverged run whose checkpoint contains NaN and whose results are missing."""
    diverging = {"lr": 1e30, "epochs": 300}
    experiments = parameter_list(tmp_path / "b", diverging, kind="tc")
    for path in ("a", "b"):
        run_sweep(TC, parameter_list(tmp_path / path, diverging, kind="tc"))
    ((parameters, folder),) = runs_by_number(tmp_path / "b")[1]
    assert parameters["status"]["stop_reason"] == "diverged"
    for path in folder.glob("*.*"):
        path.unlink()
    status = {"finished": False, "stop_reason": None, "last_epoch": None}
    (folder / "run_params.json").write_text(json.dumps({**parameters, "status": status}))
    run_sweep(TC, experiments, resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize(
    "kind, tracking",
    [
        ("dmf", {"track_balancedness": True, "track_sharpness": True}),
        ("tc", {"track_sharpness": True, "track_component_norms": 2, "num_components": 5}),
    ],
)
def test_resume_with_metrics_of_factors(tmp_path, monkeypatch, kind, tracking, engine):
    """The second experiment ends before the first, and the third, of the same batch, has no such metrics."""
    common = {"engine": engine, "validate_every": 70, "epochs": 1500, "stop_on_zero_loss_tol": 0, **tracking}
    without = {name: value for name, value in common.items() if not name.startswith("track_")}
    several = [common, {**common, "lr": 5e-3, "epochs": 850}, {**without, "random_seed": 6}]
    run_sweep(KINDS[kind][0], parameter_list(tmp_path / "a", *several, kind=kind))
    again = parameter_list(tmp_path / "b", *several, kind=kind)
    interrupt_at_epoch(300, again, monkeypatch, kind=kind)
    interrupt_at_epoch(1000, again, monkeypatch, resume=True, kind=kind)
    run_sweep(KINDS[kind][0], again, resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []
    names = {"dmf": {"balancedness", "sharpness"}, "tc": {"sharpness", "component_norm_0", "component_norm_1"}}[kind]
    for number, expected in [(1, names), (3, set())]:
        ((_, folder),) = runs_by_number(tmp_path / "b")[number]
        (path,) = (folder / "checkpoints").iterdir()
        recorded = torch.load(path, weights_only=True)["val_evaluator"]
        assert recorded.keys() & names == expected
        for entry in recorded.values():
            assert entry["epochs_with_values"].tolist() == [*range(69, 1499, 70), 1499]


def test_interruption_with_tracked_ranks(tmp_path, monkeypatch):
    """Ranks of at most one validation are computed after the signal."""
    tracking = {"track_tensor_rank": True, "epochs": 2000, "validate_every": 10, "compute_final_tensor_ranks": False}
    experiments = parameter_list(tmp_path / "b", tracking, kind="tc")
    run_sweep(TC, parameter_list(tmp_path / "a", tracking, kind="tc"))
    estimate, after = tensor_completion.estimate_cp_rank, []

    def counted(*arguments):
        if len(after) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        after.append(1)
        return estimate(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(tensor_completion, "estimate_cp_rank", counted)
        run_sweep(TC, experiments)
    assert len(after) <= 22
    run_sweep(TC, experiments, resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


def test_leftover_temporary_files_are_removed(tmp_path, monkeypatch):
    interrupt_at_epoch(500, parameter_list(tmp_path, {}), monkeypatch)
    ((_, folder),) = runs_by_number(tmp_path)[1]
    leftovers = [folder / ".run_params-ab_c1234.json", folder / "checkpoints/.x-abcd1234.pt"]
    leftovers.append(folder / "checkpoints/2020_01_01-00_00_00_epoch_3.pt")
    user_files = [folder / "checkpoints/backup_epoch_3.pt", folder / "my-notes.txt"]
    for path in leftovers + user_files:
        path.write_text("half of i")
    (tmp_path / "matrix_comp_made_by_a_process_that_died").mkdir()
    run_sweep(DMF, parameter_list(tmp_path, {}), resume=True)
    assert not any(leftover.exists() for leftover in leftovers)
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert all(path.read_text() == "half of i" for path in user_files)
    assert runs_by_number(tmp_path)[1][0][0]["status"]["finished"]


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


def test_sweep_id_is_kept_per_output_folder(tmp_path, monkeypatch):
    """Runs started with -resume get the id of the existing sweep in their output folder."""
    for name in ("a", "b"):
        interrupt_at_epoch(500, parameter_list(tmp_path / name, {}), monkeypatch)
    ids = {name: runs_by_number(tmp_path / name)[1][0][0]["provenance"]["sweep"]["id"] for name in ("a", "b")}
    both = [*parameter_list(tmp_path / "a", {}, {"lr": 1e-3}), *parameter_list(tmp_path / "b", {}, {"lr": 1e-3})]
    run_sweep(DMF, both, resume=True)
    for name in ("a", "b"):
        runs = [parameters for found in runs_by_number(tmp_path / name).values() for parameters, _ in found]
        assert len(runs) == 2
        assert {parameters["provenance"]["sweep"]["id"] for parameters in runs} == {ids[name]}


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


def test_random_seeds_do_not_continue_several_sweeps(tmp_path, monkeypatch):
    """Of an older sweep, no run is continued, even if the newest one has fewer."""
    experiments = [{"random_seed": -1}, {"random_seed": -1}, {"random_seed": -1, "lr": 1e-3}]
    experiments = parameter_list(tmp_path, *({"epochs": 100, **each} for each in experiments))
    run_sweep(DMF, experiments)
    monkeypatch.setattr("common.sweeps.sweep.utc_time", lambda: "2100_01_01-00_00_00")
    run_sweep(DMF, experiments[:1])
    run_sweep(DMF, experiments, resume=True)
    assert len(folders_in(tmp_path)) == 6


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
