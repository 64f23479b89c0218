import math

import pytest
import torch

from tests.conftest import make_experiment, make_trainer, train


class ReferenceGroupRMSprop(torch.optim.Optimizer):
    """v ← β v + (1 − β) ‖g‖², step = lr / (√(v / (1 − βᵗ)) + eps) with g = ∇ℓ + weight_decay θ."""

    def __init__(self, parameters, lr, weight_decay):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.v, self.t = 0.0, 0

    @torch.no_grad()
    def step(self):
        (group,) = self.param_groups
        gradients = [each.grad + group["weight_decay"] * each for each in group["params"]]
        self.t += 1
        self.v = 0.99 * self.v + 0.01 * sum((gradient**2).sum().item() for gradient in gradients)
        for each, gradient in zip(group["params"], gradients, strict=True):
            each.sub_(group["lr"] / (math.sqrt(self.v / (1 - 0.99**self.t)) + 1e-6) * gradient)


def reference_optimizer(parameters, leaves):
    """Returns the optimizer of PyTorch, or a textbook loop, with the hyper-parameters of an experiment."""
    common = {"lr": parameters["lr"], "weight_decay": parameters["weight_decay"]}
    match parameters["optimizer"]:
        case "gd":
            return torch.optim.SGD(leaves, **common)
        case "momentum":
            return torch.optim.SGD(leaves, momentum=parameters["momentum"], **common)
        case "adam":
            return torch.optim.Adam(leaves, **common)
        case "group_rmsprop":
            return ReferenceGroupRMSprop(leaves, **common)


def reference_steps(experiment, leaves, optimizer, num_steps):
    """Takes steps with automatic differentiation from the definition of the loss. Returns the factors, and the loss of
    the last step as it is recorded.
    """
    dataset, is_matrix = experiment.problem.dataset, "depth" in experiment.parameters
    observed = dataset.observed_entries
    targets = dataset.observations if is_matrix else dataset.target_tensor.flatten()[observed]
    for _ in range(num_steps):
        optimizer.zero_grad()
        if is_matrix:
            output = torch.linalg.multi_dot(leaves) if len(leaves) > 1 else leaves[0]
        else:
            output = torch.einsum("ar,br,cr->abc", *leaves)
        squares = (output.flatten()[observed] - targets.double()) ** 2
        loss = squares.sum() / 2 if is_matrix else squares.mean()
        loss.backward()
        optimizer.step()
    return [leaf.detach() for leaf in leaves], loss.item()


def experiments_of(kind, optimizer, num_steps):
    """Returns experiments of one batch, with unequal hyper-parameters, that leave it at different times."""
    own = {"dmf": {"init_alpha": 0.3}, "tc": {"num_samples": 80, "init_std": 0.3, "num_components": 5}}[kind]
    lr = {"gd": 1e-2, "momentum": 3e-3, "adam": 3e-3, "group_rmsprop": 1e-2}[optimizer]
    common = {"optimizer": optimizer, "dtype": "float64", "stop_on_zero_loss_tol": 0, **own}
    varied = [{"random_seed": b, "lr": lr / (1 + b), "weight_decay": 0.03 / (1 + b)} for b in range(3)]
    for b, given in enumerate(varied):
        given["epochs"] = num_steps * (b + 2) // 4 + 7 * b
        if optimizer == "momentum":
            given["momentum"] = 0.95 - 0.3 * b
    return [make_experiment(kind, **common, **given) for given in varied]


CASES = [("dmf", each) for each in ("gd", "momentum", "adam")]
CASES += [("tc", each) for each in ("gd", "momentum", "adam", "group_rmsprop")]


@pytest.mark.parametrize("kind, optimizer", CASES)
def test_steps_are_those_of_torch_optim(kind, optimizer):
    num_steps = 400 if kind == "dmf" else 200
    experiments = experiments_of(kind, optimizer, num_steps)
    results, recorded = [train(experiments)], "sse_loss_div_2" if kind == "dmf" else "mse_loss"
    if optimizer != "adam":  # which has no kernel
        results.append(train(experiments_of(kind, optimizer, num_steps), native=True))
    assert [each.epoch + 1 for each in experiments] == [each.parameters["epochs"] for each in experiments]
    for b, experiment in enumerate(experiments_of(kind, optimizer, num_steps)):
        leaves = [factor.clone().requires_grad_() for factor in experiment.factors]
        reference = reference_optimizer(experiment.parameters, leaves)
        expected, loss = reference_steps(experiment, leaves, reference, experiment.parameters["epochs"])
        assert experiments[b].history.train[recorded].values[-1] == pytest.approx(loss, rel=1e-8)
        for result in results:
            torch.testing.assert_close(result[b], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_state_continues_in_torch_optim(optimizer):
    """torch.optim loads the state in the middle of a run and ends where the whole run does."""
    _, experiment, _ = experiments_of("dmf", optimizer, 400)
    engine, whole = (make_trainer([experiment]).engine for _ in range(2))
    engine.advance([200])
    whole.advance([400])
    leaves = [each.clone().requires_grad_() for each in engine.model.experiment_state(0).values()]
    reference = reference_optimizer(experiment.parameters, leaves)
    reference.load_state_dict(engine.optimizer.experiment_state(0))
    factors, _ = reference_steps(experiment, leaves, reference, 200)
    torch.testing.assert_close(factors, list(whole.model.experiment_state(0).values()), rtol=1e-9, atol=1e-12)


def test_state_of_group_rmsprop():
    _, experiment, _ = experiments_of("tc", "group_rmsprop", 400)
    engine = make_trainer([experiment]).engine
    leaves = [factor.clone().requires_grad_() for factor in experiment.factors]
    reference = reference_optimizer(experiment.parameters, leaves)
    reference_steps(experiment, leaves, reference, 50)
    engine.advance([50])
    state, lr = engine.optimizer.experiment_state(0), experiment.parameters["lr"]
    assert state["state"] == {"step": 50, "square_avg": pytest.approx(reference.v, rel=1e-9)}
    (group,) = state["param_groups"]
    adjusted = lr / (math.sqrt(reference.v / (1 - 0.99**50)) + 1e-6)
    assert (group["lr"], group["beta"], group["eps"]) == (lr, 0.99, 1e-6)
    assert group["adjusted_lr"] == pytest.approx(adjusted, rel=1e-9)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_optimizers_with_state_never_stall(optimizer):
    """Steps that are too small to change a parameter are no reason to stop, because the state changes."""
    experiments = [make_experiment(lr=1e-12, init_alpha=0.5, epochs=300, optimizer=each) for each in (optimizer, "gd")]
    for experiment in experiments:
        train([experiment], native=experiment.parameters["optimizer"] != "adam")
    assert [each.stop_reason for each in experiments] == ["epochs", "stalled"]


@pytest.mark.parametrize("kind, optimizer", CASES)
def test_state_stays_with_its_experiment(kind, optimizer, native):
    """Each experiment of a batch that others leave has the bits of a run of its own."""
    if native and optimizer == "adam":
        pytest.skip("has no kernel")
    together = train(experiments_of(kind, optimizer, 200), native)
    for b, factors in enumerate(together):
        (alone,) = train([experiments_of(kind, optimizer, 200)[b]], native)
        assert all(torch.equal(left, right) for left, right in zip(factors, alone, strict=True))
