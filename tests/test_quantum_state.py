"""States and fidelities against the specification's examples, brute force, and invariances."""

import json
import math
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corax.errors import CoraxError
from corax.tasks.quantum import language, overlap, packed, state, targets
from corax.tasks.quantum.language import Edge, Program, Reason

SLOWEST = 2000
"""Milliseconds for one text or graph, on a busy machine."""
DATA = Path(__file__).parent / "data" / "quantum"
PAIRS = json.loads((DATA / "pairs.json").read_text())
FIDELITIES = json.loads((DATA / "fidelity.json").read_text())
EXPECTED = [json.loads(line) for line in (DATA / "split_data_0.expected.jsonl").read_text().splitlines()]
GHZ = PAIRS[0]["program"]


def perfect_matchings(edges: list[Edge], vertices: int) -> Iterator[tuple[Edge, ...]]:
    """All of them the slow way: every choice of enough edges, tried."""
    for choice in combinations(edges, vertices // 2):
        if len({end for edge in choice for end in edge[:2]}) == vertices:
            yield choice


def brute_force(edges: list[Edge], vertices: int) -> dict[int, int]:
    amplitudes: Counter[int] = Counter()
    for matching in perfect_matchings(edges, vertices):
        colours = {p: c for p, _, c, _, _ in matching} | {q: d for _, q, _, d, _ in matching}
        ket = int("".join(str(colours[vertex]) for vertex in range(vertices)), 4)
        amplitudes[ket] += math.prod(edge[4] for edge in matching)
    return {ket: amplitude for ket, amplitude in amplitudes.items() if amplitude}


@st.composite
def graphs(draw: st.DrawFn, vertices: int = 6) -> list[Edge]:
    ends = st.sampled_from(list(combinations(range(vertices), 2)))
    colours = st.integers(0, 2)
    drawn = draw(st.lists(st.tuples(ends, colours, colours, st.integers(-3, 3), st.booleans()), max_size=16))
    return [(q, p, d, c, w) if turn else (p, q, c, d, w) for (p, q), c, d, w, turn in drawn]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["source"])
def test_states_of_the_examples(pair: dict[str, Any]) -> None:
    program = language.parse(pair["program"])
    for size in range(3):
        found, reason = state.simulate(program, size)
        assert reason is None
        assert state.to_text(found, language.vertices(size)) == pair["states"][size]
        edges = language.edges(program, size)
        if all(state.merge(edges).values()):  # the original counts kets of edges that cancelled, too
            everything = state.amplitudes(edges, language.vertices(size))
            assert len(everything) == pair["num_kets"][size] + pair["num_zero_kets"][size]


@pytest.mark.parametrize("row", EXPECTED)
def test_states_of_the_original_layout(row: dict[str, str]) -> None:
    program = language.parse(row["code"])
    found = [state.to_text(state.simulate(program, size)[0], language.vertices(size)) for size in range(3)]
    assert "|".join(found) == row["state"]
    for size in range(5):
        canonical = packed.unpack(packed.read(row["code"]))
        assert state.simulate(canonical, size) == state.simulate(program, size)


@pytest.mark.parametrize("case", FIDELITIES, ids=lambda case: case["name"])
def test_fidelities_of_the_examples(case: dict[str, Any]) -> None:
    program = language.parse(case["program"])
    found = [
        state.fidelity(state.simulate(program, size)[0], targets.target_state(case["target"], size))
        for size in range(5)
    ]
    assert [float(each) for each in found] == pytest.approx(case["fidelities"], rel=0, abs=1e-9)
    assert all(each > Fraction(99, 100) for each in found) == case["solved"]


W = next(pair["program"] for pair in PAIRS if "class w" in pair["source"])


