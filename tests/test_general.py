"""The task of data without a task: exact match, ROUGE-L, numbers."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corax import metrics, tasks
from corax.tasks.general import bleu, scoring

words = st.lists(st.sampled_from("abc"), max_size=9)


def rows(*pairs: tuple[str, str | None]) -> list[dict[str, Any]]:
    names = ("completion", "reference")
    return [
        {
            "sample": number,
            "kind": "held-out",
            "name": f"000:{number}",
            "prompt": "?",
            **dict(zip(names, pair, strict=True)),
        }
        for number, pair in enumerate(pairs)
    ]


def longest_common(first: list[str], second: list[str]) -> int:
    """By the definition, recursively."""
    if not first or not second:
        return 0
    if first[0] == second[0]:
        return 1 + longest_common(first[1:], second[1:])
    return max(longest_common(first[1:], second), longest_common(first, second[1:]))


@pytest.fixture(scope="module")
def rouge_l() -> Any:
    """The metric."""
    return metrics.load(scoring.METRICS / "rouge_l.py")


@settings(max_examples=20)
@given(pairs=st.lists(st.tuples(words, words), min_size=1, max_size=20))
def test_rouge_l_is_the_longest_common_subsequence(rouge_l: Any, pairs: list[tuple[list[str], list[str]]]) -> None:
    predictions, references = ([" ".join(pair[side]) for pair in pairs] for side in (0, 1))
    found = rouge_l.compute(predictions=predictions, references=references)["rouge_l"]
    for (a, b), value in zip(pairs, found, strict=True):
        assert value == pytest.approx(2 * longest_common(a, b) / (len(a) + len(b)) if a and b else 0)


def test_rouge_l_of_published_examples(rouge_l: Any) -> None:
    """The sentences of Lin 2004, and one with other characters between its words."""
    references = ["police killed the gunman"] * 3 + ["The Answer is: 42, or so!"]
    predictions = ["police kill the gunman", "the gunman kill police", "the gunman police killed", "the answer (42)"]
    found = rouge_l.compute(predictions=predictions, references=references)["rouge_l"]
    assert found == pytest.approx([0.75, 0.5, 0.5, 6 / 9])


def test_texts() -> None:
    block = tasks.get("general").score(rows(("yes", "yes"), ("no\n", "no"), ("maybe so", "maybe"), ("x", None)))
    held_out = block["held_out"]
    assert held_out["samples"] == 3
    assert held_out["exact_match"] == pytest.approx(2 / 3)
    assert held_out["rouge_l"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    low, high = held_out["intervals"]["exact_match"]
    assert low < 2 / 3 < high
    assert held_out["numbers"] is None
    assert [each["exact"] for each in block["samples"]] == [True, True, False]
    assert json.dumps(block) == json.dumps(
        tasks.get("general").score(rows(("yes", "yes"), ("no\n", "no"), ("maybe so", "maybe")))
    )
    assert tasks.get("general").targets() == []


def test_numbers() -> None:
    found = scoring.score_numbers(["$100", "Price: 1,210.50", "no idea", "-3"], ["100.00", "$1,100.50", "10", "0"])
    assert found is not None
    assert found["answered"] == 0.75
    assert found["accuracy"] == 0.25
    assert found["within_20_percent"] == 0.5
    assert found["absolute_error"] == pytest.approx((0 + 110 + 10 + 3) / 4)
    assert found["relative_error"] == pytest.approx((0 + 110 / 1100.5 + 1) / 3)
    logs = [math.log(1211.5) - math.log(1101.5), math.log(11)]
    assert found["rmsle"] == pytest.approx(math.sqrt(sum(log**2 for log in logs) / 4))
    assert scoring.score_numbers(["1", "2"], ["1", "two"]) is None


def test_no_number_is_no_zero() -> None:
    """Where the answer is 0 a text without a number has no error, and is not right."""
    found = scoring.score_numbers(["no idea", "0", "", "0.0"], ["0"] * 4)
    assert found is not None
    assert (found["answered"], found["accuracy"], found["within_20_percent"]) == (0.5, 0.5, 0.5)
    assert (found["absolute_error"], found["relative_error"]) == (0, None)
    assert found["intervals"] == {"absolute_error": [0, 0], "relative_error": None}


def test_nothing_sampled() -> None:
    block = scoring.score([])
    assert block["held_out"]["samples"] == 0
    assert block["held_out"]["intervals"] == {"exact_match": [0, 1], "rouge_l": [0, 0], "bleu": [0, 0]}
    assert (block["held_out"]["labels"], block["held_out"]["numbers"]) == (None, None)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.text(max_size=30), st.floats(-1e6, 1e6)), min_size=1, max_size=4))
def test_any_completion_has_finite_errors(pairs: list[tuple[str, float]]) -> None:
    completions = [text for text, _ in pairs] + ["9" * 10_000, "1e999", "-1e300", "٣"]
    found = scoring.score_numbers(completions, [str(number) for _, number in pairs] + ["1"] * 4)
    json.dumps(found, allow_nan=False)


def test_a_long_text_is_compared(rouge_l: Any) -> None:
    text = "word " * 4000
    assert rouge_l.compute(predictions=[text], references=[text])["rouge_l"] == [1]


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    # Scores of sacrebleu 2.6.0, corpus_bleu with its defaults, over 100.
    [
        (
            ["The guard arrived late because it was raining.", "It is a 3-4 split, 1,234.5 in all."],
            ["The guard arrived late because of the rain.", "It was a 3-4 split; 1,234.5 overall."],
            0.4031614950789568,
        ),
        (["the cat sat here now"], ["a dog ran"], 0.0),
        (["a b"], ["a c"], 0.0),
        (["the cat sat on the mat"], ["the cat sat on the mat"], 1.0),
        ([""], ["a"], 0.0),
    ],
)
def test_bleu_is_that_of_sacrebleu(predictions: list[str], references: list[str], expected: float) -> None:
    found = metrics.load(scoring.METRICS / "bleu.py").compute(predictions=predictions, references=references)
    assert found["bleu"] == pytest.approx(expected, rel=1e-12)
    assert len(found["counts"]) == len(predictions)


@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), min_size=1, max_size=6))
def test_bleu_of_any_text_is_a_share(pairs: list[tuple[str, str]]) -> None:
    counts = [bleu.count(*pair) for pair in pairs]
    total = [sum(column) for column in zip(*counts, strict=True)]
    assert 0 <= bleu.score(total) <= 1
    assert all(matching <= count for count, matching in zip(total[2::2], total[3::2], strict=True))
    same = [bleu.count(text, text) for text, _ in pairs]
    summed = [sum(column) for column in zip(*same, strict=True)]
    assert bleu.score(summed) == pytest.approx(1 if summed[-1] else 0)


def test_labels() -> None:
    references = ["positive"] * 4 + ["negative"] * 2
    completions = ["positive", "Positive\n", "negative", "great", "negative", "positive"]
    found = scoring.score(rows(*zip(completions, references, strict=True)))["held_out"]["labels"]
    assert found is not None
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["answered"] == pytest.approx(5 / 6)
    # positive: 2 right, 1 wrong, 2 missed; negative: 1 right, 1 wrong, 1 missed.
    assert found["f1"] == pytest.approx({"positive": 4 / 7, "negative": 2 / 4})
    assert found["macro_f1"] == pytest.approx((4 / 7 + 1 / 2) / 2)
    low, high = found["intervals"]["accuracy"]
    assert low < 0.5 < high


def test_texts_that_are_mostly_different_are_no_labels() -> None:
    assert scoring.score_labels(["a", "b", "a"], ["a", "b", "a"]) is None
    assert scoring.score_labels(["a"] * 4, ["a", "b", "a", "b"]) is not None
    many = [str(number % 21) for number in range(84)]
    assert scoring.score_labels(many, many) is None
