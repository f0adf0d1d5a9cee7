"""The work between matrix products: on a GPU each function here is compiled into one kernel or two.

All compute in float32 at least and give the type they were given. T is the number of tokens of a pack; it is
compiled as a symbol, so packs of any length use the same kernels. Results go into `out` where a caller has room for
them beside other columns.
"""

from collections.abc import Callable
from functools import wraps
from operator import index
from typing import ParamSpec, TypeVar

import torch
from torch.nn import functional

P = ParamSpec("P")
R = TypeVar("R")

COMPILED_ON = {"cuda"}
"""Device types; compiling pays on a GPU, where it makes one kernel out of many."""
SHAPES_PER_FUNCTION = 64
"""Widths and layouts that one function may be compiled for; PyTorch's own limit is 8."""


def fused(*, tokens_first: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile the decorated function for tensors on a GPU; on a CPU it runs as it is written.

    With `tokens_first` the first dimension of the tensors is a symbol in the compiled code; without, all sizes are
    constants in it.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        compiled = torch.compile(function, fullgraph=True, dynamic=None if tokens_first else False)

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            tensors = [value for value in args if isinstance(value, torch.Tensor)]
            if tensors[0].device.type not in COMPILED_ON:
                return function(*args, **kwargs)
            torch._dynamo.config.recompile_limit = SHAPES_PER_FUNCTION
            # Otherwise widths and strides become symbols when they change, and loads of one number at a time.
            torch._dynamo.config.automatic_dynamic_shapes = False
            if tokens_first:
                for tensor in tensors:
                    if tensor.dim() > 1:
                        torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return compiled(*args, **kwargs)

        return run

    return decorate


def _fix_strides(*tensors: torch.Tensor) -> None:
    """Make distances of rows constants in the compiled code, which then knows that rows are aligned; for use in it."""
    for tensor in tensors:
        index(tensor.stride(0))


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _normalise(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    wide = _wide(x)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide * scale, scale


@fused()
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """RMSNorm (arXiv 1910.07467) of x (T, width) into `out`."""
    _fix_strides(x, out)
    normal, _ = _normalise(x, eps)
    out.copy_(normal * _wide(weight))


@fused()
def rms_norm_backward(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    gradient: torch.Tensor,
    residual: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """`residual` plus the gradient of rms_norm's input into `out`, from its output's `gradient`; returns the output."""
    _fix_strides(x, gradient, residual, out)
    normal, scale = _normalise(x, eps)
    weighted = _wide(gradient) * _wide(weight)
    mean = (weighted * normal).mean(-1, keepdim=True)
    out.copy_(_wide(residual) + scale * (weighted - normal * mean))
    return (normal * _wide(weight)).to(x.dtype)


@fused()
def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    """Rotary positions (arXiv 2104.09864) on x (T, heads, d) into `out`; the inverse, its gradient, with -`sin`.

    `cos` and `sin` are (T, d), the second half of each row equal to the first.
    """
    _fix_strides(x, out)
    halves = _wide(x).view(*x.shape[:-1], 2, -1)
    sign = 2 * torch.arange(2, device=x.device)[:, None] - 1
    turned = sign * halves.flip(-2)
    cos, sin = (_wide(angle).view(len(x), 1, 2, -1) for angle in (cos, sin))
    out.copy_((halves * cos + turned * sin).flatten(-2))


@fused()
def swiglu(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """silu(gate) × up (arXiv 2002.05202) of gate and up side by side, (T, 2 width), into `out`."""
    _fix_strides(gate_up, out)
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    out.copy_(functional.silu(gate) * up)


@fused()
def swiglu_backward(gate: torch.Tensor, up: torch.Tensor, gradient: torch.Tensor) -> None:
    """Replace gate and up by their gradients and swiglu's output's `gradient` by that output.

    In place, which saves the memory of three of a layer's largest tensors.
    """
    _fix_strides(gate, up, gradient)
    wide_gate, wide_up, wide = _wide(gate), _wide(up), _wide(gradient)
    sigmoid = torch.sigmoid(wide_gate)
    silu = wide_gate * sigmoid
    results = wide * wide_up * (sigmoid + silu * (1 - sigmoid)), wide * silu, silu * wide_up
    for tensor, result in zip((gate, up, gradient), results, strict=True):
        tensor.copy_(result)


@fused()
def copy(x: torch.Tensor, out: torch.Tensor) -> None:
    """x into `out`; PyTorch's own copy reads one number at a time where rows do not follow each other."""
    _fix_strides(x, out)
    out.copy_(x)


@fused()
def dropout(x: torch.Tensor, key: torch.Tensor, probability: float) -> torch.Tensor:
    """x with each element zeroed with `probability`, the others scaled up to keep the mean.

    Which ones depends on `key` (an int32 scalar) and the element's place alone, so the backward pass makes the
    same mask again instead of keeping it. Hash: Ellis' lowbias32.
    """
    _fix_strides(x)
    rows = torch.arange(x.shape[0], device=x.device, dtype=torch.int32)[:, None]
    columns = torch.arange(x.shape[1], device=x.device, dtype=torch.int32)[None]
    keep = _hash(columns ^ _hash(rows ^ key)) & 0x7FFFFFFF
    scaled = _wide(x) * (1 / (1 - probability))
    return torch.where(keep >= int(probability * 2**31), scaled, 0.0).to(x.dtype)


def _hash(value: torch.Tensor) -> torch.Tensor:
    value = (value ^ ((value >> 16) & 0xFFFF)) * 0x7FEB352D
    value = (value ^ ((value >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return value ^ ((value >> 16) & 0xFFFF)


@fused()
def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of the cross-entropy over rows, its gradient), for logits (n, vocabulary) and targets (n, 1)."""
    wide = _wide(logits)
    normaliser = torch.logsumexp(wide, dim=-1, keepdim=True)
    loss = (normaliser - wide.gather(1, targets)).sum()
    chosen = torch.arange(logits.shape[1], device=logits.device)[None] == targets
    return loss, (torch.exp(wide - normaliser) - chosen.to(wide.dtype)).to(logits.dtype)


@fused(tokens_first=False)
def scales(numbers: torch.Tensor, code: torch.Tensor, scale: torch.Tensor, block: int) -> torch.Tensor:
    """Scales that were quantised themselves: `code` (256 values) at `numbers`, times one `scale` for each `block`.

    A kernel of its own: fused with the sum in `dequantise` the GPU would round once where bitsandbytes rounds twice.
    """
    return code[numbers.int()] * scale[torch.arange(numbers.numel(), device=numbers.device) // block]


@fused(tokens_first=False)
def dequantise(
    packed: torch.Tensor, code: torch.Tensor, scales: torch.Tensor, offset: torch.Tensor, out: torch.Tensor
) -> None:
    """Write the weights of bitsandbytes' 4-bit format (arXiv 2305.14314) into `out` (rows, columns).

    `packed` holds two weights a byte, the first in the upper half; a weight is `code` (16 values) at its number
    times its block's scale, which is one of `scales` plus `offset`.
    """
    rows, columns = out.shape
    scale = (scales + offset).view(rows, -1)
    blocks = scale.shape[1]
    halves = torch.arange(2, device=packed.device, dtype=torch.int32)
    number = (packed.view(rows, blocks, columns // blocks // 2, 1).int() >> (4 - 4 * halves)) & 15
    out.copy_((code[number] * scale[:, :, None, None]).view(rows, columns))
