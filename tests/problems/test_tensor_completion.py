import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import UserError
from common.datasets.flags import load_samples
from common.datasets.tensor_completion import random_tensor
from common.problems import tensor_completion
from common.sweeps.sweep import run_sweep
from tests.conftest import TENSOR, make_experiment, make_generator, parse_parameters, runs_by_number
from tests.stress.kills import differences

BASE = {"random_seed": 1, "use_adaptive_lr": True, "file_log": True}


def run_experiments(output_dir: Path, *experiments) -> list[Path]:
    """Runs the experiments and returns their folders, in the same order."""
    parameters = [parse_parameters("tc", **BASE | {"output_dir": output_dir} | each) for each in experiments]
    run_sweep(tensor_completion.TensorFactorization, parameters)
    return [runs_by_number(output_dir)[number + 1][0][1] for number in range(len(experiments))]


def read_metrics(folder: Path) -> dict:
    return json.loads((folder / "tensor_rank_and_reconstruction_metrics.json").read_text())


def test_outputs_of_finished_experiment(tmp_path):
    flags = {"compute_final_tensor_ranks": True, "plot_metrics": True, "track_tensor_rank": True}
    (folder,) = run_experiments(tmp_path, {"num_samples": 300, **flags})
    tensors = {n: torch.load(folder / f"{n}_tensor.pt", weights_only=True) for n in ("model", "memorizer", "targets")}
    target, metrics = tensors["targets"], read_metrics(folder)
    content = torch.load(TENSOR, weights_only=True)
    assert torch.equal(target, content["target_tensor"])
    observed = content["train_indices_order"][:300]
    memorizer = torch.zeros(512)
    memorizer[observed] = target.flatten()[observed]
    assert torch.equal(tensors["memorizer"].flatten(), memorizer)
    for name in ("model", "memorizer"):
        error = ((tensors[name] - target).norm() / target.norm()).item()
        assert metrics[f"{name}_reconstruction_error"] == pytest.approx(error, rel=1e-4)
    assert metrics["model_reconstruction_error"] < 1e-2
    assert metrics["model_tensor_rank"] == metrics["targets_tensor_rank"] == 1
    assert metrics["memorizer_tensor_rank"] > 8
    for name in ("model", "memorizer", "targets"):
        assert metrics[f"{name}_tensor_rank_lower_bound"] <= metrics[f"{name}_tensor_rank"]
    plots = {path.name for path in (folder / "plots").iterdir()}
    assert plots == {"mse_loss.png", "reconstruction_error.png", "model_tensor_rank.png"}


def test_outputs_of_metrics_of_factors(tmp_path):
    given = {"track_sharpness": True, "track_component_norms": 3, "plot_metrics": True, "store_checkpoints": True}
    (folder,) = run_experiments(tmp_path, {**given, "num_components": 4, "init_std": 0.1, "epochs": 250})
    (path,) = (folder / "checkpoints").iterdir()
    checkpoint, metrics = torch.load(path, weights_only=True), read_metrics(folder)
    norms = torch.stack([factor.double().norm(dim=0) for factor in checkpoint["model"].values()]).prod(0)
    names = [f"component_norm_{k}" for k in range(3)]
    assert [metrics[name] for name in names] == pytest.approx(norms.sort(descending=True).values[:3].tolist())
    assert metrics["sharpness"] > 0
    for name in (*names, "sharpness"):
        entry = checkpoint["val_evaluator"][name]
        assert entry["epochs_with_values"].tolist() == [99, 199, 249]
        assert entry["current_value"] == metrics[name]
    assert "component_norm_3" not in metrics
    plots = {path.name for path in (folder / "plots").iterdir()}
    assert plots == {"mse_loss.png", "reconstruction_error.png", "component_norms.png", "sharpness.png"}


def test_dataset_ranks_are_estimated_once(tmp_path, monkeypatch):
    estimated = []
    monkeypatch.setattr(tensor_completion, "estimate_cp_rank", lambda tensors, tol, seed: estimated.append(1) or [1])
    load_samples.cache_clear()
    each = {"compute_final_tensor_ranks": True, "epochs": 10, "validate_every": 10}
    run_experiments(tmp_path, *({**each, "num_samples": n, "random_seed": s} for n in (100, 200) for s in range(3)))
    load_samples.cache_clear()
    assert len(estimated) == 6 + 2 + 1


def test_continuing_from_checkpoint_matches_single_run(tmp_path):
    def run(name, **parameters):
        settings = {"num_samples": 60, "store_checkpoints": True, "init_std": 0.05, **parameters}
        (folder,) = run_experiments(tmp_path / name, settings)
        (path,) = (folder / "checkpoints").iterdir()
        return path, torch.load(path, weights_only=True)

    path, part = run("first", epochs=250)
    assert set(part["optimizer"]["state"]) == {"step", "square_avg"}
    _, continued = run("second", epochs=250, trainer_checkpoint=str(path))
    _, whole = run("whole", epochs=500)
    assert differences(continued["model"], whole["model"]) == []
    assert differences(continued["optimizer"], whole["optimizer"]) == []
    recorded = continued["val_evaluator"]["reconstruction_error"]["epochs_with_values"].tolist()
    assert recorded == [99, 199, 249, 299, 399, 499]


def test_diverged_run_writes_null_metrics(tmp_path):
    diverging = {"use_adaptive_lr": False, "lr": 1e6, "init_std": 1.0, "compute_final_tensor_ranks": True}
    (folder,) = run_experiments(tmp_path, diverging)
    assert json.loads((folder / "run_params.json").read_text())["status"]["stop_reason"] == "diverged"
    metrics = read_metrics(folder)
    assert metrics["model_reconstruction_error"] is metrics["model_tensor_rank"] is None
    assert metrics["targets_tensor_rank"] == 1


def test_smaller_init_gives_lower_rank_and_smaller_error(tmp_path):
    """Compares medians over 5 seeds on a 4x4x4 tensor of rank 1 (the claim of Figure 2 in the paper)."""
    tensor = random_tensor((4, 4, 4), 1, 1.0, make_generator(0))
    order = torch.randperm(64, generator=make_generator(0)).tolist()
    path = tmp_path / "tensor.pt"
    torch.save({"target_tensor": tensor, "target_cp_rank": 1, "train_indices_order": order}, path)
    stds = (0.3, 0.03, 0.003)
    common = {"dataset_path": str(path), "num_samples": 40, "compute_final_tensor_ranks": True, "epochs": 100_000}
    folders = run_experiments(
        tmp_path / "out", *({**common, "init_std": std, "random_seed": seed} for std in stds for seed in range(5))
    )
    results = [read_metrics(folder) for folder in folders]
    names = "model_reconstruction_error", "model_tensor_rank"
    errors, ranks = (np.median(np.reshape([each[name] for each in results], (3, 5)), axis=1) for name in names)
    assert errors[0] > 10 * errors[1] > 10 * errors[2]
    assert ranks[0] > ranks[2] == 1


def test_norms_of_more_components_than_there_are_are_refused():
    make_experiment("tc", num_components=5, track_component_norms=5)
    with pytest.raises(UserError, match="-track_component_norms 6: the factorization has 5 components; give at most"):
        make_experiment("tc", num_components=5, track_component_norms=6)
