"""Judge sampled programs: read them, simulate them, compare with the states they were asked for.

A program sampled for a target is compared at five sizes, N = 0 … 4, of which its prompt showed three; one sampled
for a held-out prompt at the three sizes of that prompt. Text that is no program, or has no state, counts 0, and
every sample that is not right at all sizes has a reason. Programs that differ in order only are simulated once.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from corax import metrics
from corax.confidence import PASS_AT, pass_at, wilson
from corax.errors import CoraxError
from corax.progress import Progress
from corax.tasks.quantum import overlap, packed, state, targets
from corax.tasks.quantum.language import ProgramError, Reason
from corax.tasks.quantum.overlap import Wanted
from corax.tasks.quantum.packed import Packed

THRESHOLD_PER_CENT = 99
"""A program reaches a state if the fidelity is greater."""
Row = Mapping[str, Any]
"""A row of samples.parquet."""
METRIC = Path(__file__).parent / "metrics" / "quantum_programs.py"


@lru_cache(maxsize=4096)
def _wanted(reference: str) -> Wanted:
    return overlap.wanted(state.parse(reference))


class Outcome(NamedTuple):
    """What became of one sample."""

    program: str | None
    """Hash of the program, the same for all that differ in order only; None if the text is no program."""
    fidelities: tuple[float, ...]
    """For N = 0, 1, …, as many as there are reference states."""
    reasons: tuple[Reason | None, ...]
    """Why each of these states is not reached; None where it is."""

    @property
    def valid(self) -> bool:
        """Whether the text is a program."""
        return self.program is not None

    @property
    def reason(self) -> Reason | None:
        """Why the first state that is not reached is not."""
        return next(filter(None, self.reasons), None)

    @property
    def first_failure(self) -> int:
        """The smallest N whose state is not reached; the number of states if all are."""
        return next((size for size, reason in enumerate(self.reasons) if reason), len(self.reasons))

    def reaches(self, sizes: range) -> bool:
        """Whether the program gives the reference states for all of these N."""
        return not any(self.reasons[size] for size in sizes)


def judge(text: str, reference: str) -> Outcome:
    """Judge a program's text against the states in `reference` (segments for N = 0, 1, … joined by `|`).

    Raises CoraxError if `reference` is no such text; never raises because of `text`.
    """
    try:
        program = packed.read(text)
    except ProgramError as error:
        sizes = len(_wanted(reference).states)
        return Outcome(None, (0.0,) * sizes, (error.reason,) * sizes)
    return _simulate(program, reference)


@lru_cache(maxsize=16384)
def _simulate(program: Packed, reference: str) -> Outcome:
    """Cached: a model at low temperature writes the same program again and again."""
    fidelities, reasons = [], []
    for numerator, denominator, reason in overlap.fidelities(program, _wanted(reference)):
        fidelities.append(numerator / denominator)
        reached = 100 * numerator > THRESHOLD_PER_CENT * denominator
        reasons.append(None if reached else reason or Reason.WRONG_STATE)
    return Outcome(packed.program_hash(program), tuple(fidelities), tuple(reasons))


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Shares with their intervals, distinct programs, mean fidelities and reasons over held-out samples."""
    valid = sum(outcome.valid for outcome in outcomes)
    exact = sum(outcome.reaches(targets.PROMPT_SIZES) for outcome in outcomes)
    return {
        "samples": len(outcomes),
        "distinct": _distinct(outcomes),
        "valid": _share(valid, outcomes),
        "fidelity": [_mean([outcome.fidelities[size] for outcome in outcomes]) for size in targets.PROMPT_SIZES],
        "exact": _share(exact, outcomes),
        "intervals": {"valid": wilson(valid, len(outcomes)), "exact": wilson(exact, len(outcomes))},
        "reasons": _reasons(outcomes),
    }


def score(samples: Sequence[Row]) -> dict[str, Any]:
    """The `task` block of evaluation.json from the rows of samples.parquet.

    Raises CoraxError naming a row whose kind, target or prompt is unknown.
    """
    rows = sorted(samples, key=lambda row: row["sample"])
    outcomes = []
    with Progress("score", total=len(rows), unit="sample") as progress:
        for row in rows:
            outcomes.append(_judge_row(row))
            progress.advance()
    held_out = [row for row in rows if row["kind"] == "held-out"]
    by_target = _targets(rows, outcomes)
    return {
        "name": "quantum",
        "held_out": _held_out([row["completion"] for row in held_out], [row["prompt"] for row in held_out]),
        "targets": by_target,
        "pass_at": _mean_pass_at(by_target),
        "samples": [
            {
                **{key: row[key] for key in ("sample", "kind", "name")},
                "valid": outcome.valid,
                "program": outcome.program,
                "reason": outcome.reason,
                "reasons": list(outcome.reasons),
                "fidelity": list(outcome.fidelities),
            }
            for row, outcome in zip(rows, outcomes, strict=True)
        ],
    }


