"""What the report says about a run, gathered from its artifacts."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from corax.artifact import open_artifact
from corax.chain import Link, upstream_first
from corax.errors import CoraxError
from corax.report.documents import Adapter, Evaluation, Harness, Judged, Merge, Metric, Plan, read
from corax.report.settings import Section, sections

HARNESS = "harness.json"
"""Only of runs with tasks of lm-evaluation-harness."""
THRESHOLD = 0.99
"""A program gives a state if the fidelity is greater."""
SIZES_IN_PROMPT = 3
"""The prompt shows the states for N = 0, 1, 2."""
HELD_OUT_SHOWN = 16
"""Held-out samples on the page; all are in samples.parquet."""
COLUMNS = (
    *("sample", "kind", "name", "prompt", "reference", "completion"),
    *("tokens", "finish_reason", "temperature", "top_p"),
)
METHODS = {"lora": "LoRA", "full": "all weights", "ia3": "IA³", "adaption_prompt": "LLaMA-Adapter"}
"""What is trained, where a `tuning.method` has another name."""


@dataclass(frozen=True)
class Sample:
    """One text that the tuned model wrote, and what became of it."""

    number: int
    held_out: bool
    name: str
    title: str
    verdict: str
    """Of a program: `solved` (right for all tested N), `fits` (for N ≤ 2), `valid` or `invalid`; of another text:
    `exact` (equal to its reference) or `other`."""
    reason: str | None
    fidelity: list[float]
    prompt: str
    reference: str | None
    completion: str
    tokens: int
    finish_reason: str
    temperature: float
    top_p: float


@dataclass(frozen=True)
class Drawn:
    """The programs of all classes that were drawn with one temperature and top-p: their number, and how many got
    how far."""

    temperature: float
    top_p: float
    samples: int
    valid: int
    fits: int
    solved: int


@dataclass(frozen=True)
class Run:
    """Everything about one run."""

    name: str
    model: str
    method: str
    """How it was tuned, in words."""
    dataset: str
    plan: Plan
    adapter: Adapter
    metrics: list[Metric]
    measured: dict[str, Any]
    """`run` of the adapter's manifest: what differs from one execution to the next."""
    tokens: frozenset[str]
    """Digests of the token shards that it learnt from."""
    merge: Merge
    evaluation: Evaluation
    harness: Harness | None
    samples: list[Sample]
    sample_count: int
    drawn: list[Drawn]
    """One entry for each temperature and top-p."""
    settings: list[Section]
    chain: list[Link]

    @property
    def steps(self) -> int:
        """Optimizer steps that were made."""
        return sum(metric.loss is not None for metric in self.metrics)

    @property
    def seconds_per_step(self) -> float | None:
        """Measured seconds a step, without validations and checkpoints."""
        seconds = self.measured.get("train_seconds")
        return seconds / self.steps if seconds and self.steps else None

    @property
    def memory(self) -> tuple[int, int | None]:
        """(planned, measured) bytes: on a GPU those of all tensors there, on a CPU those of the process."""
        peak = self.measured.get("peak_gpu_bytes")
        if peak or self.measured.get("device") != "cpu":
            return self.plan.memory_allocated_bytes, peak
        return self.plan.memory_bytes, self.measured.get("peak_memory")

    @property
    def fitting(self) -> list[str]:
        """Labels of the classes with a program right for N = 0, 1, 2."""
        return [target.label for target in self.evaluation.task.targets if target.fits > 0]

    @property
    def solved(self) -> list[str]:
        """Labels of the classes with a program right for all tested N."""
        return [target.label for target in self.evaluation.task.targets if target.solved > 0]

    @property
    def best_of(self) -> str:
        """From how many samples a class's best program was taken."""
        counts = sorted({target.samples for target in self.evaluation.task.targets})
        return " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]]))) if counts else "0"

    @property
    def best_sample(self) -> Sample | None:
        """The shown sample that got furthest."""
        order = ("invalid", "other", "valid", "fits", "exact", "solved")
        return max(self.samples, key=lambda each: (order.index(each.verdict), sum(each.fidelity)), default=None)


def artifacts(run: Path) -> list[Path]:
    """The artifacts of the run in folder `run` that the report is made from."""
    always = [run / name for name in ("plan", "adapter", "merged", "samples.parquet", "evaluation.json")]
    return [*always, run / HARNESS] if _has_harness(run) else always


def _has_harness(run: Path) -> bool:
    """Whether harness.json is there and about the present merged model; nothing remakes one that was left behind."""
    if not (run / HARNESS).is_file():
        return False
    judged = {item["digest"] for item in open_artifact(run / HARNESS).content["inputs"]}
    return open_artifact(run / "merged").digest in judged


