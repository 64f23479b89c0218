"""Engines advance a batch of experiments from one observation to the next.

The torch engine goes anywhere; the native engine takes small problems on the CPU many times faster. Both take the same
steps on the same model, objective and optimizer, and agree within round-off.
"""

import ctypes
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.models.factorization import BatchedFactorization, batch_views
from common.training.compilation import compiled_kernel
from common.training.objectives import EntryObjective, Objective
from common.training.optimizers import GradientDescent, GroupRMSprop, Optimizer
from common.training.threads import NUM_THREADS

# Seconds that one call of the torch engine may take: so much may pass before a signal is heeded.
_HEEDED_AFTER = 0.3
# The same in multiplications of the native engine: half a second, about.
_LONGEST_CALL = 10**10
# The same where a call passes several validations: some ten milliseconds' worth of steps are taken in vain when an
# experiment ends in between.
_SEVERAL_VALIDATIONS = 5 * 10**8


class Observed(NamedTuple):
    """What is seen after each of K stretches of steps.

    Attributes
    ----------
    losses : (B, K), of the prediction made in the last step, before it moved.
    outputs : (B, K, rows, cols), end-to-end matrices or tensors, after the step.
    moved : (B, K), whether a parameter changed in the stretch: from its beginning to its end, or in its last step.
    """

    losses: np.ndarray
    outputs: np.ndarray
    moved: np.ndarray


@dataclass
class TorchEngine:
    """Closed-form gradients in eager PyTorch, on the device of the model."""

    model: BatchedFactorization
    objective: Objective
    optimizer: Optimizer
    # Seconds that a step took in the last call.
    pace: float | None = None

    name = "torch"
    # Steps in one call that passes several validations: there are none.
    several_validations = 0

    @property
    def longest_call(self) -> int:
        return 10 if self.pace is None else max(1, min(1000, int(_HEEDED_AFTER / self.pace)))

    @torch.inference_mode()
    def advance(self, stretches: Sequence[int]) -> Observed:
        """Takes stretches of so many steps each, all at least 1."""
        begin = time.monotonic()
        seen = [self._observe(num_steps) for num_steps in stretches]
        self.pace = (time.monotonic() - begin) / sum(stretches)
        return Observed(*(np.stack(each, axis=1) for each in zip(*seen, strict=True)))

    def _observe(self, num_steps: int) -> tuple[np.ndarray, ...]:
        model, objective, optimizer = self.model, self.objective, self.optimizer
        begin = model.values.clone()
        for left in range(num_steps, 0, -1):
            if left == 1:
                before = model.values.clone()
            outputs = model.forward()
            model.backpropagate(objective.gradient(outputs))
            optimizer.step(model)
        losses = on_host(objective.loss(outputs))
        moved = np.ones(len(losses), dtype=bool)
        if optimizer.stops_where_nothing_moves:
            moved = _differ(model, begin) | _differ(model, before)
        return losses, on_host(model.forward()).copy(), moved

    def select(self, kept: Tensor) -> "TorchEngine":
        """An engine that goes on with the experiments at the positions `kept` (on the model's device) only."""
        model = self.model.select(kept)
        return TorchEngine(model, self.objective.select(kept), self.optimizer.select(kept, model), self.pace)


class Kernel:
    """The C code of a gradient step, compiled for one shape and precision.

    Parameters
    ----------
    source : a file in kernels/.
    constants : the macros that it needs.
    multiplications : how many a step of one experiment takes, about.

    Raises NativeUnavailable.
    """

    def __init__(
        self, source: str, constants: Mapping[str, int | float | str], dtype: torch.dtype, multiplications: int
    ):
        real, integer = {torch.float32: ("float", "int32_t"), torch.float64: ("double", "int64_t")}[dtype]
        library = compiled_kernel(source, {"REAL": real, "INTEGER": integer, **constants})
        library.advance.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
        library.experiments_at_once.restype = ctypes.c_int64
        self.advance, self.experiments_at_once = library.advance, library.experiments_at_once()
        self.multiplications = multiplications


class NotNative(Exception):
    """The native engine has no kernel for a kind of problem; the message says why."""


