"""From samples to the table of packs and optimizer steps, `packs.parquet`, in memory that does not grow with them.

Each block of shards is shuffled and packed on its own, and waits on disk. The packs of an epoch are then
drawn from the blocks at random, each block in proportion to what it still has, which is a random order of all of them.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corax.plan.blocks import Blocks, short_enough
from corax.plan.packing import Integers, Packs, draw_blocks, pack_epoch, pack_in_order
from corax.plan.samples import Samples
from corax.progress import Progress
from corax.settings.plan import PlanSettings

SCHEMA = pa.schema(
    [
        ("part", pa.string()),
        ("step", pa.int32()),
        ("shards", pa.list_(pa.uint16())),
        ("rows", pa.list_(pa.uint32())),
        ("tokens", pa.int32()),
        ("target_tokens", pa.int32()),
    ]
)
PACKS_AT_ONCE = 2**16
"""Packs in memory while they are put in order, and in a row group of the table."""
ROW_BITS = 32
"""A sample's place is shard << ROW_BITS | row."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive packs of samples given by their places; `tokens` and `targets` (tokens with loss) of each pack."""

    packs: Packs
    tokens: Integers
    targets: Integers

    @classmethod
    def of(cls, samples: Samples, packs: Packs) -> Self:
        """`packs` of these samples by number."""
        places = samples.shards << ROW_BITS | samples.rows
        return cls(
            replace(packs, samples=places[packs.samples]), packs.totals(samples.lengths), packs.totals(samples.targets)
        )

    def take(self, numbers: Integers) -> Self:
        """The packs with these numbers, in this order."""
        return type(self)(self.packs.take(numbers), self.tokens[numbers], self.targets[numbers])


