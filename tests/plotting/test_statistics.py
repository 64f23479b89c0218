import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.plotting.figures import line_rows, student_t, summary
from common.plotting.metrics import visible_points


@pytest.mark.parametrize("degrees, t", [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (120, 1.980), (10**5, 1.960)])
def test_quantiles_of_students_distribution_match_tables(degrees, t):
    assert student_t(degrees) == pytest.approx(t, abs=6e-4)


def test_median_has_quartiles_and_mean_a_confidence_interval():
    values = np.array([[1.0, 5.0], [2.0, np.nan], [4.0, 7.0]])
    assert summary(values, "median") == [[1.5, 2, 3], [5.5, 6, 6.5]]
    values = np.array([[1.0, 3.0, np.nan], [2.0, np.nan, 1.0], [6.0, np.nan, 5.0]])
    assert summary(values, "mean")[1] == [None, 3, None]
    low, mean, high = np.array(summary(values, "mean"), dtype=np.float64).T
    assert mean.tolist() == [3, 3, 3]
    # s = √7 of three values, √8 of two.
    np.testing.assert_allclose(high - mean, [4.3027 * np.sqrt(7 / 3), np.nan, 12.706 * np.sqrt(8 / 2)], rtol=1e-4)
    np.testing.assert_allclose(mean - low, high - mean)


def test_rows_of_a_line():
    """Where no run has a value, there is no row."""
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    rows = line_rows("loss", np.array([1.0, 0.1, 0.01]), values, "median")
    found = [(row["loss"], row["median"], row["runs"], row["runs_in_all"]) for row in rows]
    assert found == [(1, 2, 2, 2), (0.1, 5, 1, 2)]
    assert line_rows("loss", np.array([1.0]), np.full((2, 1), np.nan), "mean") == []


@given(seed=st.integers(0, 1000), length=st.integers(1, 30_000))
def test_first_last_and_extreme_points_of_columns_are_kept(seed, length):
    generator = np.random.default_rng(seed)
    x, y = np.sort(generator.random(length)), generator.standard_normal(length)
    kept = visible_points(x, y, columns=100)
    assert len(kept) <= max(400, 4 * 101)
    assert (np.diff(kept) > 0).all()
    assert {0, length - 1, int(y.argmin()), int(y.argmax())} <= set(kept.tolist())
    if length > 400:
        column = np.floor((x - x.min()) / np.ptp(x) * 100)
        for number in np.unique(column):
            inside = np.flatnonzero(column == number)
            extremes = {inside[0], inside[-1], inside[y[inside].argmin()], inside[y[inside].argmax()]}
            assert extremes <= set(kept.tolist())


def test_line_that_reverses_direction():
    x = np.concatenate([np.linspace(0, 1, 5000), np.linspace(1, 0, 5000)])
    y = np.linspace(0, 1, 10_000)
    kept = visible_points(x, y, columns=100)
    assert np.isclose(np.interp(y, y[kept], x[kept]), x, atol=0.02).all()
    assert len(kept) < 1000
