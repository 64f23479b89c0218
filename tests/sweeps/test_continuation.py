"""Tests of -trainer_checkpoint with checkpoint files written by sweeps."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.cli import UserError
from common.plotting.histories import load_curve
from common.plotting.runs import read_groups, require_matrix_run
from common.problems.matrix_factorization import MatrixFactorization
from common.sweeps.sweep import run_sweep
from tests.conftest import folders_in, make_experiment, parse_parameters
from tests.stress.kills import differences

BASE = {"random_seed": 3, "init_alpha": 0.05, "store_checkpoints": True, "file_log": True}
BASE |= {"track_singular_values": True, "tracked_e2e_value_of": [[0, 0]]}


def run_experiment(output_dir: Path, **parameters) -> tuple[Path, dict]:
    """Runs one experiment and returns the path and content of its checkpoint."""
    run_sweep(MatrixFactorization, [parse_parameters(**BASE | {"output_dir": output_dir} | parameters)])
    (folder,) = folders_in(output_dir)
    (path,) = (folder / "checkpoints").iterdir()
    return path, torch.load(path, weights_only=True)


@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize("optimizer", ["gd", "momentum", "adam"])
def test_continuing_matches_single_run(tmp_path, optimizer, engine):
    """The checkpoint has the optimizer's state, and hyper-parameters that are not given. The first part ends between
    two validations.
    """
    if (optimizer, engine) == ("adam", "native"):
        pytest.skip("has no kernel")
    chosen = {"optimizer": optimizer, "engine": engine}
    given = {"weight_decay": 0.01, "lr": 1e-2, **({"momentum": 0.7} if optimizer == "momentum" else {})}
    path, part = run_experiment(tmp_path / "first", epochs=1025, **chosen, **given)
    second, continued = run_experiment(tmp_path / "second", epochs=975, trainer_checkpoint=str(path), **chosen)
    _, whole = run_experiment(tmp_path / "whole", epochs=2000, **chosen, **given)
    assert differences(continued["model"], whole["model"]) == []
    assert differences(continued["optimizer"], whole["optimizer"]) == []
    epochs = continued["val_evaluator"]["singular_value_1"]["epochs_with_values"].tolist()
    assert epochs == sorted([*range(49, 2000, 50), 1024])
    names = {"gd": set(), "momentum": {"momentum_buffer"}, "adam": {"exp_avg", "exp_avg_sq", "step"}}[optimizer]
    assert all(set(of_factor) == names for of_factor in part["optimizer"]["state"].values())
    assert list(part["optimizer"]["state"]) == ([0, 1, 2] if names else [])
    recorded = json.loads((second.parents[1] / "run_params.json").read_text())
    assert given.items() <= recorded.items()


def test_learning_rate_and_metrics_that_are_given(tmp_path):
    path, _ = run_experiment(tmp_path / "first", epochs=100, lr=1e-2)
    given = {"lr": 1e-3, "tracked_e2e_value_of": [[0, 0], [1, 1]]}
    second, continued = run_experiment(tmp_path / "second", epochs=100, trainer_checkpoint=str(path), **given)
    assert continued["optimizer"]["param_groups"][0]["lr"] == 1e-3
    assert json.loads((second.parents[1] / "run_params.json").read_text())["lr"] == 1e-3
    assert continued["val_evaluator"]["e2e_0_0_value"]["epochs_with_values"].tolist() == [49, 99, 149, 199]
    assert continued["val_evaluator"]["e2e_1_1_value"]["epochs_with_values"].tolist() == [149, 199]


def test_checkpoint_of_another_optimizer_is_refused(tmp_path):
    classes = {"gd": "GradientDescent", "momentum": "Momentum", "adam": "Adam"}
    for name in classes:
        path, _ = run_experiment(tmp_path / name, epochs=50, optimizer=name)
        for wanted in classes.keys() - {name}:
            expected = f"-trainer_checkpoint {path}: was not written by {classes[wanted]}; give"
            with pytest.raises(UserError, match=expected):
                make_experiment(**BASE, optimizer=wanted, trainer_checkpoint=str(path))


def test_continuing_keeps_zero_loss_count(tmp_path):
    """A run continued after 5 of the 11 zero-loss validations stops at the same epoch as a single run."""
    fast = {"init_alpha": 0.5, "lr": 0.01, "stop_on_zero_loss_tol": 1e-3}
    _, whole = run_experiment(tmp_path / "whole", epochs=100_000, **fast)
    path, part = run_experiment(tmp_path / "first", epochs=whole["epoch"] + 1 - 6 * 50, **fast)
    assert part["trainer"]["zero_loss_validations"] == 5
    _, continued = run_experiment(tmp_path / "second", epochs=100_000, trainer_checkpoint=str(path), **fast)
    assert differences(continued, whole) == []


def test_origin_of_continued_runs(tmp_path):
    """The recorded and shown initialization is that of the first run, not of the command that continues it."""
    path, _ = run_experiment(tmp_path / "first", epochs=100, use_balanced_init=True, init_alpha=1e-3)
    second, _ = run_experiment(tmp_path / "second", epochs=100, trainer_checkpoint=path, random_seed=9)
    run_experiment(tmp_path / "third", epochs=100, trainer_checkpoint=second)
    alone = Path(shutil.copy(path, tmp_path))
    run_experiment(tmp_path / "unknown", epochs=100, trainer_checkpoint=alone)
    origins, names = {}, {}
    for name in ("first", "second", "third", "unknown"):
        (folder,) = folders_in(tmp_path / name)
        recorded = json.loads((folder / "run_params.json").read_text())["provenance"]["identity"].get("origin")
        origins[name] = recorded and (recorded["init_alpha"], recorded["use_balanced_init"], recorded["random_seed"])
        ((group,), _) = read_groups(str(tmp_path / name), require_matrix_run, load_curve)
        names[name] = group.name
    assert origins == {"first": None, "second": (1e-3, True, 3), "third": (1e-3, True, 3), "unknown": (None,) * 3}
    assert names["first"] == names["second"] == names["third"] == "lr 3e-3 init 1e-3 (b)"
    assert names["unknown"] == f"lr 3e-3 init unknown, from {path.name}"


PLAIN_SGD = {"lr": 3e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "params": [0, 1, 2]}
# What torch.optim.SGD of PyTorch 2.0 writes in addition.
TORCH_2_SGD = {**PLAIN_SGD, "maximize": False, "foreach": None, "differentiable": False}
NO_MOMENTUM = {index: {"momentum_buffer": None} for index in range(3)}


def original_checkpoint(path: Path, epochs: int, group=PLAIN_SGD, state=None) -> dict:
    """Returns the checkpoint of the run described by `BASE`, in a folder, in the format of the original code."""
    _, content = run_experiment(path, epochs=epochs, validate_every=1, engine="torch")
    for kind, every in (("train_evaluator", 1), ("val_evaluator", 50)):
        for metric in content[kind].values():
            for name in ("epoch_values", "epochs_with_values"):
                metric[name] = metric[name].tolist()[every - 1 :: every]
    del content["trainer"]
    return {**content, "optimizer": {"state": state or {}, "param_groups": [group]}}


@pytest.mark.parametrize(
    "version, zipped, device",
    [({}, True, "cuda:0"), ({}, False, "cuda:0"), ({"group": TORCH_2_SGD, "state": NO_MOMENTUM}, True, "cpu")],
    ids=["plain", "torch 1.3", "torch 2.0"],
)
def test_continuing_from_checkpoint_of_original_code(tmp_path, monkeypatch, version, zipped, device):
    content, path = original_checkpoint(tmp_path / "first", 1000, **version), tmp_path / "original.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: device)
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert device.encode() in path.read_bytes()
    _, continued = run_experiment(tmp_path / "second", epochs=1000, engine="torch", trainer_checkpoint=str(path))
    _, whole = run_experiment(tmp_path / "whole", epochs=2000, engine="torch")
    assert differences(continued["model"], whole["model"]) == []
    assert differences(continued["val_evaluator"], whole["val_evaluator"]) == []
    train_epochs = continued["train_evaluator"]["mse_loss"]["epochs_with_values"].tolist()
    assert train_epochs == [*range(1000), *range(1049, 2000, 50)]


def test_continuing_float32_run_in_float64(tmp_path):
    path, single = run_experiment(tmp_path / "first", epochs=100)
    _, double = run_experiment(tmp_path / "second", epochs=100, trainer_checkpoint=str(path), dtype="float64")
    _, same = run_experiment(tmp_path / "third", epochs=100, trainer_checkpoint=str(path))
    assert double["model"]["layers.0"].dtype == double["val_evaluator"]["fro_e2e_norm"]["epoch_values"].dtype
    assert double["model"]["layers.0"].dtype == torch.float64
    assert same["model"]["layers.0"].dtype == single["model"]["layers.0"].dtype == torch.float32


def parameters_of(content):
    return content["optimizer"]["param_groups"][0]


@pytest.mark.parametrize(
    "optimizer, changed, message",
    [
        ("gd", lambda content: content["model"].pop("layers.2"), "has 2 factors of shapes .*, not 3"),
        ("gd", lambda content: content.pop("val_evaluator"), "lacks 'val_evaluator'"),
        ("gd", lambda content: content.update(model={}), "is not a checkpoint"),
        ("momentum", lambda content: parameters_of(content).update(nesterov=True), "not written by Momentum"),
        ("momentum", lambda content: content["optimizer"]["state"].pop(2), "not written by"),
        ("adam", lambda content: parameters_of(content).update(betas=(0.9, 0.99)), "not written by"),
    ],
)
def test_incompatible_checkpoint_is_refused(tmp_path, optimizer, changed, message):
    path, content = run_experiment(tmp_path / "first", epochs=50, optimizer=optimizer)
    changed(content)
    torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        make_experiment(**BASE, trainer_checkpoint=path, optimizer=optimizer)
    assert str(path) in str(error.value)
