"""The table of benchmarks/training.py: what its groups wrote, the goals, and ours against the others."""

from pathlib import Path
from typing import Any

import table
from table import Row

IN_UNSLOTHS_MEMORY = "ours, Unsloth's memory"
GOALS = {"ours, 80 GB": (18_000, 80), "ours, 40 GB": (15_500, 40), "ours, 12 GB": (12_000, 12)}
"""At least so many tokens a second, in at most so many GB."""
FASTER = {"usual script": 3, "usual script, samples kept apart": 3, "TRL": None, "Unsloth": 1.6}
"""How many times as fast ours is to be, where all memory is used."""


def write(results: list[dict[str, Any]], folder: Path) -> None:
    """Print the table and write training.json to `folder`."""
    speed = {result["name"]: result for result in results if "tokens_per_second" in result}
    goals: dict[str, tuple[float, float]] = dict(GOALS)
    if "Unsloth" in speed:
        goals[IN_UNSLOTHS_MEMORY] = (1.1 * speed["Unsloth"]["tokens_per_second"], speed["Unsloth"]["peak_gb"])
    rows = []
    for name, result in speed.items():
        least, most = goals.get(name, (None, None))
        rows.append(Row(name, result["tokens_per_second"], "tokens/s", result["settings"], at_least=least))
        rows.append(Row(f"{name}: peak memory", result["peak_gb"], "GB", "allocator", at_most=most))
        rows.append(Row(f"{name}: first loss", result["first_loss"], "nats", "the same pack and weights"))
    best = speed.get("ours, 80 GB")
    for other, times in FASTER.items():
        if best and other in speed:
            ratio = best["tokens_per_second"] / speed[other]["tokens_per_second"]
            rows.append(Row(f"ours against {other}", ratio, "times", "same run", at_least=times))
    rows += [Row(**row) for result in results for row in result.get("rows", [])]
    table.write("training", rows, folder)
