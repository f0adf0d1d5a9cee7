"""Which rows of token ids are well formed: <SOS>, tokens, <EOS>, and nothing but <PAD> on the padded side."""

from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from corax.compiled import compiled
from corax.detokenize.errors import BadRowError
from corax.detokenize.hashing import Positions
from corax.vocabulary import Vocabulary

Ids = npt.NDArray[np.integer[Any]]

_TOKEN, _PAD, _START, _END, _OUTSIDE = range(5)
_STEP = 64
"""Ids that are compared with <PAD> at once."""


class Padding(Enum):
    """Where <PAD> may stand in a row."""

    RIGHT = "right"
    LEFT = "left"
    NONE = "none"


class Rows(NamedTuple):
    """Rows of ids: row i is `ids[offsets[i] : offsets[i + 1]]`."""

    ids: Ids
    offsets: Positions
    padding: Padding


def unsigned(ids: Ids) -> Ids:
    """The ids as uint8 or uint16, where negative ones become large, or as uint32 with 65,536 for all others.

    What follows is compiled for each type, and a table has an entry for each number.
    """
    if ids.dtype.itemsize <= 2:
        return ids.astype(ids.dtype.newbyteorder("="), copy=False).view(f"uint{8 * ids.dtype.itemsize}")
    return np.minimum(ids.astype(np.uint64), 2**16).astype(np.uint32)


class Checker:
    """Finds the text in rows of ids of one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def texts(self, rows: Rows) -> Positions:
        """Where in `ids` each row's tokens between <SOS> and <EOS> begin and end (2 × rows); -1 if not well formed."""
        result = np.full((2, len(rows.offsets) - 1), -1, np.intp)
        left, right = (rows.padding is side for side in (Padding.LEFT, Padding.RIGHT))
        kinds = self._kinds(rows.ids.dtype)
        pad = self._vocabulary.pad if self._vocabulary.pad <= np.iinfo(rows.ids.dtype).max else -1
        _find_texts(unsigned(rows.ids), rows.offsets, kinds, pad, left, right, result)
        return result

    def _kinds(self, dtype: np.dtype[Any]) -> npt.NDArray[np.uint8]:
        """What each number that `unsigned` gives for this type stands for."""
        sizes = {1: 2**8, 2: 2**16}
        kinds = np.full(sizes.get(dtype.itemsize, 2**16 + 1), _OUTSIDE, np.uint8)
        largest = min(int(np.iinfo(dtype).max), len(self._vocabulary) - 1)
        kinds[: largest + 1] = _TOKEN
        for number, kind in (
            (self._vocabulary.pad, _PAD),
            (self._vocabulary.start, _START),
            (self._vocabulary.end, _END),
        ):
            if number <= largest:
                kinds[number] = kind
        return kinds

    def fault(self, rows: Rows, number: int, column: str) -> BadRowError:
        """What is wrong with row `number`, which is not well formed."""
        ids = rows.ids[rows.offsets[number] : rows.offsets[number + 1]]
        return BadRowError(column, self._reason([int(each) for each in ids], rows.padding))

    def _reason(self, row: list[int], padding: Padding) -> str:
        words = self._vocabulary
        outside = next((place for place, number in enumerate(row) if not 0 <= number < len(words)), None)
        if outside is not None:
            return f"id {row[outside]} at position {outside} is outside the vocabulary (0 to {len(words) - 1})"
        first = 0
        if padding is Padding.LEFT:
            first = next((place for place, number in enumerate(row) if number != words.pad), 0)
        if row[first : first + 1] != [words.start]:
            return "does not begin with <SOS>"
        if words.end not in row:
            return "has no <EOS>"
        end = row.index(words.end)
        if words.pad in row[first:end]:
            return f"has <PAD> at position {row.index(words.pad, first)} before <EOS>"
        if row.count(words.start) > 1:
            return f"has a second <SOS> at position {row.index(words.start, first + 1)}"
        if row.count(words.end) > 1:
            return f"has a second <EOS> at position {row.index(words.end, end + 1)}"
        allowed = [words.pad] if padding is Padding.RIGHT else []
        after = next(place for place in range(end + 1, len(row)) if row[place] not in allowed)
        return f"has id {row[after]} at position {after} after <EOS>, allowed: {'<PAD>' if allowed else 'nothing'}"


@compiled
def _find_texts(
    ids: Ids, offsets: Positions, kinds: npt.NDArray[np.uint8], pad: int, left: bool, right: bool, texts: Positions
) -> None:
    for row in range(len(offsets) - 1):
        start, stop = offsets[row], offsets[row + 1]
        while left and start < stop and ids[start] == pad:
            start += 1
        while right and stop - start >= _STEP:
            other = 0
            for number in ids[stop - _STEP : stop]:  # without a way out, so that it compiles to vector instructions
                other |= number ^ pad
            if other:
                break
            stop -= _STEP
        while right and start < stop and ids[stop - 1] == pad:
            stop -= 1
        if stop - start < 2 or kinds[ids[start]] != _START or kinds[ids[stop - 1]] != _END:
            continue
        wrong = 0
        for number in ids[start + 1 : stop - 1]:
            wrong |= kinds[number]
        if wrong == _TOKEN:
            texts[0, row], texts[1, row] = start + 1, stop - 1
