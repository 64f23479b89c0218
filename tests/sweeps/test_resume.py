"""Sweeps that are interrupted and resumed. tests/stress/kills.py kills them."""

import json
import os
import shutil
import signal
from collections import Counter

import pytest
import torch

from common.cli import Interrupted, UserError
from common.files import sha256_of_file
from common.flags import load_samples
from common.problems import tensor_completion
from common.recorded_runs import read_runs
from common.sweeps import batch
from common.sweeps.experiment import identify
from common.sweeps.processes import World, hold_run_lock
from common.sweeps.resume import match_previous_runs
from common.sweeps.sweep import run_sweep
from common.training import native_engine
from common.training.trainer import Trainer
from tests.conftest import KINDS, MATRIX, parsed, runs_in
from tests.stress.kills import differences, read_outputs

BASES = {
    "dmf": {"epochs": 3000, "random_seed": 5, "store_checkpoints": True, "save_results": True, "file_log": True},
    "tc": {
        "use_adaptive_lr": True,
        "compute_final_tensor_ranks": True,
        "epochs": 3000,
        "random_seed": 5,
        "store_checkpoints": True,
    },
}
DMF, TC = KINDS["dmf"][0], KINDS["tc"][0]


def listed(output_dir, *experiments, kind="dmf"):
    return [parsed(kind, **BASES[kind] | {"output_dir": output_dir} | each) for each in experiments]


def signalled(monkeypatch, number, when=lambda trainer: True):
    """Lets a signal come before a batch advances, the first time that `when` holds; and at most one validation pass."""
    advance = Trainer.advance

    def signalling(self):
        if when(self):
            os.kill(os.getpid(), number)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", signalling)
    monkeypatch.setattr(native_engine, "_MAX_MULTIPLICATIONS_PER_CHUNK", 0)


