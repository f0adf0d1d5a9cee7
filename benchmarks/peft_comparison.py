"""Ways to tune, side by side: memory, time, trained share, loss and exact matches of finished runs.

    python benchmarks/peft_comparison.py results/runs/{full,lora,ia3}-{alpaca,dolly} --output docs/results/peft

Reads the artifacts of each run folder (plan, adapter, evaluation.json), which are named after way and data, and writes
a table for each data set (.md), a plot (.png) and the figures (benchmarks/results/peft.json, or beside the table where
--figures says so). The runs of a data set must have had the same packs and have been evaluated on the same samples.
peft_runs.py makes the runs with a small model.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from table import FOLDER, Row
from table import write as write_json

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from corax.artifact import open_artifact
from corax.confidence import wilson
from corax.errors import CoraxError
from corax.plots import BLUE, GREY, ORANGE, STYLE, save_png

COLUMNS = ("way", "trained", "of all", "memory", "training", "validation loss", "test loss", "exact")
GB = 1e9


@dataclass(frozen=True)
class Result:
    """The figures of one run; losses in nats per target token."""

    way: str
    data: str
    trained: int
    """Trained parameters."""
    share: float
    """Of the parameters of the base."""
    memory: int
    """Bytes: the GPU allocator's peak, on a CPU the process's."""
    seconds: float
    """On a GPU those of the training steps; on a CPU, which others may use too, the processor time of the job."""
    steps: int
    validation_loss: float
    base_loss: float
    """Of the untuned model, on the test samples."""
    test_loss: float
    exact: float
    """Share of samples that are their reference."""
    samples: int
    device: str

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `exact`."""
        return wilson(round(self.exact * self.samples), self.samples)


def main() -> None:
    """Compare the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/peft"), help="files to write, without suffix")
    parser.add_argument("--figures", type=Path, default=FOLDER, help="folder of the JSON file (default: %(default)s)")
    args = parser.parse_args()
    write(compare(args.runs), args.output, args.figures)
    print(args.output.with_suffix(".md").read_text())


def compare(runs: Sequence[Path]) -> dict[str, list[Result]]:
    """The results by data set, after a check that its runs learnt and were tested on the same."""
    results: dict[str, list[Result]] = {}
    seen: dict[str, set[Any]] = {}
    for run in runs:
        result = read(run)
        results.setdefault(result.data, []).append(result)
        packs = open_artifact(run / "plan").content["files"]["packs.parquet"]["sha256"]
        seen.setdefault(result.data, set()).add((packs, result.samples, result.base_loss, result.device))
    for data, kinds in seen.items():
        if len(kinds) > 1:
            raise CoraxError(f"{data}: the runs differ in packs, test samples or device, so they do not compare")
    return results


def read(run: Path) -> Result:
    """The figures of a finished run; the last word of its name is the data set's."""
    adapter, plan = open_artifact(run / "adapter"), open_artifact(run / "plan")
    open_artifact(run / "evaluation.json")
    figures = json.loads((run / "evaluation.json").read_text())
    measured, task = adapter.content["run"], figures["task"]["held_out"]
    way, _, data = run.name.rpartition("-")
    on_gpu = measured["peak_gpu_bytes"] is not None
    return Result(
        way=way,
        data=data,
        trained=adapter.facts["trainable_parameters"],
        share=adapter.facts["trainable_parameters"] / plan.facts["parameters"],
        memory=measured["peak_gpu_bytes"] if on_gpu else measured["peak_memory"],
        seconds=measured["train_seconds"] if on_gpu else measured["cpu_seconds"],
        steps=adapter.facts["steps"],
        validation_loss=adapter.facts["validation_loss"],
        base_loss=figures["held_out"]["base"]["loss"],
        test_loss=figures["held_out"]["tuned"]["loss"],
        exact=task["exact_match"],
        samples=task["samples"],
        device=measured["device"],
    )


