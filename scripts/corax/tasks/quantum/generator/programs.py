"""Programs: a topology with colours and weights, kept if its states are small (arXiv 2406.02470).

For each topology in turn, up to 100 attempts: both ends of every line get a colour, uniform out of two of the
three (2D) or all three (3D), and the line a weight out of {-1, 1} (weighted) or 1; the order of lines and of
the ends of each is random. An attempt is rejected if for N = 0, 1 or 2 edges that are written alike
add up to weight 0, if the state is empty, or if it has too many kets. The first success is the sample.

The state: every perfect matching colours all vertices, which is its ket, and contributes the product of
its weights to that ket's amplitude. Colours do not change which lines match, so the matchings of a topology are
listed once and an attempt only adds up. A ket is an integer with two bits a vertex, vertex 0 highest, so that
the order of the integers is the order of the texts.
"""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from corax.compiled import compiled
from corax.tasks.quantum.generator import formulas
from corax.tasks.quantum.generator.layout import LARGEST, VOCABULARY, Columns
from corax.tasks.quantum.generator.rng import HALF, State, next_word, shuffle
from corax.tasks.quantum.generator.topologies import MAX_LINES, Topologies

ATTEMPTS = 100
"""Colourings tried for one topology in one pass."""
MAX_EDGES = 33
"""11 base lines and twice 11 loop lines."""
MAX_MATCHINGS = 4632
"""33 edges on 8 vertices have most matchings when they are spread over four disjoint pairs: (33/4)^4."""
KETS = 1 << 16
NO_EDGE = formulas.EDGES
"""Number of the edge that fills up the matchings of small graphs; it adds nothing."""


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

PALETTES = np.array([[0, 1, 0], [0, 2, 0], [1, 2, 0], [0, 1, 2]])
"""Two of the three colours, or all."""
COLOUR_PAIRS = np.uint64(3)
PAIRING_COUNT = np.array([len(pairings) for pairings in formulas.PAIRINGS])
PAIRING_EDGES = np.full((formulas.SIZES, len(formulas.PAIRINGS[-1]), 4), NO_EDGE)
for _n, _pairings in enumerate(formulas.PAIRINGS):
    PAIRING_EDGES[_n, : len(_pairings), : 2 + _n] = _pairings
ONE = np.uint64(1)
LOW_HALF = np.uint64(0xFFFFFFFF)

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Configuration:
    """One of the 32 kinds of programs: SHORT or LONG, least degree, colours, weights, most kets for N = 0, 1, 2."""

    name: str
    family: str
    colours: int
    weighted: bool
    limits: tuple[int, ...]

    @classmethod
    def parse(cls, name: str) -> "Configuration":
        """From its name, such as SHORT_DEG1_2D_UNWEIGHTED_6-6-6."""
        length, degree, dimension, weights, kets = name.split("_")
        limits = tuple(int(limit) for limit in kets.split("-"))
        return cls(name, f"{length}_{degree}", int(dimension[0]), weights == "WEIGHTED", limits)


CONFIGURATIONS = tuple(
    "_".join(values)
    for values in product(
        ("SHORT", "LONG"), ("DEG1", "DEG2"), ("2D", "3D"), ("WEIGHTED", "UNWEIGHTED"), ("8-16-32", "6-6-6")
    )
)


class Graphs(NamedTuple):
    """The graphs of one topology for N = 0, 1, 2, without colours."""

    edges: Int64
    """(N,): number of edges, parallel ones counted."""
    line: Int64
    """(N, edge): the line that an edge comes from."""
    vertex: Int64
    """(N, edge, end): its vertices, as the line names them."""
    matchings: Int64
    """(N,): number of perfect matchings."""
    matching: npt.NDArray[np.int16]
    """(N, matching, 4): their edges."""
    bucket: Int64
    """(edge number, edge): the edges that join the same vertices, for one N."""
    bucket_size: Int64
    """(edge number,)"""


class Colouring(NamedTuple):
    """Colours and weights of the lines in the current attempt."""

    colour: Int64
    """(line, end): number of the colour, from 0."""
    weight: Int64
    """(line,)"""
    first: Int64
    """(line,): which end is written first."""


class Amplitudes(NamedTuple):
    """Sums by ket (or by coloured edge); an entry counts only if its stamp is the clock's."""

    clock: Int64
    """(1,)"""
    stamp: npt.NDArray[np.int32]
    """(KETS,)"""
    value: Int64
    """(KETS,)"""
    kets: Int64
    """(MAX_MATCHINGS,): the kets met since the clock's last tick."""
    part: Int64
    """(MAX_EDGES + 1,): what an edge adds to a ket."""
    weight: Int64
    """(MAX_EDGES + 1,): the edge's weight."""