def interrupted_at(epoch, experiments, monkeypatch, resume=False, kind="dmf"):
    """Runs a sweep, to which SIGTERM comes at an epoch."""
    with monkeypatch.context() as patched:
        signalled(patched, signal.SIGTERM, lambda trainer: trainer.epoch >= epoch)
        with pytest.raises(Interrupted) as interruption:
            run_sweep(KINDS[kind][0], experiments, resume)
    number, message = interruption.value.args
    assert number == signal.SIGTERM
    assert message.endswith(" -resume")


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_an_interrupted_sweep_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, engine):
    several = [{"engine": engine, "validate_every": 70}, {"engine": engine, "validate_every": 70, "depth": 2}]
    several.append({"engine": engine, "lr": 1e-2, "init_alpha": 0.5})  # ends by itself
    run_sweep(DMF, listed(tmp_path / "a", *several))
    again = listed(tmp_path / "b", *several)
    # The batches that were not begun at the first signal begin after it.
    interrupted_at(10, again, monkeypatch)
    interrupted_at(1000, again, monkeypatch, resume=True)
    run_sweep(DMF, again, resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


def test_an_interruption_between_validations_leaves_no_trace(tmp_path, monkeypatch):
    long = {"validate_every": 2500, "engine": "torch"}
    run_sweep(DMF, listed(tmp_path / "a", long))
    interrupted_at(400, listed(tmp_path / "b", long), monkeypatch)
    ((parameters, folder),) = runs_in(tmp_path / "b")[1]
    assert (parameters["status"]["last_epoch"] + 1) % 2500
    run_sweep(DMF, listed(tmp_path / "b", long), resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []
    assert "resumed after epoch" in next(folder.glob("*.log")).read_text()


def test_an_interruption_is_recorded_before_anything_that_may_take_long(tmp_path, monkeypatch):
    recorded = []

    def save(experiment, engine, index):
        recorded.append(json.loads((experiment.folder.path / "run_params.json").read_text())["status"])

    monkeypatch.setattr(batch, "save_checkpoint", save)
    interrupted_at(400, listed(tmp_path, {"validate_every": 1}), monkeypatch)
    ((parameters, _),) = runs_in(tmp_path)[1]
    assert recorded == [parameters["status"]]
    assert recorded[0]["stop_reason"] == "interrupted"
    assert recorded[0]["last_epoch"] >= 400


@pytest.mark.parametrize("seconds, saved", [(0, 3), (1e6, 0)])
def test_after_a_signal_what_would_take_too_long_is_not_saved(tmp_path, monkeypatch, capsys, seconds, saved):
    """With histories that would take so many seconds."""
    monkeypatch.setattr(batch, "_SECONDS_PER_VALIDATION", seconds)
    monkeypatch.setattr(batch, "_SAVING_SECONDS", 100)
    interrupted_at(400, listed(tmp_path, *({"random_seed": seed} for seed in range(3))), monkeypatch)
    assert len(list(tmp_path.glob("*/checkpoints/*.pt"))) == saved
    assert ("no time for 3 of 3 checkpoints" in capsys.readouterr().out) == (not saved)
    statuses = [parameters["status"]["stop_reason"] for runs in runs_in(tmp_path).values() for parameters, _ in runs]
    assert statuses == ["interrupted"] * 3


def test_what_ended_but_has_no_results_gets_them_without_training(tmp_path, monkeypatch):
    """A signal while the ranks are computed: the last checkpoint says that it ended, and with what."""
    experiments = listed(tmp_path / "b", {}, kind="tc")
    run_sweep(TC, listed(tmp_path / "a", {}, kind="tc"))
    compute = tensor_completion.estimate_cp_rank

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return compute(*arguments)

    load_samples.cache_clear()
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(tensor_completion, "estimate_cp_rank", signalled)
        run_sweep(TC, experiments)
    ((parameters, folder),) = runs_in(tmp_path / "b")[1]
    assert not parameters["status"]["finished"]
    assert not (folder / "tensor_rank_and_reconstruction_metrics.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "advance", None)
        run_sweep(TC, experiments, resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


def test_what_is_finished_is_left_alone_and_what_is_new_begins(tmp_path):
    run_sweep(DMF, listed(tmp_path, {}, {"depth": 2}))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*.*") if path.is_file()}
    # Another order and other names: parameters and seed are what counts.
    run_sweep(DMF, listed(tmp_path, {"lr": 1e-3}, {"depth": 2, "experiment_name": "x"}, {}), resume=True)
    assert len(list(tmp_path.iterdir())) == 3
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before}
    assert after == before


@pytest.mark.parametrize("changed", [{"random_seed": 6}, {"lr": 1e-3}, {"epochs": 4000}, {"save_results": False}])
def test_other_parameters_are_another_experiment(tmp_path, changed):
    run_sweep(DMF, listed(tmp_path, {}))
    run_sweep(DMF, listed(tmp_path, changed), resume=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_dataset_of_the_same_name_is_another_experiment(tmp_path):
    path = tmp_path / "data.pt"
    content = torch.load(MATRIX, weights_only=True)
    for scale in (1, 2):
        torch.save({**content, "y": content["y"] * scale}, path)
        load_samples.cache_clear()
        sha256_of_file.cache_clear()
        run_sweep(DMF, listed(tmp_path / "out", {"dataset_path": str(path)}), resume=True)
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_without_resume_nothing_of_another_run_is_touched(tmp_path, monkeypatch):
    interrupted_at(500, listed(tmp_path, {}), monkeypatch)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    run_sweep(DMF, listed(tmp_path, {}))
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(tmp_path.iterdir())) == 2


def test_drawn_seeds_are_those_of_the_newest_sweep(tmp_path, monkeypatch):
    drawn = [{"random_seed": -1}, {"random_seed": -1}]
    run_sweep(DMF, listed(tmp_path, *drawn))
    monkeypatch.setattr("common.sweeps.sweep.utc_time", lambda: "2100_01_01-00_00_00")
    interrupted_at(500, listed(tmp_path, *drawn), monkeypatch)
    seeds = {
        number: [parameters["random_seed"] for parameters, _ in found] for number, found in runs_in(tmp_path).items()
    }
    run_sweep(DMF, listed(tmp_path, *drawn), resume=True)
    found = runs_in(tmp_path)
    assert {number: [each["random_seed"] for each, _ in runs] for number, runs in found.items()} == seeds
    assert all(parameters["status"]["finished"] for runs in found.values() for parameters, _ in runs)
    # Once more, there is nothing left to do.
    run_sweep(DMF, listed(tmp_path, *drawn), resume=True)
    assert len(list(tmp_path.iterdir())) == 4


def test_equal_experiments_have_a_folder_each(tmp_path, monkeypatch):
    interrupted_at(500, listed(tmp_path, {}, {}, {}), monkeypatch)
    paths = {folder for runs in runs_in(tmp_path).values() for _, folder in runs}
    run_sweep(DMF, listed(tmp_path, {}, {}, {}), resume=True)
    found = [run for runs in runs_in(tmp_path).values() for run in runs]
    assert {folder for _, folder in found} == paths
    assert all(parameters["status"]["finished"] for parameters, _ in found)


def test_without_checkpoints_it_begins_anew_in_its_folder(tmp_path, monkeypatch):
    without = {"store_checkpoints": False}
    run_sweep(DMF, listed(tmp_path / "a", without))
    with monkeypatch.context() as patched:
        signalled(patched, signal.SIGTERM, lambda trainer: trainer.epoch >= 0)
        with pytest.raises(Interrupted) as interruption:
            run_sweep(DMF, listed(tmp_path / "b", without))
    assert "there are no checkpoints to continue from" in interruption.value.args[1]
    run_sweep(DMF, listed(tmp_path / "b", without), resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


def test_an_interrupted_continuation_of_a_checkpoint_is_resumed(tmp_path, monkeypatch):
    run_sweep(DMF, listed(tmp_path / "first", {"epochs": 510, "lr": 2e-3}))
    ((_, folder),) = runs_in(tmp_path / "first")[1]
    start = {"trainer_checkpoint": str(next((folder / "checkpoints").iterdir())), "engine": "torch"}
    run_sweep(DMF, listed(tmp_path / "a", start))
    interrupted_at(1000, listed(tmp_path / "b", start), monkeypatch)
    run_sweep(DMF, listed(tmp_path / "b", start), resume=True)
    assert len(list((tmp_path / "b").iterdir())) == 1
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


def test_a_damaged_checkpoint_is_named_and_nothing_is_changed(tmp_path, monkeypatch):
    interrupted_at(500, listed(tmp_path, {}), monkeypatch)
    ((_, folder),) = runs_in(tmp_path)[1]
    checkpoint = next((folder / "checkpoints").iterdir())
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"-resume {checkpoint}: .*"):
        run_sweep(DMF, listed(tmp_path, {}), resume=True)
    assert sorted(tmp_path.rglob("*")) == before
    checkpoint.unlink()
    run_sweep(DMF, listed(tmp_path, {}), resume=True)
    assert runs_in(tmp_path)[1][0][0]["status"]["finished"]


def test_a_folder_whose_parameters_are_damaged_is_skipped(tmp_path, monkeypatch, capsys):
    interrupted_at(500, listed(tmp_path, {}), monkeypatch)
    ((_, folder),) = runs_in(tmp_path)[1]
    (folder / "run_params.json").write_text("{")
    run_sweep(DMF, listed(tmp_path, {}), resume=True)
    assert f"skipped {folder}: damaged: run_params.json is not JSON" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_continued_with_another_learning_rate_is_another_experiment(tmp_path):
    run_sweep(DMF, listed(tmp_path / "first", {"epochs": 100}))
    ((_, folder),) = runs_in(tmp_path / "first")[1]
    start = {"trainer_checkpoint": str(next((folder / "checkpoints").iterdir()))}
    for lr in (1e-3, 2e-3, 1e-3):
        run_sweep(DMF, listed(tmp_path / "second", {**start, "lr": lr}), resume=True)
    assert len(list((tmp_path / "second").iterdir())) == 2
    # Its own rate is 3e-3.
    for given in ({}, {"lr": 3e-3}):
        run_sweep(DMF, listed(tmp_path / "second", {**start, **given}), resume=True)
    assert len(list((tmp_path / "second").iterdir())) == 3


def test_where_a_file_lies_does_not_matter_but_what_it_holds(tmp_path):
    copy = shutil.copy(MATRIX, tmp_path / "copy.pt")
    for path in (str(MATRIX), str(copy)):
        run_sweep(DMF, listed(tmp_path / "out", {"dataset_path": path}), resume=True)
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_folder_may_be_spelled_in_two_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = [*listed("out", {}), *listed(tmp_path / "out", {"lr": 1e-3})]
    for _ in range(2):
        run_sweep(DMF, both, resume=True)
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_diverged_adaptive_run_is_finished(tmp_path):
    """Its checkpoint holds NaN; a crash came before its results."""
    diverging = {"lr": 1e30, "epochs": 300}
    experiments = listed(tmp_path / "b", diverging, kind="tc")
    for path in ("a", "b"):
        run_sweep(TC, listed(tmp_path / path, diverging, kind="tc"))
    ((parameters, folder),) = runs_in(tmp_path / "b")[1]
    assert parameters["status"]["stop_reason"] == "diverged"
    for path in folder.glob("*.*"):
        path.unlink()
    status = {"finished": False, "stop_reason": None, "last_epoch": None}
    (folder / "run_params.json").write_text(json.dumps({**parameters, "status": status}))
    run_sweep(TC, experiments, resume=True)
    assert differences(read_outputs(tmp_path / "a"), read_outputs(tmp_path / "b")) == []


def test_many_that_end_together_do_not_hold_up_a_signal(tmp_path, monkeypatch):
    """Only so many checkpoints are written as there is time for."""
    monkeypatch.setattr(batch, "_SAVING_SECONDS", 0.0)
    experiments = listed(tmp_path / "b", *({"random_seed": seed, "epochs": 100} for seed in range(5)))
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        signalled(patched, signal.SIGTERM)
        run_sweep(DMF, experiments)
    assert not list(tmp_path.glob("b/*/checkpoints/*"))
    run_sweep(DMF, experiments, resume=True)
    assert [runs[0][0]["status"]["finished"] for runs in runs_in(tmp_path / "b").values()] == [True] * 5


def test_ranks_that_are_tracked_do_not_hold_up_a_signal(tmp_path, monkeypatch):
    """At most those of one validation are computed after it."""
    tracking = {"track_tensor_rank": True, "epochs": 2000, "validate_every": 10, "compute_final_tensor_ranks": False}
    experiments = listed(tmp_path / "b", tracking, kind="tc")
    run_sweep(TC, listed(tmp_path / "a", tracking, kind="tc"))
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


def test_what_a_crash_leaves_is_removed(tmp_path, monkeypatch):
    interrupted_at(500, listed(tmp_path, {}), monkeypatch)
    ((_, folder),) = runs_in(tmp_path)[1]
    strays = [folder / ".run_params-ab_c1234.json", folder / "checkpoints/.x-abcd1234.pt", tmp_path / ".lock-dead-0"]
    strays.append(folder / "checkpoints/2020_01_01-00_00_00_epoch_3.pt")
    for stray in strays:
        stray.write_text("half of i")
    (tmp_path / ".making-dead-0").mkdir()
    (tmp_path / ".making-dead-0/.run_params-x.json").write_text("")
    # What else is in the folder is the user's.
    own = [folder / "checkpoints/backup_epoch_3.pt", folder / "my-notes.txt"]
    for path in own:
        path.write_text("mine")
    run_sweep(DMF, listed(tmp_path, {}), resume=True)
    assert list(tmp_path.rglob(".*")) == []
    assert not any(stray.exists() for stray in strays)
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert all(path.read_text() == "mine" for path in own)


def test_one_process_at_a_time_continues(tmp_path, monkeypatch):
    experiments = listed(tmp_path, {})
    interrupted_at(500, experiments, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    with hold_run_lock(tmp_path, World("other")):
        with pytest.raises(UserError, match=f"-resume: process {os.getpid()} on .* has been running in {tmp_path}"):
            run_sweep(DMF, experiments, resume=True)
        # A new run does not touch what the other does.
        run_sweep(DMF, listed(tmp_path, {"lr": 1e-3}))
    run_sweep(DMF, experiments, resume=True)
    assert len(list(tmp_path.iterdir())) == 2
    assert set(before) - {path for path in before if path.suffix == ".pt"} <= set(tmp_path.rglob("*"))


def test_each_output_folder_belongs_to_its_own_sweep(tmp_path, monkeypatch):
    """What begins with -resume gets the id of the sweep that was begun in the same folder."""
    for name in ("a", "b"):
        interrupted_at(500, listed(tmp_path / name, {}), monkeypatch)
    ids = {name: runs_in(tmp_path / name)[1][0][0]["provenance"]["sweep"]["id"] for name in ("a", "b")}
    both = [*listed(tmp_path / "a", {}, {"lr": 1e-3}), *listed(tmp_path / "b", {}, {"lr": 1e-3})]
    run_sweep(DMF, both, resume=True)
    for name in ("a", "b"):
        runs = [parameters for found in runs_in(tmp_path / name).values() for parameters, _ in found]
        assert len(runs) == 2
        assert {parameters["provenance"]["sweep"]["id"] for parameters in runs} == {ids[name]}


def test_identities_do_not_depend_on_order_names_or_places(tmp_path):
    first = parsed(lr=0.1, depth=2)
    second = parsed(depth=2, lr=0.1, experiment_name="x", output_dir=tmp_path, gpu_id=3)
    equal = Counter()
    found = [identify(parameters, parameters.values, equal) for parameters in (first, second, first)]
    keys = [(group, record["seed"], record["occurrence"]) for group, record in found]
    assert keys[0] == keys[1]
    # The second of two equal ones is another.
    assert keys[2][:2] == keys[0][:2]
    assert keys[2] != keys[0]


@pytest.mark.parametrize("damage", [{"random_seed": None}, {"provenance": {}}, {"status": None}])
def test_folders_that_do_not_say_what_they_are_are_left_alone(tmp_path, damage):
    run_sweep(DMF, listed(tmp_path, {"random_seed": -1}))
    ((parameters, folder),) = runs_in(tmp_path)[1]
    (folder / "run_params.json").write_text(json.dumps({**parameters, **damage}))
    before = sorted(folder.rglob("*"))
    run_sweep(DMF, listed(tmp_path, {"random_seed": -1}), resume=True)
    assert sorted(folder.rglob("*")) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_runs_without_an_identity_are_found(tmp_path):
    """Folders of earlier versions say what was run in their parameters alone."""
    experiments = [{}, {"lr": 1e-3}, {}, {"random_seed": 7}]
    run_sweep(DMF, listed(tmp_path, *experiments))
    for runs in runs_in(tmp_path).values():
        ((parameters, folder),) = runs
        digests = parameters["provenance"].pop("identity")["inputs"].values()
        parameters["provenance"]["inputs_sha256"] = " ".join(digests)
        (folder / "run_params.json").write_text(json.dumps(parameters))
    run_sweep(DMF, listed(tmp_path, *experiments), resume=True)
    assert len(list(tmp_path.iterdir())) == 4
    # Their seeds may have been drawn.
    runs, problems = read_runs(tmp_path)
    drawn = listed(tmp_path, *({"random_seed": -1} for _ in range(4)))
    equal = Counter()
    wanted = {index: identify(parameters, parameters.values, equal) for index, parameters in enumerate(drawn)}
    matches = match_previous_runs(wanted, runs, drawn[0])
    assert (len(matches), len({run.path for run in matches.values()}), problems) == (3, 3, [])
