"""Deep matrix factorization W = W_1 W_2 ⋯ W_L, and its initializations."""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from common.models.factorization import BatchedFactorization, NativeStep, batch_of_zeros, batched_matmul


class DeepMatrixFactorization(BatchedFactorization):
    """A batch of deep matrix factorizations; factor l has shape (B, d_l, d_{l+1})."""

    factors_name = "layers"
    native_up_to = 80_000

    @staticmethod
    def matrix_shape(shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Returns (rows, cols) of the product of factors of these shapes (d_l, d_{l+1})."""
        return shapes[0][0], shapes[-1][1]

    @staticmethod
    def native_step(shapes: Sequence[Sequence[int]], num_observed: int) -> NativeStep:
        """Returns the native step for factors of these shapes (d_l, d_{l+1})."""
        (rows, cols), depth = DeepMatrixFactorization.matrix_shape(shapes), len(shapes)
        macros = {"ROWS": rows, "COLS": cols, "HIDDEN": _hidden_width(shapes), "DEPTH": depth}
        return NativeStep("native", ["deep_matrix_factorization.c"], macros, step_multiplications(shapes))

    @cached_property
    def _products(self) -> tuple[Tensor, list[tuple], list[tuple]]:
        """The output buffer, and the arguments of the matrix products of the forward and backward pass."""
        like, rows = self.values, self.shapes[0][0]
        shapes = [(rows, cols) for _, cols in self.shapes]
        # W_1 ⋯ W_l for l = 1 … L. The first is W_1 itself; at depth 1, the output is a copy.
        _, products = batch_of_zeros(self.batch_size, shapes, like)
        output, products[0] = products[-1], self.views[0]
        # G (W_{l+1} ⋯ W_L)ᵀ for l = 1 … L-1. The first is the gradient of W_1.
        _, back = batch_of_zeros(self.batch_size, shapes, like)
        back[0] = self.factor_gradients[0]
        forward, backward = [], []
        for layer, factor in enumerate(self.views[1:], start=1):
            (width, cols), left = self.shapes[layer], products[layer - 1]
            forward.append((batched_matmul(rows, width, cols, like), left, factor, products[layer]))
            gradient = batched_matmul(width, rows, cols, like), left.mT, self.factor_gradients[layer]
            backward.insert(0, (*gradient, batched_matmul(rows, cols, width, like), factor.mT, back[layer - 1]))
        return output, forward, backward

    def forward(self) -> Tensor:
        output, products, _ = self._products
        for matmul, left, factor, out in products:
            matmul(left, factor, out=out)
        if not products:
            output.copy_(self.views[0])
        return output

    def backpropagate(self, output_gradient: Tensor) -> None:
        """Computes ∂ℓ/∂W_l = (W_1 ⋯ W_{l-1})ᵀ G (W_{l+1} ⋯ W_L)ᵀ, where G = ∂ℓ/∂W."""
        back = output_gradient
        _, _, products = self._products
        for matmul, left_t, gradient, matmul_back, factor_t, out in products:
            matmul(left_t, back, out=gradient)
            back = matmul_back(back, factor_t, out=out)
        if not products:
            self.factor_gradients[0].copy_(output_gradient)


def factor_shapes(rows: int, cols: int, depth: int, hidden_dim: int = 0) -> list[tuple[int, int]]:
    """Returns the shapes of the factors of a rows × cols product; a `hidden_dim` of 0 stands for min(rows, cols)."""
    widths = [rows] + [hidden_dim or min(rows, cols)] * (depth - 1) + [cols]
    return list(pairwise(widths))


def _hidden_width(shapes: Sequence[Sequence[int]]) -> int:
    return min(shapes[0]) if len(shapes) == 1 else shapes[0][1]


def step_multiplications(shapes: Sequence[Sequence[int]]) -> int:
    """Returns about how many multiplications a step takes with factors of these shapes."""
    (rows, cols), width = DeepMatrixFactorization.matrix_shape(shapes), _hidden_width(shapes)
    return 3 * len(shapes) * max(rows, width) * max(cols, width) * min(rows, cols, width)


def balanced_factors(product: Tensor, depth: int, width: int) -> list[Tensor]:
    """Returns balanced factors of a float64 matrix U S Vᵀ with inner dimension `width`: W_1 = U S^{1/L}, S^{1/L}, …,
    W_L = S^{1/L} Vᵀ, so that W_lᵀ W_l = W_{l+1} W_{l+1}ᵀ (Arora et al. 2019).

    With a `width` above min(rows, cols), the factors are padded with zeros, which gradient descent never changes. With
    a smaller one, they are those of the best approximation of that rank: the largest singular values are kept.
    """
    if depth == 1:
        return [product]
    left, singular_values, right = torch.linalg.svd(product, full_matrices=False)
    root = singular_values[:width] ** (1 / depth)
    padding = width - len(root)
    inner = torch.diag(pad(root, (0, padding)))
    first, last = left[:, :width] * root, root[:, None] * right[:width]
    return [pad(first, (0, padding)), *[inner] * (depth - 2), pad(last, (0, 0, 0, padding))]


def determinant_sign(factors: Sequence[Tensor]) -> int:
    """Returns the sign (-1, 0 or 1) of the determinant of a square product of matrices, computed in float64. The
    determinant itself may underflow.

    The factors are multiplied from the right, and after each the product is replaced by its orthogonal factor (QR
    decomposition): the sign is that of the triangular factors' diagonals times that of the last orthogonal one.
    """
    sign, orthogonal = 1.0, torch.eye(factors[-1].shape[1], dtype=torch.float64)
    for factor in reversed(factors):
        orthogonal, triangular = torch.linalg.qr(factor.double() @ orthogonal)
        sign *= triangular.diagonal().sign().prod().item()
    return int(sign * torch.linalg.slogdet(orthogonal).sign.item())


def initial_factors(
    shapes: Sequence[tuple[int, int]],
    init_type: str,
    alpha: float,
    balanced: bool,
    generator: torch.Generator,
    dtype: torch.dtype,
    det_sign: int = 0,
) -> list[Tensor]:
    """Returns the initial factors of one experiment, of these `shapes` (see `factor_shapes`).

    Each factor, or with `balanced` the product, which `balanced_factors` then splits, has Gaussian entries of standard
    deviation `alpha` ("normal"), or is `alpha` times the identity ("identity"). Numbers are drawn in float64 and
    rounded, so that runs of different `dtype` start from the same point. With a `det_sign` of 1 or -1, they are redrawn
    until the determinant of the product, which must be square, has this sign. Raises ValueError if no draw has it.
    """

    def draw(shape: tuple[int, int]) -> Tensor:
        if init_type == "identity":
            return alpha * torch.eye(*shape, dtype=torch.float64)
        return alpha * torch.randn(*shape, generator=generator, dtype=torch.float64)

    product_shape = DeepMatrixFactorization.matrix_shape(shapes)
    # A Gaussian draw has either sign with probability ½.
    for _ in range(1 if init_type == "identity" else 1000):
        if balanced:
            factors = balanced_factors(draw(product_shape), len(shapes), _hidden_width(shapes))
        else:
            factors = [draw(shape) for shape in shapes]
        factors = [factor.to(dtype) for factor in factors]
        if not det_sign or determinant_sign(factors) == det_sign:
            return factors
    raise ValueError("no draw has a determinant of this sign")
