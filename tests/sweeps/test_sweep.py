import json

import numpy as np
import pytest
import torch

from common.cli import UserError
from common.datasets.matrix_sensing import gaussian_sensing, random_target
from common.problems.matrix_factorization import MatrixFactorization
from common.sweeps import progress
from common.sweeps import sweep as sweep_module
from common.sweeps.folder import ExperimentFolder, new_folder
from common.sweeps.plots import MetricPlots
from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, MATRIX, ROOT, folders_in, parse_parameters, runs_by_number

BASE = {"epochs": 100, "save_results": True}


def run_experiments(tmp_path, *experiments):
    """Runs the experiments and returns (run parameters, folder) of each, in order."""
    parameters = [parse_parameters(**BASE | {"output_dir": tmp_path} | each) for each in experiments]
    run_sweep(MatrixFactorization, parameters)
    return [runs_by_number(tmp_path)[number + 1][0] for number in range(len(experiments))]


def test_sweep_of_different_depths_and_dtypes(tmp_path):
    different = [{"depth": 2}, {"depth": 3}, {"depth": 2, "lr": 1e-2}, {"dtype": "float64"}, {"validate_every": 30}]
    for (parameters, folder), given in zip(run_experiments(tmp_path, *different), different, strict=True):
        assert all(parameters[name] == value for name, value in given.items())
        last_values = parameters["status"].pop("metrics")
        assert parameters["status"] == {"finished": True, "stop_reason": "epochs", "last_epoch": 99}
        product = torch.load(folder / "final_e2e_matrix.pt", weights_only=True)
        results = json.loads((folder / "final_metrics_values.json").read_text())
        assert np.isclose(results["fro_e2e_norm"], product.norm().item())
        assert results["fit_epochs"] == 100
        assert results == {**last_values, "fit_epochs": 100}
        assert str(product.dtype) == "torch." + parameters["dtype"]


@pytest.fixture
def planned_devices(monkeypatch):
    """Replaces training; returns a list that collects the device of each batch."""
    devices = []
    monkeypatch.setattr(sweep_module, "train_batch", lambda batch, device, *_: devices.append(str(device)))
    return devices


def test_device_selection(tmp_path, planned_devices, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    order_4 = {"dataset_path": ROOT / "data/tc/tensor_rank_1_fro_1_order_4_dim_8.pt", "output_dir": tmp_path}

    def devices(*experiments, kind="tc"):
        planned_devices.clear()
        run_sweep(KINDS[kind][0], [parse_parameters(kind, **order_4 | each) for each in experiments])
        return list(planned_devices)

    def seeds(number, **given):
        return [{**given, "random_seed": seed} for seed in range(number)]

    assert devices(*seeds(2)) == ["cuda:0"]
    assert devices(*seeds(2, gpu_id=1)) == ["cuda:1"]
    assert devices(*seeds(2, disable_gpu=True)) == ["cpu"]
    assert devices({}) == ["cpu"]
    assert devices({"dataset_path": MATRIX}, kind="dmf") == ["cpu"]
    with pytest.raises(UserError, match=r"^-gpu_id 2: there are 2 GPUs, counted from 0; give one"):
        devices({"random_seed": 1}, {"gpu_id": 2})
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices(*seeds(4)) == ["cuda:1"]
    assert devices(*seeds(4, gpu_id=1)) == ["cuda:0"]


def test_equal_experiments_are_run_once(tmp_path, capsys):
    experiments = [{}, {"lr": 1e-3}, {}, {"experiment_name": "x"}, {"random_seed": -1}, {"random_seed": -1}]
    parameters = [parse_parameters(**{"output_dir": tmp_path, "epochs": 10} | each) for each in experiments]
    run_sweep(MatrixFactorization, parameters)
    assert len(folders_in(tmp_path)) == 4
    first_line = capsys.readouterr().out.splitlines()[0]
    assert first_line == "4 experiments (2 duplicates in the list are skipped)"


def test_random_seed_is_recorded_and_reproduces_run(tmp_path):
    ((first, folder),) = run_experiments(tmp_path / "a", {"random_seed": -1})
    assert first["random_seed"] >= 0
    ((_, again),) = run_experiments(tmp_path / "b", {"random_seed": first["random_seed"]})
    ((second, _),) = run_experiments(tmp_path / "c", {"random_seed": -1})
    assert second["random_seed"] != first["random_seed"]
    matrices = [torch.load(path / "final_e2e_matrix.pt", weights_only=True) for path in (folder, again)]
    assert torch.equal(*matrices)


def test_checkpoints_and_plots_during_training(tmp_path, monkeypatch, frequent_outputs):
    saved, drawn, write_checkpoint = [], [], ExperimentFolder.write_checkpoint

    def write(self, content):
        saved.append(content["epoch"])
        return write_checkpoint(self, content)

    def draw(self, experiment, then):
        drawn.append(len(experiment.history.train["mse_loss"].epochs))
        then(0.0)

    monkeypatch.setattr(ExperimentFolder, "write_checkpoint", write)
    monkeypatch.setattr(MetricPlots, "draw", draw)
    outputs = {"epochs": 460, "store_checkpoints": True, "plot_metrics": True, "save_every_num_val": 2}
    run_experiments(tmp_path, {**outputs, "engine": "torch"})
    assert saved == [99, 199, 299, 399, 459]
    assert drawn == [2, 4, 6, 8, 10]


def test_outputs_in_mid_run_take_a_twentieth_of_the_time(monkeypatch):
    """Simulates a second of training before each possible output of 3 seconds."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    pace, written = progress.Pace(), 0
    for _ in range(10_000):
        clock[0] += 1
        if pace.is_due():
            clock[0] += 3
            pace.took(3)
            written += 1
    assert 0.04 * clock[0] < 3 * written <= 0.05 * clock[0]


def test_folders_of_one_name_are_numbered(tmp_path, monkeypatch):
    monkeypatch.setattr("common.sweeps.folder.utc_time", lambda: "2100_01_01-00_00_00")
    (tmp_path / "a_2100_01_01-00_00_00").mkdir()  # by another process
    folder = new_folder({"output_dir": str(tmp_path), "experiment_name": "a"}, {})
    assert folder.path.name == "a_2100_01_01-00_00_00_2"


def test_matrix_sensing_recovers_low_rank_target(tmp_path):
    """Trains depth 3 with small initialization on 110 Gaussian measurements of a 12x12 matrix of rank 2."""
    generator = torch.Generator().manual_seed(0)
    target, matrices = random_target(12, 12, 2, False, generator), gaussian_sensing(110, 12, 12, 1.0, generator)
    content = {"A": matrices, "y": (matrices * target).sum((1, 2)), "target_matrix": target}
    torch.save(content, tmp_path / "sensing.pt")
    given = {"num_samples": 110, "init_alpha": 1e-2, "lr": 3e-5, "epochs": 20_000}
    ((_, folder),) = run_experiments(tmp_path / "out", {"dataset_path": tmp_path / "sensing.pt", **given})
    product = torch.load(folder / "final_e2e_matrix.pt", weights_only=True)
    assert (product - target).norm() < 1e-2 * target.norm()
