"""What is to be packed, a block of whole token shards at a time, so that memory does not grow with the data.

A block is as many shards, one after the other, as hold BLOCK_SAMPLES samples. It depends on the shards' sizes alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from corax.errors import CoraxError
from corax.plan import samples
from corax.plan.packing import Integers
from corax.plan.samples import Samples
from corax.progress import Progress
from corax.tokens import TokenShards

BLOCK_SAMPLES = 2**18
"""Some 40 MB of memory."""
DROPPED_LISTED = 100
"""Dropped samples that are named; all are counted."""


class Blocks:
    """The samples of one part ("train" or "validation") of the token shards in `folders`, block by block.

    With `most` only the first so many samples. Raises CoraxError as TokenShards does.
    """

    def __init__(self, folders: list[Path], part: str, most: int | None = None) -> None:
        self.folders, self.part = folders, part
        rows = TokenShards(folders, part).rows
        self.total = sum(rows) if most is None else min(most, sum(rows))
        self._shards: list[range] = []
        self._before: list[int] = []
        first = seen = 0
        for shard in range(len(folders)):
            block = sum(rows[first : shard + 1])
            if seen < self.total and (block >= BLOCK_SAMPLES or seen + block >= self.total):
                self._shards.append(range(first, shard + 1))
                self._before.append(seen)
                first, seen = shard + 1, seen + block
        self._shards = self._shards or [range(len(folders))]
        self._before = self._before or [0]

    def __len__(self) -> int:
        return len(self._shards)

    def read(self, block: int) -> Samples:
        """The samples of one block; raises CoraxError for one without a target token, or if there is none at all."""
        shards = self._shards[block]
        found = samples.read(self.folders[shards.start : shards.stop], self.part)
        found = replace(found, folders=tuple(self.folders), shards=found.shards + shards.start)
        return found.first(self.total - self._before[block])


@dataclass
class Survey:
    """What all blocks of a part hold: the samples to keep, and those that are too long for a pack."""

    part: str
    counts: Integers
    """counts[i]: kept samples of i tokens."""
    dropped_count: int = 0
    dropped: list[dict[str, Any]] = field(default_factory=list)
    """The first dropped samples: part, shard, row, length in tokens."""

    @property
    def kept(self) -> int:
        """Number of samples to pack."""
        return int(self.counts.sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest kept sample."""
        return int(np.flatnonzero(self.counts)[-1])


def survey(blocks: Blocks, max_length: int, over_long: str) -> Survey:
    """Look at the lengths of all samples.

    Raises CoraxError if no sample is short enough, or if `over_long` is "stop" and one has more than `max_length`
    tokens.
    """
    result = Survey(blocks.part, np.zeros(max_length + 1, np.int64))
    first, shortest, longest = "", np.inf, 0
    with Progress(f"lengths {blocks.part}", blocks.total, "sample") as progress:
        for block in range(len(blocks)):
            found = blocks.read(block)
            too_long = np.flatnonzero(found.lengths > max_length)
            result.counts += np.bincount(found.lengths[found.lengths <= max_length], minlength=max_length + 1)
            if len(too_long):
                first = first or f"{found.where(too_long[0])}: {found.lengths[too_long[0]]} tokens"
                shortest = min(shortest, found.lengths[too_long].min())
                longest = max(longest, found.lengths[too_long].max())
                result.dropped_count += len(too_long)
                result.dropped += _named(found, too_long[: DROPPED_LISTED - len(result.dropped)])
            progress.advance(len(found))
    if not result.kept:
        raise CoraxError(
            f"plan.max_length: {max_length} tokens is a context shorter than every {blocks.part} sample, "
            f"the shortest has {shortest}"
        )
    if result.dropped_count and over_long == "stop":
        raise CoraxError(
            f"{first}, plan.max_length is {max_length}; {result.dropped_count} of {blocks.total} {blocks.part} "
            f"samples are too long, the longest has {longest}; plan.over_long=drop leaves them out, "
            "pretokenize.chunk_length cuts plain text"
        )
    return result


def short_enough(blocks: Blocks, max_length: int) -> Iterator[Samples]:
    """The samples of each block that have at most `max_length` tokens."""
    for block in range(len(blocks)):
        found = blocks.read(block)
        yield found.select(np.flatnonzero(found.lengths <= max_length))


def _named(found: Samples, chosen: Integers) -> list[dict[str, Any]]:
    columns = (found.shards[chosen].tolist(), found.rows[chosen].tolist(), found.lengths[chosen].tolist())
    return [
        {"part": found.part, "shard": shard, "row": row, "length": length}
        for shard, row, length in zip(*columns, strict=True)
    ]
