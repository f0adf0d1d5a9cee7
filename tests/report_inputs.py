"""A made-up `results` folder for the report's tests: real manifests, programs and prompts, invented figures.

python tests/report_inputs.py FOLDER     # to look at the page it gives
"""

import json
import math
import os
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from corax.artifact import Artifact
from corax.confidence import wilson
from corax.settings.evaluate import EvaluateSettings
from corax.settings.generate import GenerateSettings
from corax.settings.lora import LoraSettings
from corax.settings.merge import MergeSettings
from corax.settings.plan import PlanSettings
from corax.settings.sample import SampleSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings

DATA = Path(__file__).parent / "data" / "quantum"
MODEL = Path("results/models/smollm2-135m")
RAW, TEXT, TOKENS = (Path(f"results/datasets/quantum-short/{kind}/000") for kind in ("raw", "text", "tokens/m"))
STEPS = 60


def write_upstream() -> None:
    """The model and the data stages, below the working directory."""
    _folder(MODEL, "download", [], settings={"download": {"source": "local", "path": "m", "license": "Apache-2.0"}})
    _folder(RAW, "generate", [], settings={"generate": GenerateSettings(samples=1000)})
    _folder(TEXT, "detokenize", [RAW])
    _folder(TOKENS, "pretokenize", [TEXT, MODEL])


def write_run(name: str = "demo", *, rank: int = 16, completion: str | None = None, seconds: float = 301.5) -> Path:
    """A run; `completion` replaces the text of its first sample, `seconds` is the measured time of training."""
    run = Path("results/runs") / name
    lora = LoraSettings(r=rank)
    _plan(run / "plan", PlanSettings(max_length=512, packs_per_step=1, max_steps=STEPS), lora)
    inputs = [MODEL, run / "plan", TOKENS]
    settings = {"lora": lora, "tuning": TuningSettings(), "train": TrainSettings(learning_rate=1e-3)}
    with Artifact(run / "adapter", stage="train", inputs=inputs, settings=settings) as artifact:
        (artifact.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics()))
        artifact.note(**adapter_facts())
        artifact.measured(device="cpu", ranks=1, segments=1, tokens_per_second=70.4, train_seconds=seconds)
    near = {"original": {"loss": 0.3952, "kl": 0.0221}, "nf4": {"loss": 0.3871, "kl": 4.2e-06}}
    scores = {"samples": 8, "target_tokens": 2160, "trained": {"loss": 0.387}, **near}
    settings = {"merge": MergeSettings()}
    _folder(run / "merged", "merge", [MODEL, run / "adapter", TOKENS], settings, {"base": "nf4", "scores": scores})
    rows = samples()
    if completion is not None:
        rows[0]["completion"] = completion
    settings_of_sample = {"sample": SampleSettings()}
    path = run / "samples.parquet"
    with Artifact(path, stage="sample", inputs=[run / "merged"], settings=settings_of_sample, file=True) as artifact:
        parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), artifact.path)
        artifact.note(samples=len(rows), tokens=sum(row["tokens"] for row in rows))
        artifact.measured(tokens_per_second=17.6)
    inputs = [MODEL, run / "merged", path, TOKENS]
    path = run / "evaluation.json"
    with Artifact(
        path, stage="evaluate", inputs=inputs, settings={"evaluate": EvaluateSettings()}, file=True
    ) as artifact:
        artifact.path.write_text(json.dumps(evaluation()))
    return run


def adapter_facts(loss: float = 0.3912) -> dict[str, Any]:
    """An adapter of the second of three validations."""
    return {"written_step": 40, "validation_loss": loss, "trainable_parameters": 4_884_480, "stopped": None}


def metrics() -> list[dict[str, Any]]:
    """60 steps with three validations."""
    noise = random.Random(0)
    rows: list[dict[str, Any]] = []
    for step in range(1, STEPS + 1):
        loss = 0.36 + 0.75 * math.exp(-step / 14)
        rate = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        figures = {"learning_rate": rate, "grad_norm": 0.5, "tokens": 500, "target_tokens": 260}
        rows.append({"step": step, "loss": loss + noise.gauss(0, 0.05), **figures})
        if step % 20 == 0:
            rows.append({"step": step, "validation_loss": loss + 0.02})
    return rows


