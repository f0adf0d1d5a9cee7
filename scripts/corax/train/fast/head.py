"""Final norm, output head and cross-entropy in one go, in chunks of rows: no more logits exist than a chunk's."""

from typing import Any

import torch

from corax.train.fast.elementwise import cross_entropy, rms_norm, rms_norm_backward
from corax.train.fast.limits import LOSS_ROWS


class HeadLoss(torch.autograd.Function):
    """Sum of the cross-entropy, in nats; the gradient is made in the forward pass.

    `hidden` (n, width) is the last layer's output at the labelled positions, `norm` and `eps` the final RMSNorm's,
    `head` (vocabulary, width), `targets` (n,) the tokens that should follow. Norm and head are frozen.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        head: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        gradient = torch.empty_like(hidden)
        chunks = (torch.split(tensor, LOSS_ROWS) for tensor in (hidden, gradient, targets))
        for x, dx, wanted in zip(*chunks, strict=True):
            rms_norm(x, norm, eps, dx)
            loss, dlogits = cross_entropy(dx @ head.t(), wanted[:, None])
            total += loss
            if ctx.needs_input_grad[0]:
                rms_norm_backward(x, norm, eps, dlogits @ head, torch.zeros_like(x), dx)
            del dlogits
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        gradient, ctx.gradient = ctx.gradient, None
        # The scale, one over the number of targets, is not rounded to the gradient's type.
        return (gradient.to(scale.dtype) * scale).to(gradient.dtype), None, None, None, None
