"""The generator: topologies, programs, states, and the files of a shard."""

import json
import re
import resource
from collections import Counter, defaultdict
from functools import cache
from itertools import chain, product
from math import gcd, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import generate
from corax import cli
from corax.artifact import open_artifact
from corax.errors import CoraxError
from corax.settings.generate import GenerateSettings
from corax.tasks.quantum import language, state
from corax.tasks.quantum.generator import dataset, formulas, layout, programs, topologies
from corax.tasks.quantum.generator.dataset import PARTS, Shard
from corax.tasks.quantum.generator.programs import CONFIGURATIONS, Configuration
from corax.tasks.quantum.generator.rng import stream
from corax.tasks.quantum.generator.topologies import FAMILIES, Topologies

DATA = Path(__file__).parent / "data" / "quantum"
TOKENS = {number: token for token, number in json.loads((DATA / "vocab.json").read_text()).items()}
EXAMPLES = [
    ({"A": "LONG_DEG2", "B": "SHORT_DEG2"}[line[0]], *map(json.loads, line[2:].split("|")))
    for line in (DATA / "topologies.txt").read_text().splitlines()
]
LINE = re.compile(r"( {4})?e\(([-+*\dNi]+),([-+*\dNi]+),([012]),([012]),(-?1)\)")
Edge = tuple[int, int, int, int, int]


# A slow reference, written from the definitions


def edges_of(program: str, n: int) -> list[Edge]:
    """The edges (p, q, c, d, w) of a program, as written."""
    lines = [LINE.fullmatch(line) for line in program.split("\n") if line != "for ii in range(N):"]
    result = []
    for match in lines:
        assert match
        indent, p, q, c, d, w = match.groups()
        times = range(n if indent else 1)
        result += [(position(p, n, ii), position(q, n, ii), int(c), int(d), int(w)) for ii in times]
    return result


def position(formula: str, n: int, ii: int) -> int:
    terms = re.findall(r"\+(\d)(\*N|\*ii)?", formula)
    return sum(int(factor) * {"": 1, "*N": n, "*ii": ii}[name] for factor, name in terms)


def matchings(edges: list[Any], free: frozenset[int]) -> list[list[Any]]:
    """All choices of edges (p, q, …) that cover every vertex in `free` once."""
    if not free:
        return [[]]
    first = min(free)
    return [
        [edge, *more]
        for edge in edges
        if first in edge[:2] and edge[0] != edge[1] and set(edge[:2]) <= free
        for more in matchings(edges, free - set(edge[:2]))
    ]


class Facts(NamedTuple):
    text: str
    kets: int
    zero_kets: int
    pms: int
    degrees: list[int]


def simulate(edges: list[Edge], n: int) -> Facts:
    """The canonical state and the counts in a data file, for the edges of a program at size n."""
    vertices = 4 + 2 * n
    merged: dict[tuple[int, ...], int] = defaultdict(int)
    for p, q, c, d, w in edges:
        merged[(p, q, c, d) if p < q else (q, p, d, c)] += w
    found = matchings([(*key, w) for key, w in merged.items()], frozenset(range(vertices)))
    amplitudes: dict[str, int] = defaultdict(int)
    for matching in found:
        colours = {p: c for p, _, c, _, _ in matching} | {q: d for _, q, _, d, _ in matching}
        weight = 1
        for edge in matching:
            weight *= edge[4]
        amplitudes["".join("abcdefgh"[v] + "xyz"[colours[v]] for v in range(vertices))] += weight
    divisor = gcd(*amplitudes.values())
    text = "".join(f"{amplitudes[ket] // divisor:+d}[{ket}]" for ket in sorted(amplitudes) if amplitudes[ket])
    degrees = Counter(chain.from_iterable(key[:2] for key in merged))
    zeros = sum(1 for value in amplitudes.values() if value == 0)
    return Facts(text, len(amplitudes) - zeros, zeros, len(found), sorted(degrees.values()))


