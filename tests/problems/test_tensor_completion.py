import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import UserError
from common.datasets.flags import load_samples
from common.datasets.tensor_completion import random_tensor
from common.problems import tensor_completion
from common.sweeps.sweep import run_sweep
from tests.conftest import TENSOR, make_experiment, make_trainer, parse_parameters, runs_by_number, train
from tests.models.test_cp_factorization import reference_tensor
from tests.stress.kills import differences

BASE = {"random_seed": 1, "use_adaptive_lr": True, "file_log": True}


def run_experiments(output_dir: Path, *experiments) -> list[Path]:
    """Runs the experiments and returns their folders, in the same order."""
    parameters = [parse_parameters("tc", **BASE | {"output_dir": output_dir} | each) for each in experiments]
    run_sweep(tensor_completion.TensorFactorization, parameters)
    return [runs_by_number(output_dir)[number + 1][0][1] for number in range(len(experiments))]


def read_metrics(folder: Path) -> dict:
    return json.loads((folder / "tensor_rank_and_reconstruction_metrics.json").read_text())


def reference_run(experiment, num_steps):
    """Trains with autograd and returns the factors and the loss before the last step."""
    dataset, parameters = experiment.problem.dataset, experiment.parameters
    observed, target = dataset.observed_entries, dataset.target_tensor.flatten().double()
    factors, v = [factor.clone() for factor in experiment.factors], 0.0
    for t in range(1, num_steps + 1):
        leaves = [factor.requires_grad_() for factor in factors]
        tensor = reference_tensor([leaf[None] for leaf in leaves]).flatten()
        loss = ((tensor[observed] - target[observed]) ** 2).mean()
        gradients = torch.autograd.grad(loss, leaves)
        step = parameters["lr"]
        if parameters["use_adaptive_lr"]:
            v = 0.99 * v + 0.01 * sum((gradient**2).sum().item() for gradient in gradients)
            step /= math.sqrt(v / (1 - 0.99**t)) + 1e-6
        factors = [(leaf - step * gradient).detach() for leaf, gradient in zip(leaves, gradients, strict=True)]
    return factors, loss.item()


@pytest.mark.parametrize("adaptive, lr, num_components", [(True, 1e-2, 0), (False, 0.5, 3)])
def test_training_matches_reference_loop(adaptive, lr, num_components):
    settings = {"dtype": "float64", "use_adaptive_lr": adaptive, "lr": lr, "init_std": 0.1, "epochs": 40}
    settings["num_components"] = num_components
    experiments = [make_experiment("tc", num_samples=n, random_seed=n, **settings) for n in (60, 400)]
    for experiment, factors in zip(experiments, train(experiments), strict=True):
        assert {len(factor[0]) for factor in factors} == {num_components or 64}
        expected, loss = reference_run(experiment, 40)
        assert experiment.history.train["mse_loss"].values[-1] == pytest.approx(loss, rel=1e-9)
        for factor, wanted in zip(factors, expected, strict=True):
            torch.testing.assert_close(factor, wanted, rtol=1e-8, atol=1e-10)


def test_outputs_of_finished_experiment(tmp_path):
    (folder,) = run_experiments(
        tmp_path,
        {"num_samples": 300, "compute_final_tensor_ranks": True, "plot_metrics": True, "track_tensor_rank": True},
    )
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

    def counting(tensors, tol, seed):
        estimated.extend(tensor.clone() for tensor in tensors)
        return [1] * len(tensors)

    monkeypatch.setattr(tensor_completion, "estimate_cp_rank", counting)
    load_samples.cache_clear()
    each = {"compute_final_tensor_ranks": True, "epochs": 10, "validate_every": 10}
    run_experiments(tmp_path, *({**each, "num_samples": n, "random_seed": s} for n in (100, 200) for s in range(3)))
    load_samples.cache_clear()
    assert len(estimated) == 6 + 2 + 1


