"""Muon against a plain loop."""

import numpy as np
import pytest
import torch

from common.cli import UserError
from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, ROOT, make_experiment, parse_parameters, train

FLAGS = {"optimizer": "muon", "dtype": "float64", "lr": 1e-2, "init_alpha": 0.3, "validate_every": 10}


@pytest.mark.parametrize("decay", [0, 0.1])
@pytest.mark.parametrize("shape, num_samples", [("2x2", 3), ("5x5", 24)])
def test_steps(shape, num_samples, decay):
    dataset = ROOT / f"data/dmf/completion_{shape}_w_1_1_0.pt"
    flags = {"dataset_path": dataset, "num_samples": num_samples, "weight_decay": decay, "momentum": 0.8}
    experiment = make_experiment(**FLAGS, **flags, epochs=60)
    content = torch.load(dataset, weights_only=True)
    matrices, observations = content["A"].double().flatten(1), content["y"].double()
    factors = [factor.clone().requires_grad_() for factor in experiment.factors]
    buffers = [np.zeros(factor.shape) for factor in factors]
    for _ in range(60):
        product = torch.linalg.multi_dot(factors).flatten()
        gradients = torch.autograd.grad((matrices @ product - observations).square().sum() / 2, factors)
        for factor, buffer, gradient in zip(factors, buffers, gradients, strict=True):
            buffer *= 0.8
            buffer += gradient.numpy() + decay * factor.detach().numpy()
            left, values, right = np.linalg.svd(buffer)
            rank = (values > 1e-12 * values[0]).sum()
            factor.data -= 1e-2 * torch.from_numpy(left[:, :rank] @ right[:rank])
    for seen, expected in zip(*train([experiment]), factors, strict=True):
        torch.testing.assert_close(seen, expected.detach(), rtol=1e-9, atol=1e-9)


def test_bits_do_not_depend_on_the_batch():
    flags = {**FLAGS, "dataset_path": ROOT / "data/dmf/completion_5x5_w_1_1_0.pt", "num_samples": 24, "hidden_dim": 7}
    flags |= {"epochs": 60, "dtype": "float32"}
    together = train([make_experiment(**flags, random_seed=seed) for seed in range(5)])
    for seed, factors in enumerate(together):
        (alone,) = train([make_experiment(**flags, random_seed=seed)])
        assert all(map(torch.equal, factors, alone))


def test_diverging_runs_do_not_end_the_batch():
    runs = [make_experiment(**FLAGS, epochs=50, random_seed=0), make_experiment(**{**FLAGS, "lr": 1e200}, epochs=50)]
    train(runs)
    assert [run.stop_reason for run in runs] == ["epochs", "diverged"]


def test_no_step_without_a_gradient():
    experiment = make_experiment(**{**FLAGS, "init_alpha": 0.0}, epochs=30)
    assert all((factor == 0).all() for (factors,) in [train([experiment])] for factor in factors)


def test_checkpoints_are_continued_but_not_those_of_momentum(tmp_path):
    def run(**flags):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        flags = {**FLAGS, "store_checkpoints": True, "output_dir": directory, **flags}
        run_sweep(KINDS["dmf"][0], [parse_parameters(**flags)])
        return next(directory.glob("*/checkpoints/*.pt"))

    whole, half = run(epochs=60), run(epochs=30)
    rest = run(epochs=30, trainer_checkpoint=half)
    factors = [torch.load(path, weights_only=True)["model"] for path in (whole, rest)]
    assert all(torch.equal(factors[0][name], factors[1][name]) for name in factors[0])
    for first, then in (("muon", "momentum"), ("momentum", "muon")):
        with pytest.raises(UserError, match="was not written by M"):
            run(epochs=10, optimizer=then, trainer_checkpoint=run(epochs=10, optimizer=first))