def load(run: Path) -> Run:
    """The run in folder `run`; raises CoraxError naming the file, and the key or line, that is missing or wrong."""
    paths = artifacts(run)
    opened = [open_artifact(path) for path in paths]
    _, adapter, merged, *_ = opened
    chain = upstream_first(manifest.path for manifest in opened)
    evaluation = read(Evaluation, (run / "evaluation.json").read_text(), run / "evaluation.json")
    samples = read_samples(run / "samples.parquet", evaluation)
    metrics = _metrics(run / "adapter" / "metrics.jsonl")
    harness = run / HARNESS
    return Run(
        name=run.name,
        model=_name(chain, "models"),
        method=method_in_words(adapter.content["settings"]),
        dataset=_name(chain, "datasets"),
        plan=read(Plan, (run / "plan" / "plan.json").read_text(), run / "plan" / "plan.json"),
        adapter=read(Adapter, json.dumps(adapter.facts), adapter.path),
        metrics=metrics,
        measured=dict(adapter.content["run"]),
        tokens=frozenset(item["digest"] for item in adapter.content["inputs"] if "tokens" in Path(item["path"]).parts),
        merge=read(Merge, json.dumps(merged.facts), merged.path),
        evaluation=evaluation,
        harness=read(Harness, harness.read_text(), harness) if harness in paths else None,
        samples=_shown(samples, evaluation),
        sample_count=len(samples),
        drawn=by_setting(samples),
        settings=sections(chain),
        chain=chain,
    )


def _name(chain: list[Link], registry: str) -> str:
    """The name of the model or dataset: the part of a path after the folder `registry`."""
    for link in chain:
        parts = link.path.parts
        if registry in parts[:-2]:
            return parts[parts.index(registry) + 1]
    raise CoraxError(f"{chain[-1].path}: not made from anything below a folder {registry}/")


def method_in_words(settings: Mapping[str, Any]) -> str:
    """How an adapter with these settings was tuned."""
    method, bits = settings.get("tuning", {}).get("method", "lora"), settings.get("train", {}).get("bits", 4)
    if (method, bits) == ("lora", 4):
        return "QLoRA"
    name = METHODS.get(method, method.replace("_", " "))
    return name if method == "full" else f"{name}, base in {bits} bits"


def _metrics(path: Path) -> list[Metric]:
    lines = path.read_text().splitlines()
    return [read(Metric, line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]


def read_samples(path: Path, evaluation: Evaluation) -> list[Sample]:
    """The rows of samples.parquet with the verdicts in `evaluation`; raises CoraxError naming a row that has none."""
    try:
        rows = parquet.read_table(path, columns=list(COLUMNS)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise CoraxError(f"{path}: {error}") from None
    judged = {each.sample: each for each in evaluation.task.samples}
    labels = {target.name: target.label for target in evaluation.task.targets}
    result = []
    for row in rows:
        if row["sample"] not in judged:
            raise CoraxError(f"{path}: sample {row['sample']} is not in {path.with_name('evaluation.json')}")
        result.append(_sample(row, judged[row["sample"]], labels))
    return result


def _sample(row: Mapping[str, Any], judged: Judged, labels: Mapping[str, str]) -> Sample:
    held_out = row["kind"] == "held-out"
    return Sample(
        number=row["sample"],
        held_out=held_out,
        name=row["name"],
        title=f"held-out {row['name']}" if held_out else labels.get(row["name"], row["name"]),
        verdict=_verdict(judged),
        reason=judged.reason,
        fidelity=judged.fidelity,
        prompt=row["prompt"],
        reference=row["reference"],
        completion=row["completion"],
        tokens=row["tokens"],
        finish_reason=row["finish_reason"],
        temperature=row["temperature"],
        top_p=row["top_p"],
    )


def _verdict(judged: Judged) -> str:
    if judged.valid is None:
        return "exact" if judged.exact else "other"
    right = [fidelity > THRESHOLD for fidelity in judged.fidelity]
    if not judged.valid:
        return "invalid"
    return "solved" if all(right) else "fits" if all(right[:SIZES_IN_PROMPT]) else "valid"


def by_setting(samples: list[Sample]) -> list[Drawn]:
    """The samples of the classes, counted for each temperature and top-p."""
    groups: dict[tuple[float, float], Counter[str]] = {}
    for sample in samples:
        if not sample.held_out:
            groups.setdefault((sample.temperature, sample.top_p), Counter())[sample.verdict] += 1
    return [
        Drawn(
            *setting,
            samples=verdicts.total(),
            valid=verdicts.total() - verdicts["invalid"],
            fits=verdicts["fits"] + verdicts["solved"],
            solved=verdicts["solved"],
        )
        for setting, verdicts in sorted(groups.items())
    ]


def _shown(samples: list[Sample], evaluation: Evaluation) -> list[Sample]:
    """The best sample of each class (its first if none is valid), then the first held-out ones."""
    first = {sample.name: sample for sample in reversed(samples) if not sample.held_out}
    by_number = {sample.number: sample for sample in samples}
    targets = [
        by_number[target.best.sample] if target.best else first[target.name] for target in evaluation.task.targets
    ]
    return targets + [sample for sample in samples if sample.held_out][:HELD_OUT_SHOWN]
