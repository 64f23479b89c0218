"""Tests of interrupted and resumed sweeps; see also tests/stress/kills.py."""

import json
import os
import re
import signal

import pytest
import torch

from common.problems import tensor_completion
from common.signals import Interrupted
from common.sweeps.sweep import run_sweep
from common.training import native_engine
from common.training.torch_engine import TorchEngine
from common.training.trainer import Trainer
from tests.conftest import KINDS, folders_in, parse_parameters, runs_by_number
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


def interrupted_like_whole(tmp_path, monkeypatch, *several, epochs, kind="dmf"):
    """Checks that a sweep that is interrupted at each of some epochs has the outputs of one that is not; returns the
    former's runs.
    """
    run_sweep(KINDS[kind][0], parameter_list(tmp_path / "a", *several, kind=kind))
    again = parameter_list(tmp_path / "b", *several, kind=kind)
    for number, epoch in enumerate(epochs):
        interrupt_at_epoch(epoch, again, monkeypatch, number > 0, kind)
    run_sweep(KINDS[kind][0], again, resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []
    return runs_by_number(tmp_path / "b")


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize(
    "kind, tracking, names",
    [
        ("dmf", {"track_balancedness": True}, {"balancedness", "sharpness"}),
        (
            "tc",
            {"track_component_norms": 2, "num_components": 5},
            {"component_norm_0", "component_norm_1", "sharpness"},
        ),
    ],
)
def test_resumed_sweep_matches_uninterrupted_sweep(tmp_path, monkeypatch, kind, tracking, names, engine):
    """The second experiment ends before the first, of the same batch. The others are in batches that have not begun at
    the first signal.
    """
    common = {"engine": engine, "validate_every": 70, "epochs": 1500, "stop_on_zero_loss_tol": 0}
    tracked = {**common, **tracking, "track_sharpness": True}
    several = [tracked, {**tracked, "lr": 5e-3, "epochs": 850}, {**common, **tracking}, {"engine": engine, "lr": 1e-2}]
    runs = interrupted_like_whole(tmp_path, monkeypatch, *several, epochs=[10, 300, 1000], kind=kind)
    for number, expected in [(1, names), (3, names - {"sharpness"})]:
        ((_, folder),) = runs[number]
        (path,) = (folder / "checkpoints").iterdir()
        recorded = torch.load(path, weights_only=True)["val_evaluator"]
        assert recorded.keys() & names == expected
        for entry in recorded.values():
            assert entry["epochs_with_values"].tolist() == [*range(69, 1499, 70), 1499]


def test_resume_after_interruption_between_validations(tmp_path, monkeypatch):
    long = {"validate_every": 2500, "engine": "torch"}
    with monkeypatch.context() as patched:
        patched.setattr(TorchEngine, "max_steps_per_chunk", 100)
        runs = interrupted_like_whole(tmp_path, patched, long, epochs=[400])
    log = next(runs[1][0][1].glob("*.log")).read_text()
    assert (int(re.search(r"resumed after epoch ([\d,]+)", log)[1].replace(",", "")) + 1) % 2500


def signal_during_rank(number, experiments, monkeypatch):
    """Runs a sweep that receives SIGINT when the given number of ranks were computed. Returns how many were computed in
    the end.
    """
    estimate, computed = tensor_completion.estimate_cp_rank, []

    def signal_and_estimate(*arguments):
        if len(computed) == number:
            os.kill(os.getpid(), signal.SIGINT)
        computed.append(1)
        return estimate(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(tensor_completion, "estimate_cp_rank", signal_and_estimate)
        run_sweep(TC, experiments)
    return len(computed)


def test_missing_results_are_computed_without_training(tmp_path, monkeypatch):
    """Interrupts a sweep during the first rank computation, when the last checkpoints of both runs are written."""
    pair = [{"epochs": 200, "stop_on_zero_loss_tol": 0, **each} for each in ({}, {"init_std": 1e-2})]
    run_sweep(TC, parameter_list(tmp_path / "a", *pair, kind="tc"))
    experiments = parameter_list(tmp_path / "b", *pair, kind="tc")
    signal_during_rank(0, experiments, monkeypatch)
    ((parameters, folder),) = runs_by_number(tmp_path / "b")[2]
    assert not parameters["status"]["finished"]
    assert not (folder / "tensor_rank_and_reconstruction_metrics.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "advance", None)
        run_sweep(TC, experiments, resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


def test_interruption_with_tracked_ranks(tmp_path, monkeypatch):
    """Ranks of at most one validation are computed after the signal."""
    tracking = {"track_tensor_rank": True, "epochs": 2000, "validate_every": 10, "compute_final_tensor_ranks": False}
    experiments = parameter_list(tmp_path / "b", tracking, kind="tc")
    run_sweep(TC, parameter_list(tmp_path / "a", tracking, kind="tc"))
    assert signal_during_rank(20, experiments, monkeypatch) <= 22
    run_sweep(TC, experiments, resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


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
    start = {"trainer_checkpoint": str(next((folder / "checkpoints").iterdir()))}
    interrupted_like_whole(tmp_path, monkeypatch, {**start, "engine": "torch"}, epochs=[1000])
    assert len(folders_in(tmp_path / "b")) == 1
    # The learning rate of the checkpoint is 2e-3.
    for given in ({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-3}, {}, {"lr": 2e-3}):
        run_sweep(DMF, parameter_list(tmp_path / "second", {**start, **given}), resume=True)
    assert len(folders_in(tmp_path / "second")) == 3


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
