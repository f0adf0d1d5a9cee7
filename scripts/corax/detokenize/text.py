"""Well-formed rows of token ids to JSON lines by table look-up, a block of rows at a time.

JSON escapes single characters, so the tokens are escaped once, in the table: a line is the concatenation of its
tokens' entries.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from corax.compiled import compiled
from corax.detokenize.block import Spans
from corax.detokenize.hashing import Bytes, Positions
from corax.detokenize.rows import Ids, Rows, unsigned
from corax.vocabulary import Vocabulary

Words = npt.NDArray[np.uint64]
Sizes = npt.NDArray[np.uintp]

_WORD = 8
OPEN, MIDDLE, CLOSE = '{"prompt": "', '", "completion": "', '"}\n'


class _Entries(NamedTuple):
    """Texts by number: text i is the first `sizes[i]` bytes of the little-endian words from `words[starts[i]]`."""

    words: Words
    starts: Sizes
    sizes: Sizes


class TextTable:
    """Rows of a vocabulary as JSON lines {"prompt": …, "completion": …}.

    One trailing newline of a completion is dropped: the older of the two vintages of the data has one.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        texts = list(vocabulary.tokens)
        # The number of each token without its trailing newline: its own, or one behind the vocabulary.
        self._last = np.arange(len(texts))
        for number, text in enumerate(vocabulary.tokens):
            if text.endswith("\n"):
                self._last[number] = len(texts)
                texts.append(text[:-1])
        escaped = [json.dumps(text, ensure_ascii=False)[1:-1] for text in texts]
        self._frame = len(escaped)
        self._entries = _entries([*escaped, OPEN, MIDDLE, CLOSE])

    def lines(
        self, prompts: Rows, prompt_texts: Positions, completions: Rows, completion_texts: Positions
    ) -> tuple[Spans, Spans]:
        """The lines of rows whose tokens are between the given places (2 × rows), and the prompts in them.

        A row whose completion has no text gets the empty line; so does one whose places are negative.
        """
        columns = unsigned(prompts.ids), prompt_texts, unsigned(completions.ids), completion_texts
        buffer, starts, stops, prompt_stops = _join(*columns, self._last, self._entries, self._frame)
        prompt_starts = np.minimum(starts + len(OPEN), prompt_stops)
        return Spans(buffer, starts, stops), Spans(buffer, prompt_starts, prompt_stops)


def _entries(texts: Sequence[str]) -> _Entries:
    encoded = [text.encode() for text in texts]
    padded = [text.ljust(-len(text) % _WORD + len(text), b"\0") for text in encoded]
    starts = np.cumsum([0, *(len(text) // _WORD for text in padded[:-1])], dtype=np.uintp)
    sizes = np.array([len(text) for text in encoded], np.uintp)
    return _Entries(np.frombuffer(b"".join(padded), np.uint64), starts, sizes)


@compiled
def _join(
    first: Ids,
    first_texts: Positions,
    second: Ids,
    second_texts: Positions,
    last: Positions,
    entries: _Entries,
    frame: int,
) -> tuple[Bytes, Positions, Positions, Positions]:
    words, word_starts, sizes = entries
    rows = first_texts.shape[1]
    starts, stops, prompt_stops = np.zeros(rows, np.intp), np.zeros(rows, np.intp), np.zeros(rows, np.intp)
    total = np.uintp(_WORD)  # the last word reaches beyond the last text
    for row in range(rows):
        for number in first[first_texts[0, row] : first_texts[1, row]]:
            total += sizes[number]
        for number in second[second_texts[0, row] : second_texts[1, row]]:
            total += sizes[number]
        total += sizes[frame] + sizes[frame + 1] + sizes[frame + 2]
    buffer = np.empty(total, np.uint8)
    size = np.uintp(0)
    for row in range(rows):
        starts[row] = stops[row] = prompt_stops[row] = size
        end = second_texts[1, row] - 1
        if first_texts[0, row] < 0 or end < second_texts[0, row]:
            continue
        final = last[second[end]]
        if end == second_texts[0, row] and sizes[final] == 0:
            continue
        size = _put(buffer, size, words, word_starts, sizes, frame)
        for number in first[first_texts[0, row] : first_texts[1, row]]:
            size = _put(buffer, size, words, word_starts, sizes, number)
        prompt_stops[row] = size
        size = _put(buffer, size, words, word_starts, sizes, frame + 1)
        for number in second[second_texts[0, row] : end]:
            size = _put(buffer, size, words, word_starts, sizes, number)
        size = _put(buffer, size, words, word_starts, sizes, final)
        size = _put(buffer, size, words, word_starts, sizes, frame + 2)
        stops[row] = size
    return buffer[:size], starts, stops, prompt_stops


@compiled
def _put(buffer: Bytes, size: np.uintp, words: Words, word_starts: Sizes, sizes: Sizes, number: int) -> np.uintp:
    """Copy the text of an entry to `buffer[size:]`, whole words; returns the new size.

    Unsigned places and the fixed count compile to one store a word.
    """
    start = word_starts[number]
    end: np.uintp = size + sizes[number]
    while size < end:
        word = words[start]
        for place in range(_WORD):
            buffer[size + np.uintp(place)] = np.uint8(word >> np.uint64(8 * place))
        size += np.uintp(_WORD)
        start += np.uintp(1)
    return end
