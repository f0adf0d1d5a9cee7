"""Base against tuned model on tasks of lm-evaluation-harness (arXiv 2405.14782).

The harness writes the prompts, asks the model and computes its own metrics and standard errors. What differs from its
command line: documents are read here, templates are rendered in Jinja's sandbox, models are loaded as everywhere in
this project, and both models get the same questions, so that their difference has an interval of its own.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import jinja2
import lm_eval.utils
import numpy as np
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.api import metrics
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from corax.confidence import Samples, bootstrap
from corax.errors import CoraxError
from corax.evaluation import DECIMALS, release
from corax.harness.documents import rows
from corax.harness.task_file import LocalTask
from corax.model import load_plain
from corax.progress import Progress
from corax.settings.harness import HarnessSettings

VERSION = version("lm_eval")
SEED = 0
"""Seed of the choice of solved examples: both models are shown the same."""
RESAMPLES = 1000
"""Resamples of the standard errors that have no formula."""
BATCHES = 8
"""Batches between two lines of progress; texts of similar length are put together among as many."""
FIGURES: dict[Any, Callable[[Samples], Samples]] = {
    metrics.mean: lambda mean: mean,
    metrics.perplexity: lambda mean: np.exp(-mean),
    metrics.weighted_perplexity: lambda mean: np.exp(-mean),
    metrics.bits_per_byte: lambda mean: -mean / math.log(2),
}
"""The harness's aggregations that are a function of a mean over documents, or of one that is weighted."""
REFUSALS = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError, jinja2.TemplateError, re.error)
"""What the harness raises for tasks and texts that it cannot use."""

# The harness's own environment lets a template reach everything that Python can.
lm_eval.utils.env = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
lm_eval.utils.env.filters["regex_replace"] = lm_eval.utils.regex_replace
logging.getLogger("lm_eval").setLevel(logging.ERROR)


class Model(HFLM):  # type: ignore[misc]
    """A model of transformers as the harness asks it, with this project's lines of progress."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device, batch_size: int) -> None:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        model = load_plain(folder, dtype, device)
        super().__init__(model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=torch.float32)
        self.name = folder.name

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        """(log-probability in nats, whether it is the most likely one) of each (context, continuation)."""
        return self._in_pieces(super().loglikelihood, requests, "continuation")

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        """The log-probability in nats of each text."""
        return self._in_pieces(super().loglikelihood_rolling, requests, "text")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        """What the model writes after each context."""
        return self._in_pieces(super().generate_until, requests, "answer")

    def _in_pieces(self, ask: Callable[[list[Any]], list[Any]], requests: list[Any], unit: str) -> list[Any]:
        answers: list[Any] = []
        size = BATCHES * self.batch_size
        with Progress(f"harness {self.name}", total=len(requests), unit=unit) as progress:
            for start in range(0, len(requests), size):
                answers += ask(requests[start : start + size])
                progress.advance(len(answers) - start)
        return answers


@dataclass(frozen=True)
class Result:
    """What the harness found for one task.

    `figures` are its values and standard errors, named `metric,filter` and `metric_stderr,filter`. `values` has for
    each (metric, filter) what it found for each document, in order: what the metric's aggregation takes.
    """

    task: Any
    documents: int
    figures: dict[str, Any]
    values: dict[tuple[str, str], list[Any]]


def compare(
    tasks: Sequence[LocalTask],
    base: Path,
    tuned: Path,
    settings: HarnessSettings,
    dtype: torch.dtype,
    device: torch.device,
) -> list[dict[str, Any]]:
    """The `tasks` of harness.json (docs/artifacts.md) for the models in two folders, loaded one after the other.

    Raises CoraxError naming the task file that the harness cannot use, before a model is loaded, or the model.
    """
    for task in tasks:
        build(task, settings)
    before = run(tasks, base, settings, dtype, device)
    after = run(tasks, tuned, settings, dtype, device)
    return [_compared(*each) for each in zip(tasks, before, after, strict=True)]


def build(task: LocalTask, settings: HarnessSettings) -> Any:
    """The task as an object of the harness, its prompts written once; raises CoraxError naming the file."""
    content = task.content.model_dump(exclude_none=True)
    if settings.num_fewshot is not None:
        content["num_fewshot"] = settings.num_fewshot
    try:
        documents = {split: datasets.Dataset.from_list(rows(task, split)) for split in task.data}
        with _silence():
            built = ConfigurableTask(config={"num_fewshot": 0, **content, "custom_dataset": lambda **_: documents})
            built.set_fewshot_seed(SEED)
            built.build_all_requests(limit=settings.limit)
    except REFUSALS as error:
        raise CoraxError(f"{task.path}: the harness cannot use it: {type(error).__name__}: {error}") from None
    built.set_fewshot_seed(SEED)
    return built


def run(
    tasks: Sequence[LocalTask], folder: Path, settings: HarnessSettings, dtype: torch.dtype, device: torch.device
) -> list[Result]:
    """The results of the model in `folder` on each task; raises CoraxError naming the folder."""
    built = {task.content.task: build(task, settings) for task in tasks}
    model = Model(folder, dtype, device, settings.batch_size)
    # From here on its warnings are about texts that had to be cut.
    logging.getLogger("lm_eval.models").setLevel(logging.WARNING)
    try:
        with _silence():
            found = evaluate(model, {"tasks": built}, limit=settings.limit, bootstrap_iters=RESAMPLES)
    except REFUSALS as error:
        raise CoraxError(f"{folder}: the harness stopped: {type(error).__name__}: {error}") from None
    finally:
        logging.getLogger("lm_eval.models").setLevel(logging.ERROR)
        del model
        release(device)
    return [_result(built[name], found["results"][name], found["samples"][name]) for name in built]


@contextmanager
def _silence() -> Iterator[None]:
    """Without the bars and prints of the harness; lines of the log still come."""
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


def _result(task: Any, figures: dict[str, Any], samples: Sequence[dict[str, Any]]) -> Result:
    values: dict[tuple[str, str], list[Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            values.setdefault((metric, sample["filter"]), []).append(sample[metric])
    return Result(task, len(task.eval_docs), figures, values)


def _compared(task: LocalTask, base: Result, tuned: Result) -> dict[str, Any]:
    """One entry of harness.json's `tasks`."""
    better = base.task.higher_is_better()
    return {
        "name": task.content.task,
        "kind": task.content.output_type,
        "documents": base.documents,
        "used": max(len(values) for values in base.values.values()),
        "num_fewshot": base.task.config.num_fewshot,
        "metrics": [
            {
                "name": name,
                "filter": chain,
                "higher_is_better": better.get(name),
                **_figures(task, name, chain, base, tuned),
            }
            for name, chain in base.values
        ],
    }


