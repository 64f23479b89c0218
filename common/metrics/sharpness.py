"""Sharpness: the largest eigenvalue of the Hessian of a loss (Cohen et al. 2021, Gradient descent on neural networks
typically occurs at the edge of stability).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The search ends when the error bound is at most this times the largest |Ritz value|.
TOLERANCE = 1e-8
# The most Hessian-vector products: after these, the search ends with a lower bound of the eigenvalue.
MOST_PRODUCTS = 500
_SEED = 0


@torch.enable_grad()
def sharpness(loss: Callable[[Sequence[Tensor]], Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Returns the largest eigenvalue of the Hessian of `loss` at `parameters`, a float64 number (); NaN if the
    Hessian is not finite.

    The Hessian is not formed: automatic differentiation computes its products with vectors.
    """
    leaves = [parameter.detach().to(torch.float64, copy=True).requires_grad_() for parameter in parameters]
    gradients = torch.autograd.grad(loss(leaves), leaves, create_graph=True)
    gradient = torch.cat([each.flatten() for each in gradients])

    def multiply(vector: Tensor) -> Tensor:
        products = torch.autograd.grad(gradient, leaves, vector, retain_graph=True)
        return torch.cat([each.flatten() for each in products])

    return largest_eigenvalue(multiply, len(gradient))


@torch.no_grad()
def largest_eigenvalue(multiply: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Returns the largest eigenvalue, a float64 number (), of the symmetric matrix (size, size) that `multiply`
    multiplies by a float64 vector (size,); NaN if a product is not finite.

    The Lanczos method with reorthogonalization (Golub & Van Loan, Matrix Computations), from a random vector that is
    always the same. It ends when the residual of the largest Ritz pair, which bounds the distance to an eigenvalue, is
    at most `TOLERANCE` times the largest |Ritz value|. This eigenvalue is the largest unless the vector is
    nearly orthogonal to the eigenvectors of larger ones.
    """
    generator = torch.Generator().manual_seed(_SEED)
    vector = torch.randn(size, generator=generator, dtype=torch.float64)
    vector /= vector.norm()
    basis = vector.new_empty(min(size, MOST_PRODUCTS), size)
    tridiagonal = vector.new_zeros(len(basis), len(basis))
    for step in range(len(basis)):
        basis[step], known = vector, basis[: step + 1]
        image = multiply(vector)
        tridiagonal[step, step] = vector @ image
        # Once is not enough to be orthogonal within round-off.
        for _ in range(2):
            image = image - (known @ image) @ known
        length = image.norm().item()
        if not math.isfinite(length):
            return image.new_tensor(math.nan)
        values, vectors = torch.linalg.eigh(tridiagonal[: step + 1, : step + 1])
        residual = length * abs(vectors[-1, -1].item())
        if residual <= TOLERANCE * values.abs().max().item():
            break
        if step + 1 < len(basis):
            tridiagonal[step, step + 1] = tridiagonal[step + 1, step] = length
        vector = image / length
    return values[-1]
