"""Tests of the metrics in C against those of common/metrics/matrix.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    limits = np.finfo(dtype)
    normal = generator.standard_normal((number, 2, 2))
    rank_1 = generator.standard_normal((number, 2, 1)) * generator.standard_normal((number, 1, 2))
    # Up to where the reference does not overflow, and down to normal numbers.
    exponents = np.log10(limits.tiny) + 2, np.log10(limits.max) - 2
    tiny, largest = limits.smallest_subnormal, limits.max / 8
    special = [0, -0.0, 1, -1, 3, 0.1, largest, -largest]
    if dtype == "float32":
        special += [tiny, -tiny, limits.tiny]
    matrices = {
        "normal": normal,
        "rank 1": rank_1,
        "nearly rank 1": rank_1 + 1e-8 * normal,
        "scaled": normal * 10.0 ** generator.uniform(*exponents, (number, 1, 1)),
        "of any magnitudes": normal * 10.0 ** generator.uniform(*exponents, (number, 2, 2)),
        "of special values": generator.choice(special, (number, 2, 2)),
        "not finite": generator.choice([*special, np.nan, np.inf, -np.inf], (number, 2, 2)),
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


@given(st.lists(st.lists(st.floats(width=32, allow_subnormal=True), min_size=4, max_size=4), min_size=1, max_size=20))
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_any_float32_matrices_match_reference(entries):
    matrices = np.array(entries, np.float32).reshape(-1, 2, 2)
    assert_equal_within(5, *both(matrices[:, 0, 0] ** 2, matrices))


def test_known_values():
    matrices = np.array([[[3, 0], [0, 0]], [[2, 0], [0, -2]], [[1e200, 0], [0, 1e-50]], [[5e-324, 0], [0, 0]]])
    losses = np.array([0.5, 2.0, 0.0, np.nan])
    target = np.array([[3.0, 0.0], [4.0, 0.0]])
    mse, loss, fro, nuclear, effective_rank, distance, rank, entry, first, error, schatten, second = in_c(
        losses, matrices, target, ["e2e_1_1_value", *OTHERS[1:]], num_samples=4
    )
    np.testing.assert_array_equal(mse, losses / 2)
    np.testing.assert_array_equal(loss, losses)
    np.testing.assert_allclose(fro, [3, 8**0.5, 1e200, 5e-324], rtol=1e-15)
    np.testing.assert_array_equal(nuclear, [3, 4, 1e200, 5e-324])
    np.testing.assert_array_equal(effective_rank, [1, 2, 1, 1])
    np.testing.assert_allclose(distance, [0, 2, 1e-50, 0], rtol=1e-15)
    np.testing.assert_array_equal(rank, [1, 2, 1, 1])
    np.testing.assert_array_equal(first, [3, 2, 1e200, 5e-324])
    np.testing.assert_array_equal(second, distance)
    np.testing.assert_array_equal(entry, [0, -2, 1e-50, 0])
    np.testing.assert_allclose(error[[0, 1, 3]], [4 / 5, 21**0.5 / 5, 1], rtol=1e-15)
    np.testing.assert_allclose(schatten, [3, 8, 1e200, 5e-324], rtol=1e-15)


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
    targets = generator.standard_normal((5, 2, 2))
    batch = metrics_2x2(losses.dtype, tuple(OTHERS))(losses.reshape(5, 12), matrices.reshape(5, 12, 2, 2), 3, targets)
    for index, target in enumerate(targets):
        part = slice(12 * index, 12 * index + 12)
        alone = in_c(losses[part], matrices[part], target)
        assert np.ascontiguousarray(batch[:, index]).tobytes() == alone.tobytes()
