"""Rows of the published layout: a program and its states as tokens, and what is counted about them."""

import numpy as np
import numpy.typing as npt

from corax.compiled import compiled
from corax.tasks.quantum.generator import formulas
from corax.tasks.quantum.generator.layout import LARGEST, VOCABULARY, Columns
from corax.tasks.quantum.generator.matchings import (
    NO_EDGE,
    PAIRING_COUNT,
    PAIRING_EDGES,
    Amplitudes,
    Colouring,
    Graphs,
    Int64,
    edge_number,
    sum_matchings,
)
from corax.tasks.quantum.generator.rng import State, shuffle


def _tokens(*rows: list[str]) -> npt.NDArray[np.int64]:
    return np.array([[VOCABULARY[token] for token in row] for row in rows])


(START,) = _tokens(["<SOS>"])
(END,) = _tokens(["<EOS>"])
(BASE_LINE,) = _tokens(["\n", "e("])
(LOOP_HEADER,) = _tokens(["\n", "for ii in range(N):"])
(LOOP_LINE,) = _tokens(["\n", "    ", "e("])
BASE_POSITION = _tokens(*([*f"+{a}+{b}*N,"] for a, b in formulas.BASE))
LOOP_POSITION = _tokens(*([*f"+{a}+{b}*N+{c}*", "ii", ","] for a, b, c in formulas.LOOP))
COLOUR = _tokens(*([*f"{colour},"] for colour in range(3)))
(WEIGHT_ONE,) = _tokens([*"1)"])
(WEIGHT_MINUS_ONE,) = _tokens([*"-1)"])
SIGN = _tokens([*"+-"])[0]
DIGIT = _tokens([*"0123456789"])[0]
(OPEN_KET,) = _tokens(["["])
(CLOSE_KET,) = _tokens(["]"])
(BAR,) = _tokens(["|"])
MODE = _tokens(*([path + mode for mode in "xyz"] for path in "abcdefgh"))


@compiled
def write_code(
    positions: Int64, base: int, lines: int, palette: Int64, rng: State, colouring: Colouring, row: npt.NDArray[np.int8]
) -> None:
    """Write the program with its lines in random order."""
    order = np.arange(lines)
    shuffle(order[:base], rng)
    shuffle(order[base:], rng)
    row[:] = 0
    length = 0
    for number in range(lines):
        line = order[number]
        if number == base:
            length = _put(row, length, LOOP_HEADER)
        length = _put(row, length, BASE_LINE if number < base else LOOP_LINE)
        first = colouring.first[line]
        for end in (first, 1 - first):
            position = positions[line, end]
            length = _put(row, length, BASE_POSITION[position] if number < base else LOOP_POSITION[position])
        for end in (first, 1 - first):
            length = _put(row, length, COLOUR[palette[colouring.colour[line, end]]])
        length = _put(row, length, WEIGHT_ONE if colouring.weight[line] > 0 else WEIGHT_MINUS_ONE)
    _put(row, length, END)
    row[0] = START[0]  # in place of the first newline


@compiled
def write_state(
    palette: Int64, graphs: Graphs, colouring: Colouring, amplitudes: Amplitudes, sample: int, out: Columns
) -> None:
    """Write the states for N = 0, 1, 2 in canonical form, and what is counted about them."""
    row = out.state[sample]
    row[:] = 0
    length = 0
    for n in range(formulas.SIZES):
        count, zeros = sum_matchings(n, len(amplitudes.kets), graphs, colouring, amplitudes)
        kets = amplitudes.kets[:count]
        _sort(kets)
        divisor = 0
        for ket in kets:
            divisor = _gcd(abs(amplitudes.value[ket]), divisor)
        length = _put(row, length, START if n == 0 else BAR)
        for ket in kets:
            value = amplitudes.value[ket] // divisor
            if value != 0:
                length = _write_ket(ket, value, 4 + 2 * n, palette, row, length)
        out.num_kets[sample, n] = min(count - zeros, LARGEST)
        out.num_zero_kets[sample, n] = min(zeros, LARGEST)
        _count_merged(n, graphs, colouring, out.num_pms[sample], out.degrees_list[sample, n])
    _put(row, length, END)


@compiled
def _write_ket(ket: int, value: int, vertices: int, palette: Int64, row: npt.NDArray[np.int8], length: int) -> int:
    """Append sign, coefficient and colours of a ket; the new length."""
    row[length] = SIGN[0 if value > 0 else 1]
    length += 1
    power = 1
    while power * 10 <= abs(value):
        power *= 10
    while power > 0:
        row[length] = DIGIT[abs(value) // power % 10]
        length += 1
        power //= 10
    length = _put(row, length, OPEN_KET)
    for vertex in range(vertices):
        colour = (ket >> 2 * (vertices - 1 - vertex)) & 3
        row[length] = MODE[vertex, palette[colour]]
        length += 1
    return _put(row, length, CLOSE_KET)


@compiled
def _count_merged(
    n: int, graphs: Graphs, colouring: Colouring, matchings: npt.NDArray[np.int8], degrees: npt.NDArray[np.int8]
) -> None:
    """Count matchings and degrees after merging equal edges, whichever way round they are written."""
    colours, kinds = graphs.bucket, graphs.bucket_size
    kinds[:] = 0
    kinds[NO_EDGE] = 1
    degree = np.zeros(4 + 2 * n, np.int64)
    for edge in range(graphs.edges[n]):
        line = graphs.line[n, edge]
        p, q = graphs.vertex[n, edge, 0], graphs.vertex[n, edge, 1]
        first = 0 if p < q else 1
        coloured = colouring.colour[line, first] * 3 + colouring.colour[line, 1 - first]
        number = edge_number(p, q)
        new = True
        for kind in range(kinds[number]):
            if colours[number, kind] == coloured:
                new = False
        if new:
            colours[number, kinds[number]] = coloured
            kinds[number] += 1
            degree[p] += 1
            degree[q] += 1
    total = 0
    for number in range(PAIRING_COUNT[n]):
        pairing = PAIRING_EDGES[n, number]
        total += kinds[pairing[0]] * kinds[pairing[1]] * kinds[pairing[2]] * kinds[pairing[3]]
    matchings[n] = min(total, LARGEST)
    _sort(degree)
    for vertex in range(len(degree)):
        degrees[vertex] = min(degree[vertex], LARGEST)


@compiled
def _put(row: npt.NDArray[np.int8], length: int, tokens: Int64) -> int:
    """Append tokens to the row; its new length."""
    for token in tokens:
        row[length] = token
        length += 1
    return length


@compiled
def _sort(items: Int64) -> None:
    """Sort a few integers in place, ascending."""
    for last in range(1, len(items)):
        item = items[last]
        place = last
        while place > 0 and items[place - 1] > item:
            items[place] = items[place - 1]
            place -= 1
        items[place] = item


@compiled
def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a
