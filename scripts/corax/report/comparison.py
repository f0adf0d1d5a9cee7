"""Runs that can be compared by their validation loss: the same samples, the same tokens, other settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from corax.report.content import Run

SECTIONS = ("plan", "tuning", "lora", "train")
"""What decides about the adapter."""
NONE = "–"


@dataclass(frozen=True)
class Comparison:
    """Runs with the lowest validation loss first, and each run's value of every setting in which they differ."""

    runs: list[Run]
    settings: dict[str, list[str]]

    @property
    def best(self) -> Run:
        """The run to take."""
        return self.runs[0]

    @property
    def ahead(self) -> float:
        """How much lower the best run's validation loss is than the next one's, nats per target token."""
        return self.runs[1].adapter.validation_loss - self.best.adapter.validation_loss


def comparisons(runs: Sequence[Run]) -> list[Comparison]:
    """The runs in groups that learn from the same tokens and are validated on the same samples; no group of one."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.tokens, run.plan.validation.target_tokens), []).append(run)
    ranked = [sorted(group, key=lambda run: run.adapter.validation_loss) for group in groups.values() if len(group) > 1]
    return [Comparison(group, differing_settings(group, SECTIONS)) for group in ranked]


def differing_settings(runs: Sequence[Run], sections: Sequence[str] | None = None) -> dict[str, list[str]]:
    """The settings (of these sections only) whose value is not the same in all runs, with each run's value."""
    tables = [
        {
            f"{section.name}.{each.key}": each.value
            for section in run.settings
            if sections is None or section.name in sections
            for each in section.settings
        }
        for run in runs
    ]
    keys = dict.fromkeys(key for table in tables for key in table)
    found = {key: [table.get(key, NONE) for table in tables] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}