@dataclass
class Part:
    """What the packs of one part add up to; a sample counts as often as it is learnt."""

    packs_per_step: int
    packs: int = 0
    samples: int = 0
    tokens: int = 0
    targets: int = 0
    """Tokens that carry loss."""
    most_tokens: int = 0
    """In one pack."""
    most_targets: int = 0
    most_samples: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps; the last may have fewer packs."""
        return math.ceil(self.packs / self.packs_per_step)

    def add(self, chunk: Chunk) -> None:
        """Count the packs of `chunk`."""
        self.packs += len(chunk.packs)
        self.samples += len(chunk.packs.samples)
        self.tokens += int(chunk.tokens.sum())
        self.targets += int(chunk.targets.sum())
        self.most_tokens = max(self.most_tokens, int(chunk.tokens.max(initial=0)))
        self.most_targets = max(self.most_targets, int(chunk.targets.max(initial=0)))
        self.most_samples = max(self.most_samples, int(np.diff(chunk.packs.offsets).max(initial=0)))


def train_chunks(blocks: Blocks, settings: PlanSettings, scratch: Path) -> Iterator[Chunk]:
    """All packs of the training, in order; the files in the folder `scratch` may be deleted afterwards.

    With `max_steps` epochs follow one another, each in a new order, until there are packs enough; else
    there are `num_train_epochs` of them, of the last one the given fraction. The packs of an epoch follow those of
    the epoch before without a gap, so that only the last step of all can have fewer packs.
    """
    wanted = sys.maxsize if settings.max_steps is None else settings.max_steps * settings.packs_per_step
    epochs = math.inf if settings.max_steps is not None else settings.num_train_epochs
    epoch = 0
    while wanted > 0 and epoch < epochs:
        # Data of one block are packed in a moment, and with max_steps perhaps thousands of times.
        is_long = len(blocks) > 1
        with _Waiting(scratch) as waiting:
            with Progress(f"packs of epoch {epoch}", blocks.total, "sample") if is_long else nullcontext() as progress:
                for block, samples in enumerate(short_enough(blocks, settings.max_length)):
                    packs = pack_epoch(
                        samples.lengths, settings.max_length, settings.packing, settings.seed, epoch, block
                    )
                    waiting.add(Chunk.of(samples, packs))
                    if progress:
                        progress.advance(len(samples))
            count = min(math.ceil(min(1.0, epochs - epoch) * sum(waiting.left)), wanted)
            wanted -= count
            for numbers in draw_blocks(np.array(waiting.left), count, PACKS_AT_ONCE, settings.seed, epoch):
                yield waiting.next(numbers)
        epoch += 1


def validation_chunks(blocks: Blocks, settings: PlanSettings) -> Iterator[Chunk]:
    """The validation samples, packed in their own order."""
    for samples in short_enough(blocks, settings.max_length):
        order = np.arange(len(samples))
        yield Chunk.of(samples, pack_in_order(samples.lengths, order, settings.max_length, settings.packing))


class _Waiting:
    """Packs of several blocks on disk: of each block the next ones are read. A context manager."""

    COLUMNS = {"counts": np.int32, "places": np.int64, "tokens": np.int32, "targets": np.int32}

    def __init__(self, folder: Path) -> None:
        self.left: list[int] = []
        """Packs that each block still has."""
        self._paths = {name: folder / f"{name}.bin" for name in self.COLUMNS}
        self._next: list[tuple[int, int]] = []
        """For each block, where its next pack and that pack's first sample lie in the files."""
        self._end = (0, 0)

    def __enter__(self) -> Self:
        for path in self._paths.values():
            path.write_bytes(b"")
        return self

    def __exit__(self, *exception: object) -> None:
        for path in self._paths.values():
            path.unlink()

    def add(self, chunk: Chunk) -> None:
        """Put all packs of the next block on disk."""
        columns = (np.diff(chunk.packs.offsets), chunk.packs.samples, chunk.tokens, chunk.targets)
        for (name, kind), values in zip(self.COLUMNS.items(), columns, strict=True):
            with self._paths[name].open("ab") as file:
                file.write(values.astype(kind).tobytes())
        self.left.append(len(chunk.packs))
        self._next.append(self._end)
        self._end = (self._end[0] + len(chunk.packs), self._end[1] + len(chunk.packs.samples))

    def next(self, numbers: Integers) -> Chunk:
        """For each entry of `numbers` the next pack of the block with that number."""
        pieces = [self._read(block, int(count)) for block, count in enumerate(np.bincount(numbers)) if count]
        counts, places, tokens, targets = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
        by_block = Chunk(Packs.of_counts(counts, places), tokens, targets)
        return by_block.take(np.argsort(np.argsort(numbers, kind="stable"), kind="stable"))

    def _read(self, block: int, count: int) -> tuple[Integers, Integers, Integers, Integers]:
        pack, sample = self._next[block]
        counts = self._column("counts", pack, count)
        places = self._column("places", sample, int(counts.sum()))
        self._next[block] = (pack + count, sample + len(places))
        self.left[block] -= count
        return counts, places, self._column("tokens", pack, count), self._column("targets", pack, count)

    def _column(self, name: str, start: int, count: int) -> Integers:
        kind = np.dtype(self.COLUMNS[name])
        values = np.fromfile(self._paths[name], kind, count, offset=start * kind.itemsize)
        return values.astype(np.int64)


class PackWriter:
    """Writes `packs.parquet`, the packs of one part after the other; a context manager."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def write(self, name: str, chunks: Iterable[Chunk], packs_per_step: int) -> Part:
        """Write all packs of the part `name`; those of the part "train" are numbered by optimizer step."""
        part = Part(packs_per_step)
        for chunk in chunks:
            numbers = np.arange(part.packs, part.packs + len(chunk.packs))
            steps = numbers // packs_per_step if name == "train" else np.full(len(numbers), -1)
            self._writer.write_table(_table(name, steps, chunk))
            part.add(chunk)
        return part


def _table(name: str, steps: Integers, chunk: Chunk) -> pa.Table:
    offsets = pa.array(chunk.packs.offsets.astype(np.int32))
    places = chunk.packs.samples
    columns = [
        pa.array([name] * len(steps)),
        pa.array(steps.astype(np.int32)),
        pa.ListArray.from_arrays(offsets, pa.array((places >> ROW_BITS).astype(np.uint16))),
        pa.ListArray.from_arrays(offsets, pa.array((places & (1 << ROW_BITS) - 1).astype(np.uint32))),
        pa.array(chunk.tokens.astype(np.int32)),
        pa.array(chunk.targets.astype(np.int32)),
    ]
    return pa.table(columns, schema=SCHEMA)
