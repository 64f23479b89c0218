"""Metrics of 2×2 matrices in C (kernels/matrix_metrics_2x2.c), ten times faster than with PyTorch."""

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from common.training.compilation import NativeUnavailable, compiled_kernel

# The numbers of further metrics in the C code.
_NUMBERS = {f"e2e_{row}_{col}_value": 2 * row + col for row in (0, 1) for col in (0, 1)}
_NUMBERS |= {"singular_value_0": 4, "singular_value_1": 5, "reconstruction_error": 6, "schatten_half_quasi_norm": 7}


@cache
def metrics_2x2(dtype: np.dtype, others: tuple[str, ...]) -> Callable[..., np.ndarray] | None:
    """Returns a function of losses (B, K), matrices (B, K, 2, 2), the number of observations, and targets (B, 2, 2); or
    None if there is no C compiler. Losses and matrices have this `dtype`, targets float64. The function returns metrics
    (7 + len(others), B, K) in float64: the mean squared error of the observations, rounded to `dtype`; the loss,
    Frobenius norm, nuclear norm, effective rank, distance from rank 1, and rank; then those named in `others`: entries
    (e2e_0_0_value, …), singular_value_0 and 1, schatten_half_quasi_norm, or reconstruction_error, which is relative to
    the target's norm.

    They differ from those of common/metrics/matrix.py by at most 5 units in the last place, unless they are denormal or
    the nuclear norm overflows. The bits of a result depend on its loss, matrix and target alone.
    """
    real, integer = {"float32": ("float", "int32_t"), "float64": ("double", "int64_t")}[dtype.name]
    try:
        kernel = compiled_kernel("metrics", "matrix_metrics_2x2.c", REAL=real, INTEGER=integer).metrics
    except NativeUnavailable:
        return None
    size, number, address = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
    kernel.argtypes, kernel.restype = [size, size, *[address] * 4, number, number, size, address, address], None
    selection, eps = np.array([_NUMBERS[name] for name in others], np.int64), np.finfo(dtype).eps

    def measure(losses: np.ndarray, matrices: np.ndarray, num_samples: int, targets: np.ndarray) -> np.ndarray:
        norms = torch.linalg.vector_norm(torch.from_numpy(targets), dim=(1, 2)).numpy()
        # Every array whose address is passed has a name here, so that it lives until the kernel has returned.
        arrays = [np.ascontiguousarray(each) for each in (losses, matrices, targets, norms)]
        results = np.empty((7 + len(others), *losses.shape))
        addresses = [each.ctypes.data for each in arrays]
        kernel(*losses.shape, *addresses, num_samples, eps, len(others), selection.ctypes.data, results.ctypes.data)
        return results

    return measure
