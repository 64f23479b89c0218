import numpy as np
import pytest
import torch

from tests.conftest import ROOT, make_experiment, make_generator, measure

TRACKED = {"num_samples": 1, "track_singular_values": True, "tracked_e2e_value_of": [[0, 0]]}


def save_dataset(path, target):
    """Saves a dataset in which the first entry is observed."""
    matrices = torch.zeros(1, *target.shape)
    matrices[0, 0, 0] = 1
    torch.save({"A": matrices, "y": target[0, :1].clone(), "target_matrix": target}, path)
    return path


def random_outputs(number, rows, cols, dtype="float32"):
    """Returns losses (n,) and matrices (n, rows, cols)."""
    generator = np.random.default_rng(17 * rows + cols)
    return generator.random(number).astype(dtype), generator.standard_normal((number, rows, cols)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 11, 16])
def test_metrics_do_not_depend_on_their_number(rows, dtype, tmp_path):
    for cols in sorted({rows, 17 - rows, 16}):
        path = save_dataset(tmp_path / f"{cols}.pt", torch.ones(rows, cols))
        problem = make_experiment(dataset_path=path, dtype=dtype, track_schatten_norm=True, **TRACKED).problem
        losses, outputs = random_outputs(64, rows, cols, dtype)
        train, validation = measure(problem, losses, outputs)
        assert len(train | validation) == 10 + min(rows, cols)
        for begin, end in [(1, 64), (2, 3), (3, 40), (5, 6), (17, 63), (63, 64)]:
            part = measure(problem, losses[begin:end], outputs[begin:end])
            for name, values in (part[0] | part[1]).items():
                assert values.tobytes() == (train | validation)[name][begin:end].tobytes(), name


@pytest.mark.parametrize("unknown", [0, 1])
@pytest.mark.parametrize("size", [2, 3])
def test_metrics_of_a_batch(size, unknown, tmp_path):
    """Each experiment has its own target, and unknown entries."""
    targets = torch.randn(3, size, size, generator=make_generator(0))
    for index in range(3 * unknown):
        targets[index].view(-1)[1 + index] = torch.nan
    paths = [save_dataset(tmp_path / f"{k}.pt", target) for k, target in enumerate(targets)]
    problems = [make_experiment(dataset_path=path, **TRACKED).problem for path in paths]
    assert len({problem.batch_key for problem in problems}) == 1
    losses, outputs = random_outputs(12, size, size)
    names, values = problems[0].measure(problems, losses.reshape(3, 4), outputs.reshape(3, 4, size, size))
    for index, problem in enumerate(problems):
        part = slice(4 * index, 4 * index + 4)
        train, validation = measure(problem, losses[part], outputs[part])
        assert names == (tuple(train), tuple(validation))
        np.testing.assert_array_equal(values[:, index], list((train | validation).values()))
        target = targets[index].numpy()
        held_out = np.where(np.arange(size**2).reshape(size, size) > 0, target, np.nan)
        for name, of in (("reconstruction_error", target), ("held_out_error", held_out))[: 1 + unknown]:
            expected = np.sqrt(np.nansum((outputs[part] - of) ** 2, (1, 2)) / np.nansum(of**2))
            np.testing.assert_allclose(validation[name], expected, rtol=1e-5)
        assert ("held_out_error" in validation) == unknown


@pytest.mark.parametrize("size", [2, 3])
def test_reconstruction_error_is_left_out_without_target(size, tmp_path):
    """Where the target is zero, there is no relative error."""
    path = save_dataset(tmp_path / "zero.pt", torch.zeros(size, size))
    without = make_experiment(dataset_path=path, **TRACKED).problem
    assert "reconstruction_error" not in measure(without, *random_outputs(5, size, size))[1]


@pytest.mark.parametrize(
    "dataset, num_samples, shape, entry, observations",
    [
        ("2x2_w_1_1_0", 2, [2, 2], None, None),
        ("2x2_perturbed_w_-2_05_01", 3, [2, 2], [0, 0], [-2, 0.5, pytest.approx(0.1)]),
        ("2x2_repositioned_w_1_0_1", 3, [2, 2], [0, 1], [1, 1, 0]),
        ("1x1_w_10", 1, [1, 1], None, [10]),
        ("5x5_w_1_1_0", 24, [5, 5], [0, 0], None),
    ],
)
def test_what_plots_need_is_recorded(dataset, num_samples, shape, entry, observations):
    path = ROOT / f"data/dmf/completion_{dataset}.pt"
    recorded = make_experiment(dataset_path=path, num_samples=num_samples).parameters
    expected = {"shape": shape, "unobserved_entry": entry, "observations": observations}
    assert {name: recorded[name] for name in expected} == expected
