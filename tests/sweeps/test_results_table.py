"""Tests of results.csv, the table of the runs of an output folder."""

import csv
import json
import os

import pytest

from common.problems.matrix_factorization import MatrixFactorization
from common.problems.tensor_completion import TensorFactorization
from common.sweeps import results_table
from common.sweeps.results_table import write_results_table
from common.sweeps.sweep import run_sweep
from tests.conftest import folders_in, parse_parameters


def run(directory, *experiments, **more):
    parameters = [parse_parameters(**{"epochs": 100, "output_dir": directory} | each) for each in experiments]
    run_sweep(MatrixFactorization, parameters, **more)


def read_table(directory):
    with open(directory / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_row_for_each_run_of_all_sweeps(tmp_path):
    run(tmp_path, {"depth": 2, "random_seed": 7}, {"depth": 3, "lr": 1e-2, "save_results": True})
    run(tmp_path, {"random_seed": 5, "tracked_e2e_value_of": [[0, 1]]})
    # The sweeps may have begun in the same second.
    rows = sorted(read_table(tmp_path), key=lambda row: (row["random_seed"] == "5", row["experiment"]))
    assert [(row["experiment"], row["depth"], row["random_seed"]) for row in rows] == [
        ("1", "2", "7"),
        ("2", "3", "0"),
        ("1", "3", "5"),
    ]
    for row in rows:
        recorded = json.loads((tmp_path / row["folder"] / "run_params.json").read_text())
        assert (row["finished"], row["stop_reason"], row["last_epoch"]) == ("True", "epochs", "99")
        for name, value in recorded["status"]["metrics"].items():
            assert float(row[name]) == value
        names = recorded.keys() - {"provenance", "status"}
        assert names <= row.keys()
        assert (float(row["lr"]), row["dtype"], row["trainer_checkpoint"]) == (recorded["lr"], "float32", "")
        assert json.loads(row["unobserved_entry"]) == [0, 0]
    assert [row["fit_epochs"] for row in rows] == ["", "100", ""]
    assert [bool(row["e2e_0_1_value"]) for row in rows] == [False, False, True]


def test_numbers_of_tensor_completion(tmp_path):
    flags = {"epochs": 100, "num_samples": 50, "compute_final_tensor_ranks": True, "output_dir": tmp_path}
    run_sweep(TensorFactorization, [parse_parameters("tc", **flags)])
    (row,) = read_table(tmp_path)
    results = json.loads(next(tmp_path.glob("*/tensor_rank_and*")).read_text())
    assert all(float(row[name]) == value for name, value in results.items())
    assert float(row["reconstruction_error"]) == pytest.approx(results["model_reconstruction_error"], rel=1e-6)
    assert "mse_loss" in row


def test_table_follows_the_folders(tmp_path):
    run(tmp_path, {"random_seed": 1}, {"random_seed": 2})
    changed, removed = [tmp_path / row["folder"] for row in read_table(tmp_path)]
    removed.rename(tmp_path.parent / "elsewhere")
    content = json.loads((changed / "run_params.json").read_text())
    (changed / "run_params.json").write_text(json.dumps({**content, "lr": 0.5}))
    run(tmp_path, {"random_seed": 3})
    assert {row["random_seed"]: float(row["lr"]) for row in read_table(tmp_path)} == {"1": 0.5, "3": 3e-3}


def test_unfinished_runs_are_read_again(tmp_path):
    run(tmp_path, {"random_seed": 1}, {"random_seed": 2})
    (folder, _) = folders_in(tmp_path)
    content = json.loads((folder / "run_params.json").read_text())
    status = {"finished": False, "stop_reason": "interrupted", "last_epoch": 49}
    (folder / "run_params.json").write_text(json.dumps({**content, "status": status}))
    write_results_table(tmp_path)
    by_folder = {row["folder"]: row for row in read_table(tmp_path)}
    row = by_folder[folder.name]
    assert (row["finished"], row["stop_reason"], row["last_epoch"], row["fro_e2e_norm"]) == (
        "False",
        "interrupted",
        "49",
        "",
    )
    run(tmp_path, {"random_seed": 1}, {"random_seed": 2}, resume=True)
    assert [row["finished"] for row in read_table(tmp_path)] == ["True", "True"]


def test_diverged_run_has_empty_cells(tmp_path):
    run(tmp_path, {"lr": 1e6, "init_alpha": 10.0})
    (row,) = read_table(tmp_path)
    assert (row["finished"], row["stop_reason"], row["fro_e2e_norm"]) == ("True", "diverged", "")


def test_other_file_of_this_name_is_kept(tmp_path, capsys):
    (tmp_path / "results.csv").write_bytes(b"folder,sweep")
    run(tmp_path, {})
    problem = "there is another file of this name; move it away"
    assert f"{tmp_path / 'results.csv'} was not written: {problem}\n" in capsys.readouterr().out
    assert (tmp_path / "results.csv").read_bytes() == b"folder,sweep"


def test_failure_does_not_end_the_sweep(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(results_table, "write_atomically", fail)
    run(tmp_path, {})
    assert capsys.readouterr().out.endswith("results.csv was not written: no space left\n")
    assert len(folders_in(tmp_path)) == 1


def test_other_and_damaged_folders_are_left_out(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/run_params.json").write_text("{")
    write_results_table(tmp_path)
    assert not (tmp_path / "results.csv").exists()
    original = tmp_path / "original_samples_50_init_1e-3"
    original.mkdir()
    (original / "tensor_rank_and_reconstruction_metrics.json").write_text('{"model_reconstruction_error": 0.5}')
    run(tmp_path, {})
    rows = read_table(tmp_path)
    assert [row["folder"] for row in rows if row["finished"] != "True"] == [original.name]
    assert rows[0]["model_reconstruction_error"] == "0.5"
    assert len(rows) == 2


def test_folder_name_that_is_no_text(tmp_path):
    name = os.fsdecode(b"\xff_run")
    run(tmp_path, {})
    (folder,) = folders_in(tmp_path)
    folder.rename(tmp_path / name)
    write_results_table(tmp_path)
    run(tmp_path, {"random_seed": 1})
    assert b"\xff_run," in (tmp_path / "results.csv").read_bytes()
