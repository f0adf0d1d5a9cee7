"""The elements of a file that is one JSON array, block by block: quotes and brackets alone say where each ends."""

import codecs
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from corax.compiled import compiled
from corax.detokenize.hashing import Bytes, Positions
from corax.errors import CoraxError

BLOCK_BYTES = 2**20
SPACE = b" \t\r\n"
QUOTE, BACKSLASH, COMMA = b'"\\,'
SPACES, OPENING, CLOSING = tuple(SPACE), tuple(b"[{"), tuple(b"]}")
CLOSED = -1
"""Depth behind the array."""


def is_array(path: Path) -> bool:
    """Whether a file is one JSON array, by its first character.

    Raises CoraxError for one object over several lines, which is neither an array nor an object a line.
    """
    with path.open("rb") as file:
        line, newline, _ = file.read(BLOCK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip(SPACE).partition(b"\n")
    if newline and line.strip(SPACE) == b"{":
        raise CoraxError(f"{path}: is one JSON object, allowed: one array of objects, or an object a line")
    return line.startswith(b"[")


def elements(path: Path, longest: int) -> Iterator[bytes]:
    """The array's elements as they stand in the file; of one with more than `longest` bytes one byte more is given.

    Raises CoraxError where nobody knows any more what the elements are: brackets or quotes that do not match, a file
    that ends within the array, something behind it.
    """
    state = np.zeros(3, np.intp)
    row, element, last = -1, b"", b""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            start = 0
            for end in _ends(np.frombuffer(block, np.uint8), state):
                if last == b"]":
                    found = block[end : end + 20].decode(errors="replace")
                    raise CoraxError(f"{path}: {found!r} follows the array of {row} rows, allowed: nothing")
                last = block[end : end + 1]
                if last == b"}":
                    raise CoraxError(f"{path}: row {row}: a bracket or quote is missing or one too many")
                element = (element + block[start:end])[: longest + 1]
                start = end + 1
                # Row -1 is what precedes the array; `[]` has no row 0.
                if row > 0 or (row == 0 and (last == b"," or element.strip(SPACE))):
                    yield element
                row, element = row + 1, b""
            element = (element + block[start:])[: longest + 1]
    if last != b"]":
        raise CoraxError(
            f"{path}: row {row}: the file ends within the array, it is cut off or lacks a bracket or quote"
        )


@compiled
def _ends(block: Bytes, state: Positions) -> Positions:
    """Where elements end in the next block: the array's first bracket, its commas, its last bracket.

    Behind that, the first byte that is no space. `state` is kept from block to block: the depth in brackets, whether
    the place is within a text, and whether behind a backslash there.
    """
    depth, is_quoted, is_escaped = state
    ends = np.empty(len(block), np.intp)
    count = 0
    for place in range(len(block)):
        byte = block[place]
        is_end = False
        if is_quoted:
            if is_escaped:
                is_escaped = 0
            elif byte == BACKSLASH:
                is_escaped = 1
            elif byte == QUOTE:
                is_quoted = 0
        elif depth == CLOSED:
            is_end = byte not in SPACES
        elif byte == QUOTE:
            is_quoted = 1
        elif byte in OPENING:
            depth += 1
            is_end = depth == 1
        elif byte in CLOSING:
            depth -= 1
            is_end = depth == 0
            if is_end:
                depth = CLOSED
        else:
            is_end = byte == COMMA and depth == 1
        if is_end:
            ends[count] = place
            count += 1
    state[0], state[1], state[2] = depth, is_quoted, is_escaped
    return ends[:count]
