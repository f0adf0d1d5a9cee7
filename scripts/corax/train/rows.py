"""The samples of a pack as the rows of padded batches: no sample sees another, whatever stands before each."""

from collections.abc import Callable, Sequence

import torch

from corax.train.attention import Documents
from corax.train.packs import Batch

PADDING = 1.5
"""Most places of a padded group for each of its tokens: few groups keep a GPU busy, little padding its memory free."""


def split(batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, whether each is a target) of the samples of a pack on the host."""
    lengths = Documents.from_positions(batch.position_ids, batch.position_ids.device).lengths
    is_target = torch.zeros_like(batch.input_ids[0], dtype=torch.bool)
    is_target[batch.predicts + 1] = True
    return list(zip(torch.split(batch.input_ids[0], lengths), torch.split(is_target, lengths), strict=True))


def in_groups(
    lengths: Sequence[int], targets: Sequence[int], logits: Callable[[list[int]], torch.Tensor]
) -> torch.Tensor:
    """Logits (n, vocabulary) of all samples, one after the other, made by `logits` for one group of them at a time.

    `lengths` decide which samples are alike; `logits` gives as many rows as `targets` says, for sample after sample.
    """
    found: dict[int, torch.Tensor] = {}
    for group in alike(lengths):
        found |= zip(group, torch.split(logits(group), [targets[sample] for sample in group]), strict=True)
    return torch.cat([found[sample] for sample in range(len(lengths))])


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """The samples in groups, the longest first, each as large as PADDING allows."""
    groups: list[list[int]] = []
    tokens = 0
    for sample in sorted(range(len(lengths)), key=lambda sample: -lengths[sample]):
        tokens += lengths[sample]
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= PADDING * tokens:
            groups[-1].append(sample)
        else:
            groups.append([sample])
            tokens = lengths[sample]
    return groups
