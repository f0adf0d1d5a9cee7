"""Linear layers with LoRA adapters (arXiv 2106.09685) as one matrix product, forward and backward.

The plain formula, for input x (T, K), frozen weight W (N, K), adapter A (r, K), B (N, r) and scale s:

    y = x Wᵀ + s · dropout(x) Aᵀ Bᵀ

With low = s · dropout(x) Aᵀ this is one product, y = [x | low] [W | B]ᵀ, instead of a second pass over y. Layers
that read the same input (query, key and value; gate and up) are stacked: one A of all their rows, and a B that is
block-diagonal. They share one dropout mask, where peft draws one for each layer.

The backward pass is built the same way, with d(low) = s · dy B. Only A and B have gradients:

    dx = dy W + dropout(d(low) A) = [dy | d(low)] [W ; A] without dropout,  dA = d(low)ᵀ dropout(x),  dB = dyᵀ low

All these are parts of one matrix, [W B ; A ·]. Inputs and gradients of outputs are `wide`: they have columns for low
or d(low) beside their own, so that nothing is put together by copying.
"""

from dataclasses import dataclass
from typing import Any

import torch

from corax.train.fast.elementwise import dropout
from corax.train.fast.quantised import QuantisedWeight


@dataclass(frozen=True)
class Dropout:
    """Dropout with `probability` and the mask that belongs to `key`, an int32 scalar on the device."""

    probability: float
    key: torch.Tensor


class Projection:
    """Linear layers on the same input, each with an adapter; `modules` are peft's layers around bitsandbytes' own.

    With `resident` the dequantised matrix stays in memory: 2 bytes a weight more, no dequantisation.
    """

    def __init__(self, modules: list[Any], dtype: torch.dtype, resident: bool) -> None:
        self.weights = [QuantisedWeight(module.base_layer.weight) for module in modules]
        self.a = [module.lora_A["default"].weight for module in modules]
        self.b = [module.lora_B["default"].weight for module in modules]
        self.scale = float(modules[0].scaling["default"])
        self.dtype = dtype
        biases = [module.base_layer.bias for module in modules]
        self.bias = None if biases[0] is None else torch.cat([bias.detach().to(dtype) for bias in biases])
        self.columns = self.weights[0].shape[1]
        self.rows = [weight.shape[0] for weight in self.weights]
        self.outputs = sum(self.rows)
        self.ranks = [a.shape[0] for a in self.a]
        self.resident: torch.Tensor | None = None
        if resident:
            self.resident = self._weights()

    @property
    def rank(self) -> int:
        """The columns of low: all adapters' ranks together."""
        return sum(self.ranks)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All A, then all B: the order of `parameter_gradients`."""
        return [*self.a, *self.b]

    def wide_input(self, tokens: int) -> torch.Tensor:
        """Room for x and low, (T, K + rank)."""
        return self._empty(tokens, self.columns + self.rank)

    def wide_output(self, tokens: int) -> torch.Tensor:
        """Room for the gradient of y and d(low), (T, N + rank)."""
        return self._empty(tokens, self.outputs + self.rank)

    def lower(self, wide: torch.Tensor, drop: Dropout | None) -> torch.Tensor:
        """Fill the last columns of `wide` (T, K + rank) with low; returns a copy of them."""
        x, low = wide[:, : self.columns], wide[:, self.columns :]
        a = self._empty(self.rank, self.columns) if self.resident is None else self._part_of_a(self.resident)
        self._write_a(a)
        low.addmm_(_dropped(x, drop), a.t(), beta=0, alpha=self.scale)
        return low.contiguous()

    def product(
        self, wide: torch.Tensor, residual: torch.Tensor | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """y (T, N), in `out` if given, for `wide` (T, K + rank) that `lower` has filled, plus `residual`."""
        matrix = self._weights() if self.resident is None else self.resident
        self._write_b(matrix)
        weight = matrix[: self.outputs].t()
        summand = self.bias if residual is None else residual
        return torch.mm(wide, weight, out=out) if summand is None else torch.addmm(summand, wide, weight, out=out)

    def input_gradient(self, wide: torch.Tensor, drop: Dropout | None) -> torch.Tensor:
        """Gradient of x (T, K) from that of y in `wide` (T, N + rank); fills the last columns of `wide` with d(low)."""
        matrix = self.resident  # `lower` and `product` have written A and B into it
        if matrix is None:
            matrix = self._weights()
            self._write_b(matrix)
            self._write_a(self._part_of_a(matrix))
        dy, dlow = wide[:, : self.outputs], wide[:, self.outputs :]
        dlow.addmm_(dy, matrix[: self.outputs, self.columns :], beta=0, alpha=self.scale)
        both = matrix[:, : self.columns]
        if drop is None:
            return wide @ both
        return (dy @ both[: self.outputs]).add_(_dropped(dlow @ both[self.outputs :], drop))

    def parameter_gradients(
        self, wide: torch.Tensor, x: torch.Tensor, low: torch.Tensor, drop: Dropout | None
    ) -> list[torch.Tensor]:
        """Gradients of `parameters`, in their type; `wide` as `input_gradient` left it, x (T, K), `low` (T, rank)."""
        dtype = self.a[0].dtype
        dy, dlow = wide[:, : self.outputs], wide[:, self.outputs :]
        of_a = torch.split(_product(dlow.t(), _dropped(x, drop), dtype), self.ranks)
        parts = zip(torch.split(dy, self.rows, dim=1), torch.split(low, self.ranks, dim=1), strict=True)
        return [*of_a, *(_product(dy_part.t(), low_part, dtype) for dy_part, low_part in parts)]

    def _weights(self) -> torch.Tensor:
        """[W 0 ; · ·], (N + rank, K + rank)."""
        result = self._empty(self.outputs + self.rank, self.columns + self.rank)
        result[: self.outputs, self.columns :] = 0
        for weight, part in zip(self.weights, torch.split(result[: self.outputs], self.rows), strict=True):
            weight.write(part[:, : self.columns])
        return result

    def _write_b(self, matrix: torch.Tensor) -> None:
        """B as it is now, block-diagonal, beside W."""
        row, column = 0, self.columns
        for rows, rank, b in zip(self.rows, self.ranks, self.b, strict=True):
            matrix[row : row + rows, column : column + rank] = b.detach()
            row, column = row + rows, column + rank

    def _part_of_a(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix[self.outputs :, : self.columns]

    def _write_a(self, out: torch.Tensor) -> None:
        """All A as they are now, one below the other, into `out` (rank, K)."""
        for part, a in zip(torch.split(out, self.ranks), self.a, strict=True):
            part.copy_(a.detach())

    def _empty(self, rows: int, columns: int) -> torch.Tensor:
        return torch.empty((rows, columns), dtype=self.dtype, device=self.b[0].device)


def _product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """left @ right in `dtype`; a GPU gives float32 from 16 bits without rounding in between."""
    if left.is_cuda and left.dtype != dtype:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


def _dropped(x: torch.Tensor, drop: Dropout | None) -> torch.Tensor:
    return x if drop is None else dropout(x, drop.key, drop.probability)
