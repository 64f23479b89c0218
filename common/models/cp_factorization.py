"""CP factorization T[a, b, c, …] = Σ_r F_1[a, r] F_2[b, r] F_3[c, r] … (Kolda & Bader 2009)."""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from math import prod
from operator import mul

import torch
from torch import Tensor

from common.models.factorization import BatchedFactorization, NativeStep, batch_of_zeros, batched_matmul


class CPFactorization(BatchedFactorization):
    """A batch of CP factorizations of order N ≥ 2; factor k has shape (B, d_k, R).

    The modes are split into two groups, whose Khatri–Rao products K_1 (B, rows, R) and K_2 (B, cols, R) are multiplied:
    K_1 K_2ᵀ (B, rows, cols) has the entries of the tensor in row-major order.
    """

    factors_name = "factors"
    native_up_to = 10**8

    @staticmethod
    def matrix_shape(shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Returns (rows, cols) of the tensor as a matrix, from the factors' shapes (d_k, R)."""
        dims = [dim for dim, _ in shapes]
        split = first_group_size(dims)
        return prod(dims[:split]), prod(dims[split:])

    @staticmethod
    def native_step(shapes: Sequence[Sequence[int]], num_observed: int) -> NativeStep:
        """Returns the native step for factors of shapes (d_k, R) and `num_observed` observed entries."""
        (dims, (rank, *_)), (rows, cols) = zip(*shapes, strict=True), CPFactorization.matrix_shape(shapes)
        split = first_group_size(dims)
        macros = {"DIMS": ", ".join(map(str, dims)), "ORDER": len(dims), "SPLIT": split, "RANK": rank}
        macros |= {
            "ALL_DIMS": sum(dims),
            "SPLIT_DIM": dims[split - 1],
            "LAST_DIM": dims[-1],
            "ROWS": rows,
            "COLS": cols,
        }
        name, entries, count = "native", "all_entries.h", rows * cols
        if steps_on_observed_entries(dims, num_observed):
            name, entries, count = "native, observed entries", "observed_entries.h", num_observed
        # Of the entries, and of the Khatri–Rao products.
        multiplications = (3 * count + 4 * (rows + cols)) * rank
        return NativeStep(name, ["khatri_rao.h", entries, "cp_factorization.c"], macros, multiplications)

    @cached_property
    def _products(self) -> tuple:
        """The output buffer, the two groups, and the functions that multiply in the forward and backward pass."""
        like, rank, (rows, cols) = self.values, self.shapes[0][1], self.output_shape
        split = first_group_size([dim for dim, _ in self.shapes])
        groups = _KhatriRao(self, 0, split), _KhatriRao(self, split, len(self.shapes))
        _, (output,) = batch_of_zeros(self.batch_size, [(rows, cols)], like)
        sizes = (rows, rank, cols), (rows, cols, rank), (cols, rows, rank)
        return output, *groups, *(batched_matmul(*each, like) for each in sizes)

    def forward(self) -> Tensor:
        output, first, second, multiply, _, _ = self._products
        return multiply(first.product(), second.product().mT, out=output)

    def backpropagate(self, output_gradient: Tensor) -> None:
        """Computes ∂ℓ/∂K_1 = G K_2 and ∂ℓ/∂K_2 = Gᵀ K_1, where G = ∂ℓ/∂T, and from them the factors' gradients."""
        _, first, second, _, multiply_first, multiply_second = self._products
        multiply_first(output_gradient, second.last, out=first.gradient)
        multiply_second(output_gradient.mT, first.last, out=second.gradient)
        first.backpropagate()
        second.backpropagate()


class _KhatriRao:
    """The Khatri–Rao product (B, size, R) of the factors `begin` to `end` - 1 of a model, and its backpropagation."""

    def __init__(self, model: CPFactorization, begin: int, end: int):
        self._factors, self._factor_gradients = model.views[begin:end], model.factor_gradients[begin:end]
        dims, ranks = zip(*model.shapes[begin:end], strict=True)
        shapes = list(zip(accumulate(dims, mul), ranks, strict=True))
        # The products of the first 1, 2, … factors, and their gradients. The first factor is its own product.
        _, self._products = batch_of_zeros(model.batch_size, shapes, model.values)
        _, self._gradients = batch_of_zeros(model.batch_size, shapes, model.values)
        self._products[0], self._gradients[0] = self._factors[0], self._factor_gradients[0]
        self.last, self.gradient = self._products[-1], self._gradients[-1]

    def product(self) -> Tensor:
        for k in range(1, len(self._factors)):
            out = self._products[k].unflatten(1, (-1, self._factors[k].shape[1]))
            torch.mul(self._products[k - 1].unsqueeze(2), self._factors[k].unsqueeze(1), out=out)
        return self.last

    def backpropagate(self) -> None:
        """Computes the gradients with respect to the factors from `gradient`, that with respect to the product."""
        for k in range(len(self._factors) - 1, 0, -1):
            gradient = self._gradients[k].unflatten(1, (-1, self._factors[k].shape[1]))
            torch.sum(gradient * self._products[k - 1].unsqueeze(2), 1, out=self._factor_gradients[k])
            torch.sum(gradient * self._factors[k].unsqueeze(1), 2, out=self._gradients[k - 1])


def first_group_size(dims: Sequence[int]) -> int:
    """Returns how many modes the first group has: the number that makes the larger of rows and cols smallest."""
    return min(range(1, len(dims)), key=lambda split: max(prod(dims[:split]), prod(dims[split:])))


def steps_on_observed_entries(dims: Sequence[int], num_observed: int) -> bool:
    """Returns whether the native step computes only the observed entries: if at most half are observed."""
    return 2 * num_observed <= prod(dims)


def full_rank(dims: Sequence[int]) -> int:
    """Returns the product of all dimensions but the largest, which bounds the CP rank of every such tensor."""
    return prod(dims) // max(dims)


def initial_factors(
    dims: Sequence[int], rank: int, std: float, generator: torch.Generator, dtype: torch.dtype
) -> list[Tensor]:
    """Returns Gaussian factors, a list of (d_k, rank), of standard deviation `std`.

    They are drawn in float64 and rounded, so that runs of different `dtype` start from the same point.
    """
    return [(std * torch.randn(dim, rank, generator=generator, dtype=torch.float64)).to(dtype) for dim in dims]
