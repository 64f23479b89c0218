import numpy as np
import pytest
import torch

from tests.conftest import make_experiment

SIZES = [(n, m) for n in range(1, 17) for m in sorted({n, 17 - n, 16})]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows, cols", SIZES, ids=lambda size: str(size))
def test_metrics_do_not_depend_on_history_chunking(rows, cols, dtype, tmp_path):
    content = {"A": torch.zeros(1, rows, cols), "y": torch.ones(1), "target_matrix": torch.ones(rows, cols)}
    torch.save(content, tmp_path / "data.pt")
    given = {"num_samples": 1, "dtype": dtype, "track_singular_values": True, "tracked_e2e_value_of": [[0, 0]]}
    given["track_schatten_norm"] = True
    problem = make_experiment(dataset_path=tmp_path / "data.pt", **given).problem
    generator = np.random.default_rng(17 * rows + cols)
    outputs = generator.standard_normal((64, rows, cols)).astype(dtype)
    losses = generator.random(64).astype(dtype)
    train, validation = problem.measure(losses, outputs)
    assert len(train | validation) == 10 + min(rows, cols)
    for begin, end in [(1, 64), (2, 3), (3, 40), (5, 6), (17, 63), (63, 64)]:
        cut = problem.measure(losses[begin:end], outputs[begin:end])
        for whole, part in zip((train, validation), cut, strict=True):
            for name, values in part.items():
                assert values.tobytes() == whole[name][begin:end].tobytes(), name


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_reconstruction_error_is_left_out_without_target(size, scale, tmp_path):
    """Where the target is zero, there is no relative error."""
    target = scale * torch.eye(size)
    content = {"A": torch.ones(1, size, size), "y": torch.ones(1), "target_matrix": target}
    torch.save(content, tmp_path / "data.pt")
    problem = make_experiment(dataset_path=tmp_path / "data.pt", num_samples=1).problem
    outputs = np.random.default_rng(0).standard_normal((5, size, size)).astype(np.float32)
    _, validation = problem.measure(np.ones(5, np.float32), outputs)
    if scale == 0:
        assert "reconstruction_error" not in validation
    else:
        expected = [np.linalg.norm(output - target.numpy()) / np.linalg.norm(target.numpy()) for output in outputs]
        np.testing.assert_allclose(validation["reconstruction_error"], expected, rtol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_schatten_norm_is_recorded_if_tracked(size, tmp_path):
    content = {"A": torch.ones(1, size, size), "y": torch.ones(1), "target_matrix": torch.eye(size)}
    torch.save(content, tmp_path / "data.pt")
    given = {"dataset_path": tmp_path / "data.pt", "num_samples": 1, "track_singular_values": True}
    outputs = np.random.default_rng(0).standard_normal((5, size, size)).astype(np.float32)
    _, validation = make_experiment(**given, track_schatten_norm=True).problem.measure(np.ones(5, np.float32), outputs)
    expected = sum(np.sqrt(validation[f"singular_value_{k}"].astype(np.float64)) for k in range(size)) ** 2
    np.testing.assert_allclose(validation["schatten_half_quasi_norm"], expected, rtol=1e-5)
    _, without = make_experiment(**given).problem.measure(np.ones(5, np.float32), outputs)
    assert "schatten_half_quasi_norm" not in without