class Workspace(NamedTuple):
    """Memory of the compiled functions."""

    graphs: Graphs
    colouring: Colouring
    amplitudes: Amplitudes

    @classmethod
    def allocate(cls) -> "Workspace":
        """All zero."""
        sizes = formulas.SIZES
        edges = MAX_EDGES + 1
        graphs = Graphs(
            np.zeros(sizes, np.int64),
            np.zeros((sizes, edges), np.int64),
            np.zeros((sizes, edges, 2), np.int64),
            np.zeros(sizes, np.int64),
            np.zeros((sizes, MAX_MATCHINGS, 4), np.int16),
            np.zeros((formulas.EDGES + 1, MAX_EDGES), np.int64),
            np.zeros(formulas.EDGES + 1, np.int64),
        )
        colouring = Colouring(
            np.zeros((MAX_LINES, 2), np.int64), np.zeros(MAX_LINES, np.int64), np.zeros(MAX_LINES, np.int64)
        )
        amplitudes = Amplitudes(
            np.zeros(1, np.int64),
            np.zeros(KETS, np.int32),
            np.zeros(KETS, np.int64),
            np.zeros(MAX_MATCHINGS, np.int64),
            np.zeros(edges, np.int64),
            np.zeros(edges, np.int64),
        )
        return cls(graphs, colouring, amplitudes)


def draw(
    topologies: Topologies, family: int, start: int, configuration: Configuration, rng: State, out: Columns
) -> tuple[int, int, int]:
    """Visit topologies from number `start` on, again from the first after the last, and store samples in `out`.

    Makes as many visits as `out` has rows; the samples fill its first rows. (samples, visits, attempts).
    """
    visits = len(out.code)
    samples, attempts = _draw(
        topologies.positions,
        topologies.lines,
        np.minimum(topologies.numbers, LARGEST),
        family,
        start,
        configuration.colours,
        configuration.weighted,
        np.array(configuration.limits),
        rng,
        Workspace.allocate(),
        out,
    )
    return int(samples), visits, int(attempts)


@compiled
def _draw(
    positions: Int64,
    lines: Int64,
    numbers: Int64,
    family: int,
    start: int,
    colours: int,
    weighted: bool,
    limits: Int64,
    rng: State,
    workspace: Workspace,
    out: Columns,
) -> tuple[int, int]:
    graphs, colouring, amplitudes = workspace
    sample = 0
    attempts = 0
    for visit in range(len(out.code)):
        place = (start + visit) % len(lines)
        base, loop = lines[place, 0], lines[place, 1]
        _expand(positions[place], base, loop, graphs)
        palette = PALETTES[next_word(rng) % COLOUR_PAIRS] if colours == 2 else PALETTES[COLOUR_PAIRS]
        for _ in range(ATTEMPTS):
            attempts += 1
            if _attempt(base, base + loop, colours, weighted, limits, rng, graphs, colouring, amplitudes):
                out.topology_ind[sample, 0] = family
                out.topology_ind[sample, 1] = numbers[place]
                out.line_count[sample, 0] = base
                out.line_count[sample, 1] = loop
                _write_code(positions[place], base, base + loop, palette, rng, colouring, out.code[sample])
                _write_state(palette, graphs, colouring, amplitudes, sample, out)
                sample += 1
                break
    return sample, attempts


@compiled
def _edge_number(p: int, q: int) -> int:
    return q * (q - 1) // 2 + p if p < q else p * (p - 1) // 2 + q


@compiled
def _expand(positions: Int64, base: int, loop: int, graphs: Graphs) -> None:
    """Fill `graphs` with the edges and perfect matchings of a pattern."""
    bucket, size = graphs.bucket, graphs.bucket_size
    for n in range(formulas.SIZES):
        size[:] = 0
        edges = 0
        for line in range(base + loop):
            for ii in range(1 if line < base else n):
                for end in range(2):
                    position = positions[line, end]
                    graphs.vertex[n, edges, end] = (
                        formulas.BASE_VERTEX[position, n] if line < base else formulas.LOOP_VERTEX[position, n, ii]
                    )
                graphs.line[n, edges] = line
                number = _edge_number(graphs.vertex[n, edges, 0], graphs.vertex[n, edges, 1])
                bucket[number, size[number]] = edges
                size[number] += 1
                edges += 1
        graphs.edges[n] = edges
        bucket[NO_EDGE, 0] = edges
        size[NO_EDGE] = 1
        count = 0
        for number in range(PAIRING_COUNT[n]):
            pairing = PAIRING_EDGES[n, number]
            for k0 in range(size[pairing[0]]):
                for k1 in range(size[pairing[1]]):
                    for k2 in range(size[pairing[2]]):
                        for k3 in range(size[pairing[3]]):
                            matching = graphs.matching[n, count]
                            matching[0] = bucket[pairing[0], k0]
                            matching[1] = bucket[pairing[1], k1]
                            matching[2] = bucket[pairing[2], k2]
                            matching[3] = bucket[pairing[3], k3]
                            count += 1
        graphs.matchings[n] = count