@dataclass
class NativeEngine:
    """Gradients in C, compiled for the shape of the model, on as many threads as pay (common/training/kernels/)."""

    model: BatchedFactorization
    objective: EntryObjective
    optimizer: Optimizer
    kernel: Kernel

    name = "native"

    @property
    def longest_call(self) -> int:
        return max(1, _LONGEST_CALL // self._multiplications)

    @property
    def several_validations(self) -> int:
        return _SEVERAL_VALIDATIONS // self._multiplications

    @property
    def _multiplications(self) -> int:
        at_once = self.kernel.experiments_at_once
        return self.kernel.multiplications * at_once * -(-self.model.batch_size // at_once)

    def advance(self, stretches: Sequence[int]) -> Observed:
        """Takes stretches of so many steps each, all at least 1. Raises MemoryError."""
        model, objective, optimizer = self.model, self.objective, self.optimizer
        dtype, size = model.values.numpy().dtype, (model.batch_size, len(stretches))
        outputs = np.empty((*size, *objective.targets.shape[1:]), dtype)
        observed = Observed(np.empty(size, dtype), outputs, np.empty(size, bool))
        # Everything that a pointer is taken of has a name here, so that it lives until the kernel is done.
        values, targets, weights = model.values.numpy(), objective.targets.contiguous(), objective.weights.contiguous()
        offsets = np.array([view.data_ptr() - values.ctypes.data for view in model.views]) // dtype.itemsize
        strides = np.array([view.stride(0) for view in model.views])
        lrs, lengths = np.array(optimizer.lrs, dtype), np.array(stretches)
        square_avgs, adjusted_lrs, num_steps = np.empty_like(lrs), np.empty_like(lrs), 0
        if isinstance(optimizer, GroupRMSprop):
            square_avgs, adjusted_lrs = optimizer.square_avg.numpy(), optimizer.adjusted_lr.numpy()
            num_steps, optimizer.num_steps = optimizer.num_steps, optimizer.num_steps + int(lengths.sum())
        batch = _Batch(
            model.batch_size,
            *(array.ctypes.data for array in (values, offsets, strides)),
            targets.data_ptr(),
            weights.data_ptr(),
            targets[0].numel(),
            *(array.ctypes.data for array in (lrs, square_avgs, adjusted_lrs)),
            num_steps,
        )
        observations = _Observations(len(lengths), *(array.ctypes.data for array in (lengths, *observed)))

        def take(part: range) -> int:
            return self.kernel.advance(part.start, part.stop, ctypes.byref(batch), ctypes.byref(observations))

        parts = _parts(model.batch_size, self.kernel.experiments_at_once)
        if any(map(take, parts) if len(parts) == 1 else _threads().map(take, parts)):
            raise MemoryError("no memory for a step of the native engine")
        return observed

    def select(self, kept: Tensor) -> "NativeEngine":
        """An engine that goes on with the experiments at the positions `kept` only."""
        model = self.model.select(kept)
        objective, optimizer = self.objective.select(kept), self.optimizer.select(kept, model)
        return NativeEngine(model, objective, optimizer, self.kernel)


Engine = TorchEngine | NativeEngine


def engine_of(model: BatchedFactorization, objective: Objective, optimizer: Optimizer, kernel: Kernel | None) -> Engine:
    """The native engine where there is a `kernel` for it, which knows two optimizers, else the torch engine."""
    if kernel is None or type(optimizer) not in (GradientDescent, GroupRMSprop):
        return TorchEngine(model, objective, optimizer)
    return NativeEngine(model, objective, optimizer, kernel)


class _Batch(ctypes.Structure):
    """`Batch` of kernels/simd.h."""

    _fields_ = [
        ("batch_size", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("values", "offsets", "strides", "targets", "weights")),
        ("entry_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("lrs", "square_avgs", "adjusted_lrs")),
        ("num_steps", ctypes.c_int64),
    ]


class _Observations(ctypes.Structure):
    """`Observations` of kernels/simd.h."""

    _fields_ = [
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("stretches", "losses", "outputs", "moved")),
    ]


def _parts(batch_size: int, at_once: int) -> list[range]:
    """A batch cut for the threads, into more parts than there are threads, so that none waits long for the others."""
    blocks = -(-batch_size // at_once)
    num_parts = 1 if NUM_THREADS == 1 else min(blocks, 4 * NUM_THREADS)
    cuts = [min(part * blocks // num_parts * at_once, batch_size) for part in range(num_parts + 1)]
    return [range(*cut) for cut in pairwise(cuts)]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(NUM_THREADS)


def _differ(model: BatchedFactorization, values: Tensor) -> np.ndarray:
    """Whether any parameter of each experiment differs from that in `values`, a buffer like the model's (B,)."""
    then = batch_views(values, model.batch_size, model.shapes)
    changed = [(now != before).flatten(1).any(1) for now, before in zip(model.views, then, strict=True)]
    return on_host(torch.stack(changed).any(0))


def on_host(values: Tensor) -> np.ndarray:
    """An array of the values; a view of them where they are on the CPU."""
    return values.cpu().numpy()
