import numpy as np
import pytest

from common.plotting.statistics import cells, over_seeds, student_t, summary


@pytest.mark.parametrize(
    "degrees, t",
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980), (10**5, 1.960)],
)
def test_quantiles_of_students_distribution_match_tables(degrees, t):
    assert student_t(degrees) == pytest.approx(t, abs=6e-4)


def test_median_has_quartiles():
    values = np.array([[1.0, 5.0], [2.0, np.nan], [4.0, 7.0]])
    assert summary(values, "median").T.tolist() == [[1.5, 2, 3], [5.5, 6, 6.5]]


def test_mean_has_confidence_interval():
    values = np.array([[1.0, 3.0, np.nan], [2.0, np.nan, 1.0], [6.0, np.nan, 5.0]])
    low, mean, high = summary(values, "mean")
    assert mean.tolist() == [3, 3, 3]
    # s = √7 of three values, √8 of two.
    np.testing.assert_allclose(high - mean, [4.3027 * np.sqrt(7 / 3), np.nan, 12.706 * np.sqrt(8 / 2)], rtol=1e-4)
    np.testing.assert_allclose(mean - low, high - mean)
    assert cells(low, mean, high)[1] == [None, 3, None]


def test_interval_contains_the_expectation_as_often_as_it_says():
    values = np.random.default_rng(0).normal(2.0, 3.0, (5, 20_000))
    low, _, high = summary(values, "mean")
    assert np.mean((low < 2) & (high > 2)) == pytest.approx(0.95, abs=0.006)


def test_no_values():
    assert summary(np.empty((3, 0)), "median").shape == (3, 0)
    assert summary(np.empty((3, 0)), "mean").shape == (3, 0)


def test_captions():
    assert over_seeds("median", [4, 4]) == "median, quartiles over 4 seeds"
    assert over_seeds("mean", [3, 5]) == "mean, 95% confidence interval over 3 to 5 seeds"
