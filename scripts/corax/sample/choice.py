"""The choice of one token: temperature, nucleus, and a number of the sample's own random stream.

Every sample has a stream of uniform numbers, one for each token, from the counter-based generator Philox keyed by
(seed, number of the sample). A token is chosen by inverting the cumulative distribution in the order of token ids, so
nothing but its own logits and its own stream decides it.
"""

from typing import Any

import numpy as np
import torch

CANDIDATES = 64
"""Tokens among which the edge of the nucleus is looked for first on a CPU: nearly always enough, and much faster."""


def uniforms(seed: int, sample: int, steps: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The stream of one sample: `steps` numbers in [0, 1), the first ones whatever `steps` is."""
    philox = np.random.Philox(key=np.array([seed, sample], dtype=np.uint64))
    return np.random.Generator(philox).random(steps)


def choose(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: torch.Tensor | float, top_p: torch.Tensor | float
) -> torch.Tensor:
    """One token a row from softmax(logits / temperature), cut to its nucleus (arXiv 1904.09751).

    `logits` is rows × vocabulary, `uniform` has one number in [0, 1) a row; `temperature` and `top_p` are one number,
    or one a row. Tokens as probable as the least probable one of the nucleus belong to it. Temperature 0 gives the most
    probable token. On a CPU the sums are float64; on a GPU they are float32, about 1e-6 off, and nothing waits for it.
    """
    precision = torch.float32 if logits.is_cuda else torch.float64
    heat, share = (
        torch.as_tensor(value, dtype=torch.float64, device=logits.device).to(precision).expand(len(logits))[:, None]
        for value in (temperature, top_p)
    )
    behind = logits.to(precision) - logits.amax(-1, keepdim=True).to(precision)
    weight = (behind / heat.masked_fill(heat <= 0, 1.0)).exp()  # 0 behind stays 0 at the smallest temperature
    cumulative = weight.masked_fill(~_nucleus(logits, weight, share), 0.0).cumsum(-1)
    total = cumulative[:, -1:]
    # The product may round up to the total, which is past the last token.
    place = (uniform[:, None] * total).to(precision).minimum(total.nextafter(torch.zeros_like(total)))
    # Logits that are not numbers (the caller's business) must not lead outside the vocabulary.
    drawn = torch.searchsorted(cumulative, place, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return drawn.where(heat[:, 0] > 0, logits.argmax(-1))


def _nucleus(logits: torch.Tensor, weight: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Whether each token is in the smallest set that has at least `share` (rows × 1) of its row's weight."""
    size = logits.shape[-1]
    whole = share >= 1
    need = share * weight.sum(-1, keepdim=True)
    if not logits.is_cuda:  # a branch on the data is free on a CPU; on a GPU it would wait for the device
        highest = weight.topk(min(CANDIDATES, size)).values
        inside = highest.cumsum(-1) - highest < need
        if size <= CANDIDATES or (whole[:, 0] | ~inside[:, -1]).all():
            return whole.logical_or(weight >= highest.where(inside, torch.inf).amin(-1, keepdim=True))
    keys = ordered_bits(logits)
    return whole.logical_or(keys >= edge(keys, weight, need))


def ordered_bits(values: torch.Tensor) -> torch.Tensor:
    """Floats as integers of the same size and order."""
    width = torch.finfo(values.dtype).bits
    bits: torch.Tensor = values.view(torch.int16 if width == 16 else torch.int32)
    ordered: torch.Tensor = bits ^ ((bits >> (width - 1)) & (2 ** (width - 1) - 1))
    return ordered


def edge(keys: torch.Tensor, weight: torch.Tensor, need: torch.Tensor) -> torch.Tensor:
    """The highest key (rows × 1) such that the tokens from it on weigh at least `need`: found by halving.

    As many rounds as a key has bits, 16 for 16-bit logits, however the weights lie: no sorting of the vocabulary.
    """
    low = keys.amin(-1, keepdim=True).long()
    high = keys.amax(-1, keepdim=True).long() + 1
    for _ in range(torch.iinfo(keys.dtype).bits):
        middle = low + (high - low) // 2
        enough = weight.masked_fill(keys < middle.to(keys.dtype), 0.0).sum(-1, keepdim=True) >= need
        low, high = middle.where(enough, low), high.where(enough, middle)
    return low.to(keys.dtype)
