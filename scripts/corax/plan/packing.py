"""Packs: which samples share a sequence, in which order they are learnt.

An epoch is a random order of all samples, packed as they come, and the packs in a random order again, so that
the nearly empty packs of the end are not always the last ones learnt. Large data are packed in blocks, and the packs
of all blocks mixed. Everything follows from the seed, the epoch's number and the block's.

Packing looks ahead over `LOOKAHEAD` waiting samples. A pack takes those that wait longest, which keeps the order
random; its last places go to the pair (or the one sample) that fills it best. On lengths of 186 to 1132 tokens
(mean 480) that fills 98.9 % of packs of 1280 tokens and 99.9 % of 2048 and more; online best-fit with 16 open packs, in
the same memory, 94.4, 96.5 and (8192) 99.2 %.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from corax.compiled import compiled

LOOKAHEAD = 256
"""Samples that wait; more fill hardly better."""
FINISH = 3
"""A pack is finished by a pair when it has room for fewer samples of mean length than this."""

SAMPLES, PACKS, BLOCKS = 0, 1, 2
"""The random orders of an epoch: of samples and packs in a block, and which block comes next."""

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Packs:
    """Pack i holds the samples `samples[offsets[i]:offsets[i + 1]]`."""

    offsets: Integers
    samples: Integers

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, numbers: Integers) -> Self:
        """The packs with these numbers, in this order."""
        counts = np.diff(self.offsets)[numbers]
        offsets = _offsets(counts)
        shift = np.repeat(self.offsets[numbers] - offsets[:-1], counts)
        return type(self)(offsets, self.samples[np.arange(len(shift)) + shift])

    def totals(self, values: Integers) -> Integers:
        """The sum of `values` (one a sample) in each pack."""
        running = np.concatenate([[0], np.cumsum(values[self.samples])])
        return np.diff(running[self.offsets])

    @classmethod
    def of_counts(cls, counts: Integers, samples: Integers) -> Self:
        """Packs of so many samples each, in the order of `samples`."""
        return cls(_offsets(counts), samples)


def pack_epoch(lengths: Integers, max_length: int, packing: bool, seed: int, epoch: int, block: int = 0) -> Packs:
    """All samples of a block once, in packs of at most `max_length` tokens; without `packing` one sample a pack.

    `lengths` are tokens, each between 1 and `max_length`.
    """
    order = random_order(len(lengths), seed, epoch, SAMPLES, block)
    packs = pack_in_order(lengths, order, max_length, packing)
    return packs.take(random_order(len(packs), seed, epoch, PACKS, block))


def pack_in_order(lengths: Integers, order: Integers, max_length: int, packing: bool) -> Packs:
    """The samples `order`, packed as they come."""
    if not packing:
        return Packs(np.arange(len(order) + 1), order)
    pack_of = _assign(lengths[order], max_length, LOOKAHEAD)
    return Packs(_offsets(np.bincount(pack_of)), order[np.argsort(pack_of, kind="stable")])


def draw_blocks(left: Integers, count: int, at_once: int, seed: int, epoch: int) -> Iterator[Integers]:
    """The blocks that the next `count` packs come from, where block b has left[b]; arrays of at most `at_once`.

    Each pack that is left is as likely as any other to be the next: the blocks' numbers, each as often as it has
    packs, in random order.
    """
    keys = _keys(seed, epoch, BLOCKS)
    left = left.copy()
    for start in range(0, count, at_once):
        yield _draw(left, keys.random_raw(min(at_once, count - start)))


def random_order(count: int, seed: int, epoch: int, purpose: int, block: int = 0) -> Integers:
    """A permutation of 0 … count - 1: sorted by random keys of a counter-based generator.

    Key i is the i-th raw output of Philox, whose stream numpy guarantees for all versions (that of
    `Generator.permutation` it does not), and can be computed without the keys before it.
    """
    return np.argsort(_keys(seed, epoch, purpose, block).random_raw(count), kind="stable")


def _keys(*purpose: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence(purpose))


def _offsets(counts: Integers) -> Integers:
    return np.concatenate([[0], np.cumsum(counts)])


@compiled
def _draw(left: Integers, keys: NDArray[np.uint64]) -> Integers:
    """A block for each key; takes its packs from `left`."""
    total = left.sum()
    result = np.empty(len(keys), np.int64)
    for number, key in enumerate(keys):
        place = np.int64(key % np.uint64(total))
        block = 0
        while place >= left[block]:
            place -= left[block]
            block += 1
        left[block] -= 1
        total -= 1
        result[number] = block
    return result


@compiled
def _assign(lengths: Integers, capacity: int, lookahead: int) -> Integers:
    """The pack of each sample; see the module's docstring."""
    result = np.empty(len(lengths), np.int64)
    waiting = np.empty(lookahead, np.int64)  # samples, by length
    count, arrived, tokens = 0, 0, 0
    pack, room = -1, 0
    while True:
        if count == 0 or lengths[waiting[0]] > room:
            while count < lookahead and arrived < len(lengths):
                _insert(waiting, count, arrived, lengths)
                tokens += lengths[arrived]
                count, arrived = count + 1, arrived + 1
            if count == 0:
                return result
            pack, room = pack + 1, capacity
        if room == capacity or room * count > FINISH * tokens:
            first, second = -1, _oldest(waiting[:count], room, lengths)
        else:
            first, second = _filling(waiting[:count], room, lengths)
        for place in (second, first):
            if place >= 0:
                sample = waiting[place]
                result[sample] = pack
                room -= lengths[sample]
                tokens -= lengths[sample]
                count -= 1
                for later in range(place, count):
                    waiting[later] = waiting[later + 1]


@compiled
def _insert(waiting: Integers, count: int, sample: int, lengths: Integers) -> None:
    """Put `sample` where it belongs by length, behind those of equal length."""
    place = count
    while place > 0 and lengths[waiting[place - 1]] > lengths[sample]:
        waiting[place] = waiting[place - 1]
        place -= 1
    waiting[place] = sample


@compiled
def _oldest(waiting: Integers, room: int, lengths: Integers) -> int:
    """The place of the sample that waits longest among those that fit; the shortest must fit."""
    best = 0
    for place in range(len(waiting)):
        if lengths[waiting[place]] <= room and waiting[place] < waiting[best]:
            best = place
    return best


@compiled
def _filling(waiting: Integers, room: int, lengths: Integers) -> tuple[int, int]:
    """Two places, the second the higher, of the pair that fits and is longest; (-1, place) for one sample.

    One sample, the longest that fits, is taken if it fills as much, or if even the best pair leaves room for more.
    """
    first, second, filled = -1, -1, 0
    low, high = 0, len(waiting) - 1
    while low < high:
        together = lengths[waiting[low]] + lengths[waiting[high]]
        if together > room:
            high -= 1
            continue
        if together > filled:
            first, second, filled = low, high, together
        low += 1
    longest = len(waiting) - 1
    while lengths[waiting[longest]] > room:
        longest -= 1
    if lengths[waiting[longest]] >= filled or room - filled >= lengths[waiting[0]]:
        return -1, longest
    return first, second