def _figures(task: LocalTask, name: str, chain: str, base: Result, tuned: Result) -> dict[str, Any]:
    """`base`, `tuned` and `difference` of one metric."""
    both: dict[str, Any] = {}
    for model, result in (("base", base), ("tuned", tuned)):
        value, stderr = (result.figures[f"{key},{chain}"] for key in (name, f"{name}_stderr"))
        if not math.isfinite(value):
            raise CoraxError(f"{task.path}: {name} of the {model} model is {value}, so nothing can be compared")
        both[model] = {
            "value": round(float(value), DECIMALS),
            "stderr": None if isinstance(stderr, str) else round(float(stderr), DECIMALS),
        }
    difference = round(both["tuned"]["value"] - both["base"]["value"], DECIMALS)
    figure = FIGURES.get(base.task.aggregation()[name])
    interval = figure and _interval(base.values[name, chain], tuned.values[name, chain], figure)
    return {**both, "difference": {"value": difference, "interval": interval}}


def _interval(base: Sequence[Any], tuned: Sequence[Any], figure: Callable[[Samples], Samples]) -> list[float] | None:
    """[low, high] at 95 % of tuned - base: a paired bootstrap over the documents; None if there is none.

    A single document has none, nor have bounds beyond floating point. The values of a document are a number, or a pair
    of a sum and its weight.
    """
    if len(base) < 2:
        return None
    sums = np.array([(*_pair(a), *_pair(b)) for a, b in zip(base, tuned, strict=True)], dtype=np.float64)

    def difference(totals: Samples) -> Samples:
        return np.atleast_1d(figure(totals[2] / totals[3]) - figure(totals[0] / totals[1]))

    with np.errstate(over="ignore"):
        bounds = bootstrap(sums, difference)[0]
    return [round(bound, DECIMALS) for bound in bounds] if np.isfinite(bounds).all() else None


def _pair(value: Any) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, 1.0)
