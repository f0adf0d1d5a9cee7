"""The program language: what is read, what is refused and why, and what never happens."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corax.tasks.quantum import language, packed, state
from corax.tasks.quantum.language import Line, Position, Program, ProgramError, Reason

SLOWEST = 2000
"""Milliseconds for one text or graph, on a busy machine."""
DATA = Path(__file__).parent / "data" / "quantum"
PAIRS = json.loads((DATA / "pairs.json").read_text())
EXPECTED = [json.loads(line) for line in (DATA / "split_data_0.expected.jsonl").read_text().splitlines()]
CODES = [row["code"].removesuffix("\n") for row in EXPECTED]
LINE = "e(+0+0*N,+1+0*N,0,0,1)"
LOOP = "for ii in range(N):\n    e(+1+0*N+2*ii,+2+0*N+2*ii,1,1,1)"

coefficients = st.integers(-99, 99)
colours = st.integers(0, 2)
base_positions = st.tuples(coefficients, coefficients).map(lambda numbers: Position(*numbers))
loop_positions = st.tuples(coefficients, coefficients, coefficients).map(lambda numbers: Position(*numbers))
base_lines = st.builds(Line, base_positions, base_positions, colours, colours, coefficients)
loop_lines = st.builds(Line, loop_positions, loop_positions, colours, colours, coefficients)
programs = st.builds(
    Program,
    st.lists(base_lines, min_size=1, max_size=12).map(tuple),
    st.lists(loop_lines, max_size=12).map(tuple),
)


def refusal(text: str) -> Reason:
    with pytest.raises(ProgramError) as caught:
        language.parse(text)
    return caught.value.reason


def test_edges_of_the_examples() -> None:
    for pair in PAIRS:
        assert [list(edge) for edge in language.edges(language.parse(pair["program"]), 1)] == pair["edges_N1"]


@pytest.mark.parametrize("text", CODES)
def test_training_programs_are_read_and_written_back(text: str) -> None:
    program = language.parse(text)
    assert language.to_text(program) == text
    assert language.parse(text + "\n") == program


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("+1+2*N", Position(1, 2)),
        ("2*N+1", Position(1, 2)),
        ("N*2-1", Position(-1, 2)),
        ("-N", Position(0, -1)),
        ("3", Position(3, 0)),
        ("+ii*2+1", Position(1, 0, 2)),
        ("-99*ii+99*N-99", Position(-99, 99, -99)),
    ],
)
def test_positions_that_a_model_may_write(text: str, position: Position) -> None:
    program = language.parse(f"{LINE}\nfor ii in range(N):\n    e({text},+1,0,2,-1)")
    assert program.loop == (Line(position, Position(1, 0), 0, 2, -1),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.EMPTY),
        ("\n", Reason.EMPTY),
        ("hello", Reason.SYNTAX),
        (f"{LINE}\n\n", Reason.SYNTAX),
        (f"\n{LINE}", Reason.SYNTAX),
        (f" {LINE}", Reason.SYNTAX),
        (f"    {LINE}", Reason.SYNTAX),
        (f"{LINE} ", Reason.SYNTAX),
        (f"{LINE}\r\n{LINE}", Reason.SYNTAX),
        (f"{LINE};{LINE}", Reason.SYNTAX),
        (LOOP, Reason.SYNTAX),
        (f"{LINE}\nfor ii in range(N):", Reason.SYNTAX),
        (f"{LINE}\n{LOOP}\n{LINE}", Reason.SYNTAX),
        (f"{LINE}\n{LOOP}\n{LOOP}", Reason.SYNTAX),
        (f"{LINE}\n{LOOP}".replace("range(N)", "range(N+1)"), Reason.SYNTAX),
        (f"{LINE}\n{LOOP}".replace("    ", "  "), Reason.SYNTAX),
        (f"{LINE}\n{LOOP}".replace("    ", "\t"), Reason.SYNTAX),
        ("e(,1,0,0,1)", Reason.SYNTAX),
        ("e(+,1,0,0,1)", Reason.SYNTAX),
        ("e(1 + N,1,0,0,1)", Reason.SYNTAX),
        ("e(+1+1,1,0,0,1)", Reason.SYNTAX),
        ("e(N+2*N,1,0,0,1)", Reason.SYNTAX),
        ("e(2N,1,0,0,1)", Reason.SYNTAX),
        ("e(N*N,1,0,0,1)", Reason.SYNTAX),
        ("e(2**9,1,0,0,1)", Reason.SYNTAX),
        ("e(01,1,0,0,1)", Reason.SYNTAX),
        ("e(1_0,1,0,0,1)", Reason.SYNTAX),
        ("e(0x1,1,0,0,1)", Reason.SYNTAX),
        ("e(1.0,1,0,0,1)", Reason.SYNTAX),
        ("e(٣,1,0,0,1)", Reason.SYNTAX),
        ("e(0,1,0,0)", Reason.SYNTAX),
        ("e(0,1,0,0,1,1)", Reason.SYNTAX),
        ("e(0,1,0,0,w)", Reason.SYNTAX),
        ("e(0,1,x,0,1)", Reason.SYNTAX),
        ("e(0,1,3,0,1)", Reason.COLOUR),
        ("e(0,1,0,-1,1)", Reason.COLOUR),
        ("e(0,1,0,0,100)", Reason.WEIGHT),
        ("e(0,1,0,0,-" + "9" * 180 + ")", Reason.WEIGHT),
        ("e(100,1,0,0,1)", Reason.COEFFICIENT),
        ("e(0,-100*N,0,0,1)", Reason.COEFFICIENT),
        ("e(ii,1,0,0,1)", Reason.LOOP_VARIABLE),
        (f"{LINE}\n" * 65, Reason.TOO_LONG),
        ("e(" + "9" * 200 + ",1,0,0,1)", Reason.TOO_LONG),
        ("e(" * 10_000_000, Reason.TOO_LONG),
    ],
)
def test_refusals(text: str, reason: Reason) -> None:
    began = time.process_time()
    assert refusal(text) == reason
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize("count", [62, 63, 64, 65])
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("end", ["", "\n", "\n\n", " "])
def test_the_compiled_reader_has_the_same_limits(count: int, loop: bool, end: str) -> None:
    tail = [language.LOOP_HEADER, "    e(+0+0*N+2*ii,+1+0*N+2*ii,0,0,1)"] if loop else []
    text = "\n".join([LINE] * (count - len(tail)) + tail) + end
    assert_read_or_refused(text)


def test_limits_themselves_are_allowed() -> None:
    assert len(language.parse("\n".join([LINE] * 64)).base) == 64
    wide = "e(" + "+99*N+99".rjust(8) + ",-99*N-99,2,2,-99)"
    assert language.parse(wide).base[0].weight == -99


def test_a_refusal_names_the_line() -> None:
    with pytest.raises(ProgramError, match="line 3: syntax"):
        language.parse(f"{LINE}\n{LINE}\n# comment")


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('pathlib').Path('{path}').touch()",
        "e(__import__('pathlib').Path('{path}').touch(),1,0,0,1)",
        LINE + "\nfor ii in range(N):\n    __import__('pathlib').Path('{path}').touch()",
        "e(0,1,0,0,[].append(open('{path}','w')))",
    ],
)
def test_program_text_is_never_executed(attack: str, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    assert refusal(attack.format(path=trace)) == Reason.SYNTAX
    assert not trace.exists()


@given(programs)
def test_every_program_survives_writing_and_reading(program: Program) -> None:
    assert language.parse(language.to_text(program)) == program


@given(programs, st.randoms())
def test_the_packed_form_ignores_order(program: Program, random: object) -> None:
    def shuffled(lines: tuple[Line, ...]) -> tuple[Line, ...]:
        turned = [
            Line(line.q, line.p, line.colour_q, line.colour_p, line.weight) if random.random() < 0.5 else line  # type: ignore[attr-defined]
            for line in lines
        ]
        random.shuffle(turned)  # type: ignore[attr-defined]
        return tuple(turned)

    first, other = (packed.read(language.to_text(each)) for each in (program, Program(*map(shuffled, program))))
    assert first == other == packed.pack(program)
    assert packed.program_hash(first) == packed.program_hash(other)
    assert packed.read(language.to_text(packed.unpack(first))) == first
    for size in range(3):
        graphs = [
            state.merge(edge for edge in language.edges(each, size) if edge[0] != edge[1])
            for each in (program, packed.unpack(first))
        ]
        assert graphs[0] == graphs[1]


def test_different_programs_have_different_hashes() -> None:
    hashes = {packed.program_hash(packed.read(code)) for code in CODES}
    assert len(hashes) == len(set(CODES))
    moved = packed.read("e(0,1,0,0,1)\ne(2,3,0,0,1)\nfor ii in range(N):\n    e(2,3,0,0,1)")
    other = packed.read("e(0,1,0,0,1)\nfor ii in range(N):\n    e(2,3,0,0,1)\n    e(2,3,0,0,1)")
    assert moved[1:] == other[1:]
    assert packed.program_hash(moved) != packed.program_hash(other)


mutations = st.tuples(
    st.sampled_from(CODES),
    st.lists(
        st.tuples(
            st.integers(0, 700),
            st.integers(0, 3),
            st.text(st.sampled_from("e(),+-*0123N i\nforange:_\x00é"), max_size=4),
        ),
        min_size=1,
        max_size=4,
    ),
)


def assert_read_or_refused(text: str) -> None:
    try:
        program = language.parse(text)
    except ProgramError as error:
        assert error.line >= 1
        with pytest.raises(ProgramError) as again:
            packed.read(text)
        assert (again.value.reason, again.value.line) == (error.reason, error.line)
    else:
        assert packed.read(text) == packed.pack(program) == packed.read(language.to_text(program))
        assert language.parse(language.to_text(program)) == program
        for size in range(5):
            language.ill_formed(language.edges(program, size), language.vertices(size))


@given(st.text(max_size=500))
def test_random_text_never_raises_anything_else(text: str) -> None:
    assert_read_or_refused(text)


@settings(max_examples=300)
@given(mutations)
def test_mutated_programs_never_raise_anything_else(case: tuple[str, list[tuple[int, int, str]]]) -> None:
    text, edits = case
    for start, deleted, inserted in edits:
        text = text[:start] + inserted + text[start + deleted :]
    assert_read_or_refused(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("e(0,1,0,0,1)\ne(2,3,0,0,1)", None),
        ("e(0,1,0,0,1)\ne(2,2,0,1,1)", Reason.SELF_LOOP),
        ("e(0,1,0,0,1)\ne(2,4,0,0,1)", Reason.OUT_OF_RANGE),
        ("e(0,1,0,0,1)\ne(2,-1,0,0,1)", Reason.OUT_OF_RANGE),
        ("e(0,1,0,0,1)\ne(2,1,0,0,1)", Reason.MISSING_VERTEX),
    ],
)
def test_well_formed_at_the_smallest_size(text: str, reason: Reason | None) -> None:
    assert language.ill_formed(language.edges(language.parse(text), 0), 4) == reason
