"""Full fine-tuning, LoRA and prefix tuning of an encoder-decoder model on sentiment: the same data, steps and model.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.1
    python benchmarks/seq2seq.py vaderSentiment-3.3.1.tar.gz work/seq2seq --seconds 600

Makes a small T5 (small_t5.py) and the data (sentiment_data.py) in the given folder and runs every stage there, with as
many steps as there is time for. After each run seq2seq.json, seq2seq.csv, seq2seq.md and seq2seq.png are written anew
into the folder. On a GPU the time is that of the training steps and the memory the allocator's peak; on a CPU they are
the train stage's CPU seconds and the whole process's memory.
"""

import csv
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import sentiment_data
import small_t5
import timed_runs
from matplotlib.figure import Figure
from pipeline import Pipeline, gpus
from table import Row, write
from timed_runs import TimedRuns

from corax import config
from corax.artifact import open_artifact
from corax.confidence import wilson
from corax.plots import BLUE, GREEN, INK, ORANGE, STYLE, save_png

METHODS = {"full": 5e-4, "lora": 3e-3, "prefix_tuning": 3e-2}
"""The learning rate of each."""
NAMES = {"full": "full fine-tuning", "lora": "LoRA, r = 16", "prefix_tuning": "prefix tuning, 20 tokens"}
COLOURS = dict(zip(METHODS, (BLUE, ORANGE, GREEN), strict=True))
LEAST_STEPS, MOST_STEPS = 200, 1000
AFTER_TRAINING = 25.0
"""Seconds that merging, sampling and evaluating a run take at most."""
MB = 1e6


