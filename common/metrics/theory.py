"""Bounds on a 2×2 matrix W with a given loss on three observations, while det W has the sign of ab, or of −ab if w is
off the diagonal. They are sharper than Theorem 1 of Razin & Cohen (2020).

Let w be the unobserved entry, z the observation in the opposite corner, a and b the other two, ℓ the loss
½ Σ (residual)², and s = √(2ℓ) < min(|a|, |b|). No |residual| exceeds s, so the product p of the entries that fit a and
b has the sign of ab and |p| ≥ m = (|a| − s)(|b| − s), and the entry x that fits z has |x| ≤ e = |z| + s. The sign of
det W requires |w x| > |p|, so

    |w| > m / e,    σ_2 = |det W| / σ_1 ≤ (|w| e − m) / |w| < e,    σ_2 / σ_1 < e² / m.

The functions take losses (n,) and the observations, and return bounds (n,), NaN if s is too large.
"""

import numpy as np


def unobserved_entry(loss: np.ndarray, a: float, b: float, z: float) -> np.ndarray:
    """Returns the lower bound m / e on |w|, σ_1, the Frobenius norm and the nuclear norm."""
    size, excess = _size_and_excess(loss, a, b, z)
    return size / excess


def distance_from_rank_1(loss: np.ndarray, a: float, b: float, z: float) -> np.ndarray:
    """Returns the upper bound e on σ_2, the distance from rank 1."""
    size, excess = _size_and_excess(loss, a, b, z)
    return excess + 0 * size


def effective_rank(loss: np.ndarray, a: float, b: float, z: float) -> np.ndarray:
    """Returns the upper bound on the effective rank: the exponential of the entropy of (q, 1 − q), which increases with
    q = e² / (e² + m) ≤ ½.
    """
    size, excess = _size_and_excess(loss, a, b, z)
    share = excess**2 / (excess**2 + size)
    share = np.where(share <= 0.5, share, np.nan)
    return np.exp(-share * np.log(share) - (1 - share) * np.log1p(-share))


def _size_and_excess(loss: np.ndarray, a: float, b: float, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns m and e."""
    residual = np.sqrt(2 * np.asarray(loss, dtype=np.float64))
    residual = np.where(residual < min(abs(a), abs(b)), residual, np.nan)
    return (abs(a) - residual) * (abs(b) - residual), abs(z) + residual


def oscillation_rates(depth: int) -> np.ndarray:
    """Returns the learning rates (3,) from which gradient descent on ½ (x_1 ⋯ x_L − 1)² with L = `depth` equal
    numbers that start at ½ oscillates, has a period of 4 steps, and diverges, within 0.2%; NaN if there is none up to
    7 / L. For a target σ, divide by |σ|^(2 − 2/L).

    The numbers stay equal: each is x ← x − lr x^(L − 1) (x^L − 1), a map of one number, whose cycles are found by
    iteration for many learning rates at once. The first rate is 2 / L, where 2 / lr is the sharpness at the minimum
    (Ghosh et al. 2025, arXiv:2502.20531).
    """
    if depth == 1:
        return np.array([2.0, np.nan, 2.0])
    rates = np.linspace(2 / depth, 7 / depth, 2001)
    x, before = np.full_like(rates, 0.5), np.array([])
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(5002):
            before = x if step == 5000 else before
            power = np.prod([x] * (depth - 1), axis=0)
            x = x - rates * power * (power * x - 1)
    is_two_cycle = np.abs(x - before) < 1e-3
    first = [np.append(rates[mask], np.nan)[0] for mask in (~is_two_cycle, ~np.isfinite(x))]
    return np.array([2 / depth, *first])
