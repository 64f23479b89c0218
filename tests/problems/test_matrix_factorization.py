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
