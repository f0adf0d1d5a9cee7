"""A weight through 4 bits and back, as bitsandbytes does it, a few rows at a time.

bitsandbytes takes a whole matrix, and looks up one weight after the other. Blocks of 64 consecutive weights are
divided by their largest magnitude and replaced by the nearest of 16 values (QLoRA, arXiv 2305.14314, section 3).
"""

from functools import cache
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import torch
from numpy.typing import NDArray

from corax.compiled import compiled
from corax.merge.sums import nearest_bfloat16

BLOCK = 64
"""Weights that share a constant."""
NESTED_BLOCK = 256
"""Constants that share one, with double quantisation."""
SMALLEST = 1e-38
"""What bitsandbytes divides a block by whose weights are all smaller."""
ONE = 127
"""The exponent, in the bits of a bfloat16, of the numbers from 1 to 2; below it are 7 bits."""
EXPONENTS = (16, 250)
"""Exponents of a largest magnitude for which it, its inverse and all midpoints are normal numbers."""

Steps = tuple[tuple[np.float32, np.float32], ...]
"""(midpoint, the value above it), in rising order."""


class RoundTrip:
    """What becomes of the weights of a matrix, in the type of `largest`, the largest magnitudes of its blocks.

    `quant_type` is nf4 or fp4; with `double_quant` the constants of the blocks are rounded too, to 8 bits.
    """

    def __init__(self, largest: torch.Tensor, quant_type: str, double_quant: bool) -> None:
        self.largest, constants = largest, largest.float()
        if double_quant:
            # In float32, as bitsandbytes takes it, the mean depends on the processor.
            offset = constants.double().mean().float()
            packed, state = bnb.quantize_blockwise(constants - offset, blocksize=NESTED_BLOCK)
            constants = bnb.dequantize_blockwise(packed, state) + offset
        self.constants = constants.numpy()
        self.values = _values(quant_type)
        self.steps: Steps = tuple(zip(_midpoints(self.values), self.values[1:], strict=True))
        self.bits = None
        if largest.dtype == torch.bfloat16 and quant_type == "nf4":
            bits = largest.view(torch.int16).numpy()
            if EXPONENTS[0] <= bits.min() >> 7 and bits.max() >> 7 <= EXPONENTS[1]:
                self.bits = bits

    def apply(self, weights: torch.Tensor, first: int) -> None:
        """Replace `weights`, whole blocks from weight number `first` of the matrix on, in the type of `largest`."""
        blocks = slice(first // BLOCK, (first + weights.numel()) // BLOCK)
        constants = self.constants[blocks]
        if self.bits is not None:
            bits = weights.view(torch.int16).numpy().reshape(-1)
            _replace_bits(bits, self.bits[blocks], _thresholds(), constants, self.values)
        else:
            values = weights.float()
            inverse = (1.0 / self.largest[blocks].float().clamp(min=SMALLEST)).numpy()
            _replace(values.view(-1).numpy(), inverse, constants, self.values[0], self.steps)
            weights.copy_(values)


@compiled
def largest_magnitudes(bits: Any, found: Any) -> None:
    """Fill `found` with the largest magnitude of each block of `bits`; both are floating-point numbers, as their bits.

    Without their sign they are in the order of their bits, which integers compare fast.
    """
    integer = bits.dtype.type
    for block in range(len(bits) // BLOCK):
        largest = integer(0)
        for index in range(BLOCK):
            largest = max(largest, integer(bits[BLOCK * block + index] & integer(np.iinfo(bits.dtype).max)))
        found[block] = largest


@cache
def _values(quant_type: str) -> NDArray[np.float32]:
    """The 16 values, in rising order."""
    return np.sort(bnb.get_4bit_type(quant_type, device="cpu").numpy())


def _midpoints(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return (values[:-1] + values[1:]) * np.float32(0.5)


@compiled
def _replace(weights: Any, inverse: Any, constants: Any, lowest: np.float32, steps: Steps) -> None:
    """The nearest value for each weight, which on a midpoint is the lower one; compiled to compares without jumps."""
    for block in range(len(inverse)):
        part = weights[BLOCK * block : BLOCK * (block + 1)]
        for index in range(BLOCK):
            scaled = part[index] * inverse[block]
            value = lowest
            for midpoint, above in steps:
                value = above if scaled > midpoint else value
            part[index] = value * constants[block]


@cache
def _thresholds() -> NDArray[np.int16]:
    """For a largest magnitude, by its bits as bfloat16, the largest bfloat16 not above each midpoint of NF4: 2¹⁵ × 15.

    As integers in the order of the numbers they stand for: the bits u of a magnitude are u, or -1 - u below zero.
    Right for exponents in EXPONENTS: there a factor of 2 changes the exponents alone.
    """
    first, one, two = (exponent << 7 for exponent in (ONE - 15, ONE, ONE + 1))
    largest, weights = ((np.arange(start, two, dtype=np.uint32) << 16).view(np.float32) for start in (one, first))
    scaled = weights * (np.float32(1) / largest)[:, None]
    exponents = (np.arange(256, dtype=np.int16) - ONE)[:, None] << 7
    columns = []
    for midpoint in _midpoints(_values("nf4")):
        if midpoint > 0:
            columns.append(first - 1 + (scaled <= midpoint).sum(1) + exponents)
        else:
            columns.append(-1 - first - (scaled < -midpoint).sum(1) - exponents)
    return np.stack(columns, 2).reshape(2**15, -1).astype(np.int16)


@compiled
def _replace_bits(bits: Any, largest: Any, thresholds: Any, constants: Any, values: Any) -> None:
    """As `_replace` for weights in bfloat16 and NF4: their bits are compared, 16 at a time."""
    above = np.empty(16, np.int16)
    for block in range(len(largest)):
        row = thresholds[largest[block]]
        for k in range(16):
            above[k] = nearest_bfloat16(np.float32(values[k] * constants[block]).view(np.uint32))
        part = bits[BLOCK * block : BLOCK * (block + 1)]
        for index in range(BLOCK):
            weight = part[index]
            place = np.int16(weight ^ np.int16((weight >> np.int16(15)) & np.int16(0x7FFF)))
            value = above[0]
            for k in range(15):
                threshold, next_value = row[k], above[k + 1]
                value = next_value if place > threshold else value
            part[index] = value
