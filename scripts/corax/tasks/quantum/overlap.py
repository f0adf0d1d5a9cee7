"""Fidelities of a program with given states, compiled: what `state.simulate` and `state.fidelity` give, faster.

The same sums over the same partial matchings, exactly, in 64-bit integers; numbers that could exceed those are left to
`state`.
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from corax.compiled import compiled
from corax.tasks.quantum import language, packed, state
from corax.tasks.quantum.language import Reason
from corax.tasks.quantum.packed import Packed
from corax.tasks.quantum.state import MAX_ADDITIONS, State

Int64 = npt.NDArray[np.int64]

LARGEST = 2**31
"""Most that absolute amplitudes may add up to: then all further sums and products are below 2^63."""
SLOTS = 1 << 19
"""Slots of the hash table of partial matchings: more than three times as many as there can be."""
FEW_SLOTS = 1 << 10
"""So many where they suffice: they stay in the processor's nearest memory."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: spreads keys over the slots (Knuth, The Art of Computer Programming 3, 6.4)."""
SHIFT = np.uint64(40)
"""Of the product only the upper bits are well mixed."""
LINE_SIZE = packed.LINE_SIZE
COLOURS = len(language.COLOURS)
BITS, WEIGHT, LOW, NEXT, COLUMNS = range(5)
"""Columns of edges: vertices above their ket, as in `state`; weight; lower vertex; the next edge with the same lower
vertex, or -1."""
AMPLITUDE = 1
"""Partial matchings have BITS and AMPLITUDE."""
STATE, SELF_LOOP, OUT_OF_RANGE, MISSING_VERTEX, NO_MATCHING, CANCELLED, TOO_DENSE, TOO_LARGE = range(8)
"""Whether a program has a state, or why not."""
REASONS = (
    None,
    Reason.SELF_LOOP,
    Reason.OUT_OF_RANGE,
    Reason.MISSING_VERTEX,
    Reason.NO_MATCHING,
    Reason.CANCELLED,
    Reason.TOO_DENSE,
)


class Wanted(NamedTuple):
    """States for N = 0, 1, …; the entries of size N of `kets` and `amplitudes` are start[N] … start[N+1]-1."""

    states: tuple[State, ...]
    norms: tuple[int, ...]
    """Sums of the squared amplitudes."""
    kets: Int64
    amplitudes: Int64
    start: Int64
    large: bool
    """Whether the amplitudes are too large for compiled code; then `amplitudes` is zero."""


class Workspace(NamedTuple):
    """Memory of the compiled code."""

    partial: Int64
    """(2, partial matching, 2): BITS and AMPLITUDE, of the level that is read and of the one that is made."""
    slot: Int64
    """(slots + 1, 2): the level that an entry belongs to, and where in it the partial matching with this hash is; the
    last row counts the levels."""


@cache
def _workspace() -> Workspace:
    return Workspace(
        np.zeros((2, MAX_ADDITIONS, 2), np.int64),
        np.zeros((SLOTS + 1, 2), np.int64),
    )


def wanted(states: Sequence[State]) -> Wanted:
    """The states that programs are compared with."""
    large = any(sum(map(abs, each.values())) > LARGEST for each in states)
    return Wanted(
        tuple(states),
        tuple(sum(value * value for value in each.values()) for each in states),
        np.array([ket for each in states for ket in each], np.int64),
        np.array([0 if large else value for each in states for value in each.values()], np.int64),
        np.array(list(accumulate(map(len, states), initial=0)), np.int64),
        large,
    )


def fidelities(program: Packed, references: Wanted) -> list[tuple[int, int, Reason | None]]:
    """For N = 0, 1, … the fidelity with the reference as numerator and denominator; and why the program has no state,
    where it has none."""
    found = np.empty((len(references.states), 3), np.int64)
    _overlaps(
        np.frombuffer(program, np.int8), references.kets, references.amplitudes, references.start, _workspace(), found
    )
    results = []
    for size, (code, overlap, norm) in enumerate(found.tolist()):
        if code == TOO_LARGE or references.large:
            own, reason = state.simulate(packed.unpack(program), size)
            results.append((*state.fidelity(own, references.states[size]).as_integer_ratio(), reason))
        elif overlap:
            results.append((overlap * overlap, norm * references.norms[size], None))
        else:
            results.append((0, 1, REASONS[code]))
    return results


@compiled
def _overlaps(
    numbers: packed.Numbers, kets: Int64, amplitudes: Int64, start: Int64, work: Workspace, found: Int64
) -> None:
    """Fill `found` (sizes × 3): STATE or why there is none, ⟨state|reference⟩ and ⟨state|state⟩.

    `numbers` are those of a packed program.
    """
    base, lines = numbers[0], numbers[1:].reshape(-1, LINE_SIZE)
    for size in range(len(found)):
        vertices = 4 + 2 * size
        overlap, norm = 0, 0
        code, edge = _merge(lines, base, size, vertices)
        if code == STATE:
            code, count, level, slots = _add_up(vertices, edge, work)
            for each in range(count):
                norm += work.partial[level, each, AMPLITUDE] ** 2
            if code == STATE and norm == 0:
                code = CANCELLED
            if code == STATE:
                ends = ((1 << vertices) - 1) << 2 * vertices
                for each in range(start[size], start[size + 1]):
                    slot = _slot(kets[each] | ends, level, slots, work)
                    if work.slot[slot, 0] == work.slot[-1, 0]:
                        overlap += amplitudes[each] * work.partial[level, work.slot[slot, 1], AMPLITUDE]
        found[size, 0], found[size, 1], found[size, 2] = code, overlap, norm