@pytest.mark.parametrize("adaptive, lr", [(True, 1e-2), (False, 0.3)])
def test_continuing_from_checkpoint_matches_single_run(tmp_path, adaptive, lr):
    settings = {"use_adaptive_lr": adaptive, "lr": lr, "num_samples": 60, "store_checkpoints": True, "init_std": 0.05}

    def run(name, **parameters):
        (folder,) = run_experiments(tmp_path / name, {**settings, **parameters})
        (path,) = (folder / "checkpoints").iterdir()
        return path, torch.load(path, weights_only=True)

    path, part = run("first", epochs=250)
    assert set(part["optimizer"]["state"]) == ({"step", "square_avg"} if adaptive else set())
    _, continued = run("second", epochs=250, trainer_checkpoint=str(path))
    _, whole = run("whole", epochs=500)
    assert differences(continued["model"], whole["model"]) == []
    assert differences(continued["optimizer"], whole["optimizer"]) == []
    recorded = continued["val_evaluator"]["reconstruction_error"]["epochs_with_values"].tolist()
    assert recorded == [99, 199, 249, 299, 399, 499]


def test_tracked_rank_is_estimated_once_per_validation(monkeypatch):
    estimated = []

    def counting(tensors, tol, seed):
        estimated.append(1)
        return [1]

    monkeypatch.setattr(tensor_completion, "estimate_cp_rank", counting)
    trainer = make_trainer([make_experiment("tc", track_tensor_rank=True, epochs=1000, use_adaptive_lr=True)])
    for validations in range(1, 4):
        while trainer.epoch < 100 * validations - 1:
            trainer.advance()
        assert trainer.running[0].history.last_values()["model_tensor_rank"] == 1
        assert len(estimated) == validations


def test_diverged_run_writes_null_metrics(tmp_path):
    diverging = {"use_adaptive_lr": False, "lr": 1e6, "init_std": 1.0, "compute_final_tensor_ranks": True}
    (folder,) = run_experiments(tmp_path, diverging)
    assert json.loads((folder / "run_params.json").read_text())["status"]["stop_reason"] == "diverged"
    metrics = read_metrics(folder)
    assert metrics["model_reconstruction_error"] is None
    assert metrics["model_tensor_rank"] is None
    assert metrics["targets_tensor_rank"] == 1


def test_smaller_init_gives_lower_rank_and_smaller_error(tmp_path):
    """Compares medians over 5 seeds on a 4x4x4 tensor of rank 1 (the claim of Figure 2 in the paper)."""
    tensor = random_tensor((4, 4, 4), 1, 1.0, torch.Generator().manual_seed(0))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    path = tmp_path / "tensor.pt"
    torch.save({"target_tensor": tensor, "target_cp_rank": 1, "train_indices_order": order}, path)
    stds = (0.3, 0.03, 0.003)
    common = {"dataset_path": str(path), "num_samples": 40, "compute_final_tensor_ranks": True, "epochs": 100_000}
    folders = run_experiments(
        tmp_path / "out", *({**common, "init_std": std, "random_seed": seed} for std in stds for seed in range(5))
    )
    results = [read_metrics(folder) for folder in folders]
    errors = [[each["model_reconstruction_error"] for each in results[5 * i : 5 * i + 5]] for i in range(3)]
    ranks = [[each["model_tensor_rank"] for each in results[5 * i : 5 * i + 5]] for i in range(3)]
    large, middle, small = (float(np.median(each)) for each in errors)
    assert large > 10 * middle > 10 * small
    assert np.median(ranks[0]) > np.median(ranks[2]) == 1


def test_too_many_components_are_refused():
    make_experiment("tc", num_components=5, track_component_norms=5)
    with pytest.raises(UserError, match="-track_component_norms 6: the factorization has 5 components; give at most"):
        make_experiment("tc", num_components=5, track_component_norms=6)
    with pytest.raises(UserError, match="-num_components 513: a tensor of 512 entries needs no more"):
        make_experiment("tc", num_components=513)
