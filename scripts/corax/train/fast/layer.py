"""One decoder layer of the Llama family, with a backward pass written out.

Autograd keeps whatever each operation needs. This keeps only what cannot be made again by work between matrix
products: the layer's input, rotated query, key and value, attention's output, the input of the MLP, gate and up,
and the adapters' low-rank values. Or, to save more memory, the layer's input alone, and the rest is computed again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from corax.train.attention import Documents, attend
from corax.train.fast.elementwise import copy, rms_norm, rms_norm_backward, rotate, swiglu, swiglu_backward
from corax.train.fast.lora import Dropout, Projection

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Query (T, heads, d), key and value (T, groups, d), d being the head size."""


@dataclass(frozen=True)
class Pack:
    """What all layers read of a pack: rotary `cos` and `sin` (T, head size), its documents, dropout by number, and the
    positions `predicts` (n,), each once, whose outputs are wanted of the last layer."""

    cos: torch.Tensor
    sin: torch.Tensor
    documents: Documents
    dropout: Callable[[int], Dropout | None]
    predicts: torch.Tensor


@dataclass
class Activations:
    """What a layer's backward pass needs; `attended` (T, heads, d) has an autograd graph to `heads`."""

    heads: Heads
    attended: torch.Tensor
    middle: torch.Tensor
    gate_up: torch.Tensor
    low: list[torch.Tensor]


