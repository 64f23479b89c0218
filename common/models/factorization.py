"""Batches of factorizations: the parameters of all experiments of a batch in one flat buffer.

An experiment's bits do not depend on the rest of the batch. On the CPU this needs care: the order in which BLAS sums
may depend on the batch size, and on the byte offset at which a matrix starts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

# With fewer multiplications, torch.bmm on the CPU uses its own triple loop, which is the same for every matrix
# (aten/src/ATen/native/LinearAlgebra.cpp, `contraction_size * res_rows * res_cols < 400`).
_OWN_LOOP_BELOW = 400
_ALIGNMENT = 64


def batched_matmul(m: int, k: int, n: int, like: Tensor) -> Callable[..., Tensor]:
    """Returns a function f(left, right, out=out) that multiplies (B, m, k) by (B, k, n) into (B, m, n) on the device of
    `like`. Choosing it takes as long as a small product, so it is chosen once.
    """
    return torch.bmm if like.is_cuda or m * k * n < _OWN_LOOP_BELOW else _matmul_one_by_one


def _matmul_one_by_one(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    for one_left, one_right, one_out in zip(left.unbind(), right.unbind(), out.unbind(), strict=True):
        torch.mm(one_left, one_right, out=one_out)
    return out


@torch.inference_mode(False)  # a buffer made in inference mode is also used outside it
def batch_of_zeros(batch_size: int, shapes: Sequence[Sequence[int]], like: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns a flat buffer of zeros, with the dtype and device of `like`, and its `batch_views`."""
    buffer = like.new_zeros(batch_size * sum(_strides(shapes, like)))
    return buffer, batch_views(buffer, batch_size, shapes)


def batch_views(buffer: Tensor, batch_size: int, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Returns views (batch_size, *shape) of a buffer made by `batch_of_zeros`, one for each of `shapes`."""
    strides = _strides(shapes, buffer)
    blocks = buffer.split([batch_size * stride for stride in strides])
    return [
        block.view(batch_size, stride)[:, : prod(shape)].unflatten(1, tuple(shape))
        for block, stride, shape in zip(blocks, strides, shapes, strict=True)
    ]


def _strides(shapes: Sequence[Sequence[int]], like: Tensor) -> list[int]:
    """Returns the distances between items. On the CPU every item starts at a multiple of 64 bytes (see above)."""
    unit = 1 if like.is_cuda else _ALIGNMENT // like.element_size()
    return [-(-prod(shape) // unit) * unit for shape in shapes]


@dataclass(frozen=True)
class NativeStep:
    """A gradient step in C on one experiment: the engine's name in run_params.json, the files in
    common/training/kernels/ and the macros with which it is compiled, and about how many multiplications it takes.
    """

    name: str
    sources: Sequence[str]
    macros: Mapping[str, int | str]
    multiplications: int


class BatchedFactorization:
    """A batch of factorizations, one for each experiment, from one tensor (B, *shape) for each factor.

    `views` are the factors (B, *shape), views of the flat buffer `values`, and `factor_gradients` their gradients,
    views of `gradients`. `output_shape` are the rows and columns of the end-to-end matrix, or of the end-to-end tensor
    as a matrix. A subclass adds `matrix_shape` and `native_step`; `forward()`, which returns end-to-end matrices
    (B, *output_shape) in a buffer that the next call overwrites; and `backpropagate(output_gradient)`, which computes
    `gradients` from the gradient of the loss with respect to the last output.
    """

    factors_name: str  # in checkpoints
    native_up_to: int  # the multiplications per step of an experiment up to which the native engine is faster

    def __init__(self, factors: Sequence[Tensor]):
        self.shapes = [factor.shape[1:] for factor in factors]
        self.batch_size = factors[0].shape[0]
        self.output_shape = self.matrix_shape(self.shapes)
        self.values, self.views = batch_of_zeros(self.batch_size, self.shapes, like=factors[0])
        self.gradients, self.factor_gradients = batch_of_zeros(self.batch_size, self.shapes, like=factors[0])
        for view, factor in zip(self.views, factors, strict=True):
            view.copy_(factor)

    def select(self, kept: Tensor) -> "BatchedFactorization":
        """Returns a new batch of the experiments at the indices `kept`."""
        return type(self)([view[kept] for view in self.views])

    def experiment_state(self, index: int) -> dict[str, Tensor]:
        """Returns the factors of one experiment by their names in checkpoints, on the CPU."""
        return {f"{self.factors_name}.{k}": view[index].cpu().clone() for k, view in enumerate(self.views)}
