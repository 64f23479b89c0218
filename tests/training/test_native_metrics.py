"""Tests of the metrics in C against those of common/metrics/matrix.py."""

import numpy as np
import pytest

from common.training.native_metrics import metrics_2x2
from tests.conftest import make_experiment, measure

TRACKED = {"tracked_e2e_value_of": [[0, 0], [1, 0]], "track_singular_values": True, "track_schatten_norm": True}
TARGET = np.array([[0.0, 1.0], [1.0, 0.0]])
OTHERS = ["e2e_0_0_value", "singular_value_0", "reconstruction_error", "schatten_half_quasi_norm", "singular_value_1"]


def in_c(losses, matrices, target=TARGET, others=OTHERS, num_samples=3):
    """Returns the metrics (number, n) of losses (n,) and matrices (n, 2, 2); see `metrics_2x2`."""
    return metrics_2x2(losses.dtype, tuple(others))(losses[None], matrices[None], num_samples, target[None])[:, 0]


def both(losses, matrices):
    """Returns the recorded metrics (n,) of losses and matrices in C and with PyTorch, by name."""
    parameters = {"dtype": losses.dtype.name, **TRACKED}
    native = measure(make_experiment(**parameters).problem, losses, matrices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.problems.matrix_factorization.metrics_2x2", lambda *arguments: None)
        reference = measure(make_experiment(**parameters).problem, losses, matrices)
    for left, right in zip(native, reference, strict=True):
        assert left.keys() == right.keys()
        assert all(values.dtype == np.float64 for values in (left | right).values())
    native, reference = (train | validation for train, validation in (native, reference))
    assert not (native["singular_value_0"] < native["singular_value_1"]).any()
    return native, {name: reference[name] for name in native}


def assert_equal_within(ulps, native, reference):
    """Checks that metrics are equal, or differ by units in the last place; NaN equals NaN."""
    for name, expected in reference.items():
        seen = native[name]
        distance = np.abs(seen - expected) / np.spacing(np.abs(expected))
        equal = (seen == expected) | (np.isnan(seen) & np.isnan(expected)) | (distance <= ulps)
        assert equal.all(), (name, seen[~equal][:3], expected[~equal][:3])


def matrices_of_each_kind(dtype, number, generator):
    """Returns random matrices (n, 2, 2) by kind, rounded to `dtype`."""
    normal = generator.standard_normal((number, 2, 2))
    rank_1 = generator.standard_normal((number, 2, 1)) * generator.standard_normal((number, 1, 2))
    matrices = {
        "normal": normal,
        "rank 1": rank_1,
        "nearly rank 1": rank_1 + 1e-8 * normal,
        "scaled": normal * 10.0 ** generator.uniform(-30, 30, (number, 1, 1)),
        "of any magnitudes": normal * 10.0 ** generator.uniform(-30, 30, (number, 2, 2)),
        "not finite": generator.choice([0, -0.0, 1, -1, 3, 0.1, np.nan, np.inf, -np.inf], (number, 2, 2)),
        "multiples of rotations": normal[:, :1, :1] * np.array([[0.6, -0.8], [0.8, 0.6]]),
        "zero": np.zeros((number, 2, 2)),
    }
    return {kind: values.astype(dtype) for kind, values in matrices.items()}


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_metrics_match_reference(dtype):
    generator = np.random.default_rng(0)
    losses = np.append(generator.random(4_998), [np.nan, np.inf]).astype(dtype)
    for matrices in matrices_of_each_kind(dtype, 5_000, generator).values():
        assert_equal_within(5, *both(losses, matrices))


def test_known_values():
    matrices, losses = np.array([[[3.0, 0], [0, 0]], [[2, 0], [0, -2]]]), np.array([0.5, 2.0])
    target, others = np.array([[3.0, 0.0], [4.0, 0.0]]), ["e2e_1_1_value", *OTHERS[1:]]
    expected = {
        "mse": [0.25, 1],
        "loss": [0.5, 2],
        "Frobenius norm": [3, 8**0.5],
        "nuclear norm": [3, 4],
        "effective rank": [1, 2],
        "distance from rank 1": [0, 2],
        "rank": [1, 2],
        "e2e_1_1_value": [0, -2],
        "singular_value_0": [3, 2],
        "reconstruction_error": [4 / 5, 21**0.5 / 5],
        "schatten_half_quasi_norm": [3, 8],
        "singular_value_1": [0, 2],
    }
    assert list(expected)[7:] == others
    seen = in_c(losses, matrices, target, others, num_samples=4)
    np.testing.assert_allclose(seen, list(expected.values()), rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_batch_or_alignment(dtype):
    generator = np.random.default_rng(1)
    matrices = matrices_of_each_kind(dtype, 60, generator)["of any magnitudes"]
    matrices[::7, 0, 1] = np.nan
    losses = generator.random(60).astype(dtype)
    whole = in_c(losses, matrices)
    for begin in range(0, 60, 5):
        for end in range(begin + 1, 61, 2):
            part = in_c(losses[begin:end], matrices[begin:end])
            assert part.tobytes() == np.ascontiguousarray(whole[:, begin:end]).tobytes()
    strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(matrices, 0, -1)), -1, 0)  # entries first
    assert in_c(np.repeat(losses, 2)[::2], strided).tobytes() == whole.tobytes()