SCHEMA = pa.schema(
    [
        ("sample", pa.int32()),
        *[(name, pa.string()) for name in ("kind", "name", "prompt", "reference", "completion")],
        ("tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
    ]
)


def samples() -> list[dict[str, Any]]:
    """One sample for each of 20 classes, 16 held-out ones."""
    pairs = json.loads((DATA / "pairs.json").read_text())
    result = []
    for number in range(36):
        pair = pairs[number % len(pairs)]
        kind, name = ("target", f"class{number}") if number < 20 else ("held-out", f"000:{number - 20}")
        row = {"sample": number, "kind": kind, "name": name, "prompt": "|".join(pair["states"])}
        reference = pair["program"] if kind == "held-out" else None
        completion = pair["program"] if number % 7 else "e(+0+0*N,+1+"
        drawn = {"tokens": 311, "finish_reason": "end", "temperature": 0.6 if number % 5 else 0.2, "top_p": 0.95}
        result.append({**row, "reference": reference, "completion": completion, **drawn})
    return result


def evaluation() -> dict[str, Any]:
    """One class solved, three that fit the prompt, others partly or wrong."""
    labels = [target["label"] for target in json.loads((DATA / "targets.json").read_text())]
    labels += [f"Class {number}" for number in range(len(labels), 20)]
    curves: list[list[float]] = [
        [1.0] * 5,
        [1, 1, 1, 0.5, 0.25],
        [1, 1, 1, 0, 0],
        [1, 0.75, 0.4, 0, 0],
        [1, 0, 0, 0, 0],
        [0.5, 0.2, 0, 0, 0],
    ]
    fidelity = [curves[min(number, 5)] if number % 7 else [0.0] * 5 for number in range(20)]
    fidelity[8:11] = [[1.0] * 5, [1, 1, 1, 0.52, 0.2], [0.33, 0.22, 0.15, 0.1, 0.06]]
    judged: list[dict[str, Any]] = []
    for row in samples():
        number, valid = row["sample"], row["sample"] % 7 != 0
        values = fidelity[number] if number < 20 else [0.9, 0.5, 0.1] if number % 2 else [1.0, 1.0, 1.0]
        reason = None if valid else "syntax"
        same = {key: row[key] for key in ("sample", "kind", "name")}
        judged.append({**same, "valid": valid, "reason": reason, "fidelity": values if valid else [0.0] * len(values)})
    targets = []
    for number, label in enumerate(labels):
        each = judged[number]
        right = [value > 0.99 for value in each["fidelity"]]
        failure = right.index(False) if False in right else 5
        program = samples()[number]["completion"]
        best = {"fidelity": each["fidelity"], "first_failure": failure, "program": program, "sample": number}
        counts = {"valid": int(each["valid"]), "fits": int(all(right[:3])), "solved": int(all(right))}
        targets.append(
            {
                "name": f"class{number}",
                "label": label,
                "samples": 1,
                "distinct": counts["valid"],
                **{key: float(value) for key, value in counts.items()},
                "intervals": {key: wilson(value, 1) for key, value in counts.items()},
                "reasons": {} if counts["solved"] else {each["reason"] or "wrong state": 1},
                "best": best if each["valid"] else None,
            }
        )
    held_out = judged[20:]
    return {
        "held_out": {
            "samples": 64,
            "target_tokens": 17123,
            "base": _scores(1.1134, 0.7312),
            "tuned": _scores(0.3871, 0.8647),
            "difference": {
                "loss": -0.7263,
                "token_accuracy": 0.1335,
                "intervals": {"loss": [-0.761, -0.693], "token_accuracy": [0.121, 0.146]},
            },
        },
        "task": {
            "name": "quantum",
            "held_out": {
                "samples": len(held_out),
                "distinct": 9,
                "valid": sum(each["valid"] for each in held_out) / len(held_out),
                "intervals": {"valid": wilson(13, 16), "exact": wilson(7, 16)},
                "fidelity": [0.83, 0.61, 0.42],
                "exact": 0.4375,
                "reasons": {"syntax": sum(not each["valid"] for each in held_out)},
            },
            "targets": targets,
            "pass_at": {
                "1": {"fits": 0.2, "solved": 0.1},
                "10": {"fits": 0.35, "solved": 0.15},
                "100": {"fits": 0.6, "solved": 0.25},
            },
            "samples": judged,
        },
    }


def harness() -> dict[str, Any]:
    """harness.json with two tasks, one metric without a standard error."""
    accuracy = {
        "name": "acc",
        "filter": "none",
        "higher_is_better": True,
        "base": {"value": 0.41, "stderr": 0.0492},
        "tuned": {"value": 0.53, "stderr": 0.0499},
        "difference": {"value": 0.12, "interval": [0.02, 0.22]},
    }
    perplexity = {
        "name": "word_perplexity",
        "filter": "none",
        "higher_is_better": False,
        "base": {"value": 21.5, "stderr": None},
        "tuned": {"value": 19.25, "stderr": None},
        "difference": {"value": -2.25, "interval": None},
    }
    return {
        "tasks": [
            {"name": "colours", "used": 100, "num_fewshot": 2, "metrics": [accuracy]},
            {"name": "birds", "used": 12, "num_fewshot": 0, "metrics": [perplexity]},
        ]
    }


def general_evaluation() -> dict[str, Any]:
    """The same for data without a task: prices."""
    judged = [{key: row[key] for key in ("sample", "kind", "name")} for row in samples()]
    names = ("answered", "accuracy", "within_20_percent", "absolute_error", "relative_error", "rmsle")
    return {
        "held_out": evaluation()["held_out"],
        "task": {
            "name": "general",
            "held_out": {
                "samples": 36,
                "exact_match": 0.25,
                "rouge_l": 0.5,
                "intervals": {"exact_match": wilson(9, 36), "rouge_l": [0.41, 0.6]},
                "numbers": dict(zip(names, (0.97, 0.25, 0.61, 47.3, 0.382, 0.412), strict=True)),
            },
            "samples": [{**each, "exact": each["sample"] % 4 == 0, "rouge_l": 0.5} for each in judged],
        },
    }


def _scores(loss: float, accuracy: float) -> dict[str, Any]:
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "token_accuracy": accuracy,
        "intervals": {"loss": [loss - 0.04, loss + 0.05], "token_accuracy": [accuracy - 0.02, accuracy + 0.02]},
    }