@pytest.mark.parametrize(
    ("program", "target", "expected"),
    [
        (W, "w", [1] * 5),
        (GHZ, "w", [0] * 5),
        (GHZ, "spinhalf", [Fraction(1, each) for each in (10, 16, 26, 42, 68)]),
        (GHZ.replace("1,1,1)", "1,1,-1)", 1), "ghz", [0] * 5),
        (
            GHZ.split("for")[0]
            + "for ii in range(N):\n    e(+1+0*N+3*ii,+2+0*N+1*ii,1,1,1)\n    e(+3+0*N+2*ii,+2+0*N+2*ii,0,0,1)",
            "ghz",
            [1, 1, 1, Fraction(1, 2), Fraction(1, 4)],
        ),
        (
            "\n".join(f"e({p}+2*N,{p + 1}+2*N,{c},{c},1)" for p, c in [(0, 0), (0, 1), (0, 2), (2, 0)])
            + "\nfor ii in range(N):\n"
            + "\n".join(f"    e(2*ii,1+2*ii,{c},{c},1)" for c in range(3)),
            "bellN3d",
            [1] * 5,
        ),
        ("\n".join(f"e({p}+2*N,{p + 1}+2*N,{c},{c},1)" for p in (0, 2) for c in (0, 1)), "bellN", [1, 0, 0, 0, 0]),
    ],
)
def test_worked_fidelities_exactly(program: str, target: str, expected: list[Fraction]) -> None:
    parsed = language.parse(program)
    found = [state.fidelity(state.simulate(parsed, n)[0], targets.target_state(target, n)) for n in range(5)]
    assert found == expected


@settings(max_examples=200, deadline=SLOWEST)
@given(graphs())
def test_amplitudes_equal_brute_force(edges: list[Edge]) -> None:
    found = state.amplitudes(edges, 6)
    assert {ket: amplitude for ket, amplitude in found.items() if amplitude} == brute_force(edges, 6)


@settings(deadline=SLOWEST)
@given(graphs(), graphs(), st.randoms())
def test_fidelity_is_a_share_and_ignores_order_ends_and_sign(
    edges: list[Edge], others: list[Edge], random: object
) -> None:
    first, second = state.amplitudes(edges, 6), state.amplitudes(others, 6)
    found = state.fidelity(first, second)
    assert 0 <= found <= 1
    assert found == state.fidelity(second, first)
    shuffled = [(q, p, d, c, w) for p, q, c, d, w in edges]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    negative = {ket: -amplitude for ket, amplitude in state.amplitudes(shuffled, 6).items()}
    assert state.fidelity(negative, second) == found
    assert state.fidelity(first, first) == (1 if any(first.values()) else 0)


@settings(deadline=SLOWEST)
@given(graphs())
def test_state_text_survives_reading(edges: list[Edge]) -> None:
    found = {ket: amplitude for ket, amplitude in state.amplitudes(edges, 6).items() if amplitude}
    if not found:
        return
    text = state.to_text(found, 6)
    _, read = state.parse("+1[axbxcxdx]|" + text)
    assert state.to_text(read, 6) == text
    assert math.gcd(*read.values()) == 1
    assert state.fidelity(read, found) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("e(0,1,0,0,1)\ne(0,1,1,1,1)", Reason.MISSING_VERTEX),
        ("e(0,1,0,0,1)\ne(0,2,0,0,1)\ne(0,3,0,0,1)", Reason.NO_MATCHING),
        ("e(0,1,0,0,1)\ne(2,3,0,0,0)", Reason.NO_MATCHING),
        ("e(0,1,0,0,1)\ne(2,3,0,0,1)\ne(3,2,0,0,-1)", Reason.NO_MATCHING),
        ("e(0,1,0,0,1)\ne(2,3,0,0,1)\ne(0,2,0,0,1)\ne(1,3,0,0,-1)", Reason.CANCELLED),
        ("e(0,1,0,0,1)\ne(2,3,0,0,1)\ne(3,3,0,0,1)", Reason.SELF_LOOP),
        ("e(0,1,0,0,1)\ne(2,4,0,0,1)", Reason.OUT_OF_RANGE),
    ],
)
def test_no_state_has_a_reason(text: str, reason: Reason) -> None:
    found, why = state.simulate(language.parse(text), 0)
    assert (dict(found), why) == ({}, reason)
    assert state.fidelity(found, targets.target_state("ghz", 0)) == 0


