"""Thinning of long lines to their visible points."""

import numpy as np


def visible_points(x: np.ndarray, y: np.ndarray, columns: int = 1000) -> np.ndarray:
    """Returns ascending indices of points (n,) that suffice to draw the same line, `columns` pixels wide: the first,
    last, lowest and highest of each run of points in one pixel column.
    """
    if len(x) <= 4 * columns:
        return np.arange(len(x))
    span = np.ptp(x) or 1.0
    column = np.floor((x - x.min()) / span * columns).astype(np.int64)
    begins = np.flatnonzero(np.r_[True, column[1:] != column[:-1]])
    ends = np.r_[begins[1:], len(x)] - 1
    run = np.repeat(np.arange(len(begins)), ends - begins + 1)
    by_height = np.lexsort((y, run))
    return np.unique(np.concatenate([begins, ends, by_height[begins], by_height[ends]]))