def main() -> None:
    """Make, run and write."""
    parser = timed_runs.parser(str(__doc__), seconds=600)
    parser.add_argument(
        "--pretraining", type=float, default=120, help="seconds of them for the T5 (default: %(default)s)"
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    print("$ " + shlex.join(["python", *sys.argv]), flush=True)
    folder = arguments.folder.resolve()
    with gpus(folder, arguments.at_once) as devices:
        if not (folder / "data").is_dir():
            sentiment_data.write(arguments.package, folder / "data")
        if not (folder / "small-t5" / "config.json").is_file():
            texts = (folder / "data" / "unlabelled.txt").read_text(encoding="utf-8").splitlines()
            losses = small_t5.make(texts, folder / "small-t5", arguments.pretraining)
            (folder / "span-corruption.json").write_text(json.dumps(losses) + "\n")
        checked = config.check(configuration(folder, on_gpu=devices[0].number != ""))
        left = arguments.seconds - (time.monotonic() - began)
        runs = TimedRuns(Pipeline(checked, folder), list(METHODS), devices, left, ("full", "lora"), AFTER_TRAINING)
        runs.all(lambda finished: save(folder, finished), LEAST_STEPS, MOST_STEPS, arguments.steps)
        if runs.finished:
            print((folder / "seq2seq.md").read_text())


def configuration(folder: Path, on_gpu: bool) -> dict[str, Any]:
    """Three runs that differ in the method and its learning rate."""
    plan = {"max_length": 4096, "packs_per_step": 1, "validation_samples": 300}
    runs = {
        method: {
            "model": "small-t5",
            "dataset": "reviews",
            "plan": {**plan, "device": "h100-80gb" if on_gpu else "cpu"},
            "tuning": {"method": method},
            "lora": {"r": 16},
            "train": {
                "learning_rate": rate,
                "bits": 16,
                "eval_steps": 50,
                "save_steps": 10_000,
                "deterministic": False,
            },
            "sample": {"held_out_prompts": 5000, "temperature": 0, "max_new_tokens": 6, "batch_size": 512},
            "evaluate": {"test_samples": 200},
        }
        for method, rate in METHODS.items()
    }
    dataset = {
        "download": {"source": "local", "path": str(folder / "data")},
        "detokenize": {"prompt_column": "text", "completion_column": "label"},
        "pretokenize": {"prompt_header": "sentiment:"},
    }
    return {
        "models": {"small-t5": {"source": "local", "path": str(folder / "small-t5")}},
        "datasets": {"reviews": dataset},
        "runs": runs,
    }


def save(folder: Path, methods: list[str]) -> None:
    """Everything that is written of the finished runs."""
    results = {method: read(folder, method) for method in methods}
    save_csv(results, folder / "seq2seq.csv")
    save_png(figure(results), folder / "seq2seq.png")
    (folder / "seq2seq.md").write_text(table(results) + "\n")
    save_json(results, folder)


def read(folder: Path, method: str) -> dict[str, Any]:
    """The figures of a finished run."""
    run = folder / "results" / "runs" / method
    adapter, plan = open_artifact(run / "adapter"), open_artifact(run / "plan")
    scored = json.loads((run / "evaluation.json").read_text())["task"]
    right = [row["exact"] for row in scored["samples"]]
    metrics = [json.loads(line) for line in (run / "adapter" / "metrics.jsonl").read_text().splitlines()]
    measured = adapter.content["run"]
    on_gpu = measured["peak_gpu_bytes"] is not None
    size = sum(entry["size"] for file, entry in adapter.files().items() if file.suffix == ".safetensors")
    return {
        "parameters": plan.facts["parameters"],
        "trainable": adapter.facts["trainable_parameters"],
        "steps": adapter.facts["steps"],
        "megabytes": size / MB,
        "seconds": measured["train_seconds"] if on_gpu else measured["cpu_seconds"],
        "peak_memory": (measured["peak_gpu_bytes"] if on_gpu else measured["peak_memory"]) / MB,
        "validation": [(row["step"], row["validation_loss"]) for row in metrics if "validation_loss" in row],
        "accuracy": sum(right) / len(right),
        "interval": wilson(sum(right), len(right)),
        "samples": len(right),
        "most_frequent": most_frequent(folder),
        "device": measured["device"],
    }


def most_frequent(folder: Path) -> float:
    """The accuracy of always giving the label that most test samples have."""
    lines = (folder / "results/datasets/reviews/text/000/test.jsonl").read_text(encoding="utf-8").splitlines()
    labels = [json.loads(line)["completion"] for line in lines]
    return max(labels.count(label) for label in set(labels)) / len(labels)


def save_csv(results: dict[str, dict[str, Any]], path: Path) -> None:
    """One row a method."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(
            ["method", "trainable", "share", "saved MB", "seconds", "peak MB", "loss", "accuracy", "low", "high"]
        )
        for method, result in results.items():
            figures = (result["megabytes"], result["seconds"], result["peak_memory"], result["validation"][-1][1])
            quality = (result["accuracy"], *result["interval"])
            share = result["trainable"] / result["parameters"]
            numbers = [f"{number:.4g}" for number in (share, *figures, *quality)]
            lines.writerow([NAMES[method], result["trainable"], *numbers])


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = ["| method | trainable | saved | training | peak memory | validation loss | accuracy (95 % interval) |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for method, result in results.items():
        low, high = result["interval"]
        cells = [
            NAMES[method],
            f"{result['trainable']:,} ({result['trainable'] / result['parameters']:.2%})",
            f"{result['megabytes']:.2f} MB",
            f"{result['seconds']:.0f} s",
            f"{result['peak_memory']:,.0f} MB",
            f"{result['validation'][-1][1]:.3f}",
            f"{result['accuracy']:.3f} ({low:.3f} to {high:.3f})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def save_json(results: dict[str, dict[str, Any]], folder: Path) -> None:
    """seq2seq.json in the form of all benchmarks."""
    rows = []
    for method, result in results.items():
        low, high = result["interval"]
        against = f"95 % interval {low:.3f} to {high:.3f}, {result['samples']} samples"
        rows += [
            Row(f"{NAMES[method]}: accuracy", result["accuracy"], "share", against),
            Row(f"{NAMES[method]}: validation loss", result["validation"][-1][1], "nats a target token"),
            Row(f"{NAMES[method]}: trainable", 100 * result["trainable"] / result["parameters"], "% of the weights"),
            Row(f"{NAMES[method]}: saved", result["megabytes"], "MB"),
            Row(f"{NAMES[method]}: training", result["seconds"], "s", f"{result['steps']} steps, {result['device']}"),
            Row(f"{NAMES[method]}: peak memory", result["peak_memory"], "MB", result["device"]),
        ]
    frequent = next(iter(results.values()))["most_frequent"]
    rows.append(Row("always the most frequent label: accuracy", frequent, "share"))
    write("seq2seq", rows, folder, show=False)


def figure(results: dict[str, dict[str, Any]]) -> Figure:
    """Validation loss over the steps, and accuracy on the test part with its interval."""
    with matplotlib.rc_context(STYLE):
        result = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = result.subplots(1, 2, width_ratios=(3, 2))
        for place, (method, figures) in enumerate(results.items()):
            steps, losses = zip(*figures["validation"], strict=True)
            left.plot(steps, losses, color=COLOURS[method], marker="o", markersize=3, label=NAMES[method])
            low, high = figures["interval"]
            right.plot([low, high], [place, place], color=COLOURS[method], linewidth=2)
            right.plot([figures["accuracy"]], [place], "o", color=COLOURS[method])
        left.set_xlabel("optimizer step")
        left.set_ylabel("validation loss, nats a target token")
        left.legend()
        right.axvline(next(iter(results.values()))["most_frequent"], color=INK, linewidth=0.8, linestyle=":")
        right.set_yticks(range(len(results)), [NAMES[method] for method in results])
        right.invert_yaxis()
        right.set_xlabel("test accuracy, 95 % interval\n(dotted: most frequent label)")
        return result


if __name__ == "__main__":
    main()