weights = st.sampled_from([1, 1, 1, -1, -1, 0, 2, 99])
coefficients = st.integers(-1, 3)
mostly_well_formed = st.builds(
    "e({}+{}*N,{}+{}*N,{},{},{})".format,
    *[st.integers(0, 3), st.sampled_from([0, 2, 2])] * 2,
    *[st.integers(0, 2)] * 2,
    weights,
)
mostly_well_formed_loops = st.builds(
    "    e({}+{}*ii,{}+{}*ii+{}*N,{},{},{})".format,
    *[st.integers(0, 5), st.sampled_from([2, 2, 0]), coefficients, st.sampled_from([2, 2, 0])],
    st.sampled_from([0, 0, 0, 1]),
    *[st.integers(0, 2)] * 2,
    weights,
)
ring = [f"e({p}+2*N,{(p + 1) % 4}+2*N,{p % 2},{p % 2},1)" for p in range(4)]
ring_loop = [f"    e({p}+2*ii,{p + 1}+2*ii,{p % 2},{p % 2},1)" for p in range(4)]


@settings(max_examples=150)
@given(
    st.lists(mostly_well_formed, max_size=8),
    st.lists(mostly_well_formed_loops, max_size=6),
    st.booleans(),
    st.sampled_from(list(targets.CLASSES)),
)
def test_compiled_code_gives_the_same_fractions_and_reasons(
    base: list[str], loop: list[str], connected: bool, name: str
) -> None:
    if connected:
        base, loop = base + ring, loop + ring_loop
    text = "\n".join([*(base or ring), *([language.LOOP_HEADER, *loop] if loop else [])])
    program = language.parse(text)
    states = [targets.target_state(name, size) for size in range(5)]
    for size, (numerator, denominator, reason) in enumerate(
        overlap.fidelities(packed.read(text), overlap.wanted(states))
    ):
        found, why = state.simulate(program, size)
        assert (Fraction(numerator, denominator), reason) == (state.fidelity(found, states[size]), why)


@pytest.mark.parametrize("weight", [1, 99])
@pytest.mark.parametrize("amplitude", [1, -(10**17)])
def test_numbers_beyond_64_bits_stay_exact(weight: int, amplitude: int) -> None:
    """Ten times the same edges, and a reference with large amplitudes: sums that would overflow."""
    lines = [line for p in (0, 2) for line in [f"e({p}+2*N,{p + 1}+2*N,0,0,{weight})"] * 10]
    text = "\n".join([*lines, "e(0,1,1,1,1)", language.LOOP_HEADER, f"    e(2*ii,1+2*ii,0,0,{weight})"])
    reference = [{0: 3 * amplitude, 5 << 4 * (size + 1): amplitude} for size in range(5)]
    found = overlap.fidelities(packed.read(text), overlap.wanted(reference))
    for size, (numerator, denominator, reason) in enumerate(found):
        own, why = state.simulate(language.parse(text), size)
        assert reason is why is None
        assert 0 < Fraction(numerator, denominator) == state.fidelity(own, reference[size])


def test_the_densest_graphs_are_refused_quickly_and_in_little_memory() -> None:
    colours = range(3)
    edges = [(p, q, c, d, 1) for p, q in combinations(range(12), 2) for c in colours for d in colours]
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(state.TooDenseError):
        state.amplitudes(edges, 12)
    assert time.process_time() - began < 5
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_dense_but_feasible_graphs_are_exact() -> None:
    edges = [(p, q, 0, 0, 1) for p, q in combinations(range(12), 2)]
    assert state.amplitudes(edges, 12) == {0: 10395}


@settings(deadline=SLOWEST)
@given(st.lists(st.sampled_from(GHZ.split("\n")[:4]), min_size=1, max_size=8), st.integers(0, 4))
def test_simulation_gives_a_state_or_a_reason(lines: list[str], size: int) -> None:
    program = Program(language.parse("\n".join(lines)).base)
    found, reason = state.simulate(program, size)
    assert bool(found) == (reason is None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "+1[axbxcxdx]|",
        "+1[axbxcxdx]|+1[axbxcxdx]",
        "+1[axbxcxdq]",
        "+1[axbxdxcx]",
        "+0[axbxcxdx]",
        "1[axbxcxdx]",
        "+1[axbxcxdx]+1[axbxcxdx]",
        "+1[axbxcxdx]x",
        "+1[axbxcxd]",
    ],
)
def test_broken_state_text_is_named(text: str) -> None:
    with pytest.raises(CoraxError, match=r"state text, segment \d"):
        state.parse(text)
