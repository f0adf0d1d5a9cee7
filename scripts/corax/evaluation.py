"""Loss and token accuracy of a model on tokenized samples."""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corax import seq2seq
from corax.confidence import Samples, bootstrap
from corax.errors import CoraxError
from corax.model import load_plain
from corax.progress import Progress
from corax.tokens import TokenShards

DECIMALS = 6
"""Decimals of reported figures: more would only show rounding."""
HIGHEST_LOSS = 700.0
"""Nats per token above which a loss is a mistake and its perplexity no floating-point number."""


@dataclass(frozen=True)
class Score:
    """Sums over target tokens: `loss` in nats, `correct` tokens that were the most likely one, `tokens`."""

    loss: float
    correct: int
    tokens: int

    @classmethod
    def total(cls, scores: Sequence["Score"]) -> "Score":
        """The score over all samples."""
        loss = math.fsum(score.loss for score in scores)
        return cls(loss, sum(score.correct for score in scores), sum(score.tokens for score in scores))

    def figures(self) -> dict[str, float]:
        """Means for a report: loss (nats per target token), perplexity (its exponential), token accuracy."""
        loss = self.loss / self.tokens
        return {
            "loss": round(loss, DECIMALS),
            "perplexity": round(math.exp(loss), DECIMALS),
            "token_accuracy": round(self.correct / self.tokens, DECIMALS),
        }


def first_rows(shards: TokenShards, count: int, *limits: int | None) -> list[tuple[int, int]]:
    """(shard, row) of the first `count` samples, shard by shard, or of all if there are fewer.

    Samples of more tokens than a limit are passed over: the model's context, which it cannot read beyond, or the
    longest that it was trained on, by which memory was planned.
    """
    longest = min((limit for limit in limits if limit is not None), default=math.inf)
    short = (np.flatnonzero(lengths <= longest)[:count].tolist() for lengths, _ in shards.lengths())
    rows = [(shard, row) for shard, found in enumerate(short) for row in found][:count]
    if not rows:
        most = "" if longest == math.inf else f" of at most {longest} tokens"
        raise CoraxError(f"{shards.paths[0]}: no sample in the {shards.part} part{most}, so nothing can be measured")
    return rows


def compare(base: Sequence[Score], tuned: Sequence[Score]) -> dict[str, Any]:
    """The `held_out` block of evaluation.json from the scores of both models on the same samples.

    Figures of both models, the difference tuned - base, and for each loss and token accuracy the [low, high] of a
    paired bootstrap at 95 %.
    """
    sums = np.array([(a.loss, b.loss, a.correct, b.correct, a.tokens) for a, b in zip(base, tuned, strict=True)])

    def figures(totals: Samples) -> Samples:
        means = totals[:4] / totals[4]
        return np.append(means, (means[1] - means[0], means[3] - means[2]))

    names = ("base loss", "tuned loss", "base accuracy", "tuned accuracy", "loss", "accuracy")
    bounds = [[round(bound, DECIMALS) for bound in interval] for interval in bootstrap(sums, figures)]
    interval = dict(zip(names, bounds, strict=True))
    before, after = Score.total(base).figures(), Score.total(tuned).figures()
    both = {"base": before, "tuned": after}
    return {
        "samples": len(base),
        "target_tokens": Score.total(base).tokens,
        **{
            model: {
                **found,
                "intervals": {"loss": interval[f"{model} loss"], "token_accuracy": interval[f"{model} accuracy"]},
            }
            for model, found in both.items()
        },
        "difference": {
            **{key: round(after[key] - before[key], DECIMALS) for key in ("loss", "token_accuracy")},
            "intervals": {"loss": interval["loss"], "token_accuracy": interval["accuracy"]},
        },
    }


def score_model(
    folder: Path, shards: TokenShards, rows: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device
) -> list[Score]:
    """The score of the model in `folder` on each sample; it is loaded and released again: two need not fit at once.

    Raises CoraxError if its loss is not finite.
    """
    model = load_plain(folder, dtype, device)
    scores: list[Score] = []
    with Progress(f"evaluate {folder.name}", total=len(rows), unit="sample") as progress:
        for shard, row in rows:
            scores.append(score_sample(model, *sample_tensors(shards, shard, row, device)))
            progress.advance(1, f"loss {scores[-1].loss / scores[-1].tokens:.3f}")
    del model
    release(device)
    total = Score.total(scores)
    if not total.loss / total.tokens < HIGHEST_LOSS:
        raise CoraxError(f"{folder}: the loss is {total.loss / total.tokens}, so the weights are damaged")
    return scores


def release(device: torch.device) -> None:
    """Give the memory of models that nothing refers to any more back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def sample_tensors(
    shards: TokenShards, shard: int, row: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, positions of the target tokens) of one sample, both int64, on `device`."""
    ids, places = shards.row(shard, row)
    return torch.from_numpy(ids.astype("int64")).to(device), torch.from_numpy(places).to(device)


def score_sample(model: Any, ids: torch.Tensor, places: torch.Tensor) -> Score:
    """The score on one sample; see `target_logits`."""
    return score_logits(target_logits(model, ids, places), ids[places])


def score_logits(logits: torch.Tensor, targets: torch.Tensor) -> Score:
    """The score of float32 `logits` (targets × vocabulary) on the ids `targets`."""
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    return Score(float(loss), int((logits.argmax(-1) == targets).sum()), len(targets))


@torch.inference_mode()
def target_logits(model: Any, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The float32 logits (targets × vocabulary) that a model gives at the positions `places` of a sample's `ids`.

    One sample at a time needs no padding, so nothing depends on what it is measured with; logits are made from the
    first target on only.
    """
    first = int(places[0])
    if model.config.is_encoder_decoder:
        return seq2seq.target_logits(model, [ids[:first]], [ids[first:]]).float()
    output = model(input_ids=ids[None, :-1], use_cache=False, logits_to_keep=len(ids) - first)
    logits: torch.Tensor = output.logits[0, first - len(ids) :][places - first]
    return logits.float()
