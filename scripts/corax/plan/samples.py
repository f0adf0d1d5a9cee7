"""The samples that a run may learn from: their lengths, and where they lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from corax.errors import CoraxError
from corax.plan.packing import Integers
from corax.tokens import TokenShards

MOST_SHARDS = 2**16
"""What packs.parquet can number."""


@dataclass(frozen=True)
class Samples:
    """One entry a sample, in the order of shards and rows; lengths in tokens."""

    folders: tuple[Path, ...]
    part: str
    shards: Integers
    rows: Integers
    lengths: Integers
    targets: Integers
    """Tokens of each sample that carry loss."""

    def __len__(self) -> int:
        return len(self.lengths)

    def where(self, sample: int) -> str:
        """File and row (from 0) of a sample."""
        return f"{self.folders[self.shards[sample]] / self.part}.parquet: row {self.rows[sample]}"

    def select(self, samples: Integers) -> Self:
        """These samples only."""
        columns = (self.shards, self.rows, self.lengths, self.targets)
        return type(self)(self.folders, self.part, *(column[samples] for column in columns))

    def first(self, count: int) -> Self:
        """The first `count` samples, or all if there are fewer."""
        return self.select(np.arange(min(count, len(self))))


def read(folders: list[Path], part: str) -> Samples:
    """All samples of one part ("train" or "validation") of the token shards in `folders`.

    Raises CoraxError if there is none, or one without a target token.
    """
    if len(folders) > MOST_SHARDS:
        raise CoraxError(f"{len(folders)} token shards, allowed: at most {MOST_SHARDS}")
    shards = TokenShards(folders, part)
    lengths, targets = zip(*shards.lengths(), strict=True)
    if not sum(shards.rows):
        advice = ": raise detokenize.validation_share" if part == "validation" else ""
        raise CoraxError(f"{shards.paths[0]}: no {part} sample in this or any other of {len(folders)} shards{advice}")
    samples = Samples(
        folders=tuple(folders),
        part=part,
        shards=np.repeat(np.arange(len(folders)), shards.rows),
        rows=np.concatenate([np.arange(count) for count in shards.rows]),
        lengths=np.concatenate(lengths).astype(np.int64),
        targets=np.concatenate(targets).astype(np.int64),
    )
    without_target = np.flatnonzero(samples.targets < 1)
    if len(without_target):
        raise CoraxError(f"{samples.where(without_target[0])}: no target token, so nothing to learn")
    return samples
