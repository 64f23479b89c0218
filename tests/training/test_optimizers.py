import math

import torch

from common.models.cp_factorization import CPFactorization
from common.training.optimizers import GroupRMSprop


def reference_group_rmsprop(parameters, gradients, lr, beta=0.99, eps=1e-6):
    """Returns parameters, v and step size after v ← β v + (1 − β) ‖g‖², step = lr / (√(v / (1 − βᵗ)) + eps)."""
    v = 0.0
    for t, gradient in enumerate(gradients, start=1):
        norm_squared = sum((g.double() ** 2).sum().item() for g in gradient)
        v = beta * v + (1 - beta) * norm_squared
        step = lr / (math.sqrt(v / (1 - beta**t)) + eps)
        parameters = [p - step * g for p, g in zip(parameters, gradient, strict=True)]
    return parameters, v, step


def test_group_rmsprop_matches_reference():
    generator = torch.Generator().manual_seed(0)
    shapes, lrs = [(3, 4), (2, 4), (5, 4)], [1e-2, 3e-2, 1e-3]
    factors = [torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    scales = torch.tensor([1.0, 1e-8, 1e3], dtype=torch.float64)
    gradients = [
        [
            torch.randn(3, *shape, generator=generator, dtype=torch.float64) * scales[:, None, None] * 0.97**t
            for shape in shapes
        ]
        for t in range(50)
    ]
    model = CPFactorization(factors)
    optimizer = GroupRMSprop(lrs, model.values)
    for gradient in gradients:
        for view, given in zip(model.factor_gradients, gradient, strict=True):
            view.copy_(given)
        optimizer.step(model)
    for b in range(3):
        expected, v, step = reference_group_rmsprop(
            [factor[b] for factor in factors], [[each[b] for each in gradient] for gradient in gradients], lrs[b]
        )
        for view, wanted in zip(model.views, expected, strict=True):
            torch.testing.assert_close(view[b], wanted, rtol=1e-12, atol=1e-14)
        state = optimizer.experiment_state(b, 3)
        assert state["state"]["step"] == 50
        assert math.isclose(state["state"]["square_avg"], v, rel_tol=1e-12)
        group = state["param_groups"][0]
        assert math.isclose(group["adjusted_lr"], step, rel_tol=1e-12)
        assert (group["lr"], group["beta"], group["eps"]) == (lrs[b], 0.99, 1e-6)


def test_select_keeps_optimizer_state():
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(4, 2, 3, generator=generator) for _ in range(2)]
    gradients = [[torch.randn(4, 2, 3, generator=generator) for _ in range(2)] for _ in range(6)]

    def run(model, optimizer, gradients, kept):
        for gradient in gradients:
            for view, given in zip(model.factor_gradients, gradient, strict=True):
                view.copy_(given[kept])
            optimizer.step(model)

    whole = CPFactorization(factors)
    whole_optimizer = GroupRMSprop([1e-2] * 4, whole.values)
    run(whole, whole_optimizer, gradients[:3], slice(None))
    kept = torch.tensor([1, 3])
    part = whole.select(kept)
    part_optimizer = whole_optimizer.select(kept)
    run(whole, whole_optimizer, gradients[3:], slice(None))
    run(part, part_optimizer, gradients[3:], kept)
    for left, right in zip(whole.views, part.views, strict=True):
        assert torch.equal(left[kept], right)
