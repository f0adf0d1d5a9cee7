"""Topologies: random patterns of program lines, before colours and weights (arXiv 2406.02470).

A pattern is drawn as numbers of lines, uniform in the ranges of its length, and a uniform position for every
end of a line. It is accepted if for N = 0, 1 and 2 no edge joins a vertex to itself, every vertex has the least
degree (parallel edges count), and every edge belongs to a perfect matching.

About one draw in a million passes. Most fail by an edge from a vertex to itself, so those are not drawn at all:
108 of the 196 pairs of base positions and 1220 of the 1936 of the loop never coincide, which is to say that a
pattern of b and l lines survives that test with probability (108/196)^b · (1220/1936)^l. Drawing the
numbers of lines in proportion to it, then uniform pairs out of the allowed ones, gives the same distribution
and passes about a thousand times as often.
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from corax.compiled import compiled
from corax.progress import Progress
from corax.tasks.quantum.generator import formulas
from corax.tasks.quantum.generator.rng import State, below, next_word

MAX_LINES = 22
FAMILIES = ("LONG_DEG2", "SHORT_DEG2", "LONG_DEG1", "SHORT_DEG1")
"""Families of topologies; the place in this list is the number that data files hold."""
LINES = {"LONG": (range(4, 12), range(2, 12)), "SHORT": (range(4, 8), range(2, 6))}
"""How many base lines and loop lines a pattern may have."""
DRAWS_AT_ONCE = 2_000_000

_edge_number = np.vectorize(formulas.edge_number, otypes=[np.int64])
BASE_EDGE = _edge_number(*np.moveaxis(formulas.BASE_VERTEX[formulas.BASE_PAIRS], 1, 0))
"""(108, N): the edge that an allowed pair of base positions gives."""
LOOP_EDGE = _edge_number(*np.moveaxis(formulas.LOOP_VERTEX[formulas.LOOP_PAIRS], 1, 0))
"""(1220, N, ii): the same for the loop, for ii < N."""
EDGE_BIT = np.array([1 << edge for edge in range(formulas.EDGES)], np.uint64)
EDGE_DEGREE = np.array([(1 << 8 * p) + (1 << 8 * q) for q in range(8) for p in range(q)], np.uint64)
"""One byte a vertex: what an edge adds to the degrees."""
TOP_BITS = np.array([0x80808080, 0x808080808080, 0x8080808080808080], np.uint64)
COMPLEMENT = np.array([0, 0x7F7F7F7F7F7F7F7F, 0x7E7E7E7E7E7E7E7E], np.uint64)
"""By least degree: added to a byte, it sets the top bit where the degree suffices."""
PAIRING_BITS = np.zeros((formulas.SIZES, len(formulas.PAIRINGS[-1])), np.uint64)
for _n, _pairings in enumerate(formulas.PAIRINGS):
    PAIRING_BITS[_n, : len(_pairings)] = [sum(1 << edge for edge in pairing) for pairing in _pairings]
PAIRINGS = np.array([len(pairings) for pairings in formulas.PAIRINGS])
NOTHING = np.uint64(0)


@dataclass(frozen=True)
class Topologies:
    """Accepted patterns of one family.

    `positions` (count, MAX_LINES, 2) int64: positions by number (base lines first), `lines` (count, 2) int64: base
    and loop lines, `numbers` (count,) int64: place in the family, `draws`: how many patterns were tried.
    """

    positions: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]
    draws: int

    def __len__(self) -> int:
        return len(self.lines)

    def select(self, chosen: npt.NDArray[np.int64]) -> "Topologies":
        """Those at the places `chosen`."""
        return Topologies(self.positions[chosen], self.lines[chosen], self.numbers[chosen], self.draws)

    def canonical(self, place: int) -> tuple[list[list[int]], ...]:
        """The pattern at `place` whatever the order of its lines and of their ends: (base, loop)."""
        base, loop = self.lines[place]
        pattern = np.sort(self.positions[place, : base + loop], axis=1).tolist()
        return sorted(pattern[:base]), sorted(pattern[base:])


def draw(family: str, count: int, rng: State) -> Topologies:
    """`count` different topologies of `family` (one of FAMILIES), in the order in which they were found."""
    length, degree = family.split("_DEG")
    base_lines, loop_lines = LINES[length]
    base_steps = _steps(base_lines, Fraction(len(formulas.BASE_PAIRS), len(formulas.BASE) ** 2))
    loop_steps = _steps(loop_lines, Fraction(len(formulas.LOOP_PAIRS), len(formulas.LOOP) ** 2))
    positions = np.zeros((count, MAX_LINES, 2), np.int64)
    lines = np.zeros((count, 2), np.int64)
    seen: set[str] = set()
    draws = 0
    found = Topologies(positions, lines, np.arange(count), 0)
    with Progress(f"topologies {family}", count, "topology") as progress:
        while len(seen) < count:
            place = len(seen)
            accepted, tried = _search(
                int(degree), base_lines[0], base_steps, loop_lines[0], loop_steps, rng, positions[place], lines[place]
            )
            draws += tried
            if accepted:
                seen.add(repr(found.canonical(place)))
                progress.advance(len(seen) - place)
    return Topologies(positions, lines, found.numbers, draws)


def accepts(family: str, base: list[list[int]], loop: list[list[int]]) -> bool:
    """Whether a pattern, given as pairs of position numbers, is a topology of `family`."""
    length, degree = family.split("_DEG")
    base_lines, loop_lines = LINES[length]
    if len(base) not in base_lines or len(loop) not in loop_lines:
        return False
    allowed_base, allowed_loop = formulas.BASE_PAIRS.tolist(), formulas.LOOP_PAIRS.tolist()
    if not (all(pair in allowed_base for pair in base) and all(pair in allowed_loop for pair in loop)):
        return False
    bases = np.array([allowed_base.index(pair) for pair in base])
    loops = np.array([allowed_loop.index(pair) for pair in loop])
    return all(_is_matched(bases, loops if n else loops[:0], n, int(degree)) for n in range(formulas.SIZES))


def _steps(lines: range, survival: Fraction) -> npt.NDArray[np.uint64]:
    """Cumulated probabilities ∝ survival^lines, in units of 2^-64, without the last (which is 1)."""
    weights = list(accumulate(survival**count for count in lines))
    return np.array([int(weight / weights[-1] * 2**64) for weight in weights[:-1]], np.uint64)


@compiled
def _step(steps: npt.NDArray[np.uint64], rng: State) -> int:
    """A random number from 0 to len(steps), distributed as `steps` says."""
    word = next_word(rng)
    number = 0
    for step in steps:
        if word >= step:
            number += 1
    return number


@compiled
def _is_matched(bases: npt.NDArray[np.int64], loops: npt.NDArray[np.int64], n: int, degree: int) -> bool:
    """Whether at size `n` all degrees suffice and every edge lies in a perfect matching."""
    edges = NOTHING
    degrees = NOTHING
    for pair in bases:
        edge = BASE_EDGE[pair, n]
        edges |= EDGE_BIT[edge]
        degrees += EDGE_DEGREE[edge]
    for pair in loops:
        for ii in range(n):
            edge = LOOP_EDGE[pair, n, ii]
            edges |= EDGE_BIT[edge]
            degrees += EDGE_DEGREE[edge]
    if (degrees + COMPLEMENT[degree]) & TOP_BITS[n] != TOP_BITS[n]:
        return False
    matched = NOTHING
    for number in range(PAIRINGS[n]):
        pairing = PAIRING_BITS[n, number]
        if pairing & edges == pairing:
            matched |= pairing
    return bool(matched == edges)


@compiled
def _search(
    degree: int,
    base_least: int,
    base_steps: npt.NDArray[np.uint64],
    loop_least: int,
    loop_steps: npt.NDArray[np.uint64],
    rng: State,
    positions: npt.NDArray[np.int64],
    lines: npt.NDArray[np.int64],
) -> tuple[bool, int]:
    """Draw until a pattern is accepted, at most DRAWS_AT_ONCE times; (found, draws)."""
    bases = np.zeros(MAX_LINES, np.int64)
    loops = np.zeros(MAX_LINES, np.int64)
    for tried in range(1, DRAWS_AT_ONCE + 1):
        base = base_least + _step(base_steps, rng)
        for line in range(base):
            bases[line] = below(len(formulas.BASE_PAIRS), rng)
        loop = 0
        n = 0
        while n < formulas.SIZES and _is_matched(bases[:base], loops[:loop], n, degree):
            if n == 0:
                loop = loop_least + _step(loop_steps, rng)
                for line in range(loop):
                    loops[line] = below(len(formulas.LOOP_PAIRS), rng)
            n += 1
        if n == formulas.SIZES:
            lines[0], lines[1] = base, loop
            for end in range(2):
                for line in range(base):
                    positions[line, end] = formulas.BASE_PAIRS[bases[line], end]
                for line in range(loop):
                    positions[base + line, end] = formulas.LOOP_PAIRS[loops[line], end]
            return True, tried
    return False, DRAWS_AT_ONCE
