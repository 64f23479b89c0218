"""What holds of a 2×2 matrix W that fits three observations to some loss, while its determinant has the sign that no
solution has. A sharper form, for these observations, of Theorem 1 of Razin & Cohen (2020).

Let w be the unobserved entry, z the observation in the opposite corner, a and b the other two, ℓ the loss
½ Σ (residual)², and s = √(2ℓ) < min(|a|, |b|). No residual exceeds s, so the product p of the entries that fit a and b
has the sign of ab and at least the size m = (|a| − s)(|b| − s), and the entry that fits z at most the size e = |z| + s.
With a determinant of the sign that makes w times that entry outgrow p, hence

    |w| > m / e,    σ_2 = |det W| / σ_1 ≤ (|w| e − m) / |w| < e,    σ_2 / σ_1 < e² / m.

Functions of the loss (n,) and the observations, NaN where s is too large for the bound to hold.
"""

import numpy as np


def unobserved_entry(loss: np.ndarray, a: float, b: float, z: float) -> np.ndarray:
    """What |w| exceeds, and with it σ_1, the Frobenius and the nuclear norm."""
    size, excess = _size_and_excess(loss, a, b, z)
    return size / excess


def distance_from_rank_1(loss: np.ndarray, a: float, b: float, z: float) -> np.ndarray:
    """What σ_2, the distance from rank 1, stays below."""
    size, excess = _size_and_excess(loss, a, b, z)
    return excess + 0 * size


def effective_rank(loss: np.ndarray, a: float, b: float, z: float) -> np.ndarray:
    """What the effective rank stays below: exp of the entropy of shares (q, 1 − q), q = e² / (e² + m) ≤ ½, for the
    entropy grows with the smaller share.
    """
    size, excess = _size_and_excess(loss, a, b, z)
    share = excess**2 / (excess**2 + size)
    share = np.where(share <= 0.5, share, np.nan)
    return np.exp(-share * np.log(share) - (1 - share) * np.log1p(-share))


def _size_and_excess(loss: np.ndarray, a: float, b: float, z: float) -> tuple[np.ndarray, np.ndarray]:
    """m and e."""
    residual = np.sqrt(2 * np.asarray(loss, dtype=np.float64))
    residual = np.where(residual < min(abs(a), abs(b)), residual, np.nan)
    return (abs(a) - residual) * (abs(b) - residual), abs(z) + residual
