"""Metrics of 2×2 matrices in C (kernels/matrix_metrics_2x2.c), ten times faster than with PyTorch."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from common.training.compilation import NativeUnavailable, compiled_kernel

# The numbers of further metrics in the C code.
_NUMBERS = {f"e2e_{row}_{col}_value": 2 * row + col for row in (0, 1) for col in (0, 1)}
_NUMBERS |= {"singular_value_0": 4, "reconstruction_error": 5, "schatten_half_quasi_norm": 6}


def metrics_2x2(
    dtype: np.dtype, num_samples: int, target: np.ndarray, others: Sequence[str]
) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """Returns a function of losses (n,) and matrices (n, 2, 2) of this `dtype`, or None if there is no C compiler. The
    function returns metrics (7 + len(others), n): the mean squared error of `num_samples` observations, the loss,
    Frobenius norm, nuclear norm, effective rank, distance from rank 1, and rank; then those named in `others`: entries
    (e2e_0_0_value, …), singular_value_0, schatten_half_quasi_norm, or reconstruction_error, which is relative to the
    norm of `target` (2, 2).

    They are computed in float64 and rounded. In float32 they are equal to those of common/metrics/matrix.py or differ
    by one unit in the last place; in float64 they differ by at most 5, unless they are denormal or the nuclear norm
    overflows. The bits of a result depend on its loss and matrix alone.
    """
    library = _library(dtype.name)
    if library is None:
        return None
    # These pointers hold references to their arrays.
    selection = np.array([_NUMBERS[name] for name in others], np.int64).ctypes.data_as(ctypes.c_void_p)
    target_entries = np.array(target, np.float64).ctypes.data_as(ctypes.c_void_p)
    constants = num_samples, np.finfo(dtype).eps, len(others), selection, target_entries, np.linalg.norm(target)

    def measure(losses: np.ndarray, matrices: np.ndarray) -> np.ndarray:
        # Every array whose address is passed has a name here, so that it lives until the kernel has returned.
        losses, matrices = np.ascontiguousarray(losses, dtype), np.ascontiguousarray(matrices, dtype)
        results = np.empty((7 + len(others), len(losses)), dtype)
        inputs = losses.ctypes.data, matrices.ctypes.data
        library.metrics(len(losses), *inputs, *constants, results.ctypes.data)
        return results

    return measure


@cache
def _library(dtype: str) -> ctypes.CDLL | None:
    real, integer = {"float32": ("float", "int32_t"), "float64": ("double", "int64_t")}[dtype]
    try:
        library = compiled_kernel("matrix_metrics_2x2.c", REAL=real, INTEGER=integer)
    except NativeUnavailable:
        return None
    integer, number, address = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
    matrices, others, target = [address, address, number, number], [integer, address], [address, number]
    library.metrics.argtypes = [integer, *matrices, *others, *target, address]
    library.metrics.restype = None
    return library
