"""128-bit hashes of many texts at once: MurmurHash3_x64_128 (Austin Appleby, public domain) with seed 0.

It spreads texts evenly and two texts of a shard never meet by accident; it is no protection against forgery.
"""

import numpy as np
import numpy.typing as npt

from corax.compiled import compiled

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.intp]
Digests = npt.NDArray[np.uint64]

_C1, _C2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
_MIX1, _MIX2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_FIVE, _ADD1, _ADD2 = np.uint64(5), np.uint64(0x52DCE729), np.uint64(0x38495AB5)


def digests(buffer: Bytes, starts: Positions, stops: Positions) -> Digests:
    """The hash of each `buffer[start:stop]` as two 64-bit halves (texts × 2)."""
    result = np.empty((len(starts), 2), np.uint64)
    _digests(buffer, starts, stops, result)
    return result


def shares(digests: Digests) -> npt.NDArray[np.float64]:
    """Each hash as a number in [0, 1), evenly spread."""
    places: npt.NDArray[np.float64] = (digests[:, 0] >> np.uint64(11)).astype(np.float64) / 2**53
    return places


@compiled
def _rotate(value: np.uint64, bits: int) -> np.uint64:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@compiled
def _mix(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> np.uint64(33))) * _MIX1
    value = (value ^ (value >> np.uint64(33))) * _MIX2
    return value ^ (value >> np.uint64(33))


@compiled
def _word(buffer: Bytes, start: int) -> np.uint64:
    """8 bytes as a little-endian number; the fixed count compiles to one load."""
    word = np.uint64(0)
    for place in range(8):
        word |= np.uint64(buffer[np.uintp(start) + np.uintp(place)]) << np.uint64(8 * place)
    return word


@compiled
def _last_word(buffer: Bytes, start: int, stop: int) -> np.uint64:
    """The at most 8 bytes of `buffer[start:stop]` as a little-endian number."""
    word = np.uint64(0)
    for place in range(min(stop - start, 8)):
        word |= np.uint64(buffer[start + place]) << np.uint64(8 * place)
    return word


@compiled
def _digests(buffer: Bytes, starts: Positions, stops: Positions, result: Digests) -> None:
    for row in range(len(starts)):
        place, size = starts[row], stops[row] - starts[row]
        h1 = h2 = np.uint64(0)
        while place + 16 <= stops[row]:
            h1 ^= _rotate(_word(buffer, place) * _C1, 31) * _C2
            h1 = (_rotate(h1, 27) + h2) * _FIVE + _ADD1
            h2 ^= _rotate(_word(buffer, place + 8) * _C2, 33) * _C1
            h2 = (_rotate(h2, 31) + h1) * _FIVE + _ADD2
            place += 16
        h2 ^= _rotate(_last_word(buffer, place + 8, stops[row]) * _C2, 33) * _C1
        h1 ^= _rotate(_last_word(buffer, place, stops[row]) * _C1, 31) * _C2
        h1 ^= np.uint64(size)
        h2 ^= np.uint64(size)
        h1 += h2
        h2 += h1
        h1, h2 = _mix(h1), _mix(h2)
        h1 += h2
        h2 += h1
        result[row, 0], result[row, 1] = h1, h2


class Seen:
    """The hashes that came so far, in an open-addressing table at most half full: 32 to 64 bytes a hash."""

    def __init__(self) -> None:
        self._table = np.zeros((2**12, 2), np.uint64)
        self._count = 0

    def add(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Which of the hashes are new: neither added before nor earlier in `digests`."""
        while 2 * (self._count + len(digests)) > len(self._table):
            larger = np.zeros((2 * len(self._table), 2), np.uint64)
            _insert(larger, self._table[self._table.any(axis=1)])
            self._table = larger
        # The table marks a free place by zeros.
        new: npt.NDArray[np.bool_] = _insert(self._table, np.where(digests.any(axis=1, keepdims=True), digests, 1))
        self._count += int(new.sum())
        return new


@compiled
def _insert(table: Digests, digests: Digests) -> npt.NDArray[np.bool_]:
    last = np.uint64(len(table) - 1)
    new = np.zeros(len(digests), np.bool_)
    for row in range(len(digests)):
        h1, h2 = digests[row, 0], digests[row, 1]
        place = h1 & last
        while (table[place, 0] != 0 or table[place, 1] != 0) and (table[place, 0] != h1 or table[place, 1] != h2):
            place = (place + np.uint64(1)) & last
        if table[place, 0] == 0 and table[place, 1] == 0:
            table[place, 0], table[place, 1] = h1, h2
            new[row] = True
    return new
