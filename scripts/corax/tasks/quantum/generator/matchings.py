"""The perfect matchings of a topology and what they add up to: the amplitudes of a coloured graph.

Every perfect matching colours all vertices, which is its ket, and contributes the product of its weights to that ket's
amplitude. Colours do not change which lines match, so the matchings of a topology are listed once and an attempt only
adds up. A ket is an integer with two bits a vertex, vertex 0 highest, so that the order of the integers is the order of
the texts.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from corax.compiled import compiled
from corax.tasks.quantum.generator import formulas
from corax.tasks.quantum.generator.topologies import MAX_LINES

Int64 = npt.NDArray[np.int64]

MAX_EDGES = 33
"""11 base lines and twice 11 loop lines."""
MAX_MATCHINGS = 4632
"""33 edges on 8 vertices have most matchings when they are spread over four disjoint pairs: (33/4)^4."""
KETS = 1 << 16
NO_EDGE = formulas.EDGES
"""Number of the edge that fills up the matchings of small graphs; it adds nothing."""

PAIRING_COUNT = np.array([len(pairings) for pairings in formulas.PAIRINGS])
PAIRING_EDGES = np.full((formulas.SIZES, len(formulas.PAIRINGS[-1]), 4), NO_EDGE)
for _n, _pairings in enumerate(formulas.PAIRINGS):
    PAIRING_EDGES[_n, : len(_pairings), : 2 + _n] = _pairings


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


@compiled
def edge_number(p: int, q: int) -> int:
    return q * (q - 1) // 2 + p if p < q else p * (p - 1) // 2 + q


@compiled
def expand(positions: Int64, base: int, loop: int, graphs: Graphs) -> None:
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
                number = edge_number(graphs.vertex[n, edges, 0], graphs.vertex[n, edges, 1])
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
def has_zero_edge(n: int, graphs: Graphs, colouring: Colouring, amplitudes: Amplitudes) -> bool:
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
def sum_matchings(n: int, most: int, graphs: Graphs, colouring: Colouring, amplitudes: Amplitudes) -> tuple[int, int]:
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