def _judge_row(row: Row) -> Outcome:
    where = f"samples: row {row['sample']}"
    if row["kind"] == "target":
        if row["name"] not in targets.CLASSES:
            raise CoraxError(f"{where}: target {row['name']!r}, allowed: {', '.join(targets.CLASSES)}")
        return judge(row["completion"], targets.reference(row["name"]))
    if row["kind"] != "held-out":
        raise CoraxError(f"{where}: kind {row['kind']!r}, allowed: target, held-out")
    try:
        outcome = judge(row["completion"], row["prompt"])
    except CoraxError as error:
        raise CoraxError(f"{where}: {error}") from None
    if len(outcome.fidelities) != len(targets.PROMPT_SIZES):
        raise CoraxError(
            f"{where}: {len(outcome.fidelities)} states in its prompt, must be {len(targets.PROMPT_SIZES)}"
        )
    return outcome


def _held_out(programs: list[str], prompts: list[str]) -> dict[str, Any]:
    """The summary, through the metric of the `evaluate` library."""
    if not programs:
        return summary([])
    result: dict[str, Any] = metrics.load(METRIC).compute(predictions=programs, references=prompts)
    return result


def _targets(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One entry for each target that was sampled for, in the published order."""
    sampled: dict[str, list[tuple[Row, Outcome]]] = {name: [] for name in targets.CLASSES}
    for row, outcome in zip(rows, outcomes, strict=True):
        if row["kind"] == "target":
            sampled[row["name"]].append((row, outcome))
    return [_target(name, pairs) for name, pairs in sampled.items() if pairs]


def _target(name: str, pairs: Sequence[tuple[Row, Outcome]]) -> dict[str, Any]:
    row, best = max(pairs, key=lambda pair: _rank(pair[1]))
    outcomes = [outcome for _, outcome in pairs]
    counts = {
        "valid": sum(outcome.valid for outcome in outcomes),
        "fits": sum(outcome.reaches(targets.PROMPT_SIZES) for outcome in outcomes),
        "solved": sum(outcome.reaches(targets.SIZES) for outcome in outcomes),
    }
    best_entry = {
        "fidelity": list(best.fidelities),
        "first_failure": best.first_failure,
        "program": row["completion"].removesuffix("\n"),
        "sample": row["sample"],
    }
    return {
        "name": name,
        "label": targets.CLASSES[name].label,
        "samples": len(outcomes),
        "distinct": _distinct(outcomes),
        **{key: _share(count, outcomes) for key, count in counts.items()},
        "intervals": {key: wilson(count, len(outcomes)) for key, count in counts.items()},
        "pass_at": {
            str(k): {key: pass_at(k, len(outcomes), counts[key]) for key in ("fits", "solved")}
            for k in PASS_AT
            if k <= len(outcomes)
        },
        "reasons": _reasons(outcomes),
        "best": best_entry if best.valid else None,
    }


def _rank(outcome: Outcome) -> tuple[bool, list[bool], float]:
    """Programs before other text; then success at the smaller sizes counts more; then the mean fidelity."""
    return (
        outcome.valid,
        [reason is None for reason in outcome.reasons],
        math.fsum(outcome.fidelities),
    )


def _mean_pass_at(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """pass@k as the mean over the classes, for every k that all of them have samples for."""
    ks = [str(k) for k in PASS_AT if entries and all(str(k) in entry["pass_at"] for entry in entries)]
    return {k: {key: _mean([entry["pass_at"][k][key] for entry in entries]) for key in ("fits", "solved")} for k in ks}


def _distinct(outcomes: Sequence[Outcome]) -> int:
    """The number of programs; those that differ in order only are one."""
    return len({outcome.program for outcome in outcomes if outcome.valid})


def _reasons(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many samples fail for each reason; a sample that reaches all states has none."""
    return dict(sorted(Counter(str(outcome.reason) for outcome in outcomes if outcome.reason).items()))


def _share(count: int, outcomes: Sequence[Outcome]) -> float:
    return count / len(outcomes) if outcomes else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
