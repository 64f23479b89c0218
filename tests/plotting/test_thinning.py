import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.plotting.thinning import visible_points


def column_of(x, columns):
    return np.floor((x - x.min()) / np.ptp(x) * columns)


@given(seed=st.integers(0, 1000), length=st.integers(1, 30_000))
def test_first_last_and_extreme_points_of_columns_are_kept(seed, length):
    generator = np.random.default_rng(seed)
    x, y = np.sort(generator.random(length)), generator.standard_normal(length)
    kept = visible_points(x, y, columns=100)
    assert len(kept) <= max(400, 4 * 101)
    assert (np.diff(kept) > 0).all()
    assert {0, length - 1, int(y.argmin()), int(y.argmax())} <= set(kept.tolist())
    if length > 400:
        column = column_of(x, 100)
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
