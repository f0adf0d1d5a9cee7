"""What the report reads of plan.json, evaluation.json, harness.json, and the facts of adapter and merged model.

Their keys are those of docs/artifacts.md, checked one by one.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from corax.errors import CoraxError
from corax.settings.base import one_line

D = TypeVar("D", bound="Document")
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class Document(BaseModel):
    """Part of a JSON file; other keys may be there."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Differing(Document):
    """Loss in nats per target token and token accuracy, with the [low, high] of each at 95 %."""

    loss: float
    token_accuracy: float
    intervals: dict[str, Interval]


class Scores(Differing):
    """A model on the held-out part."""

    perplexity: float


class HeldOutLoss(Document):
    """Base against tuned model, and tuned - base."""

    samples: int
    target_tokens: int
    base: Scores
    tuned: Scores
    difference: Differing


class Numbers(Document):
    """Completions that should be numbers: shares, and mean errors."""

    answered: float
    accuracy: float
    within_20_percent: float
    absolute_error: float
    relative_error: float | None
    """None if every reference is 0."""
    rmsle: float


class Labels(Document):
    """Completions that should be labels."""

    accuracy: float
    macro_f1: float


class HeldOutSamples(Document):
    """Completions for held-out prompts; each task has its own of these shares, None where it has not."""

    samples: int
    distinct: int | None = None
    valid: float | None = None
    exact: float | None = None
    fidelity: list[float] = []
    exact_match: float | None = None
    rouge_l: float | None = None
    bleu: float | None = None
    labels: Labels | None = None
    numbers: Numbers | None = None
    intervals: dict[str, Interval] = {}
    reasons: dict[str, int] = {}


class Best(Document):
    """The best program for a class, its fidelity for N = 0 … 4, and the N where it fails first (5: nowhere)."""

    fidelity: list[float]
    first_failure: int
    program: str
    sample: int


class PassAt(Document):
    """Chance that one of k samples is right for N ≤ 2 (`fits`) and for all N."""

    fits: float
    solved: float


class Target(Document):
    """A class of states; `valid`, `fits` (N ≤ 2) and `solved` (N ≤ 4) are shares of its samples."""

    name: str
    label: str
    samples: int
    distinct: int
    valid: float
    fits: float
    solved: float
    intervals: dict[str, Interval]
    reasons: dict[str, int]
    best: Best | None


class Judged(Document):
    """The verdict on one sample, as far as its task has one."""

    sample: int
    valid: bool | None = None
    exact: bool | None = None
    reason: str | None = None
    fidelity: list[float] = []


class Task(Document):
    """The task's own metrics."""

    name: str
    held_out: HeldOutSamples
    targets: list[Target] = []
    pass_at: dict[str, PassAt] = {}
    samples: list[Judged]

    @property
    def reasons(self) -> dict[str, tuple[int, int]]:
        """How many samples of the classes, and how many held-out ones, fail for each reason."""
        classes = sum((Counter(target.reasons) for target in self.targets), Counter())
        return {
            each: (classes[each], self.held_out.reasons.get(each, 0))
            for each in sorted({*classes, *self.held_out.reasons})
        }

    @field_validator("targets")
    @classmethod
    def _distinct_labels(cls, targets: list[Target]) -> list[Target]:
        """Two classes of the quantum task have the same label: add their names."""
        times = Counter(target.label for target in targets)
        names = [f"{target.label} ({target.name})" if times[target.label] > 1 else target.label for target in targets]
        return [target.model_copy(update={"label": name}) for target, name in zip(targets, names, strict=True)]


class Evaluation(Document):
    """evaluation.json."""

    held_out: HeldOutLoss
    task: Task


class Adapter(Document):
    """The facts of the adapter: the step whose weights were written, and why training ended early, if it did."""

    written_step: int
    validation_loss: float
    """At that step, nats per target token."""
    trainable_parameters: int
    stopped: str | None = None


class Loss(Document):
    """Of the model that was trained: the adapter on its 4-bit base."""

    loss: float


class Near(Loss):
    """Of a merged model, and its divergence from the trained one, nats per target token."""

    kl: float


class MergeScores(Document):
    """Held-out scores of the bases that were tried."""

    samples: int
    target_tokens: int
    trained: Loss
    original: Near | None = None
    nf4: Near | None = None


class Merge(Document):
    """The facts of the merged model: the base that was kept, and the scores."""

    base: str
    scores: MergeScores

    @property
    def tried(self) -> dict[str, Near]:
        """The scores by base."""
        both = {"original": self.scores.original, "nf4": self.scores.nf4}
        return {name: near for name, near in both.items() if near}


class Part(Document):
    """Totals of the training or validation packs."""

    samples: int
    packs: int
    tokens: int
    target_tokens: int
    fill: float


class Memory(Document):
    """One component of the memory estimate."""

    component: str
    bytes: int
    how: str


class Lengths(Document):
    """Histogram of the training samples' lengths in tokens."""

    edges: list[float]
    counts: list[int]


class Plan(Document):
    """plan.json."""

    steps: int
    packs_per_step: int
    max_length: int
    packing: bool
    epochs: float
    train: Part
    validation: Part
    memory: list[Memory]
    memory_bytes: int
    memory_allocated_bytes: int
    """Without the runtime: what PyTorch's allocator should say."""
    memory_available_bytes: int
    fits: bool
    seconds_per_step: float
    hours: float
    device: str
    devices: int
    lengths: Lengths


class Measured(Document):
    """A metric of lm-evaluation-harness and its standard error."""

    value: float
    stderr: float | None = None


class Change(Document):
    """Tuned - base, and [low, high] at 95 %."""

    value: float
    interval: Interval | None = None


class HarnessMetric(Document):
    """One metric of both models on the same documents."""

    name: str
    filter: str
    higher_is_better: bool
    base: Measured
    tuned: Measured
    difference: Change


class HarnessTask(Document):
    """One task of lm-evaluation-harness."""

    name: str
    used: int
    num_fewshot: int | None = None
    metrics: list[HarnessMetric]


class Harness(Document):
    """harness.json."""

    tasks: list[HarnessTask]


class Metric(Document):
    """A line of metrics.jsonl: a training step, or a validation after that step."""

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    validation_loss: float | None = None


def read(model: type[D], text: str, where: str | Path) -> D:
    """`text` (JSON) as `model`; raises CoraxError with one line naming `where` and the key."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise CoraxError(f"{where}: {one_line(error)}") from None