def table(results: Sequence[Result]) -> str:
    """The results of a data set as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join('---' for _ in COLUMNS)} |"]
    for result in results:
        low, high = result.interval
        cells = [
            result.way,
            f"{result.trained:,}",
            f"{result.share:.3%}",
            f"{result.memory / GB:.2f} GB",
            f"{result.seconds:,.0f} s",
            f"{result.validation_loss:.3f}",
            f"{result.test_loss:.3f}",
            f"{result.exact:.1%} ({low:.1%} to {high:.1%})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(results: Mapping[str, Sequence[Result]], output: Path, figures: Path) -> None:
    """Write <output>.md and .png, and <figures>/peft.json."""
    output.parent.mkdir(parents=True, exist_ok=True)
    parts = ["# Ways to tune, compared"]
    for data, group in results.items():
        first = group[0]
        parts += [
            f"## {data.capitalize()}",
            f"{first.steps} steps on {first.device}. Untuned, the model's test loss is {first.base_loss:.3f}; `exact` "
            f"is the share of {first.samples} test samples whose completion is the reference, with its 95 % interval.",
            table(group),
        ]
    parts.append(f"![Exact matches, test loss, memory and time]({output.name}.png)")
    output.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    save_png(figure(results), output.with_suffix(".png"))
    write_json(
        "peft", [row for group in results.values() for result in group for row in rows(result)], figures, show=False
    )


def rows(result: Result) -> list[Row]:
    """The run's figures for the JSON file."""
    name = f"{result.data}, {result.way}"
    low, high = result.interval
    return [
        Row(f"{name}: trained", 100 * result.share, "% of the parameters", f"{result.trained:,}"),
        Row(f"{name}: memory", result.memory / GB, "GB", f"peak of training, {result.device}"),
        Row(f"{name}: training", result.seconds, "s", f"{result.steps} steps"),
        Row(f"{name}: validation loss", result.validation_loss, "nats a target token"),
        Row(f"{name}: test loss", result.test_loss, "nats a target token", f"untuned {result.base_loss:.4g}"),
        Row(
            f"{name}: exact", result.exact, "share", f"95 % interval {low:.3f} to {high:.3f}, {result.samples} samples"
        ),
    ]


def figure(results: Mapping[str, Sequence[Result]]) -> Figure:
    """Exact matches with their intervals, test loss, memory and time of each way; a colour for each data set."""
    ways = list(dict.fromkeys(result.way for group in results.values() for result in group))
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(11, 1.2 + 0.4 * len(ways)), layout="constrained")
        exact, loss, memory, seconds = drawn.subplots(1, 4, sharey=True)
        for number, (colour, (data, group)) in enumerate(zip((BLUE, ORANGE), results.items(), strict=False)):
            places = [ways.index(result.way) + 0.24 * (number - (len(results) - 1) / 2) for result in group]
            style: dict[str, Any] = {"color": colour, "marker": "o", "linestyle": "none", "markersize": 5}
            exact.hlines(places, *zip(*(result.interval for result in group), strict=True), color=colour, linewidth=2)
            exact.plot([result.exact for result in group], places, **style, label=data)
            loss.plot([result.test_loss for result in group], places, **style)
            loss.axvline(group[0].base_loss, color=colour, linestyle=":", linewidth=1)
            memory.plot([result.memory / GB for result in group], places, **style)
            seconds.plot([result.seconds for result in group], places, **style)
        exact.set_yticks(range(len(ways)), ways)
        exact.invert_yaxis()
        drawn.legend(loc="outside upper center", ncols=len(results))
        exact.set_xlabel("exact matches, 95 % interval")
        loss.set_xlabel("test loss, nats a target token\n(dotted: untuned)")
        memory.set_xlabel("peak memory, GB")
        memory.set_xlim(left=0)
        seconds.set_xlabel("training, s")
        seconds.set_xlim(left=0)
        for axes in (exact, loss, memory, seconds):
            axes.tick_params(color=GREY)
    return drawn


if __name__ == "__main__":
    main()