@compiled
def _merge(lines: packed.Numbers, base: int, size: int, vertices: int) -> tuple[int, Int64]:
    """(STATE or why there is none, edges × COLUMNS but NEXT), identical edges added up."""
    edge = np.empty((vertices * (vertices - 1) // 2 * COLOURS**2, COLUMNS), np.int64)
    number = np.zeros((vertices, vertices, COLOURS, COLOURS), np.int16)  # of an edge, from 1; 0: not yet there
    covered, edges = 0, 0
    looped, outside = False, False
    for row in range(len(lines)):
        for ii in range(1 if row < base else size):
            p, colour_p = lines[row, 0] + lines[row, 1] * size + lines[row, 2] * ii, lines[row, 3]
            q, colour_q = lines[row, 4] + lines[row, 5] * size + lines[row, 6] * ii, lines[row, 7]
            if p > q:
                p, q, colour_p, colour_q = q, p, colour_q, colour_p
            if p == q:
                looped = True
            elif p < 0 or q >= vertices:
                outside = True
            else:
                covered |= 1 << p | 1 << q
                if number[p, q, colour_p, colour_q] == 0:
                    ket = colour_p << 2 * (vertices - 1 - p) | colour_q << 2 * (vertices - 1 - q)
                    edge[edges, BITS] = (1 << p | 1 << q) << 2 * vertices | ket
                    edge[edges, WEIGHT], edge[edges, LOW] = 0, p
                    edges += 1
                    number[p, q, colour_p, colour_q] = edges
                edge[number[p, q, colour_p, colour_q] - 1, WEIGHT] += lines[row, 8]
    code = STATE if covered == (1 << vertices) - 1 else MISSING_VERTEX
    return SELF_LOOP if looped else OUT_OF_RANGE if outside else code, edge[:edges]


@compiled
def _add_up(vertices: int, edge: Int64, work: Workspace) -> tuple[int, int, int, int]:
    """The same as `state.amplitudes`: (what became of it, number of kets, their level in `partial`, slots of that)."""
    first = np.full(vertices, -1)
    choices = np.zeros(vertices, np.int64)
    for each in range(len(edge)):
        low = edge[each, LOW]
        if edge[each, WEIGHT]:
            edge[each, NEXT], first[low] = first[low], each
            choices[low] += 1
    ends = ((1 << vertices) - 1) << 2 * vertices
    level, count, additions, slots = 0, 1, 0, SLOTS
    work.partial[0, 0, BITS], work.partial[0, 0, AMPLITUDE] = 0, 1
    for _ in range(vertices // 2):
        work.slot[-1, 0] += 1
        slots = FEW_SLOTS if count * choices.max() < FEW_SLOTS // 2 else SLOTS
        made, total = 0, 0
        for number in range(count):
            partial, amplitude = work.partial[level, number, BITS], work.partial[level, number, AMPLITUDE]
            vertex = 0
            while partial >> (2 * vertices + vertex) & 1:
                vertex += 1
            additions += choices[vertex]
            if additions > MAX_ADDITIONS:
                return TOO_DENSE, 0, 0, 0
            each = first[vertex]
            while each >= 0:
                if not edge[each, BITS] & partial & ends:
                    whole = partial | edge[each, BITS]
                    slot = _slot(whole, 1 - level, slots, work)
                    if work.slot[slot, 0] != work.slot[-1, 0]:
                        work.slot[slot, 0], work.slot[slot, 1] = work.slot[-1, 0], made
                        work.partial[1 - level, made, BITS], work.partial[1 - level, made, AMPLITUDE] = whole, 0
                        made += 1
                    work.partial[1 - level, work.slot[slot, 1], AMPLITUDE] += amplitude * edge[each, WEIGHT]
                each = edge[each, NEXT]
        level, count = 1 - level, made
        for number in range(count):
            total += abs(work.partial[level, number, AMPLITUDE])
        if total > LARGEST:
            return TOO_LARGE, 0, 0, 0
    return (STATE if count else NO_MATCHING), count, level, slots


@compiled
def _slot(bits: int, level: int, slots: int, work: Workspace) -> int:
    """Where among so many `slots` a partial matching of the latest level is, or would be."""
    slot = int(np.int64((np.uint64(bits) * FACTOR) >> SHIFT)) & (slots - 1)
    while work.slot[slot, 0] == work.slot[-1, 0] and work.partial[level, work.slot[slot, 1], BITS] != bits:
        slot = (slot + 1) & (slots - 1)
    return slot
