"""Programs: a topology with colours and weights, kept if its states are small (arXiv 2406.02470).

For each topology in turn, up to 100 attempts: both ends of every line get a colour, uniform out of two of the
three (2D) or all three (3D), and the line a weight out of {-1, 1} (weighted) or 1; the order of lines and of
the ends of each is random. An attempt is rejected if for N = 0, 1 or 2 edges that are written alike
add up to weight 0, if the state is empty, or if it has too many kets. The first success is the sample.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from corax.compiled import compiled
from corax.tasks.quantum.generator import formulas
from corax.tasks.quantum.generator.layout import LARGEST, Columns
from corax.tasks.quantum.generator.matchings import (
    Amplitudes,
    Colouring,
    Graphs,
    Int64,
    Workspace,
    expand,
    has_zero_edge,
    sum_matchings,
)
from corax.tasks.quantum.generator.rng import HALF, State, next_word
from corax.tasks.quantum.generator.rows import write_code, write_state
from corax.tasks.quantum.generator.topologies import Topologies

ATTEMPTS = 100
"""Colourings tried for one topology in one pass."""
PALETTES = np.array([[0, 1, 0], [0, 2, 0], [1, 2, 0], [0, 1, 2]])
"""Two of the three colours, or all."""
COLOUR_PAIRS = np.uint64(3)
ONE = np.uint64(1)
LOW_HALF = np.uint64(0xFFFFFFFF)


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
        expand(positions[place], base, loop, graphs)
        palette = PALETTES[next_word(rng) % COLOUR_PAIRS] if colours == 2 else PALETTES[COLOUR_PAIRS]
        for _ in range(ATTEMPTS):
            attempts += 1
            if _attempt(base, base + loop, colours, weighted, limits, rng, graphs, colouring, amplitudes):
                out.topology_ind[sample, 0] = family
                out.topology_ind[sample, 1] = numbers[place]
                out.line_count[sample, 0] = base
                out.line_count[sample, 1] = loop
                write_code(positions[place], base, base + loop, palette, rng, colouring, out.code[sample])
                write_state(palette, graphs, colouring, amplitudes, sample, out)
                sample += 1
                break
    return sample, attempts


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
        if weighted and has_zero_edge(n, graphs, colouring, amplitudes):
            return False
        kets, zeros = sum_matchings(n, len(amplitudes.kets) if weighted else limits[n], graphs, colouring, amplitudes)
        if kets == zeros or kets - zeros > limits[n]:
            return False
    return True