def _plan(path: Path, settings: PlanSettings, lora: LoraSettings) -> None:
    edges = list(range(0, 560, 16))
    counts = [int(60 * math.exp(-(((edge - 300) / 80) ** 2))) for edge in edges[:-1]]
    part = {"samples": 1000, "packs": 60, "tokens": 29800, "target_tokens": 15500, "fill": 0.9701}
    memory: list[dict[str, Any]] = [
        {"component": "base, NF4", "bytes": 66_000_000, "how": "4.127 bits × 106,168,320 parameters of linear layers"},
        {
            "component": "base, 16 bits",
            "bytes": 57_000_000,
            "how": "2 bytes × 28,346,688 parameters of embedding, norms",
        },
        {"component": "adapter, gradients, AdamW", "bytes": 78_000_000, "how": "16 bytes × 4,884,480 parameters"},
        {"component": "activations and logits", "bytes": 1_900_000_000, "how": "512 tokens, 30 layers kept"},
    ]
    total = sum(entry["bytes"] for entry in memory)
    plan = {
        "steps": STEPS,
        "packs_per_step": 1,
        "max_length": 512,
        "packing": True,
        "epochs": 1.0,
        "train": part,
        "validation": {**part, "samples": 8, "packs": 5, "tokens": 2400, "target_tokens": 1250, "fill": 0.9375},
        "memory": memory,
        "memory_bytes": total,
        "memory_allocated_bytes": total - 300_000_000,
        "memory_available_bytes": 8_000_000_000,
        "fits": True,
        "seconds_per_step": 4.8,
        "hours": 0.08,
        "slurm": {"nodes": 1, "gpus": 0, "cpus": 2, "mem_gb": 8, "time": "01:00:00"},
        "device": "cpu",
        "devices": 1,
        "lengths": {"edges": edges, "counts": counts},
    }
    with Artifact(
        path, stage="plan", inputs=[MODEL, TOKENS], settings={"plan": settings, "lora": lora, "train": TrainSettings()}
    ) as artifact:
        (artifact.path / "plan.json").write_text(json.dumps(plan))


def _folder(
    path: Path,
    stage: str,
    inputs: list[Path],
    settings: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    with Artifact(path, stage=stage, inputs=inputs, settings=settings) as artifact:
        artifact.note(**(facts or {}))
        (artifact.path / "content.txt").write_text(f"{stage} of {path}")


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    write_upstream()
    write_run("demo")
    write_run("rank-64", rank=64)
