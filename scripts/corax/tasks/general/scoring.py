"""Judge completions by their references: equal texts, common words; labels and numbers where references are such."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corax import metrics
from corax.confidence import Samples, bootstrap, wilson
from corax.tasks.general import bleu

METRICS = Path(__file__).parent / "metrics"
FEW_LABELS = 20
"""Most different references that are taken for the labels of a classification, and at most half as many as samples."""
NEAR = 0.2
"""Relative error up to which a number is near its reference."""
LARGEST = 1e15
"""Larger numbers are taken for none: they would drown all others in a mean error."""
SMALLEST = 1e-9
"""References nearer to 0 have no relative error."""
_NUMBER = re.compile(r"[-+]?(?:[0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_CURRENCY = "$€£¥"


def score(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `task` block of evaluation.json from the rows of samples.parquet; see docs/artifacts.md."""
    rows = sorted((row for row in samples if row["reference"] is not None), key=lambda row: row["sample"])
    completions, references = ([row[key] for row in rows] for key in ("completion", "reference"))
    exact = [a.strip() == b.strip() for a, b in zip(completions, references, strict=True)]
    overlap = _compute("rouge_l", completions, references)["rouge_l"] if rows else []
    grams: dict[str, Any] = _compute("bleu", completions, references) if rows else {"bleu": 0.0, "counts": []}
    intervals = {
        "exact_match": wilson(sum(exact), len(rows)),
        "rouge_l": _interval(overlap),
        "bleu": _bleu_interval(grams["counts"]),
    }
    return {
        "name": "general",
        "held_out": {
            "samples": len(rows),
            "exact_match": _mean(exact),
            "rouge_l": _mean(overlap),
            "bleu": grams["bleu"],
            "intervals": intervals,
            "labels": score_labels(completions, references),
            "numbers": score_numbers(completions, references),
        },
        "samples": [
            {**{key: row[key] for key in ("sample", "kind", "name")}, "exact": same, "rouge_l": words}
            for row, same, words in zip(rows, exact, overlap, strict=True)
        ],
    }


def score_labels(completions: Sequence[str], references: Sequence[str]) -> dict[str, Any] | None:
    """Accuracy and macro F1 of a classification; None unless the references are few different texts.

    A completion is its label if both are equal but for case and surrounding blanks. F1 of a label is
    2 TP / (2 TP + FP + FN), the mean is over the labels of the references; a completion that is no label is missed.
    """
    found, truth = ([text.strip().lower() for text in texts] for texts in (completions, references))
    wanted, given = Counter(truth), Counter(found)
    if not truth or len(wanted) > min(FEW_LABELS, len(truth) // 2):
        return None
    right = Counter(label for label, true in zip(found, truth, strict=True) if label == true)
    f1 = {label: 2 * right[label] / (given[label] + count) for label, count in sorted(wanted.items())}
    return {
        "answered": _mean([label in wanted for label in found]),
        "accuracy": right.total() / len(truth),
        "macro_f1": _mean(list(f1.values())),
        "f1": f1,
        "intervals": {"accuracy": wilson(right.total(), len(truth))},
    }


def score_numbers(completions: Sequence[str], references: Sequence[str]) -> dict[str, Any] | None:
    """Accuracy and errors of the first number in each completion; None unless every reference is a number.

    A completion without a number is not equal to its reference, and its error is that of 0. `rmsle` is √mean (ln(1+p) -
    ln(1+t))², with negative numbers as 0; the relative error leaves out references that are 0 or nearly so, and is None
    if all are.
    """
    wanted = [_number(text.strip().lstrip(_CURRENCY), whole=True) for text in references]
    if not wanted or None in wanted:
        return None
    truth = np.array(wanted, np.float64)
    read = [_number(text) for text in completions]
    answered = np.array([number is not None for number in read])
    found = np.array([0.0 if number is None else number for number in read])
    error = np.abs(found - truth)
    divisible = np.abs(truth) >= SMALLEST
    relative = error[divisible] / np.abs(truth[divisible])
    logs = np.log1p(np.maximum(found, 0)) - np.log1p(np.maximum(truth, 0))
    return {
        "answered": _mean(answered.tolist()),
        "accuracy": _mean((answered & (error <= 1e-9 * np.abs(truth))).tolist()),
        "within_20_percent": _mean((answered & (error <= NEAR * np.abs(truth))).tolist()),
        "absolute_error": _mean(error.tolist()),
        "relative_error": _mean(relative.tolist()) if divisible.any() else None,
        "rmsle": math.sqrt(_mean((logs**2).tolist())),
        "intervals": {
            "absolute_error": _interval(error.tolist()),
            "relative_error": _interval(relative.tolist()) if divisible.any() else None,
        },
    }


def _number(text: str, whole: bool = False) -> float | None:
    """The first number in a text, or the text as a number; commas group digits."""
    match = _NUMBER.fullmatch(text) if whole else _NUMBER.search(text)
    value = float(match[0].replace(",", "")) if match else None
    return value if value is not None and abs(value) <= LARGEST else None


def _compute(metric: str, completions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = metrics.load(METRICS / f"{metric}.py").compute(
        predictions=completions, references=references
    )
    return result


def _bleu_interval(counts: Sequence[Sequence[int]]) -> list[float]:
    """Bootstrap interval over samples; [0, 0] of nothing."""
    if not counts:
        return [0.0, 0.0]
    return bootstrap(np.array(counts, np.float64), lambda sums: np.array([bleu.score(sums.tolist())]))[0]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _interval(values: Sequence[float]) -> list[float]:
    """Bootstrap interval of the mean; [0, 0] of nothing."""
    if not values:
        return [0.0, 0.0]

    def mean(sums: Samples) -> Samples:
        return sums / len(values)

    return bootstrap(np.array(values, np.float64)[:, None], mean)[0]
