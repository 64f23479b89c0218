"""The native engine: gradient steps in C (common/training/kernels/), which the system's C compiler compiles for the
model's shape at first use. The library is stored for later runs.
"""

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from common.models.factorization import BatchedFactorization
from common.training.compilation import NativeUnavailable, compiled_kernel
from common.training.objectives import EntryObjective
from common.training.optimizers import Optimizer
from common.training.threads import NUM_THREADS
from common.training.torch_engine import Observations, TorchEngine

# The most multiplications in a call: about half a second, for which a signal waits.
_MAX_MULTIPLICATIONS_PER_CALL = 10**10
# The most multiplications in a call beyond the next validation: some ten milliseconds.
_MAX_MULTIPLICATIONS_PER_CHUNK = 5 * 10**8


class NotNative(NativeUnavailable):
    """There is no kernel for this problem, or it is not faster than PyTorch."""


@dataclass(frozen=True)
class Kernel:
    """A kernel compiled for one shape, precision and optimizer."""

    name: str  # recorded in run_params.json
    advance: Callable[..., int]  # see kernels/simd.h
    experiments_at_once: int  # how many are advanced together at the cost of one
    multiplications: int  # in a step of one experiment, approximately


def native_kernel(
    model: type[BatchedFactorization],
    shapes: Sequence[Sequence[int]],
    dtype: torch.dtype,
    optimizer: type[Optimizer],
    num_observed: int,
    decays: bool = False,
) -> Kernel:
    """Returns the kernel of a model with factors of these `shapes`, for `num_observed` observed entries;
    `decays` says whether there is weight decay. It is compiled at first use. Raises NativeUnavailable.
    """
    # `vars` excludes inherited constants: a subclass of an optimizer takes other steps.
    if "kernel_constants" not in vars(optimizer):
        raise NotNative(f"has no kernel for {optimizer.__name__}")
    step = model.native_step(shapes, num_observed)
    if step.multiplications > model.native_up_to:
        raise NotNative(f"is not faster than PyTorch for factors of shapes {', '.join(map(str, map(tuple, shapes)))}")
    real, integer = {torch.float32: ("float", "int32_t"), torch.float64: ("double", "int64_t")}[dtype]
    macros = {"REAL": real, "INTEGER": integer, **step.macros, **optimizer.kernel_constants}
    macros["WEIGHT_DECAY"] = int(decays)
    library = compiled_kernel("advance", *step.sources, **macros)
    library.advance.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    library.experiments_at_once.restype = ctypes.c_int64
    return Kernel(step.name, library.advance, library.experiments_at_once(), step.multiplications)


@dataclass
class NativeEngine:
    """A batch of experiments on the CPU; see `TorchEngine`."""

    model: BatchedFactorization
    objective: EntryObjective
    optimizer: Optimizer
    kernel: Kernel

    def __post_init__(self) -> None:
        self.name = self.kernel.name
        at_once = self.kernel.experiments_at_once
        multiplications = self.kernel.multiplications * at_once * -(-self.model.batch_size // at_once)
        self.max_steps_per_call = max(1, _MAX_MULTIPLICATIONS_PER_CALL // multiplications)
        self.max_steps_per_chunk = _MAX_MULTIPLICATIONS_PER_CHUNK // multiplications

    def advance(self, intervals: Sequence[int]) -> Observations:
        """See `TorchEngine.advance`. Raises MemoryError."""
        model, optimizer = self.model, self.optimizer
        # Every array whose address is passed has a name here, so that it lives until the kernel has returned.
        values, objective = model.values.numpy(), self.objective
        targets, weights = objective.targets.contiguous().numpy(), objective.weights.contiguous().numpy()
        dtype, size = values.dtype, (model.batch_size, len(intervals))
        outputs = np.empty((*size, *model.output_shape), dtype)
        observed = Observations(np.empty(size, dtype), outputs, np.empty(size, bool))
        offsets = np.array([view.data_ptr() - values.ctypes.data for view in model.views]) // dtype.itemsize
        strides = np.array([view.stride(0) for view in model.views])
        lengths, nothing = np.array(intervals), torch.empty(0)
        rates = [optimizer.rates.get(name, nothing).numpy() for name in ("lr", "weight_decay", "momentum")]
        state = [optimizer.state.get(name, nothing).numpy() for name in ("momentum_buffer", "square_avg")]
        # `Batch` and `Observations` of kernels/simd.h.
        fields = values, offsets, strides, targets, weights, targets[0].size, *rates, *state, optimizer.num_steps
        batch = _struct(model.batch_size, *fields)
        observations = _struct(len(lengths), lengths, *observed)

        def advance_part(part: tuple[int, int]) -> int:
            return self.kernel.advance(*part, batch.ctypes.data, observations.ctypes.data)

        if any(in_parallel(advance_part, model.batch_size, self.kernel.experiments_at_once)):
            raise MemoryError("no memory for a step of the native engine")
        optimizer.num_steps += sum(intervals)
        return observed

    def select(self, kept: Tensor) -> "NativeEngine":
        """Returns an engine for the experiments at the indices `kept`."""
        model = self.model.select(kept)
        return NativeEngine(model, self.objective.select(kept), self.optimizer.select(kept, model), self.kernel)


Engine = TorchEngine | NativeEngine


def _struct(*fields: int | np.ndarray) -> np.ndarray:
    """Returns a C struct of integers and pointers, all of 64 bits, as an array."""
    return np.array([field.ctypes.data if isinstance(field, np.ndarray) else field for field in fields])


def in_parallel(function: Callable[[tuple[int, int]], object], batch_size: int, at_once: int = 1) -> list:
    """Calls `function((begin, end))` on all threads, for parts of a batch. Returns the results."""
    blocks = -(-batch_size // at_once)
    # Many parts, because some experiments take longer.
    num_parts = 1 if NUM_THREADS == 1 else min(blocks, 16 * NUM_THREADS)
    ends = [min(part * blocks // num_parts * at_once, batch_size) for part in range(num_parts + 1)]
    return list(map(function, pairwise(ends)) if num_parts == 1 else _threads().map(function, pairwise(ends)))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(NUM_THREADS)
