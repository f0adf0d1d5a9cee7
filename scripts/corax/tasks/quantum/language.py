"""The program language: a few lines `e(p,q,c,d,w)` with one free integer N, and one loop.

    e(+0+0*N,+1+0*N,0,0,1)
    for ii in range(N):
        e(+1+0*N+2*ii,+2+0*N+2*ii,1,1,1)

A line adds an edge between the vertices p and q, in colour c at p and d at q, with integer weight w. Loop lines
run for ii = 0 … N-1. A program comes from a model, so it is read by a grammar and never executed; reading is
linear in the length of a text, and a long text is refused unread.
"""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

LOOP_HEADER = "for ii in range(N):"
INDENT = "    "
MAX_LINES = 64
MAX_LINE_LENGTH = 200
MAX_NUMBER = 99
"""Largest absolute coefficient or weight."""
COLOURS = ("0", "1", "2")

_INTEGER = "(?:0|[1-9][0-9]*)"
_LINE = re.compile(r"e\(([^,]*),([^,]*),([^,]*),([^,]*),([^,]*)\)")
_TERM = re.compile(rf"([+-]?)(?:({_INTEGER})(?:\*(N|ii))?|(N|ii)(?:\*({_INTEGER}))?)")
_SIGNED = re.compile(rf"[+-]?{_INTEGER}")


class Reason(StrEnum):
    """Why a text is no program, or why a program does not give the wanted state at some size."""

    EMPTY = "empty"
    TOO_LONG = "too long"
    SYNTAX = "syntax"
    LOOP_VARIABLE = "ii outside the loop"
    COEFFICIENT = "coefficient too large"
    COLOUR = "unknown colour"
    WEIGHT = "weight too large"
    SELF_LOOP = "self-loop"
    OUT_OF_RANGE = "vertex out of range"
    MISSING_VERTEX = "vertex without edge"
    NO_MATCHING = "no perfect matching"
    CANCELLED = "all amplitudes cancel"
    TOO_DENSE = "too dense"
    WRONG_STATE = "wrong state"


class ProgramError(ValueError):
    """A text that is no program: `reason`, and the line (from 1) where that shows."""

    def __init__(self, reason: Reason, line: int) -> None:
        super().__init__(f"line {line}: {reason}")
        self.reason = reason
        self.line = line


class Position(NamedTuple):
    """The formula constant + n·N + ii·ii of a vertex."""

    constant: int
    n: int
    ii: int = 0


class Line(NamedTuple):
    """One edge formula: vertex `p` in colour `colour_p`, vertex `q` in `colour_q`."""

    p: Position
    q: Position
    colour_p: int
    colour_q: int
    weight: int


class Program(NamedTuple):
    """Lines that run once, and lines that run N times."""

    base: tuple[Line, ...]
    loop: tuple[Line, ...] = ()


Edge = tuple[int, int, int, int, int]
"""An edge of the graph for one size: p, q, colour at p, colour at q, weight, as in a program line."""


def vertices(size: int) -> int:
    """Number of vertices (particles) for N = `size`."""
    return 4 + 2 * size


def parse(text: str) -> Program:
    """The program in a text; raises ProgramError.

    Beyond the training programs' grammar it accepts other signed integers, missing terms, terms in any order,
    `ii*2`, no loop, and one newline at the end.
    """
    text = text.removesuffix("\n")
    if not text:
        raise ProgramError(Reason.EMPTY, 1)
    if len(text) > MAX_LINES * (MAX_LINE_LENGTH + 1):
        raise ProgramError(Reason.TOO_LONG, 1)
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        raise ProgramError(Reason.TOO_LONG, MAX_LINES + 1)
    header = lines.index(LOOP_HEADER) if LOOP_HEADER in lines else len(lines)
    base = _block(lines[:header], 1, loop=False)
    loop = _block(lines[header + 1 :], header + 2, loop=True)
    if not base or (header < len(lines) and not loop):
        raise ProgramError(Reason.SYNTAX, header + 1)
    return Program(base, loop)