class DecoderLayer:
    """A transformers decoder layer with peft adapters on all its linear layers, computed here.

    `number` is its place in the model; `kept` says whether activations are kept for the backward pass. What the `last`
    layer does after attention is computed for the pack's `predicts` alone.
    """

    def __init__(self, layer: Any, number: int, dtype: torch.dtype, *, kept: bool, resident: bool, last: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        fused = hasattr(attention, "qkv_proj")
        qkv = ["qkv_proj"] if fused else ["q_proj", "k_proj", "v_proj"]
        gate_up = ["gate_up_proj"] if fused else ["gate_proj", "up_proj"]
        self.qkv = Projection([getattr(attention, name) for name in qkv], dtype, resident)
        self.out = Projection([attention.o_proj], dtype, resident)
        self.gate_up = Projection([getattr(mlp, name) for name in gate_up], dtype, resident)
        self.down = Projection([mlp.down_proj], dtype, resident)
        self.norm, self.middle_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.eps = float(self.norm.variance_epsilon)
        self.head_size, self.scale = int(attention.head_dim), float(attention.scaling)
        self.queries = self.out.columns // self.head_size
        self.groups = (sum(self.qkv.rows) // self.head_size - self.queries) // 2
        self.number, self.kept, self.last = number, kept, last

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The adapters, in the order of `backward`'s gradients."""
        projections = (self.qkv, self.out, self.gate_up, self.down)
        return [parameter for projection in projections for parameter in projection.parameters]

    def __call__(self, x: torch.Tensor, pack: Pack) -> torch.Tensor:
        """The layer's output (T, width), of the last (n, width), for x (T, width); differentiable in x and adapters."""
        output: torch.Tensor = _Layer.apply(x, self, pack, *self.parameters)  # type: ignore[no-untyped-call]
        return output

    def activations(self, x: torch.Tensor, pack: Pack) -> tuple[Activations, torch.Tensor]:
        """All of the forward pass but the last product, and that product's input."""
        drops = self._dropouts(pack)
        normal = self._normalised(x, self.norm, self.qkv)
        low_qkv = self.qkv.lower(normal, drops[0])
        heads = self._split(self._rotated(self.qkv.product(normal), pack))
        del normal
        with torch.enable_grad():
            query, key, value = (part.detach().requires_grad_() for part in heads)
            attended = attend(query, key, value, pack.documents, self.scale)
        summed = self._wanted(attended.detach().flatten(1), pack)
        wide = self.out.wide_input(len(summed))
        copy(summed, wide[:, : self.out.columns])
        low_out = self.out.lower(wide, drops[1])
        middle = self.out.product(wide, residual=self._wanted(x, pack))
        del summed, wide
        normal = self._normalised(middle, self.middle_norm, self.gate_up)
        low_gate_up = self.gate_up.lower(normal, drops[2])
        gate_up = self.gate_up.wide_output(len(middle))
        self.gate_up.product(normal, out=gate_up[:, : self.gate_up.outputs])
        del normal
        activated = self.down.wide_input(len(middle))
        swiglu(gate_up[:, : self.gate_up.outputs], activated[:, : self.down.columns])
        low = [low_qkv, low_out, low_gate_up, self.down.lower(activated, drops[3])]
        return Activations((query, key, value), attended, middle, gate_up, low), activated

    def backward(
        self, x: torch.Tensor, kept: Activations, pack: Pack, dy: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(gradient of x, gradients of `parameters`) from dy, the output's gradient; uses up `kept`."""
        drops = self._dropouts(pack)
        low_qkv, low_out, low_gate_up, low_down = kept.low

        wide = self.down.wide_output(len(dy))
        copy(dy, wide[:, : self.down.outputs])
        activated = self.down.input_gradient(wide, drops[3])
        gate, up = torch.split(kept.gate_up[:, : self.gate_up.outputs], self.down.columns, dim=1)
        swiglu_backward(gate, up, activated)
        of_down = self.down.parameter_gradients(wide, activated, low_down, drops[3])
        del activated, wide

        dnormal = self.gate_up.input_gradient(kept.gate_up, drops[2])
        wide = self.out.wide_output(len(dy))
        dmiddle = wide[:, : self.out.outputs]
        normal = rms_norm_backward(kept.middle, self.middle_norm.weight, self.eps, dnormal, dy, dmiddle)
        of_gate_up = self.gate_up.parameter_gradients(kept.gate_up, normal, low_gate_up, drops[2])
        del kept.gate_up, dnormal, normal, gate, up

        dattended = self.out.input_gradient(wide, drops[1])
        summed = self._wanted(kept.attended.detach().flatten(1), pack)
        of_out = self.out.parameter_gradients(wide, summed, low_out, drops[1])
        dattended, dmiddle = (self._all(gradient, pack) for gradient in (dattended, dmiddle))
        of_heads = torch.autograd.grad(kept.attended, kept.heads, dattended.view(kept.attended.shape))
        del dattended, summed, wide

        dqkv = self.qkv.wide_output(len(x))
        query, key, value = self._split(dqkv[:, : self.qkv.outputs].view(len(x), -1, self.head_size))
        rotate(of_heads[0], pack.cos, -pack.sin, query)
        rotate(of_heads[1], pack.cos, -pack.sin, key)
        copy(of_heads[2], value)
        del of_heads

        dnormal = self.qkv.input_gradient(dqkv, drops[0])
        dx = torch.empty_like(x)
        normal = rms_norm_backward(x, self.norm.weight, self.eps, dnormal, dmiddle, dx)
        of_qkv = self.qkv.parameter_gradients(dqkv, normal, low_qkv, drops[0])
        return dx, [*of_qkv, *of_out, *of_gate_up, *of_down]

    def _wanted(self, rows: torch.Tensor, pack: Pack) -> torch.Tensor:
        """Of the last layer's rows (T, ·) those whose outputs are wanted (n, ·); of another layer's all."""
        return rows[pack.predicts] if self.last else rows

    def _all(self, gradient: torch.Tensor, pack: Pack) -> torch.Tensor:
        """The gradient (T, ·) of `_wanted`'s input from that of its output."""
        if not self.last:
            return gradient
        return gradient.new_zeros((len(pack.cos), gradient.shape[1])).index_copy_(0, pack.predicts, gradient)

    def _normalised(self, x: torch.Tensor, norm: Any, projection: Projection) -> torch.Tensor:
        """RMSNorm of x, with room for low: the wide input of `projection`."""
        wide = projection.wide_input(len(x))
        rms_norm(x, norm.weight, self.eps, wide[:, : projection.columns])
        return wide

    def _rotated(self, qkv: torch.Tensor, pack: Pack) -> torch.Tensor:
        """Query and key rotated, value as it is: (T, heads + 2 groups, d)."""
        heads = qkv.view(len(qkv), -1, self.head_size)
        result = torch.empty_like(heads)
        turning = self.queries + self.groups
        rotate(heads[:, :turning], pack.cos, pack.sin, result[:, :turning])
        copy(heads[:, turning:], result[:, turning:])
        return result

    def _split(self, heads: torch.Tensor) -> Heads:
        """Query, key and value, which lie side by side in `heads` (T, heads + 2 groups, d)."""
        query, key, value = torch.split(heads, [self.queries, self.groups, self.groups], dim=1)
        return query, key, value

    def _dropouts(self, pack: Pack) -> list[Dropout | None]:
        """Dropout of the inputs of qkv, out, gate and up, down: the same each time for a pack and a layer."""
        return [pack.dropout(4 * self.number + place) for place in range(4)]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: DecoderLayer, pack: Pack, *parameters: torch.Tensor) -> torch.Tensor:
        x = x.detach()  # whether a gradient is wanted is known here, and no reason to compile anything twice
        activations, activated = layer.activations(x, pack)
        # Not through save_for_backward: attention's output has a graph of its own, which that would cut.
        ctx.layer, ctx.pack, ctx.x = layer, pack, x
        ctx.activations = activations if layer.kept else None
        return layer.down.product(activated, residual=activations.middle)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        activations = ctx.activations or ctx.layer.activations(ctx.x, ctx.pack)[0]
        ctx.activations = None
        dx, gradients = ctx.layer.backward(ctx.x, activations, ctx.pack, dy)
        ctx.x = None
        return dx, None, None, *gradients
