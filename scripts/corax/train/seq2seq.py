"""The loss of a pack with an encoder-decoder model: its samples are the rows of padded batches."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from corax import seq2seq
from corax.train.general import TransformersEngine
from corax.train.packs import Batch


class Seq2SeqEngine(TransformersEngine):
    """Any encoder-decoder model, as transformers and peft compute it.

    A sample is a row of a batch, so it cannot see another. The model's own dropout (T5: 0.1) acts in training, beside
    that of the adapter.
    """

    def _logits(self, batch: Batch) -> torch.Tensor:
        prompts, completions = split(batch)
        logits: dict[int, torch.Tensor] = {}
        for group in alike([len(ids) for ids in prompts]):
            with self.autocast:
                found = seq2seq.target_logits(
                    self.model, [prompts[sample] for sample in group], [completions[sample] for sample in group]
                )
            logits |= zip(group, torch.split(found, [len(completions[sample]) for sample in group]), strict=True)
        return torch.cat([logits[sample] for sample in range(len(prompts))])


def split(batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(prompts, completions) of the samples of a pack: ids before the first target, and from there on."""
    ids = batch.input_ids[0]
    starts = (batch.position_ids[0] == 0).nonzero()[:, 0].tolist()
    lengths = [end - start for start, end in pairwise([*starts, len(ids)])]
    is_target = torch.zeros_like(ids, dtype=torch.bool)
    is_target[batch.predicts + 1] = True
    samples = zip(torch.split(ids, lengths), torch.split(is_target, lengths), strict=True)
    pairs = [(row[~learnt], row[learnt]) for row, learnt in samples]
    return [prompt for prompt, _ in pairs], [completion for _, completion in pairs]


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """The samples in groups, the longest first; none is shorter than half the longest of its group.

    So padding at most doubles what the encoder computes and keeps, and few groups keep the GPU busy.
    """
    groups: list[list[int]] = []
    for sample in sorted(range(len(lengths)), key=lambda sample: -lengths[sample]):
        if groups and 2 * lengths[sample] >= lengths[groups[-1][0]]:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups
