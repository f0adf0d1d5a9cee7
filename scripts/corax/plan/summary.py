"""The content of plan.json, and the same as a table for the log."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from corax.plan import fast, fit, memory, speed
from corax.plan.blocks import DROPPED_LISTED, Survey
from corax.plan.devices import GB
from corax.plan.schedule import Part
from corax.progress import clock
from corax.settings.plan import PlanSettings

WAITS = 1.25
"""From this `host_factor` on longer packs are worth a line."""
BINS = 50
"""At most so many bins in the histogram of lengths."""


def content(
    settings: PlanSettings, training: memory.Training, train: Part, validation: Part, surveys: list[Survey]
) -> dict[str, Any]:
    """What plan.json holds, the keys are described in docs/artifacts.md; `surveys` of train and validation."""
    components = fit.estimate(training)
    needed = memory.total(components)
    step, hours = speed.training_hours(training, train, validation)
    longest = speed.seconds_per_pack(training, training.tokens, training.targets, train.tokens / train.samples)
    reason = fast.unsupported(training)
    gpu_hours = 0.0 if training.device.name == "cpu" else hours * training.ranks
    waits = speed.host_factor(training, train)
    price = None if settings.price_per_gpu_hour is None else gpu_hours * settings.price_per_gpu_hour
    return {
        "steps": train.steps,
        "packs_per_step": settings.packs_per_step,
        "max_length": settings.max_length,
        "packing": settings.packing,
        "train": totals(train, settings.max_length),
        "validation": totals(validation, settings.max_length),
        "epochs": round(train.samples / surveys[0].kept, 4),
        "dropped": [sample for each in surveys for sample in each.dropped][:DROPPED_LISTED],
        "dropped_count": sum(each.dropped_count for each in surveys),
        "micro_batch_packs": 1,
        "engine": "general" if reason else "fast",
        "engine_reason": reason,
        "layers_kept": None if reason else fast.layers_kept(training),
        "dequantised_base": None if reason else fast.dequantised(training),
        "memory": [asdict(component) for component in components],
        "memory_bytes": needed,
        "memory_allocated_bytes": memory.allocated(components),
        "memory_layer_kept_bytes": None if reason else fast.Sizes.of(training).kept,
        "memory_available_bytes": training.device.memory,
        "fits": needed <= training.device.memory,
        "seconds_per_step": _rounded(step),
        "seconds_longest_pack": _rounded(longest),
        "host_factor": None if waits is None else _rounded(waits),
        "hours": _rounded(hours),
        "gpu_hours": _rounded(gpu_hours),
        "price": None if price is None else _rounded(price),
        "slurm": asdict(speed.slurm_request(training, needed, hours)),
        "device": training.device.name,
        "devices": training.ranks,
        "lengths": histogram(surveys[0]),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def totals(part: Part, max_length: int) -> dict[str, Any]:
    """Sums over the packs; a sample counts as often as it is learnt. `fill` is the used share of all places."""
    return {
        "samples": part.samples,
        "packs": part.packs,
        "tokens": part.tokens,
        "target_tokens": part.targets,
        "fill": round(part.tokens / (part.packs * max_length), 4),
    }


def histogram(survey: Survey) -> dict[str, list[int]]:
    """Numbers of samples (`counts`) with edges[i] ≤ tokens < edges[i + 1]."""
    width = survey.longest // BINS + 1
    edges = range(0, survey.longest + width + 1, width)
    return {"edges": list(edges), "counts": [int(survey.counts[edge : edge + width].sum()) for edge in edges[:-1]]}


def lines(plan: dict[str, Any]) -> Iterator[str]:
    """The plan as a table for the log."""
    for part in ("train", "validation"):
        sums = plan[part]
        yield (
            f"{part}: {sums['samples']:,} samples, {sums['tokens']:,} tokens ({sums['target_tokens']:,} carry loss) in "
            f"{sums['packs']:,} packs of {plan['max_length']:,}, {100 * sums['fill']:.1f} % full"
        )
    if plan["dropped_count"]:
        yield f"dropped as longer than {plan['max_length']:,} tokens: {plan['dropped_count']:,} samples"
    yield (
        f"time: {plan['steps']:,} steps of {plan['packs_per_step']} packs ({plan['epochs']:g} epochs), "
        f"{plan['seconds_per_step']:.3g} s a step, {clock(plan['hours'] * 3600)} with validation"
    )
    if plan["packing"] and (plan["host_factor"] or 0) > WAITS:
        longer = math.ceil(plan["host_factor"] * plan["max_length"] / 1024) * 1024
        yield (
            f"the GPU waits: issuing its kernels takes {plan['host_factor']:.1f} times as long as a pack takes it; "
            f"plan.max_length {longer:,} with fewer packs_per_step would keep it busy"
        )
    if plan["gpu_hours"]:
        price = "" if plan["price"] is None else f", price {plan['price']:,.2f}"
        yield f"GPU-hours: {plan['gpu_hours']:,.4g}{price}"
    if plan["engine"] == "fast":
        base = "stay in memory" if plan["dequantised_base"] else "are made at each use"
        yield f"fast layers: activations of {plan['layers_kept']} layers kept, the base's 16-bit values {base}"
    else:
        yield f"plain transformers and peft: {plan['engine_reason']}"
    yield f"memory of each of {plan['devices']} × {plan['device']}, one pack at a time:"
    for part in plan["memory"]:
        yield f"  {part['bytes'] / GB:8.3f} GB  {part['component']:<36} {part['how']}"
    yield f"  {plan['memory_bytes'] / GB:8.3f} GB  of {plan['memory_available_bytes'] / GB:.1f} GB"
    yield "slurm: " + ", ".join(f"{key} {value}" for key, value in plan["slurm"].items())