@compiled
def _attempt(
    base: int,
    lines: int,
    colours: int,
    weighted: bool,
    limits: Int64,
    rng: State,
    graphs: Graphs,
    colouring: Colouring,
    amplitudes: Amplitudes,
) -> bool:
    """Draw colours and weights; whether the states for N = 0, 1, 2 pass."""
    coloured = 0
    for n in range(formulas.SIZES):
        for line in range(coloured, base if n == 0 else lines):
            word = next_word(rng)
            colouring.colour[line, 0] = ((word >> HALF) * np.uint64(colours)) >> HALF
            colouring.colour[line, 1] = ((word & LOW_HALF) * np.uint64(colours)) >> HALF
            colouring.first[line] = word & ONE
            colouring.weight[line] = -1 if weighted and (word >> HALF) & ONE == ONE else 1
            coloured = line + 1
        if weighted and _has_zero_edge(n, graphs, colouring, amplitudes):
            return False
        kets, zeros = _sum_matchings(n, len(amplitudes.kets) if weighted else limits[n], graphs, colouring, amplitudes)
        if kets == zeros or kets - zeros > limits[n]:
            return False
    return True


@compiled
def _has_zero_edge(n: int, graphs: Graphs, colouring: Colouring, amplitudes: Amplitudes) -> bool:
    """Whether edges written alike (same ends and colours in the same order) cancel."""
    amplitudes.clock[0] += 1
    for edge in range(graphs.edges[n]):
        line = graphs.line[n, edge]
        first = colouring.first[line]
        key = graphs.vertex[n, edge, first] * 8 + graphs.vertex[n, edge, 1 - first]
        key = (key * 3 + colouring.colour[line, first]) * 3 + colouring.colour[line, 1 - first]
        amplitudes.part[edge] = key
        if amplitudes.stamp[key] != amplitudes.clock[0]:
            amplitudes.stamp[key] = amplitudes.clock[0]
            amplitudes.value[key] = 0
        amplitudes.value[key] += colouring.weight[line]
    cancelled = 0
    for key in amplitudes.part[: graphs.edges[n]]:
        if amplitudes.value[key] == 0:
            cancelled += 1
    return cancelled > 0


@compiled
def _sum_matchings(n: int, most: int, graphs: Graphs, colouring: Colouring, amplitudes: Amplitudes) -> tuple[int, int]:
    """Add up the amplitudes at size `n`; (kets, kets of amplitude 0). Stops early at more than `most` kets."""
    amplitudes.clock[0] += 1
    edges = graphs.edges[n]
    for edge in range(edges):
        line = graphs.line[n, edge]
        first = colouring.colour[line, 0] << 2 * (3 + 2 * n - graphs.vertex[n, edge, 0])
        second = colouring.colour[line, 1] << 2 * (3 + 2 * n - graphs.vertex[n, edge, 1])
        amplitudes.part[edge] = first | second
        amplitudes.weight[edge] = colouring.weight[line]
    amplitudes.part[edges] = 0
    amplitudes.weight[edges] = 1
    kets = 0
    for number in range(graphs.matchings[n]):
        ket = 0
        weight = 1
        for k in range(4):
            edge = graphs.matching[n, number, k]
            ket |= amplitudes.part[edge]
            weight *= amplitudes.weight[edge]
        if amplitudes.stamp[ket] != amplitudes.clock[0]:
            if kets == most:
                return kets + 1, 0
            amplitudes.stamp[ket] = amplitudes.clock[0]
            amplitudes.value[ket] = 0
            amplitudes.kets[kets] = ket
            kets += 1
        amplitudes.value[ket] += weight
    zeros = 0
    for number in range(kets):
        if amplitudes.value[amplitudes.kets[number]] == 0:
            zeros += 1
    return kets, zeros


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
def _put(row: npt.NDArray[np.int8], length: int, tokens: Int64) -> int:
    """Append tokens to the row; its new length."""
    for token in tokens:
        row[length] = token
        length += 1
    return length


@compiled
def _write_code(
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
def _write_state(
    palette: Int64, graphs: Graphs, colouring: Colouring, amplitudes: Amplitudes, sample: int, out: Columns
) -> None:
    """Write the states for N = 0, 1, 2 in canonical form, and what is counted about them."""
    row = out.state[sample]
    row[:] = 0
    length = 0
    for n in range(formulas.SIZES):
        count, zeros = _sum_matchings(n, len(amplitudes.kets), graphs, colouring, amplitudes)
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
def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


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
        number = _edge_number(p, q)
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
