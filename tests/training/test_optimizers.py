import math

import pytest
import torch

from common.models.cp_factorization import CPFactorization
from common.training.optimizers import GroupRMSprop
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
    """Takes steps with automatic differentiation from the definition of the loss."""
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
        (squares.sum() / 2 if is_matrix else squares.mean()).backward()
        optimizer.step()
    return [leaf.detach() for leaf in leaves]


def experiments_of(kind, optimizer, num_steps):
    """Returns experiments of one batch, with unequal hyper-parameters, that leave it at different times."""
    own = (
        {"depth": 3, "init_alpha": 0.3} if kind == "dmf" else {"num_samples": 80, "init_std": 0.3, "num_components": 5}
    )
    lr = {"gd": 1e-2, "momentum": 3e-3, "adam": 3e-3, "group_rmsprop": 1e-2}[optimizer]
    return [
        make_experiment(
            kind,
            random_seed=b,
            optimizer=optimizer,
            lr=lr / (1 + b),
            weight_decay=0.03 / (1 + b),
            epochs=num_steps * (b + 2) // 4 + 7 * b,
            dtype="float64",
            stop_on_zero_loss_tol=0,
            **({"momentum": 0.95 - 0.3 * b} if optimizer == "momentum" else {}),
            **own,
        )
        for b in range(3)
    ]


CASES = [("dmf", each) for each in ("gd", "momentum", "adam")]
CASES += [("tc", each) for each in ("momentum", "adam", "group_rmsprop")]


@pytest.mark.parametrize("kind, optimizer", CASES)
def test_steps_are_those_of_torch_optim(kind, optimizer):
    num_steps = 800 if kind == "dmf" else 300
    experiments = experiments_of(kind, optimizer, num_steps)
    results = [train(experiments)]
    if optimizer != "adam":  # which has no kernel
        results.append(train(experiments_of(kind, optimizer, num_steps), native=True))
    assert [each.epoch + 1 for each in experiments] == [each.parameters["epochs"] for each in experiments]
    for b, experiment in enumerate(experiments_of(kind, optimizer, num_steps)):
        leaves = [factor.clone().requires_grad_() for factor in experiment.factors]
        reference = reference_optimizer(experiment.parameters, leaves)
        expected = reference_steps(experiment, leaves, reference, experiment.parameters["epochs"])
        for result in results:
            for factor, wanted in zip(result[b], expected, strict=True):
                torch.testing.assert_close(factor, wanted, rtol=1e-8, atol=1e-10)


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
    factors = reference_steps(experiment, leaves, reference, 200)
    for factor, wanted in zip(factors, whole.model.experiment_state(0).values(), strict=True):
        torch.testing.assert_close(factor, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_optimizers_with_state_never_stall(optimizer):
    """Steps that are too small to change a parameter are no reason to stop, because the state changes."""
    experiments = [make_experiment(lr=1e-12, init_alpha=0.5, epochs=300, optimizer=each) for each in (optimizer, "gd")]
    for experiment in experiments:
        train([experiment], native=experiment.parameters["optimizer"] != "adam")
    assert [each.stop_reason for each in experiments] == ["epochs", "stalled"]


def test_group_rmsprop_adapts_to_the_scale_of_gradients():
    generator = torch.Generator().manual_seed(0)
    lrs, scales = [1e-2, 3e-2, 1e-3], torch.tensor([1.0, 1e-8, 1e3], dtype=torch.float64)[:, None, None]
    factors = [torch.randn(3, dim, 4, generator=generator, dtype=torch.float64) for dim in (3, 2, 5)]
    gradients = [
        [torch.randn(each.shape, generator=generator, dtype=torch.float64) * scales for each in factors]
        for _ in range(50)
    ]
    model = CPFactorization(factors)
    optimizer = GroupRMSprop({"lr": lrs}, model)
    for gradient in gradients:
        for view, given in zip(model.factor_gradients, gradient, strict=True):
            view.copy_(given)
        optimizer.step(model)
    for b, lr in enumerate(lrs):
        leaves = [factor[b].clone() for factor in factors]
        reference = ReferenceGroupRMSprop(leaves, lr, 0.0)
        for gradient in gradients:
            for leaf, given in zip(leaves, gradient, strict=True):
                leaf.grad = given[b]
            reference.step()
        for view, wanted in zip(model.views, leaves, strict=True):
            torch.testing.assert_close(view[b], wanted, rtol=1e-12, atol=1e-14)
        state = optimizer.experiment_state(b)
        (group,) = state["param_groups"]
        assert state["state"]["step"] == 50
        assert math.isclose(state["state"]["square_avg"], reference.v, rel_tol=1e-12)
        assert math.isclose(group["adjusted_lr"], lr / (math.sqrt(reference.v / (1 - 0.99**50)) + 1e-6), rel_tol=1e-12)
        assert (group["lr"], group["beta"], group["eps"]) == (lr, 0.99, 1e-6)


@pytest.mark.parametrize("kind, optimizer", CASES)
def test_state_stays_with_its_experiment(kind, optimizer, native):
    """Each experiment of a batch that others leave has the bits of a run of its own."""
    if native and optimizer == "adam":
        pytest.skip("has no kernel")
    together = train(experiments_of(kind, optimizer, 200), native)
    for b, factors in enumerate(together):
        (alone,) = train([experiments_of(kind, optimizer, 200)[b]], native)
        assert all(torch.equal(left, right) for left, right in zip(factors, alone, strict=True))
