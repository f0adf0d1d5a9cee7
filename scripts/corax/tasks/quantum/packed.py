"""A program as bytes, the same for all programs that differ in the order of lines and of ends only.

The first byte is the number of lines outside the loop; these follow, then those in the loop, both sorted, each line
with the smaller one of its ends first. Texts in the form of the training data are read by compiled code; all others by
`language.parse`, which defines what a program is.
"""

import hashlib
import struct
from typing import NewType

import numpy as np
import numpy.typing as npt

from corax.compiled import compiled
from corax.tasks.quantum import language
from corax.tasks.quantum.language import Line, Position, Program

Packed = NewType("Packed", bytes)
"""A program as `read` and `pack` make it."""
Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int8]
LINE = struct.Struct("9b")
"""A line: three coefficients of a position and its colour, the same of the other end, and the weight."""
LINE_SIZE = LINE.size
HEADER = np.frombuffer(f"{language.LOOP_HEADER}\n".encode(), np.uint8)
INDENT = np.frombuffer(language.INDENT.encode(), np.uint8)
START, TIMES_N, TIMES_II = (np.frombuffer(text, np.uint8) for text in (b"e(", b"*N", b"*ii"))
PLUS, MINUS, ZERO, NINE, TWO, COMMA, CLOSE, NEWLINE = map(ord, "+-092,)\n")
FAILED = 127
"""No number: numbers have at most two digits."""


def read(text: str) -> Packed:
    """The program in a text; raises ProgramError as `language.parse` does."""
    if len(text) <= language.MAX_LINES * (language.MAX_LINE_LENGTH + 1) and text.isascii():
        numbers = np.empty(1 + language.MAX_LINES * LINE_SIZE, np.int8)
        lines = _read(np.frombuffer(text.removesuffix("\n").encode() + b"\n", np.uint8), numbers)
        if lines:
            return Packed(numbers.tobytes()[: 1 + lines * LINE_SIZE])
    return pack(language.parse(text))


def pack(program: Program) -> Packed:
    """The program as bytes."""
    lines = [line for block in program for line in sorted(map(_numbers, block))]
    return Packed(bytes([len(program.base)]) + b"".join([LINE.pack(*line) for line in lines]))


def _numbers(line: Line) -> tuple[int, ...]:
    ends = (*line.p, line.colour_p), (*line.q, line.colour_q)
    return (*min(ends), *max(ends), line.weight)


def unpack(packed: Packed) -> Program:
    """The one program for all that differ in order only."""
    lines = tuple(map(_unpack_line, LINE.iter_unpack(packed[1:])))
    return Program(lines[: packed[0]], lines[packed[0] :])


def _unpack_line(numbers: tuple[int, ...]) -> Line:
    return Line(Position(*numbers[:3]), Position(*numbers[4:7]), numbers[3], numbers[7], numbers[8])


def program_hash(packed: Packed) -> str:
    """sha256 of a program: equal for programs that differ in order only."""
    return hashlib.sha256(packed).hexdigest()


@compiled
def _read(text: Bytes, numbers: Numbers) -> int:
    """Fill `numbers` with the program in a text that ends with a newline; its number of lines.

    0 if a formula lacks a term or a sign, has other terms or another order than those of the training data, or if
    the text is no program.
    """
    lines = numbers[1:].reshape(-1, LINE_SIZE)
    place, base, total = 0, -1, 0
    while place < len(text):
        if base < 0 and _follows(text, place, HEADER):
            base = total
            place += len(HEADER)
            continue
        if total == len(lines):
            return 0
        place = _read_line(text, place, base >= 0, lines[total])
        if place < 0:
            return 0
        _sort_in(lines[max(base, 0) : total + 1])
        total += 1
    header = 0 if base < 0 else 1
    if base == 0 or base == total or total + header > len(lines):
        return 0
    numbers[0] = total if base < 0 else base
    return total


@compiled
def _read_line(text: Bytes, place: int, loop: bool, line: Numbers) -> int:
    """The place behind an edge and its newline; -1 if there is none."""
    line[2] = line[6] = 0
    if loop:
        if not _follows(text, place, INDENT):
            return -1
        place += len(INDENT)
    if not _follows(text, place, START):
        return -1
    place += len(START)
    for end in (0, 4):
        for term in range(3 if loop else 2):
            if text[place] != PLUS and text[place] != MINUS:
                return -1
            number, place = _number(text, place)
            unit = TIMES_N if term == 1 else TIMES_II
            if number == FAILED or (term and not _follows(text, place, unit)):
                return -1
            line[end + term] = number
            place += len(unit) if term else 0
        if text[place] != COMMA:
            return -1
        place += 1
    for end in (3, 7):
        if not ZERO <= text[place] <= TWO or text[place + 1] != COMMA:
            return -1
        line[end] = text[place] - ZERO
        place += 2
    line[8], place = _number(text, place)
    if line[8] == FAILED or text[place] != CLOSE or text[place + 1] != NEWLINE:
        return -1
    _turn(line)
    return place + 2


@compiled
def _follows(text: Bytes, place: int, word: Bytes) -> bool:
    if place + len(word) > len(text):
        return False
    for number in range(len(word)):  # noqa: SIM110 - compiled code knows no generators
        if text[place + number] != word[number]:
            return False
    return True


@compiled
def _number(text: Bytes, place: int) -> tuple[int, int]:
    """A number of one or two digits, perhaps with a sign, and the place behind it; FAILED if there is none.

    The last character is a newline, so what is looked at always exists.
    """
    sign = -1 if text[place] == MINUS else 1
    place += 1 if text[place] == MINUS or text[place] == PLUS else 0
    if not ZERO <= text[place] <= NINE:
        return FAILED, place
    value = int(text[place]) - ZERO
    if value and ZERO <= text[place + 1] <= NINE:
        value = 10 * value + int(text[place + 1]) - ZERO
        place += 1
    return sign * value, place + 1


@compiled
def _sort_in(lines: Numbers) -> None:
    """Move the last line to its place among the others, which are sorted."""
    for row in range(len(lines) - 1, 0, -1):
        upper, lower = lines[row - 1], lines[row]
        number = 0
        while number < LINE_SIZE - 1 and upper[number] == lower[number]:
            number += 1
        if upper[number] <= lower[number]:
            return
        for number in range(LINE_SIZE):
            upper[number], lower[number] = lower[number], upper[number]


@compiled
def _turn(line: Numbers) -> None:
    """Let the line begin with the smaller end."""
    for number in range(4):
        if line[number] != line[4 + number]:
            if line[number] > line[4 + number]:
                for each in range(4):
                    line[each], line[4 + each] = line[4 + each], line[each]
            return