def _block(lines: Sequence[str], first: int, loop: bool) -> tuple[Line, ...]:
    """The lines of a block whose first one has the number `first`."""
    found = []
    for number, line in enumerate(lines, first):
        try:
            found.append(_line(line, loop))
        except _RefusedError as error:
            raise ProgramError(error.reason, number) from None
    return tuple(found)


class _RefusedError(ValueError):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def _line(text: str, loop: bool) -> Line:
    if len(text) > MAX_LINE_LENGTH:
        raise _RefusedError(Reason.TOO_LONG)
    match = _LINE.fullmatch(text, len(INDENT) if loop else 0)
    if not match or (loop and not text.startswith(INDENT)):
        raise _RefusedError(Reason.SYNTAX)
    p, q, colour_p, colour_q, weight = match.groups()
    return Line(
        _position(p, loop),
        _position(q, loop),
        _colour(colour_p),
        _colour(colour_q),
        _weight(weight),
    )


def _position(text: str, loop: bool) -> Position:
    coefficients: dict[str, int] = {}
    start = 0
    while start < len(text) or not coefficients:
        match = _TERM.match(text, start)
        if not match or (start and not match[1]):
            raise _RefusedError(Reason.SYNTAX)
        variable = match[3] or match[4] or ""
        if variable in coefficients:
            raise _RefusedError(Reason.SYNTAX)
        if variable == "ii" and not loop:
            raise _RefusedError(Reason.LOOP_VARIABLE)
        size = int(match[2] or match[5] or 1)
        if size > MAX_NUMBER:
            raise _RefusedError(Reason.COEFFICIENT)
        coefficients[variable] = -size if match[1] == "-" else size
        start = match.end()
    return Position(coefficients.get("", 0), coefficients.get("N", 0), coefficients.get("ii", 0))


def _colour(text: str) -> int:
    if text not in COLOURS:
        raise _RefusedError(Reason.COLOUR if _SIGNED.fullmatch(text) else Reason.SYNTAX)
    return int(text)


def _weight(text: str) -> int:
    if not _SIGNED.fullmatch(text):
        raise _RefusedError(Reason.SYNTAX)
    if abs(int(text)) > MAX_NUMBER:
        raise _RefusedError(Reason.WEIGHT)
    return int(text)


def edges(program: Program, size: int) -> list[Edge]:
    """The edges for N = `size` as the program adds them: identical ones are not merged, none is left out."""
    found = [(a + b * size, d + e * size, c, g, w) for (a, b, _), (d, e, _), c, g, w in program.base]
    for ii in range(size):
        found += [
            (a + b * size + k * ii, d + e * size + m * ii, c, g, w) for (a, b, k), (d, e, m), c, g, w in program.loop
        ]
    return found


def ill_formed(graph: Iterable[Edge], count: int) -> Reason | None:
    """Why edges are no graph on the vertices 0 … `count`-1; None if they are one that leaves no vertex out."""
    found = set()
    for p, q, _, _, _ in graph:
        if p == q:
            return Reason.SELF_LOOP
        found |= {p, q}
    if not found <= set(range(count)):
        return Reason.OUT_OF_RANGE
    return None if len(found) == count else Reason.MISSING_VERTEX


def to_text(program: Program) -> str:
    """The program in the grammar of the training data."""
    lines = [_to_line(line, False) for line in program.base]
    if program.loop:
        lines += [LOOP_HEADER, *(INDENT + _to_line(line, True) for line in program.loop)]
    return "\n".join(lines)


def _to_line(line: Line, loop: bool) -> str:
    p, q = (f"{at.constant:+d}{at.n:+d}*N" + (f"{at.ii:+d}*ii" if loop else "") for at in (line.p, line.q))
    return f"e({p},{q},{line.colour_p},{line.colour_q},{line.weight})"