def is_topology(degree: int, base: list[list[int]], loop: list[list[int]]) -> bool:
    """The published conditions, checked edge by edge."""
    for n in range(3):
        edges = [tuple(int(a + b * n) for a, b in formulas.BASE[pair]) for pair in base]
        for ii in range(n):
            edges += [tuple(int(a + b * n + c * ii) for a, b, c in formulas.LOOP[pair]) for pair in loop]
        degrees = Counter(chain.from_iterable(edges))
        if any(p == q for p, q in edges) or len(degrees) != 4 + 2 * n or min(degrees.values()) < degree:
            return False
        pairs = [tuple(sorted(edge)) for edge in set(edges)]
        if set(chain.from_iterable(matchings(pairs, frozenset(range(4 + 2 * n))))) != set(pairs):
            return False
    return True


def text_of(row: Any) -> str:
    """The text of a row of ids, its frame checked."""
    ids = row.tolist()
    assert len(ids) == 1024
    assert ids[0] == 1
    end = ids.index(2)
    assert not any(ids[end + 1 :])
    assert all(3 <= number <= 50 for number in ids[1:end])
    return "".join(TOKENS[number] for number in ids[1:end])


def pattern_of(program: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """A program's topology: positions of its base lines and loop lines, in an order of their own."""
    found = [match.groups()[:3] for match in LINE.finditer(program)]
    return tuple(
        tuple(sorted(tuple(sorted(ends)) for indent, *ends in found if bool(indent) == loop)) for loop in (False, True)
    )


@cache
def drawn(family: str) -> Topologies:
    count = 2000 if "LONG" in family else 150
    return topologies.draw(family, count, stream("test", family))


@cache
def samples(name: str, visits: int) -> tuple[layout.Columns, int, int]:
    """Samples of a configuration (columns, their number, attempts)."""
    configuration = Configuration.parse(name)
    out = layout.empty(visits)
    found, _, attempts = programs.draw(drawn(configuration.family), 3, 0, configuration, stream("test", name), out)
    return layout.Columns(*(column[:found] for column in out)), found, attempts


def test_reference_agrees_with_the_published_examples() -> None:
    for pair in json.loads((DATA / "pairs.json").read_text()):
        facts = [simulate(edges_of(pair["program"], n), n) for n in range(3)]
        assert [each.text for each in facts] == pair["states"]
        assert [each.kets for each in facts] == pair["num_kets"]
        assert [each.zero_kets for each in facts] == pair["num_zero_kets"]
        assert [each.pms for each in facts] == pair["num_pms"]
    assert all(is_topology(2, base, loop) for _, base, loop in EXAMPLES)


# Topologies


def test_formulas_are_the_published_14_and_44() -> None:
    base = [[a, b] for a, b in product(range(4), repeat=2) if a + b <= 5 and a + 2 * b <= 7]
    loop = [[a, b, c] for a, b, c in product(range(4), repeat=3) if a + b <= 5 and a + 2 * b + c <= 7]
    assert formulas.BASE.tolist() == base
    assert formulas.LOOP.tolist() == loop
    assert (len(base), len(loop)) == (14, 44)
    assert (len(formulas.BASE_PAIRS), len(formulas.LOOP_PAIRS)) == (108, 1220)


def test_published_topologies_are_accepted() -> None:
    assert len(EXAMPLES) == 20
    assert all(topologies.accepts(family, base, loop) for family, base, loop in EXAMPLES)
    assert not topologies.accepts("SHORT_DEG2", EXAMPLES[0][1], EXAMPLES[0][2])


@settings(max_examples=150)
@given(st.data())
def test_checker_agrees_with_the_conditions(data: st.DataObject) -> None:
    """Published topologies with a line removed or one or two positions changed."""
    family, base, loop = data.draw(st.sampled_from(EXAMPLES))
    base, loop = [list(pair) for pair in base], [list(pair) for pair in loop]
    for _ in range(data.draw(st.integers(0, 2))):
        lines, count = data.draw(st.sampled_from([(base, 14), (loop, 44)]))
        line = data.draw(st.sampled_from(lines))
        line[data.draw(st.integers(0, 1))] = data.draw(st.integers(0, count - 1))
    if data.draw(st.booleans()):
        base.pop()
    degree = data.draw(st.integers(1, 2))
    expected = len(base) >= 4 and is_topology(degree, base, loop)
    assert topologies.accepts(family.replace("DEG2", f"DEG{degree}"), base, loop) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_topologies_meet_the_conditions(family: str) -> None:
    found = drawn(family)
    base_lines, loop_lines = topologies.LINES[family.split("_")[0]]
    for place in range(25):
        base, loop = found.canonical(place)
        assert len(base) in base_lines
        assert len(loop) in loop_lines
        assert is_topology(int(family[-1]), base, loop)
    assert len({repr(found.canonical(place)) for place in range(len(found))}) == len(found)


@pytest.mark.parametrize(
    ("family", "naive", "fast"),
    [
        ("LONG_DEG2", 8.4e-7, 3.1e-4),
        ("SHORT_DEG2", 2.2e-7, 2.1e-5),
        ("LONG_DEG1", 8.7e-7, 3.1e-4),
        ("SHORT_DEG1", 2.5e-7, 2.3e-5),
    ],
)
def test_acceptance_is_the_published_one(family: str, naive: float, fast: float) -> None:
    """Within three standard errors and the two digits that are known; `naive` is that of uniform draws."""
    found = drawn(family)
    acceptance = len(found) / found.draws
    tolerance = 3 / sqrt(len(found)) + 0.03
    assert acceptance == pytest.approx(fast, rel=tolerance)
    base_lines, loop_lines = topologies.LINES[family.split("_")[0]]
    survival = np.mean([(108 / 196) ** b for b in base_lines]) * np.mean([(1220 / 1936) ** n for n in loop_lines])
    assert acceptance * survival == pytest.approx(naive, rel=tolerance)


def test_line_counts_and_degrees_are_distributed_as_published() -> None:
    base = Counter(drawn("LONG_DEG2").lines[:, 0].tolist())
    loop = Counter(drawn("SHORT_DEG2").lines[:, 1].tolist())
    for counts, shares in (
        (base, dict(enumerate([0.06, 0.09, 0.11, 0.12, 0.14, 0.16, 0.17, 0.17], start=4))),
        (loop, dict(enumerate([0.06, 0.14, 0.29, 0.52], start=2))),
    ):
        total = sum(counts.values())
        for lines, share in shares.items():
            assert counts[lines] / total == pytest.approx(share, abs=4 * sqrt(share / total) + 0.005)
    for family, share in (("LONG_DEG1", 0.97), ("SHORT_DEG1", 0.87)):
        found = drawn(family)
        both = [topologies.accepts(family[:-1] + "2", *found.canonical(place)) for place in range(150)]
        assert np.mean(both) == pytest.approx(share, abs=4 * sqrt(share * (1 - share) / 150))


# Programs


def test_there_are_32_configurations() -> None:
    assert len(set(CONFIGURATIONS)) == 32
    assert GenerateSettings(configurations=list(CONFIGURATIONS)).configurations == list(CONFIGURATIONS)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_rows_hold_what_their_program_builds(name: str) -> None:
    """Text, counts and rules of rows, against the slow reference."""
    length, _, dimension, weights, kets = name.split("_")
    limits = [int(limit) for limit in kets.split("-")]
    out, found, _ = samples(name, 400)
    assert found >= 8
    for row in range(8):
        program = text_of(out.code[row])
        parsed = language.parse(program)
        assert language.to_text(parsed) == program
        assert out.line_count[row].tolist() == [len(parsed.base), len(parsed.loop)]
        assert len(parsed.base) in topologies.LINES[length][0]
        texts = text_of(out.state[row]).split("|")
        colours = {colour for line in chain(*parsed) for colour in (line.colour_p, line.colour_q)}
        assert len(colours) <= int(dimension[0])
        assert {line.weight for line in chain(*parsed)} <= ({-1, 1} if weights == "WEIGHTED" else {1})
        for n in range(3):
            edges = edges_of(program, n)
            sums: dict[tuple[int, ...], int] = defaultdict(int)
            for *key, weight in edges:
                sums[tuple(key)] += weight
            assert all(sums.values())
            facts = simulate(edges, n)
            assert texts[n] == facts.text == state.to_text(state.simulate(parsed, n)[0], 4 + 2 * n)
            assert 0 < facts.kets <= limits[n]
            assert out.num_kets[row, n] == facts.kets
            assert out.num_zero_kets[row, n] == facts.zero_kets
            assert out.num_pms[row, n] == min(facts.pms, 127)
            assert out.degrees_list[row, n].tolist() == facts.degrees + [0] * (4 - 2 * n)


def test_samples_use_every_choice() -> None:
    """All colour pairs, weights, orders of lines and of ends occur."""
    out, found, _ = samples("LONG_DEG1_2D_WEIGHTED_8-16-32", 400)
    texts = [text_of(row) for row in out.code[:found]]
    colours = Counter("".join(sorted(set(re.findall(r",([012])(?=,)", text)))) for text in texts)
    assert set(colours) == {"01", "02", "12"}
    assert min(colours.values()) > found / 5
    weights = [int(weight) for text in texts for weight in re.findall(r"(-?1)\)", text)]
    assert abs(np.mean(weights)) < 0.15
    first = [re.findall(r"e\(([^,]+),([^,]+),", text)[0] for text in texts]
    assert np.mean([p < q for p, q in first]) == pytest.approx(0.5, abs=0.12)
    one = drawn("SHORT_DEG1").select(np.array([0]))
    out = layout.empty(40)
    found, _, _ = programs.draw(one, 3, 0, Configuration.parse("SHORT_DEG1_3D_UNWEIGHTED_8-16-32"), stream(1), out)
    texts = [text_of(row) for row in out.code[:found]]
    assert len({tuple(re.findall(r"e\([^,]+,[^,]+", text)) for text in texts}) > 35
    assert len({pattern_of(text) for text in texts}) == 1


@pytest.mark.parametrize(
    ("pattern", "attempt", "topology"),
    [
        ("SHORT_DEG._2D_UNWEIGHTED_8-16-32", (0.99, 1), (1, 1)),
        ("SHORT_DEG._3D_UNWEIGHTED_8-16-32", (0.975, 1), (1, 1)),
        ("SHORT_DEG._2D_WEIGHTED_8-16-32", (0.66, 0.66), (1, 1)),
        ("SHORT_DEG._3D_WEIGHTED_8-16-32", (0.83, 0.83), (1, 1)),
        ("SHORT_DEG._2D_.*_6-6-6", (0.06, 0.11), (0.95, 0.99)),
        ("SHORT_DEG._3D_.*_6-6-6", (0.013, 0.027), (0.63, 0.82)),
        ("LONG_DEG._2D_UNWEIGHTED_8-16-32", (0.33, 0.33), (0.99, 1)),
        ("LONG_DEG._2D_WEIGHTED_8-16-32", (0.16, 0.16), (0.99, 1)),
        ("LONG_DEG._3D_.*_8-16-32", (0.038, 0.045), (0.84, 0.88)),
        ("LONG_DEG._2D_.*_6-6-6", (0.0027, 0.0043), (0.22, 0.33)),
        ("LONG_DEG._3D_.*_6-6-6", (0.00064, 0.0013), (0.06, 0.12)),
    ],
)
def test_success_rates_are_the_published_ones(
    pattern: str, attempt: tuple[float, float], topology: tuple[float, float]
) -> None:
    """Within the published range, or near it: the rates of single topologies differ much."""
    for name in CONFIGURATIONS:
        if re.fullmatch(pattern, name):
            visits = 2000 if "LONG" in name else 400
            _, found, attempts = samples(name, visits)
            low, high = attempt
            error = 3.5 / sqrt(found) + 0.1
            assert low * (1 - error) <= found / attempts <= high * (1 + error)
            low, high = topology
            error = 3.5 * sqrt(high * (1 - high) / visits) + 0.01
            assert low - error <= found / visits <= high + error


@pytest.mark.parametrize(
    ("pattern", "states", "codes"),
    [
        ("SHORT.*_6-6-6", (200, 229), (289, 322)),
        ("SHORT.*_8-16-32", (252, 330), (309, 324)),
        ("LONG.*_8-16-32", (538, 656), (444, 475)),
    ],
)
def test_lengths_are_the_published_ones(pattern: str, states: tuple[float, float], codes: tuple[float, float]) -> None:
    """Mean characters of each configuration of a group: within 5 % of the published range."""
    for name in CONFIGURATIONS:
        if re.fullmatch(pattern, name):
            out, _, _ = samples(name, 400)
            for rows, (low, high) in ((out.state, states), (out.code, codes)):
                mean = np.mean([len(text_of(row)) for row in rows])
                assert low * 0.95 <= mean <= high * 1.05, name


def test_an_equal_mix_has_the_published_statistics() -> None:
    """Mean characters, own tokens, lines and kets over the 32 configurations: within 3 % (kets 4 %)."""
    found: dict[str, list[float]] = defaultdict(list)
    for name in CONFIGURATIONS:
        out, count, _ = samples(name, 2000 if "LONG" in name else 400)
        chosen = range(0, count, max(1, count // 150))
        for kind, rows in (("state", out.state), ("program", out.code)):
            found[f"{kind} characters"].append(float(np.mean([len(text_of(rows[row])) for row in chosen])))
            found[f"{kind} tokens"].append(float((rows > 0).sum(axis=1).mean()))
        found["lines"].append(float(out.line_count.sum(axis=1).mean()))
        found["kets"].append(float(out.num_kets.sum(axis=1).mean()))
    expected = {
        "state characters": 338,
        "program characters": 359,
        "state tokens": 211,
        "program tokens": 307,
        "lines": 11.7,
        "kets": 19.6,
    }
    assert {name: np.mean(values) for name, values in found.items()} == pytest.approx(expected, rel=0.04)


# The stage

SHORT = ["SHORT_DEG1_2D_UNWEIGHTED_6-6-6", "SHORT_DEG2_3D_WEIGHTED_8-16-32", "SHORT_DEG1_3D_UNWEIGHTED_8-16-32"]


def run(output: Path, shard: int = 0, shards: int = 2, **values: Any) -> Path:
    options = cli.options(GenerateSettings(**values), "generate")
    arguments = ["--shard", str(shard), "--shards", str(shards), "--output", str(output), *options]
    generate.main(generate.build_parser().parse_args(arguments))
    return output


def read(folder: Path, part: str) -> dict[str, Any]:
    with h5py.File(folder / f"{part}.h5") as file:
        return {name: data[:] for name, data in file.items()}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("raw")
    values: dict[str, Any] = {
        "configurations": SHORT,
        "topologies": 121,
        "samples": 400,
        "validation_samples": 25,
        "test_samples": 20,
    }
    return [run(root / f"00{shard}", shard, **values) for shard in range(2)]


def test_files_have_the_published_layout(shards: list[Path]) -> None:
    shapes = {
        "code": (1024,),
        "state": (1024,),
        "topology_ind": (2,),
        "line_count": (2,),
        "num_kets": (3,),
        "num_zero_kets": (3,),
        "num_pms": (3,),
        "degrees_list": (3, 8),
    }
    with h5py.File(shards[0] / "train.h5") as file:
        assert set(file) == set(shapes)
        for name, shape in shapes.items():
            assert file[name].dtype == np.int8
            assert file[name].shape == (200, *shape)
            assert file[name].maxshape == (None, *shape)
        assert file["code"].chunks == (200, 1024)
        assert file["code"].compression == "gzip"
        assert set(file["topology_ind"][:, 0]) == {FAMILIES.index("SHORT_DEG1"), FAMILIES.index("SHORT_DEG2")}
        assert file["topology_ind"][:, 1].min() >= 0


def test_samples_are_dealt_evenly_and_shuffled(shards: list[Path]) -> None:
    facts = [open_artifact(shard).facts for shard in shards]
    assert [each["rows"] for each in facts] == [
        {"train": 200, "validation": 12, "test": 10},
        {"train": 200, "validation": 13, "test": 10},
    ]
    for part, total in (("train", 400), ("validation", 25), ("test", 20)):
        counts = [sum(each["samples"][part][name] for each in facts) for name in SHORT]
        assert sum(counts) == total
        assert max(counts) - min(counts) <= 1
    families = read(shards[0], "train")["topology_ind"][:, 0].tolist()
    assert families != sorted(families)
    assert families != sorted(families, reverse=True)
    for number, each in enumerate(facts):
        counts = [each["topologies"]["SHORT_DEG1"][part] for part in PARTS]
        assert sum(counts) == 60 + number


def test_no_topology_or_state_is_in_two_parts_of_any_shards(shards: list[Path]) -> None:
    programs_of: dict[str, set[Any]] = defaultdict(set)
    states_of: dict[str, list[str]] = defaultdict(list)
    for shard, part in product(shards, PARTS):
        columns = read(shard, part)
        programs_of[part] |= {pattern_of(text_of(row)) for row in columns["code"]}
        states_of[part] += [text_of(row) for row in columns["state"]]
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert programs_of[first]
        assert programs_of[first].isdisjoint(programs_of[second])
        assert set(states_of[first]).isdisjoint(states_of[second])
    for part in ("validation", "test"):
        assert len(set(states_of[part])) == len(states_of[part])


def test_parts_have_their_share() -> None:
    parts = Counter(dataset.part_of(0.1, 0, "topology", number) for number in range(20_000))
    assert parts["validation"] == pytest.approx(2000, abs=200)
    assert parts["test"] == pytest.approx(2000, abs=200)
    others = [dataset.part_of(0.1, 1, "topology", number) for number in range(100)]
    assert others != [dataset.part_of(0.1, 0, "topology", number) for number in range(100)]


def test_a_shard_is_made_again_byte_by_byte(shards: list[Path], tmp_path: Path) -> None:
    manifest = open_artifact(shards[1])
    values = manifest.content["settings"]["generate"]
    again = open_artifact(run(tmp_path / "alone", 1, **values))
    assert again.digest == manifest.digest
    assert again.facts == manifest.facts
    assert open_artifact(shards[0]).digest != manifest.digest
    other = open_artifact(run(tmp_path / "other", 1, **{**values, "seed": 1}))
    assert other.content["files"]["train.h5"] != manifest.content["files"]["train.h5"]


@pytest.mark.parametrize("compression", ["none", "lzf"])
def test_compression_changes_the_form_alone(shards: list[Path], tmp_path: Path, compression: str) -> None:
    values = open_artifact(shards[0]).content["settings"]["generate"]
    folder = run(tmp_path / "raw", 0, **{**values, "compression": compression})
    for part in PARTS:
        ours, other = read(shards[0], part), read(folder, part)
        assert all(np.array_equal(ours[name], other[name]) for name in ours)
    with h5py.File(folder / "train.h5") as file:
        assert file["code"].compression == (None if compression == "none" else "lzf")
        assert file["code"].chunks is not None


def test_all_configurations_in_one_small_shard(tmp_path: Path) -> None:
    values: dict[str, Any] = {"configurations": list(CONFIGURATIONS), "topologies": 80, "samples": 64, "held_out": 0.2}
    folder = run(tmp_path / "raw", shards=1, **values, validation_samples=32, test_samples=1)
    facts = open_artifact(folder).facts
    assert set(facts["samples"]["train"].values()) == {2}
    assert set(facts["samples"]["validation"].values()) == {1}
    assert facts["rows"]["test"] == 1
    assert set(facts["acceptance"]) == set(CONFIGURATIONS)


def test_a_part_without_rows_is_an_empty_file(tmp_path: Path) -> None:
    folder = run(tmp_path / "raw", samples=3, validation_samples=1, test_samples=1, topologies=100)
    assert read(folder, "validation")["code"].shape == (0, 1024)
    assert read(folder, "train")["code"].shape == (1, 1024)


def test_a_place_beyond_int8_is_stored_as_127(tmp_path: Path) -> None:
    shard = Shard(0, 1)
    values = GenerateSettings(topologies=200, samples=250, validation_samples=1, test_samples=1)
    dataset.generate(values, shard, tmp_path)
    places = read(tmp_path, "train")["topology_ind"][:, 1]
    assert places.min() == 0
    assert places.max() == 127


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "2", "--shards", "2"], "--shard: 2 found, allowed 0 to 1"),
        (["--shard", "-1", "--shards", "2"], "--shard: -1 found, allowed 0 to 1"),
        (["--generate.configurations", "SHORT_DEG3"], "--generate.configurations.0: "),
        (["--generate.configurations", *SHORT, SHORT[0]], "--generate.configurations: a configuration is named twice"),
        (["--generate.topologies", "9"], "--generate.topologies: "),
        (["--generate.held_out", "0.5"], "--generate.held_out: "),
        (["--generate.compression", "zip"], "--generate.compression: "),
        (["--shards", "20", "--generate.topologies", "10"], "generate.topologies: none of the 0 topologies of SHORT"),
        (["--shards", "1", "--generate.held_out", "1e-9"], "belongs to the part validation; raise generate.topologies"),
    ],
)
def test_mistakes_end_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    small = ["--generate.topologies", "20", "--generate.samples", "4", "--shard", "0", "--shards", "2"]
    with pytest.raises(SystemExit) as stop:
        cli.run(generate.main, generate.build_parser(), [*small, "--output", str(tmp_path / "raw"), *options])
    assert stop.value.code == cli.USER_ERROR
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert message in error[0]
    assert list(tmp_path.iterdir()) == []


