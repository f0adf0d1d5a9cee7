"""How near merged models come to what was trained: the adapter on its 4-bit base.

The divergence of a merged model is KL(trained ‖ merged) of the next-token distributions, in nats, the mean over the
target positions of held-out samples: 0 where both give every token the same probability.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from corax.evaluation import Score, release, sample_tensors, score_logits, target_logits
from corax.merge.memory import ROOM, fits, weight_sizes
from corax.model import load_plain, load_trained
from corax.progress import Progress
from corax.tokens import TokenShards

DIGITS = 6
"""Significant digits of a reported figure."""
POSITIONS = 64
"""Positions whose logits are compared at a time, in float64."""

log = logging.getLogger("corax")


def scoring_device(model: Path, device: torch.device) -> torch.device:
    """`device`, or the CPU where it is a GPU without the memory to compare models such as the one in `model`."""
    if device.type == "cpu":
        return device
    files = weight_sizes(model)
    free = torch.cuda.mem_get_info(device)[0]
    if fits(files, free):
        return device
    needed = ROOM * sum(files)
    log.info("the comparison needs %.1f GB, the GPU has %.1f GB: it is made on the CPU", needed / 1e9, free / 1e9)
    return torch.device("cpu")


def compare(
    model: Path,
    adapter: Path,
    candidates: Mapping[str, Path],
    shards: TokenShards,
    rows: Sequence[tuple[int, int]],
    method: str,
    train: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    """The loss of the adapter on its 4-bit base, and loss and divergence of each of `candidates` (merged folders).

    `method` and `train` are those of the adapter's settings. The trained model and one candidate are in memory at a
    time. Returns `samples`, `target_tokens`, `trained` {"loss"} and for each candidate {"loss", "kl"}, in nats per
    target token.
    """
    trained = load_trained(model, adapter, method, train, dtype, device)
    result: dict[str, Any] = {}
    for name, folder in candidates.items():
        merged = load_plain(folder, dtype, device)
        scores: list[tuple[Score, Score]] = []
        divergences: list[float] = []
        with Progress(f"score {name}", total=len(rows), unit="sample") as progress:
            for shard, row in rows:
                ids, places = sample_tensors(shards, shard, row, device)
                expected, found = (target_logits(each, ids, places) for each in (trained, merged))
                scores.append((score_logits(expected, ids[places]), score_logits(found, ids[places])))
                divergences.append(divergence(expected, found))
                progress.advance()
        del merged
        release(device)
        before, after = (Score.total(column) for column in zip(*scores, strict=True))
        result |= {"samples": len(rows), "target_tokens": after.tokens}
        result["trained"] = {"loss": _rounded(before.loss / before.tokens)}
        result[name] = {
            "loss": _rounded(after.loss / after.tokens),
            "kl": _rounded(math.fsum(divergences) / after.tokens),
        }
    del trained
    release(device)
    return result


def divergence(expected: torch.Tensor, found: torch.Tensor) -> float:
    """KL(expected ‖ found) of two sets of logits (positions × vocabulary), summed over the positions, in nats."""
    total = 0.0
    for part, other in zip(torch.split(expected, POSITIONS), torch.split(found, POSITIONS), strict=True):
        log_expected, log_found = (torch.log_softmax(logits.double(), -1) for logits in (part, other))
        total += float((log_expected.exp() * (log_expected - log_found)).sum())
    return total


def nearest(scores: Mapping[str, Any], candidates: Sequence[str]) -> str:
    """The candidate with the smallest divergence; the first of several."""
    return min(candidates, key=lambda name: scores[name]["kl"])


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
