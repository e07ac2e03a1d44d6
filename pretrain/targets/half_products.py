"""Products of float32 matrices on the tensor cores of a GPU, which take half precision.

A float32 number is the sum of two of bfloat16, but for 2^-17 of it: what it rounds to, and the rest
rounded. So a product is three, of which one matrix product with rows three times as long is made:

    [high, high, rest] . [high, rest, high]        left out: rest . rest, 2^-16 of it at most
"""

import torch
from torch import Tensor


class Halves:
    """A matrix in half precision, with what rounding took.

    :param matrix: (..., D), float32.
    """

    def __init__(self, matrix: Tensor, dtype: torch.dtype) -> None:
        self.rounded = matrix.to(dtype)
        """(..., D)."""
        self._rest = (matrix - self.rounded).to(dtype)

    def on_the_left(self) -> Tensor:
        """Rows of a left factor, (..., 3 D)."""
        return torch.cat([self.rounded, self.rounded, self._rest], dim=-1)

    def on_the_right(self) -> Tensor:
        """Rows of what is a right factor when transposed, (..., 3 D)."""
        return torch.cat([self.rounded, self._rest, self.rounded], dim=-1)


def wide_product(one: Tensor, other: Tensor) -> Tensor:
    """The float32 product of two matrices in half precision."""
    if one.device.type == "cuda":
        product: Tensor = torch.mm(one, other, out_dtype=torch.float32)
        return product
    return one.float() @ other.float()
