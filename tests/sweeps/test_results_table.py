"""Tests of results.csv, the table of the runs of an output folder."""

import csv
import json

import pytest

from common.sweeps.results_table import write_results_table
from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, parse_parameters


def run(directory, *experiments, kind="dmf", **more):
    parameters = [parse_parameters(kind, **{"epochs": 100, "output_dir": directory} | each) for each in experiments]
    run_sweep(KINDS[kind][0], parameters, **more)


def read_table(directory):
    with open(directory / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_row_for_each_run_of_all_sweeps(tmp_path):
    run(tmp_path, {"depth": 2, "random_seed": 7}, {"lr": 1e-2, "save_results": True}, {"lr": 1e6, "init_alpha": 10.0})
    run(tmp_path, {"random_seed": 5, "tracked_e2e_value_of": [[0, 1]]})
    # The sweeps may have begun in the same second.
    rows = sorted(read_table(tmp_path), key=lambda row: (row["random_seed"] == "5", row["experiment"]))
    names = "experiment", "depth", "random_seed", "stop_reason", "fit_epochs"
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("1", "2", "7", "epochs", ""),
        ("2", "3", "0", "epochs", "100"),
        ("3", "3", "0", "diverged", ""),
        ("1", "3", "5", "epochs", ""),
    ]
    for row in rows:
        recorded = json.loads((tmp_path / row["folder"] / "run_params.json").read_text())
        assert (row["finished"], row["last_epoch"]) == ("True", str(recorded["status"]["last_epoch"]))
        for name, value in recorded["status"]["metrics"].items():
            assert row[name] == ("" if value is None else str(value))
        assert recorded.keys() - {"provenance", "status"} <= row.keys()
        assert (float(row["lr"]), row["dtype"], row["trainer_checkpoint"]) == (recorded["lr"], "float32", "")
        assert json.loads(row["unobserved_entry"]) == [0, 0]
    assert [bool(row["e2e_0_1_value"]) for row in rows] == [False, False, False, True]
    assert rows[2]["fro_e2e_norm"] == ""


def test_numbers_of_tensor_completion(tmp_path):
    run(tmp_path, {"num_samples": 50, "compute_final_tensor_ranks": True}, kind="tc")
    (row,) = read_table(tmp_path)
    results = json.loads(next(tmp_path.glob("*/tensor_rank_and*")).read_text())
    assert all(float(row[name]) == value for name, value in results.items())
    assert float(row["reconstruction_error"]) == pytest.approx(results["model_reconstruction_error"], rel=1e-6)
    assert "mse_loss" in row


def test_table_follows_the_folders(tmp_path):
    run(tmp_path, {"random_seed": 1}, {"random_seed": 2}, {"random_seed": 3})
    changed, removed, unfinished = [tmp_path / row["folder"] for row in read_table(tmp_path)]
    removed.rename(tmp_path.parent / "elsewhere")
    status = {"finished": False, "stop_reason": "interrupted", "last_epoch": 49}
    for folder, change in ((changed, {"lr": 0.5}), (unfinished, {"status": status})):
        content = json.loads((folder / "run_params.json").read_text())
        (folder / "run_params.json").write_text(json.dumps({**content, **change}))
    write_results_table(tmp_path)
    first, second = read_table(tmp_path)
    assert (first["random_seed"], first["lr"], first["finished"]) == ("1", "0.5", "True")
    names = "random_seed", "finished", "stop_reason", "last_epoch", "fro_e2e_norm"
    assert [second[name] for name in names] == ["3", "False", "interrupted", "49", ""]
    run(tmp_path, {"random_seed": 3}, resume=True)
    assert [row["finished"] for row in read_table(tmp_path)] == ["True", "True"]


def test_other_file_of_this_name_is_kept(tmp_path, capsys):
    (tmp_path / "results.csv").write_bytes(b"folder,sweep")
    run(tmp_path, {})
    problem = "there is another file of this name; move it away"
    assert f"{tmp_path / 'results.csv'} was not written: {problem}\n" in capsys.readouterr().out
    assert (tmp_path / "results.csv").read_bytes() == b"folder,sweep"


def test_other_damaged_and_original_folders(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/run_params.json").write_text("{")
    write_results_table(tmp_path)
    assert not (tmp_path / "results.csv").exists()
    original = tmp_path / "x_samples_50_init_1e-3"
    original.mkdir()
    (original / "tensor_rank_and_reconstruction_metrics.json").write_text('{"model_reconstruction_error": 0.5}')
    run(tmp_path, {})
    assert (tmp_path / "results.csv").read_text().startswith("folder,sweep,experiment,finished,")
    rows = {row["folder"]: row for row in read_table(tmp_path)}
    assert rows.pop(original.name)["model_reconstruction_error"] == "0.5"
    assert len(rows) == 1
