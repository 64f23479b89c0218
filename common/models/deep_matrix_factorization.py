"""Deep matrix factorization W = W_1 W_2 ⋯ W_L, and its initializations."""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from common.models.factorization import BatchedFactorization, batch_of_zeros, batched_matmul


class DeepMatrixFactorization(BatchedFactorization):
    """A batch of deep matrix factorizations; factor l has shape (B, d_l, d_{l+1})."""

    factors_name = "layers"

    def __init__(self, factors: Sequence[Tensor]):
        super().__init__(factors)
        like, rows = factors[0], factors[0].shape[1]
        shapes = [(rows, factor.shape[2]) for factor in factors]
        _, products = batch_of_zeros(self.batch_size, shapes, like)
        self._output = products[-1]
        # W_1 ⋯ W_l for l = 1 … L, the first of them W_1 itself.
        products[0] = self.views[0]
        # G (W_{l+1} ⋯ W_L)ᵀ for l = 1 … L-1, the first of them the gradient of W_1 itself.
        _, back = batch_of_zeros(self.batch_size, shapes, like)
        back[0] = self.factor_gradients[0]

        self._forward_products = []
        self._backward_products = []
        for layer in range(1, len(factors)):
            width, cols = factors[layer].shape[1:]
            left, factor, gradient = products[layer - 1], self.views[layer], self.factor_gradients[layer]
            forward = (batched_matmul(rows, width, cols, like), left, factor, products[layer])
            of_factor = (batched_matmul(width, rows, cols, like), left.mT, gradient)
            further_back = (batched_matmul(rows, cols, width, like), factor.mT, back[layer - 1])
            self._forward_products.append(forward)
            self._backward_products.insert(0, (*of_factor, *further_back))

    def forward(self) -> Tensor:
        for matmul, left, factor, out in self._forward_products:
            matmul(left, factor, out=out)
        if not self._forward_products:
            self._output.copy_(self.views[0])
        return self._output

    def backpropagate(self, output_gradient: Tensor) -> None:
        """∂ℓ/∂W_l = (W_1 ⋯ W_{l-1})ᵀ G (W_{l+1} ⋯ W_L)ᵀ for G = ∂ℓ/∂W."""
        back = output_gradient
        for matmul, left_t, gradient, matmul_back, factor_t, out in self._backward_products:
            matmul(left_t, back, out=gradient)
            back = matmul_back(back, factor_t, out=out)
        if not self._backward_products:
            self.factor_gradients[0].copy_(output_gradient)


def factor_shapes(rows: int, cols: int, depth: int) -> list[tuple[int, int]]:
    """Shapes of the factors of a rows × cols product, with hidden width min(rows, cols)."""
    widths = [rows] + [min(rows, cols)] * (depth - 1) + [cols]
    return list(pairwise(widths))


def balanced_factors(product: Tensor, depth: int) -> list[Tensor]:
    """Balanced factors of a float64 matrix U S Vᵀ: W_1 = U S^{1/L}, middle ones S^{1/L}, W_L = S^{1/L} Vᵀ, so that
    W_lᵀ W_l = W_{l+1} W_{l+1}ᵀ (Arora et al. 2019).
    """
    if depth == 1:
        return [product]
    left, singular_values, right = torch.linalg.svd(product, full_matrices=False)
    root = singular_values ** (1 / depth)
    return [left * root, *[torch.diag(root)] * (depth - 2), root[:, None] * right]


def determinant_sign(factors: Sequence[Tensor]) -> int:
    """Sign (-1, 0 or 1) of the determinant of a product of square matrices: the product of the factors' signs, each
    from its LU decomposition in float64, for the determinant itself may be too small to be represented.
    """
    return int(reduce(lambda sign, factor: sign * torch.linalg.slogdet(factor.double()).sign.item(), factors, 1.0))


def initial_factors(
    shape: tuple[int, int],
    depth: int,
    init_type: str,
    alpha: float,
    balanced: bool,
    generator: torch.Generator,
    dtype: torch.dtype,
    det_sign: int = 0,
) -> list[Tensor]:
    """Initial factors of one experiment, a list of (d_l, d_{l+1}).

    Parameters
    ----------
    shape : rows and columns of the product.
    init_type : "normal", Gaussian entries of standard deviation `alpha`, or "identity", `alpha` times the identity;
        of each factor, or with `balanced` of the product, which is then split by `balanced_factors`.
    generator : on the CPU. Numbers are drawn in float64 and rounded, so that runs of different `dtype` with the same
        seed start from the same point.
    det_sign : 1 or -1 redraws until the product's determinant has this sign; the product must be square.

    Raises ValueError where no draw has the wanted sign.
    """

    def draw(shape: tuple[int, int]) -> Tensor:
        if init_type == "identity":
            return alpha * torch.eye(*shape, dtype=torch.float64)
        return alpha * torch.randn(*shape, generator=generator, dtype=torch.float64)

    # Each draw of a Gaussian has either sign with probability ½.
    for _ in range(1 if init_type == "identity" else 1000):
        if balanced:
            factors = balanced_factors(draw(shape), depth)
        else:
            factors = [draw(each) for each in factor_shapes(*shape, depth)]
        factors = [factor.to(dtype) for factor in factors]
        if det_sign in (0, determinant_sign(factors) if det_sign else 0):
            return factors
    raise ValueError("no draw has the wanted sign of the determinant")
