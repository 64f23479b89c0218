"""What plotters read of runs, which runs they skip, and how they name them."""

from functools import partial

import numpy as np
import pytest
import torch

from common.plotting.histories import NoBound, NotRecorded, load_curve
from common.plotting.runs import read_groups, require_matrix_run
from common.recorded_runs import RecordedRun
from tests.conftest import MATRIX
from tests.plotting.folders import ONE_VALUE, make_matrix_run, make_tracker


def read_lines(directory, **wanted):
    return read_groups(str(directory), require_matrix_run, partial(load_curve, **wanted), True)


def names_in(directory):
    return [line.name for line in read_lines(directory)[0]]


@pytest.mark.parametrize("as_lists", [False, True])
def test_loss_and_entry_are_matched_by_epoch(tmp_path, as_lists):
    """The original code stores the loss of every epoch but the entry only at validations."""
    content = {
        "train_evaluator": {"sse_loss_div_2": make_tracker(range(10), [1.0 / (1 + e) for e in range(10)], as_lists)},
        "val_evaluator": {"e2e_0_0_value": make_tracker([4, 9, 14], [-1.0, 2.0, 3.0], as_lists)},
    }
    torch.save(content, tmp_path / "c.pt")
    curve = load_curve(tmp_path / "c.pt", RecordedRun(tmp_path))
    assert curve.epochs.tolist() == [5, 10]
    np.testing.assert_allclose(curve.losses, [1 / 5, 1 / 10])
    assert curve.values.tolist() == [1, 2]


def test_unusable_runs_are_skipped_with_reason(tmp_path):
    written = {
        "good": {"weight_init_type": "identity"},
        "original": {"lr": 2e-3, "use_balanced_init": False, "random_seed": -1, "status": {}},
        "unfinished": {"status": {"finished": False}},
        "damaged": {"lr": 5e-3},
        "diverged": {"status": {"finished": True, "stop_reason": "diverged"}},
        "wrong_type": {"depth": "3"},
        "negative": {"depth": -3},
        "foreign": {"depth": None},
    }
    for name, parameters in written.items():
        make_matrix_run(tmp_path / name, **parameters)
    nan = dict.fromkeys(("sse_loss_div_2", "e2e_0_0_value"), ([9], [float("nan")]))
    make_matrix_run(tmp_path / "never_finite", nan, lr=6e-3)
    (tmp_path / "damaged/checkpoints/2020_epoch_9.pt").write_bytes(b"PK")
    lines, skipped = read_lines(tmp_path)
    names = ["lr 1e-3 init identity 1e-1", "lr 2e-3 factor init 1e-1"]
    assert [(line.name, len(line.values)) for line in lines] == [(name, 1) for name in names]
    reasons = dict(line.split(": ", 1) for line in skipped)
    assert reasons.keys() == {*written, "never_finite"} - {"good", "original"}
    assert (reasons["unfinished"], reasons["diverged"]) == ("not finished; -resume continues it", "diverged")
    assert reasons["foreign"] == "no matrix factorization experiment"
    assert "2020_epoch_9.pt: is not a torch.save file" in reasons["damaged"]
    assert reasons["never_finite"] == "2020_epoch_9.pt: diverged"
    assert "depth in run_params.json is '3'" in reasons["wrong_type"]
    assert "depth in run_params.json is -3" in reasons["negative"]
    (tmp_path / "damaged/checkpoints/2020_epoch_9.pt").unlink()
    with pytest.raises(NotRecorded, match=r"2020_epoch_9\.pt: nope was not recorded; give one of sse"):
        read_lines(tmp_path, metric="nope")
    with pytest.raises(NotRecorded, match="only e2e_0_0_value was recorded"):
        read_lines(tmp_path, entry=(5, 5))


@pytest.mark.parametrize(
    "dataset, entry, corner",
    [("perturbed_w_-2_05_01", (0, 0), (-2, 0.5, 0.1)), ("repositioned_w_1_0_1", (0, 1), (1, 1, 0))],
)
def test_observations_of_the_bounds(tmp_path, dataset, entry, corner):
    path = MATRIX.with_name(f"completion_2x2_{dataset}.pt")
    make_matrix_run(tmp_path / "a", dataset_path=str(path), num_samples=3, unobserved_entry=entry)
    ((line,), _) = read_lines(tmp_path, metric="sse_loss_div_2", corner=True)
    assert line.values[0].corner == pytest.approx(corner)


def test_datasets_of_runs_that_record_their_problem_are_not_read(tmp_path):
    recorded = {"shape": [2, 2], "unobserved_entry": [0, 1], "observations": [2.0, 1.0, 0.5]}
    make_matrix_run(tmp_path / "a", {**ONE_VALUE, "e2e_0_1_value": ([9], [1.0])}, dataset_path="gone.pt", **recorded)
    ((line,), _) = read_lines(tmp_path, corner=True)
    assert (line.name, line.values[0].corner) == ("lr 1e-3 init 2e-3", (2, 1, 0.5))


@pytest.mark.parametrize("path, message", [(None, "no run_params.json names them"), ("gone.pt", "cannot be read")])
def test_unreadable_datasets(tmp_path, path, message):
    make_matrix_run(tmp_path / "a", dataset_path=path, num_samples=3)
    assert "factor init" in names_in(tmp_path)[0]
    with pytest.raises(NoBound, match=message):
        read_lines(tmp_path, corner=True)


def test_label_has_standard_deviation_of_the_product(tmp_path):
    """d^((depth − 1) / 2) α^depth with inner dimension d."""
    for number, (label, changed) in enumerate({"init 2e-3": {}, "init 8e-3": {"hidden_dim": 8}}.items()):
        make_matrix_run(tmp_path / str(number), **{"dataset_path": str(MATRIX), **changed})
        assert names_in(tmp_path / str(number)) == [f"lr 1e-3 {label}"]


def test_label_has_number_of_samples_unless_dataset_implies_it(tmp_path):
    for name, changed in {"a": {}, "b": {"dataset_path": "y.pt", "num_samples": 4}}.items():
        make_matrix_run(tmp_path / name, **{"dataset_path": "x.pt", "num_samples": 3, **changed})
    assert names_in(tmp_path) == ["x", "y"]
    make_matrix_run(tmp_path / "c", dataset_path="x.pt", num_samples=2)
    assert names_in(tmp_path) == ["x, num_samples 3", "y, num_samples 4", "x, num_samples 2"]


def test_runs_with_different_flags_are_separate_lines(tmp_path):
    """Of runs with equal flags and seed, only the newest is used."""
    defaults = {"engine": "auto", "validate_every": 50, "lr": 1e-3}
    identity = {"run": defaults, "outputs": ["file_log"], "inputs": {}, "seed": 0, "occurrence": 1}
    for number, changed in enumerate([{}, {"engine": "torch"}, {"validate_every": 7}, {"file_log": True}]):
        provenance = {"sweep": {"start_time": str(number), "experiment": 1}, "identity": identity}
        parameters = {"engine": "auto", "validate_every": 50, "random_seed": 0, "file_log": False, **changed}
        make_matrix_run(tmp_path / f"run{number}", **parameters, provenance=provenance)
    names = ["engine auto, validate_every 50", "engine torch, validate_every 50", "engine auto, validate_every 7"]
    assert names_in(tmp_path) == names
    assert read_lines(tmp_path)[1] == ["run0: was run again, with the same seed"]