def test_impossible_settings_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few held-out topologies, hard ones, do not give thousands of small states."""
    monkeypatch.setattr(dataset, "FRUITLESS_ATTEMPTS", 200_000)
    hard = ["LONG_DEG1_3D_UNWEIGHTED_6-6-6"]
    values = GenerateSettings(configurations=hard, topologies=10, samples=1, validation_samples=5000, held_out=0.3)
    with pytest.raises(CoraxError, match=r"generate\.topologies: the . topologies of LONG_DEG1 .* gave .* raise"):
        dataset.generate(values, Shard(0, 1), tmp_path)


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("limit", [0, 1000, 20_000, 60_000])
def test_disk_that_fills_up_meanwhile(tmp_path: Path, compression: str, limit: int) -> None:
    """The process lives, whatever byte the HDF5 library could not write."""
    rows = np.random.default_rng(0).integers(0, 51, (200, 1024), np.int8)
    columns = layout.empty(200)._replace(code=rows, state=rows)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "x.h5", columns, compression)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    write(tmp_path / "x.h5", columns, compression)
    with h5py.File(tmp_path / "x.h5") as file:
        assert np.array_equal(file["code"], rows)


def write(path: Path, columns: layout.Columns, compression: str) -> None:
    with layout.Writer(path, len(columns.code), compression) as file:
        file.append(columns)
