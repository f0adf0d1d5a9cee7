"""Constrained sampling: the automaton is the parser's language, and no token that fits is kept out."""

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import stages
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepared import Prepared
from test_quantum_language import CODES, LINE, LOOP, programs

from corax import tasks
from corax.errors import CoraxError
from corax.grammar import Grammar, Node
from corax.model import load_plain
from corax.sample import batches, slots
from corax.sample.constraint import Constraint, compile_grammar
from corax.sample.prompts import Prompt
from corax.sample.requests import Request
from corax.sample.sampler import Sampler
from corax.settings.sample import SampleSettings
from corax.tasks.quantum import language
from corax.tasks.quantum.grammar import grammar
from corax.template import Template

FLAVOURS: tuple[tiny.Flavour, ...] = ("llama3", "chatml", "plain")
GRAMMAR = grammar()


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {each: Template(tiny.tokenizer_folder(root / each, each), "state", "code") for each in FLAVOURS}


@pytest.fixture(scope="module")
def constraints(templates: dict[str, Template]) -> dict[str, Constraint]:
    return {name: compile_grammar(GRAMMAR, template) for name, template in templates.items()}


def parses(text: str) -> bool:
    try:
        language.parse(text)
    except language.ProgramError:
        return False
    return True


def fits(constraint: Constraint, tokens: list[int]) -> bool:
    """Whether every token may be taken, one after the other."""
    place = spent = 0
    for token in tokens:
        entries = {entry[0]: entry[1:] for entry in constraint.table[place].tolist()[::-1] if entry[3] <= 64}
        if token not in entries or spent + entries[token][2] > constraint.budget:
            return False
        place, spent = entries[token][0], spent + entries[token][1]
    return True


variables = st.sampled_from(["", "N", "ii"])
numbers = st.sampled_from(["0", "1", "7", "10", "99", "100", "01"])
signs = st.sampled_from(["+", "-"])
terms = st.builds(
    lambda variable, number, form: [number, f"{number}*{variable}", f"{variable}*{number}", variable][form],
    variables,
    numbers,
    st.integers(0, 3),
)
formulas = st.builds(
    lambda first, parts: first + parts[0][1] + "".join(sign + term for sign, term in parts[1:]),
    st.sampled_from(["", "+", "-"]),
    st.lists(st.tuples(signs, terms), min_size=1, max_size=4),
)
lines = st.builds(
    "e({},{},{},{},{})".format, formulas, formulas, *[st.sampled_from("0123")] * 2, st.sampled_from(["1", "-99", "+0"])
)
texts = st.builds(
    lambda base, header, loop, end: "\n".join([*base, *header, *(f"    {line}" for line in loop)]) + end,
    st.lists(lines, max_size=2),
    st.sampled_from([[], [language.LOOP_HEADER]]),
    st.lists(lines, max_size=2),
    st.sampled_from(["", "\n", "\n\n", " "]),
)


