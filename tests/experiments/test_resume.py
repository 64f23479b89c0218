"""Sweeps that are ended before their time, and taken up again; what is killed outright is in tests/stress/kills.py."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from common.cli import Interrupted, Parameters, UserError, check_parameters
from common.experiments import batch, dmf, tc
from common.experiments.presence import present
from common.experiments.resume import digest_of_file, digest_of_sweep
from common.experiments.sweep import run_sweep
from common.training import engines
from dmf_experiment_runner import FLAGS
from tc_experiment_runner import FLAGS as TC_FLAGS
from tests.conftest import ROOT
from tests.stress.kills import differences, left_behind

BASE = {
    "dataset_path": str(ROOT / "data/dmf/completion_2x2_w_1_1_0.pt"),
    "epochs": 3000,
    "random_seed": 5,
    "store_checkpoints": True,
    "save_results": True,
    "file_log": True,
}
TC_BASE = {
    "dataset_path": str(ROOT / "data/tc/tensor_rank_1_fro_1_order_3_dim_8.pt"),
    "use_adaptive_lr": True,
    "compute_final_tensor_ranks": True,
    "epochs": 3000,
    "random_seed": 5,
    "store_checkpoints": True,
}


def listed(output_dir, *experiments, base=BASE, flags=FLAGS):
    return [check_parameters(flags, {**base, "output_dir": str(output_dir), **each}) for each in experiments]


def folders(output_dir):
    """run_params.json and folder of each experiment, by its number in its sweep."""
    found = {}
    for folder in output_dir.glob("[!.]*"):
        parameters = json.loads((folder / "run_params.json").read_text())
        found.setdefault(parameters["provenance"]["sweep"]["experiment"], []).append((parameters, folder))
    return found


def interrupted_at(epoch, problem, experiments, monkeypatch, resume=False):
    """Runs a sweep, to which SIGTERM comes at an epoch."""
    advance = batch.LockstepTrainer.advance

    def signalled(self):
        if self.epoch >= epoch:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self)

    with monkeypatch.context() as patched:
        patched.setattr(batch.LockstepTrainer, "advance", signalled)
        # The native engine would pass all of the validations in one call.
        patched.setattr(engines, "_SEVERAL_VALIDATIONS", 0)
        with pytest.raises(Interrupted, match=r"to go on where it was: .* -resume") as interruption:
            run_sweep(problem, experiments, resume)
    assert interruption.value.number == signal.SIGTERM


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_an_interrupted_sweep_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, engine):
    several = [{"engine": engine, "validate_every": 70}, {"engine": engine, "validate_every": 70, "depth": 2}]
    several.append({"engine": engine, "lr": 1e-2, "init_alpha": 0.5})  # ends by itself
    run_sweep(dmf, listed(tmp_path / "a", *several))
    again = listed(tmp_path / "b", *several)
    # The batches that were not begun at the first signal begin after it.
    interrupted_at(10, dmf, again, monkeypatch)
    interrupted_at(1000, dmf, again, monkeypatch, resume=True)
    run_sweep(dmf, again, resume=True)
    assert differences(left_behind(tmp_path / "a"), left_behind(tmp_path / "b")) == []


def test_an_interruption_between_validations_leaves_no_trace(tmp_path, monkeypatch):
    long = {"validate_every": 2500, "engine": "torch"}
    run_sweep(dmf, listed(tmp_path / "a", long))
    interrupted_at(400, dmf, listed(tmp_path / "b", long), monkeypatch)
    ((parameters, folder),) = folders(tmp_path / "b")[1]
    assert (parameters["status"]["last_epoch"] + 1) % 2500
    run_sweep(dmf, listed(tmp_path / "b", long), resume=True)
    assert differences(left_behind(tmp_path / "a"), left_behind(tmp_path / "b")) == []
    assert "resumed after epoch" in next(folder.glob("*.log")).read_text()


def test_what_ended_but_has_no_results_gets_them_without_training(tmp_path, monkeypatch):
    """A signal while the ranks are computed: the last checkpoint says that it ended, and with what."""
    experiments = listed(tmp_path / "b", {}, base=TC_BASE, flags=TC_FLAGS)
    run_sweep(tc, listed(tmp_path / "a", {}, base=TC_BASE, flags=TC_FLAGS))
    compute = tc.estimate_cp_rank

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return compute(*arguments)

    tc._dataset_ranks.cache_clear()
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(tc, "estimate_cp_rank", signalled)
        run_sweep(tc, experiments)
    ((parameters, folder),) = folders(tmp_path / "b")[1]
    assert not parameters["status"]["finished"]
    assert not (folder / "tensor_rank_and_reconstruction_metrics.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(batch.Batch, "_train", None)
        run_sweep(tc, experiments, resume=True)
    assert differences(left_behind(tmp_path / "a"), left_behind(tmp_path / "b")) == []


def test_what_is_finished_is_left_alone_and_what_is_new_begins(tmp_path):
    run_sweep(dmf, listed(tmp_path, {}, {"depth": 2}))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*.*") if path.is_file()}
    # Another order and other names: parameters and seed are what counts.
    run_sweep(dmf, listed(tmp_path, {"lr": 1e-3}, {"depth": 2, "experiment_name": "x"}, {}), resume=True)
    assert len(list(tmp_path.iterdir())) == 3
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before}
    assert after == before


@pytest.mark.parametrize("changed", [{"random_seed": 6}, {"lr": 1e-3}, {"epochs": 4000}, {"save_results": False}])
def test_other_parameters_are_another_experiment(tmp_path, changed):
    run_sweep(dmf, listed(tmp_path, {}))
    run_sweep(dmf, listed(tmp_path, changed), resume=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_dataset_of_the_same_name_is_another_experiment(tmp_path):
    path = tmp_path / "data.pt"
    content = torch.load(BASE["dataset_path"], weights_only=True)
    for scale in (1, 2):
        torch.save({**content, "y": content["y"] * scale}, path)
        dmf._load.cache_clear()
        digest_of_file.cache_clear()
        run_sweep(dmf, listed(tmp_path / "out", {"dataset_path": str(path)}), resume=True)
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_without_resume_nothing_of_another_run_is_touched(tmp_path, monkeypatch):
    interrupted_at(500, dmf, listed(tmp_path, {}), monkeypatch)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    run_sweep(dmf, listed(tmp_path, {}))
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(tmp_path.iterdir())) == 2


def test_drawn_seeds_are_those_of_the_newest_sweep(tmp_path, monkeypatch):
    drawn = [{"random_seed": -1}, {"random_seed": -1}]
    run_sweep(dmf, listed(tmp_path, *drawn))
    monkeypatch.setattr("common.experiments.sweep.utc_time", lambda: "2100_01_01-00_00_00")
    interrupted_at(500, dmf, listed(tmp_path, *drawn), monkeypatch)
    seeds = {
        number: [parameters["random_seed"] for parameters, _ in found] for number, found in folders(tmp_path).items()
    }
    run_sweep(dmf, listed(tmp_path, *drawn), resume=True)
    found = folders(tmp_path)
    assert {number: [each["random_seed"] for each, _ in runs] for number, runs in found.items()} == seeds
    assert all(parameters["status"]["finished"] for runs in found.values() for parameters, _ in runs)
    # Once more, there is nothing left to do.
    run_sweep(dmf, listed(tmp_path, *drawn), resume=True)
    assert len(list(tmp_path.iterdir())) == 4


def test_equal_experiments_have_a_folder_each(tmp_path, monkeypatch):
    interrupted_at(500, dmf, listed(tmp_path, {}, {}, {}), monkeypatch)
    paths = {folder for runs in folders(tmp_path).values() for _, folder in runs}
    run_sweep(dmf, listed(tmp_path, {}, {}, {}), resume=True)
    found = [run for runs in folders(tmp_path).values() for run in runs]
    assert {folder for _, folder in found} == paths
    assert all(parameters["status"]["finished"] for parameters, _ in found)


def test_without_checkpoints_it_begins_anew_in_its_folder(tmp_path, monkeypatch):
    without = {"store_checkpoints": False}
    run_sweep(dmf, listed(tmp_path / "a", without))
    advance = batch.LockstepTrainer.advance

    def signalled(self):
        if self.epoch >= 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self)

    with monkeypatch.context() as patched:
        patched.setattr(batch.LockstepTrainer, "advance", signalled)
        patched.setattr(engines, "_SEVERAL_VALIDATIONS", 0)
        with pytest.raises(Interrupted, match="there is nothing to continue from"):
            run_sweep(dmf, listed(tmp_path / "b", {**without, "engine": "auto"}))
    run_sweep(dmf, listed(tmp_path / "b", without), resume=True)
    assert differences(left_behind(tmp_path / "a"), left_behind(tmp_path / "b")) == []


def test_a_continued_checkpoint_is_gone_on_with(tmp_path, monkeypatch):
    run_sweep(dmf, listed(tmp_path / "first", {"epochs": 510, "lr": 2e-3}))
    ((_, folder),) = folders(tmp_path / "first")[1]
    start = {"trainer_checkpoint": str(next((folder / "checkpoints").iterdir())), "engine": "torch"}
    run_sweep(dmf, listed(tmp_path / "a", start))
    interrupted_at(1000, dmf, listed(tmp_path / "b", start), monkeypatch)
    run_sweep(dmf, listed(tmp_path / "b", start), resume=True)
    assert len(list((tmp_path / "b").iterdir())) == 1
    assert differences(left_behind(tmp_path / "a"), left_behind(tmp_path / "b")) == []


def test_a_damaged_checkpoint_is_named_and_nothing_is_changed(tmp_path, monkeypatch):
    interrupted_at(500, dmf, listed(tmp_path, {}), monkeypatch)
    ((_, folder),) = folders(tmp_path)[1]
    checkpoint = next((folder / "checkpoints").iterdir())
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"-resume {checkpoint}: .*"):
        run_sweep(dmf, listed(tmp_path, {}), resume=True)
    assert sorted(tmp_path.rglob("*")) == before
    checkpoint.unlink()
    run_sweep(dmf, listed(tmp_path, {}), resume=True)
    assert folders(tmp_path)[1][0][0]["status"]["finished"]


def test_a_folder_whose_parameters_are_damaged_is_passed_over(tmp_path, monkeypatch, capsys):
    interrupted_at(500, dmf, listed(tmp_path, {}), monkeypatch)
    ((_, folder),) = folders(tmp_path)[1]
    (folder / "run_params.json").write_text("{")
    run_sweep(dmf, listed(tmp_path, {}), resume=True)
    assert f"passed over {folder}: damaged: run_params.json is no JSON" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_continued_with_another_learning_rate_is_another_experiment(tmp_path):
    run_sweep(dmf, listed(tmp_path / "first", {"epochs": 100}))
    ((_, folder),) = folders(tmp_path / "first")[1]
    start = {"trainer_checkpoint": str(next((folder / "checkpoints").iterdir()))}
    for lr in (1e-3, 2e-3, 1e-3):
        run_sweep(dmf, listed(tmp_path / "second", {**start, "lr": lr}), resume=True)
    assert len(list((tmp_path / "second").iterdir())) == 2
    # Its own rate is 3e-3.
    for given in ({}, {"lr": 3e-3}):
        run_sweep(dmf, listed(tmp_path / "second", {**start, **given}), resume=True)
    assert len(list((tmp_path / "second").iterdir())) == 3


def test_where_a_file_lies_does_not_matter_but_what_it_holds(tmp_path):
    copy = shutil.copy(BASE["dataset_path"], tmp_path / "copy.pt")
    for path in (BASE["dataset_path"], str(copy)):
        run_sweep(dmf, listed(tmp_path / "out", {"dataset_path": path}), resume=True)
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_folder_may_be_spelled_in_two_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = [*listed("out", {}), *listed(tmp_path / "out", {"lr": 1e-3})]
    for _ in range(2):
        run_sweep(dmf, both, resume=True)
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_diverged_adaptive_run_is_finished(tmp_path):
    """Its checkpoint holds NaN; a crash came before its results."""
    diverging = {"lr": 1e30, "epochs": 300}
    experiments = listed(tmp_path / "b", diverging, base=TC_BASE, flags=TC_FLAGS)
    for path in ("a", "b"):
        run_sweep(tc, listed(tmp_path / path, diverging, base=TC_BASE, flags=TC_FLAGS))
    ((parameters, folder),) = folders(tmp_path / "b")[1]
    assert parameters["status"]["stop_reason"] == "diverged"
    for path in folder.glob("*.*"):
        path.unlink()
    status = {"finished": False, "stop_reason": None, "last_epoch": None}
    (folder / "run_params.json").write_text(json.dumps({**parameters, "status": status}))
    run_sweep(tc, experiments, resume=True)
    assert differences(left_behind(tmp_path / "a"), left_behind(tmp_path / "b")) == []


def test_many_that_end_together_do_not_hold_up_a_signal(tmp_path, monkeypatch):
    """Only so many checkpoints are written as there is time for."""
    monkeypatch.setattr(batch, "_SAVING_TIME", 0.0)
    advance = batch.LockstepTrainer.advance

    def signalled(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return advance(self)

    experiments = listed(tmp_path / "b", *({"random_seed": seed, "epochs": 100} for seed in range(5)))
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(batch.LockstepTrainer, "advance", signalled)
        run_sweep(dmf, experiments)
    assert not list(tmp_path.glob("b/*/checkpoints/*"))
    run_sweep(dmf, experiments, resume=True)
    assert [runs[0][0]["status"]["finished"] for runs in folders(tmp_path / "b").values()] == [True] * 5


def test_ranks_that_are_tracked_do_not_hold_up_a_signal(tmp_path, monkeypatch):
    """At most those of one validation are computed after it."""
    tracking = {"track_tensor_rank": True, "epochs": 2000, "validate_every": 10, "compute_final_tensor_ranks": False}
    experiments = listed(tmp_path / "b", tracking, base=TC_BASE, flags=TC_FLAGS)
    run_sweep(tc, listed(tmp_path / "a", tracking, base=TC_BASE, flags=TC_FLAGS))
    estimate, after = tc.estimate_cp_rank, []

    def counted(*arguments):
        if len(after) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        after.append(1)
        return estimate(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(tc, "estimate_cp_rank", counted)
        run_sweep(tc, experiments)
    assert len(after) <= 22
    run_sweep(tc, experiments, resume=True)
    assert differences(left_behind(tmp_path / "a"), left_behind(tmp_path / "b")) == []


def test_what_a_crash_leaves_is_removed(tmp_path, monkeypatch):
    interrupted_at(500, dmf, listed(tmp_path, {}), monkeypatch)
    ((_, folder),) = folders(tmp_path)[1]
    strays = [folder / ".run_params-ab_c1234.json", folder / "checkpoints/.x-abcd1234.pt", tmp_path / ".running_dead"]
    strays.append(folder / "checkpoints/2020_01_01-00_00_00_epoch_3.pt")
    for stray in strays:
        stray.write_text("half of i")
    (tmp_path / ".making_dead").mkdir()
    (tmp_path / ".making_dead/.run_params-x.json").write_text("")
    # What else is in the folder is the user's.
    own = [folder / "checkpoints/backup_epoch_3.pt", folder / "my-notes.txt"]
    for path in own:
        path.write_text("mine")
    run_sweep(dmf, listed(tmp_path, {}), resume=True)
    assert list(tmp_path.rglob(".*")) == []
    assert not any(stray.exists() for stray in strays)
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert all(path.read_text() == "mine" for path in own)


def test_one_process_at_a_time_goes_on(tmp_path, monkeypatch):
    experiments = listed(tmp_path, {})
    interrupted_at(500, dmf, experiments, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    about = {"sweep": digest_of_sweep(experiments), "rank": 0, "world_size": 1}
    with present([tmp_path], "other", about, lambda directory, others: []):
        with pytest.raises(UserError, match=f"-resume: process {os.getpid()} on .* has been at these experiments"):
            run_sweep(dmf, experiments, resume=True)
        # A new run is none of its business.
        run_sweep(dmf, listed(tmp_path, {"lr": 1e-3}))
    run_sweep(dmf, experiments, resume=True)
    assert len(list(tmp_path.iterdir())) == 2
    assert set(before) - {path for path in before if path.suffix == ".pt"} <= set(tmp_path.rglob("*"))


def test_what_another_list_has_taken_up_is_not_taken(tmp_path, monkeypatch):
    experiments = listed(tmp_path, {}, {"lr": 1e-3})
    interrupted_at(500, dmf, experiments, monkeypatch)
    ((_, folder),) = folders(tmp_path)[2]
    with present([tmp_path], "other", {"sweep": "another", "rank": 0, "world_size": 1}, lambda *_: [folder.name]):
        with pytest.raises(UserError, match="-resume: process"):
            run_sweep(dmf, experiments, resume=True)
        run_sweep(dmf, experiments[:1], resume=True)
    assert [runs[0][0]["status"]["finished"] for _, runs in sorted(folders(tmp_path).items())] == [True, False]


def test_many_that_look_at_once_do_so_one_after_the_other(tmp_path):
    inside, most, seen = [], [], []

    def take(directory: Path, others):
        inside.append(1)
        most.append(len(inside))
        seen.append(len(others))
        inside.pop()
        return []

    def look(name):
        with present([tmp_path], name, {}, take):
            barrier.wait()

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=look, args=(f"p{index}",)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(8))
    assert max(most) == 1
    assert list(tmp_path.iterdir()) == []


def test_parameters_that_are_compared_do_not_depend_on_their_order():
    files = {"dataset_path": BASE["dataset_path"], "trainer_checkpoint": ""}
    first, second = Parameters({"a": 1, "random_seed": 3, **files}), Parameters({**files, "random_seed": 3, "a": 1})
    assert digest_of_sweep([first]) == digest_of_sweep([second]) != digest_of_sweep([first, first])
