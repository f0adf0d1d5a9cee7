"""Scoring of samples: the task block of evaluation.json, and the metric of the `evaluate` library."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corax import tasks
from corax.errors import CoraxError
from corax.tasks.quantum import packed, scoring, targets

DATA = Path(__file__).parent / "data" / "quantum"
PAIRS = json.loads((DATA / "pairs.json").read_text())
CASES = json.loads((DATA / "fidelity.json").read_text())
SCRIPTS = Path(__file__).parent.parent / "scripts"
GHZ = PAIRS[0]["program"]
DOUBLED = next(case["program"] for case in CASES if case["name"] == "GHZ with one doubled edge")
NEAR_MISS = (
    GHZ.split("for")[0]
    + "for ii in range(N):\n    e(+1+0*N+3*ii,+2+0*N+1*ii,1,1,1)\n    e(+3+0*N+2*ii,+2+0*N+2*ii,0,0,1)"
)


def sample(number: int, kind: str, name: str, completion: str, prompt: str = "") -> dict[str, Any]:
    return {"sample": number, "kind": kind, "name": name, "prompt": prompt, "completion": completion}


HELD_OUT = [
    sample(0, "held-out", "000:0", PAIRS[0]["program"], "|".join(PAIRS[0]["states"])),
    sample(1, "held-out", "000:1", PAIRS[2]["program"] + "\n", "|".join(PAIRS[2]["states"])),
    sample(2, "held-out", "000:2", DOUBLED, "|".join(PAIRS[0]["states"])),
    sample(3, "held-out", "000:3", "import os", "|".join(PAIRS[0]["states"])),
    sample(4, "held-out", "000:4", "e(0,0,0,0,1)", "|".join(PAIRS[0]["states"])),
]


def test_the_examples_have_their_fidelities() -> None:
    rows = [sample(i, "target", case["target"], case["program"]) for i, case in enumerate(CASES)]
    block = tasks.get("quantum").score(rows)
    for case, entry in zip(CASES, block["samples"], strict=True):
        assert entry["fidelity"] == pytest.approx(case["fidelities"], rel=0, abs=1e-9)
        assert entry["valid"]
        assert entry["reason"] == (None if case["solved"] else "wrong state")
        assert [reason is None for reason in entry["reasons"]] == [value > 0.99 for value in case["fidelities"]]
    solved = {entry["name"]: entry["solved"] for entry in block["targets"]}
    # Three programs were tried for GHZ, one of which solves it.
    assert solved == {
        "bellN3d": 0,
        "ghz": pytest.approx(1 / 3),
        "dicke2d2vsrest": 0,
        "ghzghz": 0,
        "bellN": 1,
        "majumdar": 1,
    }
    assert block["held_out"] == {
        "samples": 0,
        "distinct": 0,
        "valid": 0,
        "fidelity": [0, 0, 0],
        "exact": 0,
        "intervals": {"valid": [0, 1], "exact": [0, 1]},
        "reasons": {},
    }


def test_a_target_counts_valid_fitting_and_solving_programs() -> None:
    texts = ["not a program", DOUBLED, NEAR_MISS, GHZ, GHZ + "\n", "e(0,1,0,0,1)"]
    rows = [sample(i, "target", "ghz", text) for i, text in enumerate(texts)]
    block = scoring.score(rows[::-1])
    (entry,) = block["targets"]
    assert (entry["name"], entry["label"], entry["samples"]) == ("ghz", "GHZ", 6)
    assert (entry["valid"], entry["fits"], entry["solved"]) == pytest.approx((5 / 6, 3 / 6, 2 / 6))
    assert entry["best"] == {"fidelity": [1, 1, 1, 1, 1], "first_failure": 5, "program": GHZ, "sample": 3}
    assert [each["sample"] for each in block["samples"]] == list(range(6))
    reasons = ["syntax", "wrong state", "wrong state", None, None, "vertex without edge"]
    assert [each["reason"] for each in block["samples"]] == reasons
    assert entry["reasons"] == {"syntax": 1, "vertex without edge": 1, "wrong state": 2}
    assert entry["pass_at"] == {"1": pytest.approx({"fits": 3 / 6, "solved": 2 / 6})}
    assert all(low < entry[key] < high for key, (low, high) in entry["intervals"].items())


def test_programs_that_differ_in_order_only_are_counted_once() -> None:
    base, loop = GHZ.split("\nfor")
    turned = "\n".join([*base.split("\n")[::-1], "for" + loop])
    rows = [sample(i, "target", "ghz", text) for i, text in enumerate([GHZ, turned, GHZ + "\n", DOUBLED, "no"])]
    block = scoring.score(rows)
    programs = [each["program"] for each in block["samples"]]
    assert programs[0] == programs[1] == programs[2] != programs[3]
    assert programs[4] is None
    assert block["targets"][0]["distinct"] == 2


def test_pass_at_over_classes_uses_what_all_of_them_have() -> None:
    rows = [sample(i, "target", "ghz", GHZ if i < 2 else "no") for i in range(12)]
    rows += [sample(12 + i, "target", "w", "no") for i in range(5)]
    block = scoring.score(rows)
    ghz = next(entry for entry in block["targets"] if entry["name"] == "ghz")
    assert set(ghz["pass_at"]) == {"1", "10"}
    assert ghz["pass_at"]["10"]["solved"] == pytest.approx(1 - 1 / 66)
    assert block["pass_at"] == {"1": pytest.approx({"fits": 1 / 12, "solved": 1 / 12})}


def test_the_best_program_is_right_at_small_sizes_first() -> None:
    rows = [sample(0, "target", "ghz", DOUBLED), sample(1, "target", "ghz", NEAR_MISS)]
    (entry,) = scoring.score(rows)["targets"]
    assert entry["best"]["fidelity"] == [1, 1, 1, 0.5, 0.25]
    (entry,) = scoring.score(rows[:1])["targets"]
    assert entry["best"]["fidelity"] == [0.9] * 5


def test_no_valid_program_means_no_best_one() -> None:
    (entry,) = scoring.score([sample(0, "target", "w", "import os")])["targets"]
    assert (entry["valid"], entry["best"]) == (0, None)


def test_a_wrong_size_has_its_reason_but_stays_valid() -> None:
    text = "e(0,1,0,0,1)\ne(0,1,1,1,1)\ne(2,3,0,0,1)\ne(2,3,1,1,1)"
    (entry,) = scoring.score([sample(0, "target", "bellN", text)])["samples"]
    assert entry == {
        "sample": 0,
        "kind": "target",
        "name": "bellN",
        "valid": True,
        "program": packed.program_hash(packed.read(text)),
        "reason": "vertex without edge",
        "reasons": [None] + ["vertex without edge"] * 4,
        "fidelity": [1, 0, 0, 0, 0],
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (sample(7, "target", "ghzz", GHZ), r"row 7: target 'ghzz', allowed: bellN3d, ghz"),
        (sample(7, "other", "ghz", GHZ), r"row 7: kind 'other', allowed: target, held-out"),
        (sample(7, "held-out", "000:0", GHZ, "+1[axbxcxdx]"), r"row 7: 1 states in its prompt, must be 3"),
        (sample(7, "held-out", "000:0", GHZ, "a cat"), r"row 7: state text, segment 1"),
    ],
)
def test_broken_rows_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(CoraxError, match=message):
        scoring.score([row])


def test_the_metric_works_without_a_home_and_gives_the_held_out_block(tmp_path: Path) -> None:
    """In a process of its own, because the `evaluate` library reads its environment at import."""
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(HELD_OUT))
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import json, sys; from corax import tasks; "
        "print(json.dumps(tasks.get('quantum').score(json.load(open(sys.argv[1])))))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(rows)],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(SCRIPTS), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    block = json.loads(result.stdout)
    assert block["held_out"] == {
        "samples": 5,
        "distinct": 4,
        "valid": 0.8,
        "fidelity": pytest.approx([(1 + 1 + 0.9) / 5] * 3),
        "exact": 0.4,
        "intervals": {
            "valid": pytest.approx([0.3755, 0.9638], abs=1e-4),
            "exact": pytest.approx([0.1176, 0.7693], abs=1e-4),
        },
        "reasons": {"self-loop": 1, "syntax": 1, "wrong state": 1},
    }
    assert block["targets"] == []
    assert [entry["fidelity"] for entry in block["samples"]] == [[1] * 3, [1] * 3, [0.9] * 3, [0] * 3, [0] * 3]
    assert list(home.iterdir()) == []


def test_wild_and_hostile_texts_cost_little_and_do_nothing(tmp_path: Path) -> None:
    """20,000 random and mutated texts, and those made to be slow; `make bench-wild` takes a million."""
    program = SCRIPTS.parent / "benchmarks" / "wild.py"
    command = [sys.executable, str(program), "--strings", "20000", "--seed", "1", "--folder", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    rows = json.loads((tmp_path / "wild.json").read_text())["rows"]
    assert rows[0]["value"] == 20_000
    assert all(reason in rows[0]["against"] for reason in ("a program", "syntax", "too long", "unknown colour"))
    assert [row["holds"] for row in rows[1:]] == [True] * 5, rows


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("e(9**9**9**9,1,0,0,1)", "syntax"),
        ("e(__import__('os').abort(),1,0,0,1)", "syntax"),
        ("9" * 10_000_000, "too long"),
        ("e(0,1,0,0,1)\n" * 1_000_000, "too long"),
        ("e(0,1,0,0,1)\nfor ii in range(N):\n    e(" + "9" * 180 + ",0,0,0,1)", "coefficient too large"),
    ],
)
def test_refusals_are_reasons(text: str, reason: str) -> None:
    outcome = scoring.judge(text, targets.reference("ghz"))
    assert outcome.program is None
    assert outcome.reason == reason
    assert not any(outcome.fidelities)


def test_a_sample_fails_exactly_where_it_has_a_reason() -> None:
    for name in targets.CLASSES:
        outcome = scoring.judge(GHZ, targets.reference(name))
        for fidelity, reason in zip(outcome.fidelities, outcome.reasons, strict=True):
            assert (100 * fidelity > scoring.THRESHOLD_PER_CENT) == (reason is None)
        assert outcome.reaches(targets.SIZES) == (name == "ghz")


@given(st.text(max_size=300))
def test_any_text_is_judged(text: str) -> None:
    outcome = scoring.judge(text, targets.reference("ghz"))
    assert len(outcome.fidelities) == 5
    assert outcome.valid or (outcome.reason and not any(outcome.fidelities))


lines = st.builds(
    "e({},{},{},{},{})".format,
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from([1, -1, 2]),
)


@given(st.lists(lines, min_size=1, max_size=20), st.sampled_from(list(targets.CLASSES)))
def test_fidelities_of_wild_programs_are_shares(text: list[str], name: str) -> None:
    outcome = scoring.judge("\n".join(text), targets.reference(name))
    assert outcome.valid
    assert all(0 <= fidelity <= 1 for fidelity in outcome.fidelities)
