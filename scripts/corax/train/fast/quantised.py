"""A frozen weight in bitsandbytes' 4-bit format, read without bitsandbytes' own operations."""

from typing import Any

import torch

from corax.train.fast import elementwise

BLOCK = 64
"""Weights that share a scale."""


class QuantisedWeight:
    """The 4-bit weight (rows, columns) of a linear layer; `write` gives its values.

    bitsandbytes dequantises into a matrix of its own; this writes into part of a larger one.
    """

    def __init__(self, parameter: Any) -> None:
        state = parameter.quant_state
        self.shape = torch.Size(state.shape)
        self.packed = parameter.data.as_subclass(torch.Tensor).reshape(-1)
        self.code = state.code.float().to(self.packed.device)
        self.state = state

    @torch.no_grad()
    def write(self, out: torch.Tensor) -> None:
        """Write the weight's values, exactly those that bitsandbytes gives, into `out` (rows, columns)."""
        state, second = self.state, self.state.state2
        if second is None:
            elementwise.dequantise(self.packed, self.code, state.absmax, torch.zeros_like(state.absmax[0]), out)
        else:
            scales = elementwise.scales(state.absmax, second.code, second.absmax, second.blocksize)
            elementwise.dequantise(self.packed, self.code, scales, state.offset, out)