@settings(max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(text=texts)
def test_the_automaton_accepts_what_the_parser_accepts(text: str) -> None:
    assert GRAMMAR.accepts(text) is parses(text)


@settings(max_examples=500)
@given(text=st.sampled_from([*CODES, f"{LINE}\n{LOOP}\n"]), seed=st.integers(0, 2**32), count=st.integers(1, 3))
def test_it_agrees_with_the_parser_on_mutated_programs(text: str, seed: int, count: int) -> None:
    chance = random.Random(seed)
    for _ in range(count):
        place = chance.randrange(len(text) + 1)
        text = text[:place] + chance.choice(["", *"e(),+-*Ni0129\n :"]) + text[place + chance.randrange(2) :]
    assert GRAMMAR.accepts(text) is parses(text)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("count", [62, 63, 64, 65])
def test_the_limit_of_lines(count: int, loop: bool) -> None:
    end = [language.LOOP_HEADER, "    e(0,1,0,0,1)"] if loop else []
    text = "\n".join(["e(0,1,0,0,1)"] * (count - len(end)) + end)
    for whole in (text, text + "\n", text + "\n\n"):
        assert GRAMMAR.accepts(whole) is parses(whole)
    assert GRAMMAR.accepts(text) is (count <= 64)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_training_programs_fit(
    flavour: str, templates: dict[str, Template], constraints: dict[str, Constraint]
) -> None:
    template = templates[flavour]
    for text in CODES:
        (ids,) = template.encode([text])
        assert fits(constraints[flavour], [*ids, template.end_id])
        assert not fits(constraints[flavour], [*ids[:-1], template.end_id])


@settings(max_examples=150)
@given(program=programs, newline=st.sampled_from(["", "\n"]), flavour=st.sampled_from(FLAVOURS), data=st.data())
def test_no_accepted_program_is_excluded(
    program: language.Program,
    newline: str,
    flavour: str,
    data: st.DataObject,
    templates: dict[str, Template],
    constraints: dict[str, Constraint],
) -> None:
    """Also in pieces that the tokenizer itself would not choose."""
    text = language.to_text(program) + newline
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    tokens = [token for piece in templates[flavour].encode(pieces) for token in piece]
    assert fits(constraints[flavour], [*tokens, templates[flavour].end_id])


@pytest.mark.parametrize("loop", ["slots", "batches"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_samples_of_a_random_model_that_end_parse(flavour: tiny.Flavour, loop: str, tmp_path: Path) -> None:
    folder = tiny.model_folder(tmp_path / "model", flavour)
    template = Template(folder, "state", "code")
    constraint = compile_grammar(GRAMMAR, template)
    model: Any = load_plain(folder, torch.float32, torch.device("cpu"))
    options = SampleSettings(max_new_tokens=120, batch_size=24, temperature=[1.0], top_p=[1.0])
    ids = template.prompt_ids("+1[axbx]")
    prompt = Prompt("target", "t", "+1[axbx]", None)
    wanted = [Request(number, prompt, ids, 3.0 if number % 2 else 0.7, 1.0) for number in range(24)]
    if loop == "slots":
        sampler = Sampler(8, 0, 120, model.device, constraint)
        stream = slots.decode(model, sampler, template.end_id, 8, len(ids) + 120, wanted, lambda _: None)
    else:
        stream = batches.decode(model, template, constraint, options, wanted, set(), lambda _: None)
    found = {request.number: tokens for request, tokens in stream}
    assert len(found) == 24
    ended = [template.decode_completion(tokens) for tokens in found.values() if tokens[-1] == template.end_id]
    assert len(set(ended)) > 2
    assert all(parses(text) for text in ended)
    assert all(fits(constraint, tokens) for tokens in found.values())


def test_the_script(prepared: Prepared, tmp_path: Path) -> None:
    inputs = ("--task", "quantum", "--model", prepared.model, "--text", prepared.text, "--work", tmp_path / "work")
    options = ("--sample.constrained", "true", "--sample.max_new_tokens", 60, "--sample.temperature", 1)
    stages.call("sample", *inputs, "--output", tmp_path / "a.parquet", *options, "--sample.held_out_prompts", 2)
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert all(row["completion"].startswith("e(") for row in rows)
    assert all(parses(row["completion"]) for row in rows if row["finish_reason"] == "end")


def test_dead_ends_are_never_entered(templates: dict[str, Template]) -> None:
    """`ab` leads nowhere and `aaa` costs too much: `a` may be followed by `c` or the end of a cheaper way only."""
    end = Node(accepts=True)
    start = Node({"a": Node({"b": Node(), "c": end, "a": Node({"d": end}, cost=2)}, cost=1)})
    template = templates["plain"]
    constraint = compile_grammar(Grammar(start, budget=2), template)
    token = {text: template.encode([text])[0][0] for text in "abcd"}
    assert fits(constraint, [token["a"], token["c"], template.end_id])
    assert not fits(constraint, [token["a"], token["b"]])
    assert not fits(constraint, [token["a"], token["a"]])


def test_a_tokenizer_without_a_needed_token_is_one_line(templates: dict[str, Template]) -> None:
    with pytest.raises(CoraxError, match="the tokenizer has no token for any of"):
        compile_grammar(Grammar(Node({"雪": Node(accepts=True)}), budget=0), templates["plain"])


def test_a_task_without_grammar_is_one_line(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain:
        name = "plain"

        def targets(self) -> list[tasks.Target]:
            return [tasks.Target("a", "A", "a")]

        def score(self, samples: Any) -> dict[str, Any]:
            return {}

    monkeypatch.setattr(tasks, "get", lambda name: Plain())
    inputs = ("--task", "plain", "--model", prepared.model, "--text", prepared.text, "--work", tmp_path / "work")
    with pytest.raises(CoraxError, match="the task plain has no grammar, allowed: false"):
        stages.call("sample", *inputs, "--output", tmp_path / "a.parquet", "--sample.constrained", "true")
