"""Trains experiments from Python, as README.md shows, and compares them with those of a script."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch

import dmf_experiment_runner
import tc_experiment_runner
from common.cli import UserError
from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, ROOT, TENSOR, folders_in, parse_parameters
from tests.pages import blocks


def test_example(monkeypatch):
    """The example of README.md, with fewer seeds."""
    (code,) = blocks(ROOT / "README.md", "python")
    assert len(code.splitlines()) <= 10
    monkeypatch.chdir(ROOT)
    found = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.replace("1000", "3"), found)
    assert len(found["final_entries"]) == len(found["ranks"]) == 3
    assert np.median(np.abs(found["final_entries"])) > 10
    assert printed.getvalue().startswith(f"{np.median(np.abs(found['final_entries']))} {found['ranks'][0].epochs[-1]} ")


def test_runs_equal_those_of_a_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [{"dataset_path": str(TENSOR), "random_seed": seed, "epochs": 200, "num_samples": 50} for seed in (3, 4)]
    runs = tc_experiment_runner.train(flags)
    assert not any(tmp_path.iterdir())
    run_sweep(KINDS["tc"][0], [parse_parameters("tc", **each, output_dir=tmp_path / "out") for each in flags])
    for run, folder in zip(runs, folders_in(tmp_path / "out"), strict=True):
        output = torch.load(folder / "model_tensor.pt", weights_only=True)
        assert torch.equal(run.final_output.view(output.shape), output)
        status = json.loads((folder / "run_params.json").read_text())["status"]
        assert (status["stop_reason"], status["last_epoch"]) == (run.stop_reason, run.epoch) == ("epochs", 199)
        assert status["metrics"] == run.history.last_values()


def test_mistakes_are_exceptions():
    with pytest.raises(UserError, match="-lr -1: must be a finite number greater than 0"):
        dmf_experiment_runner.train([{"lr": -1}])
    with pytest.raises(UserError, match="train: takes a list of experiments"):
        dmf_experiment_runner.train({"lr": 0.1})
