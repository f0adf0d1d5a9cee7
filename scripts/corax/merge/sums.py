"""base + scale · B·A on a CPU, rounded once: the same bits on every machine and with any number of threads.

Each number of the product is a sum over the rank from the first to the last in float32, each step a fused multiply and
add, as is scale · (B·A) + base; a processor's own library would choose its order. Four rows of B times 512 columns of
four rows of A at a time keep the numbers in the registers and the first cache.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from corax.compiled import compiled, fused

ROWS = 4
"""Rows of B, and of A, that are multiplied together."""
COLUMNS = 512
"""Columns that are multiplied together."""
OVERFLOW = 0x7F7F8000
"""The smallest bits of a float32 without its sign that round to no finite bfloat16."""
INFINITY = 0x7F800000
"""Those of infinity; above are those that are no number."""


@dataclass(frozen=True)
class Product:
    """scale · B·A: `b` (out × r) and `a` (blocks of columns × r × COLUMNS), filled up with zeros to whole steps."""

    b: NDArray[np.float32]
    a: NDArray[np.float32]
    scale: np.float32

    @classmethod
    def of(cls, b: torch.Tensor, a: torch.Tensor, scale: float) -> Self:
        """From B (out × r) and A (r × in)."""
        rank, columns = a.shape
        b = pad(b.float(), (0, -rank % ROWS, 0, -len(b) % ROWS))
        a = pad(a.float(), (0, -columns % COLUMNS, 0, -rank % ROWS))
        blocks = a.view(len(a), -1, COLUMNS).transpose(0, 1)
        return cls(b.contiguous().numpy(), blocks.contiguous().numpy(), np.float32(scale))

    def add_to(self, bases: torch.Tensor, first: int) -> bool:
        """Add the rows from `first`, a multiple of ROWS, on to `bases`, of several bases the same rows.

        `bases` (bases × rows × columns) is bfloat16 or float32. Returns whether all sums are finite.
        """
        product = self.b[first:], self.a, self.scale
        if bases.dtype == torch.bfloat16:
            return bool(_add(bases.view(torch.int16).numpy(), *product, _add_to_bfloat16) < OVERFLOW)
        return bool(_add(bases.numpy(), *product, _add_to_float32) < INFINITY)


@fused
def _multiply(b: Any, first: int, a: Any, sums: Any) -> None:
    """ROWS rows of B from `first` on times a block of A."""
    sums[:] = 0
    for k in range(0, len(a), 4):
        b00, b01, b02, b03 = b[first, k], b[first, k + 1], b[first, k + 2], b[first, k + 3]
        b10, b11, b12, b13 = b[first + 1, k], b[first + 1, k + 1], b[first + 1, k + 2], b[first + 1, k + 3]
        b20, b21, b22, b23 = b[first + 2, k], b[first + 2, k + 1], b[first + 2, k + 2], b[first + 2, k + 3]
        b30, b31, b32, b33 = b[first + 3, k], b[first + 3, k + 1], b[first + 3, k + 2], b[first + 3, k + 3]
        for j in range(COLUMNS):
            a0, a1, a2, a3 = a[k, j], a[k + 1, j], a[k + 2, j], a[k + 3, j]
            sums[0, j] = sums[0, j] + b00 * a0 + b01 * a1 + b02 * a2 + b03 * a3
            sums[1, j] = sums[1, j] + b10 * a0 + b11 * a1 + b12 * a2 + b13 * a3
            sums[2, j] = sums[2, j] + b20 * a0 + b21 * a1 + b22 * a2 + b23 * a3
            sums[3, j] = sums[3, j] + b30 * a0 + b31 * a1 + b32 * a2 + b33 * a3


@compiled
def _add(bases: Any, b: Any, a: Any, scale: np.float32, add_row: Any) -> np.uint32:
    """Add to `bases` by `add_row`; returns the bits of the largest sum without its sign, before rounding."""
    count, rows, _ = bases.shape
    sums = np.empty((ROWS, COLUMNS), np.float32)
    largest = np.uint32(0)
    for block in range(len(a)):
        start = block * COLUMNS
        for row in range(0, rows, ROWS):
            _multiply(b, row, a[block], sums)
            for base in range(count):
                for i in range(min(ROWS, rows - row)):
                    part = bases[base, row + i, start : start + COLUMNS]
                    largest = max(largest, add_row(part, sums[i], scale))
    return largest


@compiled
def nearest_bfloat16(bits: np.uint32) -> np.int16:
    """The bfloat16 next to a finite float32, of two as near the even one; both are given as bits."""
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.int16(np.uint32(bits + np.uint32(np.uint32(0x7FFF) + odd)) >> np.uint32(16))


@fused
def _add_to_bfloat16(bits: Any, sums: Any, scale: np.float32) -> np.uint32:
    """To numbers as int16."""
    largest = np.uint32(0)
    for j in range(len(bits)):
        weight = np.uint32(np.uint32(bits[j]) << np.uint32(16)).view(np.float32)
        total = np.float32(weight + scale * sums[j]).view(np.uint32)
        largest = max(largest, np.uint32(total & np.uint32(0x7FFFFFFF)))
        bits[j] = nearest_bfloat16(total)
    return largest


@fused
def _add_to_float32(values: Any, sums: Any, scale: np.float32) -> np.uint32:
    largest = np.uint32(0)
    for j in range(len(values)):
        total = np.float32(values[j] + scale * sums[j])
        largest = max(largest, np.uint32(total.view(np.uint32) & np.uint32(0x7FFFFFFF)))
        values[j] = total
    return largest
