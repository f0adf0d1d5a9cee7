"""Task files of lm-evaluation-harness, read as data: what could run code or leave the folder is refused.

The harness itself executes what a file names with `!function`, loads modules that `include`, `class` or a metric of
`evaluate` point to, and downloads `dataset_path`. So it never sees a file: it is given what was read and checked here,
by a list of the keys that are allowed. Nothing here needs the harness, so a configuration is checked without it.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from corax.errors import CoraxError
from corax.settings.base import Float, Settings, parse

KINDS = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "brier_score", "exact_match", "f1", "mcc"),
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "generate_until": ("exact_match", "bleu", "chrf"),
}
"""The harness's kinds of task (`output_type`), and its own metrics for each: functions of numbers and texts."""


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}, found {pattern!r}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]


class _Part(Settings):
    """A mapping of a task file, which has no keys but those of the model."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        unknown = [key for key in values if key not in cls.model_fields] if isinstance(values, dict) else []
        if unknown:
            raise ValueError(f"the key {unknown[0]!r} is not allowed here, allowed: {', '.join(cls.model_fields)}")
        return values


class Metric(_Part):
    """One entry of `metric_list`."""

    metric: str
    aggregation: Literal[
        "mean", "perplexity", "weighted_perplexity", "bits_per_byte", "f1", "matthews_corrcoef", "brier_score",
        "bleu", "chrf",
    ] | None = None  # fmt: skip
    higher_is_better: bool | None = None
    ignore_case: bool | None = None
    ignore_punctuation: bool | None = None
    ignore_numbers: bool | None = None
    regexes_to_ignore: list[Pattern] | None = None


class Step(_Part):
    """One function of a filter: what it does to the model's text is fixed, no function of the file's own."""

    function: Literal["regex", "remove_whitespace", "lowercase", "uppercase", "take_first"]
    regex_pattern: Pattern | None = None
    group_select: int | None = None
    fallback: str | None = None


class Filter(_Part):
    """One entry of `filter_list`: a chain of steps with a name."""

    name: str
    filter: list[Step] = Field(min_length=1)


class Generation(_Part):
    """`generation_kwargs`: the most likely token, until a text or a number of tokens is reached."""

    until: str | list[str]
    max_gen_toks: int = Field(256, ge=1)
    do_sample: Literal[False] = False
    temperature: Annotated[Float, Field(ge=0, le=0)] = 0.0


class Fewshot(_Part):
    """`fewshot_config`: how solved examples are chosen."""

    sampler: Literal["default", "first_n"] = "default"


class Data(_Part):
    """`dataset_kwargs`: the data files of each split, relative to the task file."""

    data_files: str | dict[str, str]


class TaskFile(_Part):
    """The keys that a task file may have, with the meaning that the harness's documentation gives them."""

    task: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    tag: str | list[str] | None = None
    dataset_path: Literal["json", "parquet"]
    dataset_name: None = None
    dataset_kwargs: Data
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None
    output_type: Literal["multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until"]
    doc_to_text: str = ""
    doc_to_target: str | int
    doc_to_choice: str | list[str] | None = None
    description: str = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    gen_prefix: str | None = None
    num_fewshot: int | None = Field(None, ge=0)
    fewshot_config: Fewshot | None = None
    generation_kwargs: Generation | None = None
    filter_list: list[Filter] | None = Field(None, min_length=1)
    metric_list: list[Metric] | None = Field(None, min_length=1)
    metadata: dict[str, str | int | float] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "TaskFile":
        allowed = KINDS[self.output_type]
        for number, each in enumerate(self.metric_list or ()):
            if each.metric not in allowed:
                raise ValueError(
                    f"metric_list.{number}.metric: {each.metric!r} is no metric of {self.output_type}, "
                    f"allowed: {', '.join(allowed)}"
                )
        if self.output_type == "multiple_choice" and self.doc_to_choice is None:
            raise ValueError("doc_to_choice: missing, though output_type is multiple_choice")
        if (self.output_type == "generate_until") != (self.generation_kwargs is not None):
            raise ValueError("generation_kwargs: needed with output_type generate_until, and only there")
        if not (self.test_split or self.validation_split):
            raise ValueError("test_split or validation_split: one of them is needed")
        for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
            split = getattr(self, key)
            if split is not None and split not in self.files:
                raise ValueError(f"{key}: {split!r} is no split of dataset_kwargs.data_files: {', '.join(self.files)}")
        return self

    @property
    def files(self) -> dict[str, str]:
        """The data files by split, as the task file names them; a single one is the split `train`."""
        files = self.dataset_kwargs.data_files
        return files if isinstance(files, dict) else {"train": files}

    @property
    def split(self) -> str:
        """The split whose documents are the questions."""
        return str(self.test_split or self.validation_split)


class LocalTask:
    """A task file that was read and checked: its `path`, its `content`, and its data files by split."""

    def __init__(self, path: Path, content: TaskFile) -> None:
        self.path, self.content = path, content
        self.data = {split: _inside(path, split, name) for split, name in content.files.items()}

    @property
    def files(self) -> list[Path]:
        """The task file and its data files: everything that decides the task."""
        return [self.path, *sorted(set(self.data.values()))]

    def check_fewshot(self, num_fewshot: int | None) -> None:
        """Raise CoraxError if examples are wanted and the file does not say where from.

        The harness would then take them from the questions themselves.
        """
        wanted = self.content.num_fewshot if num_fewshot is None else num_fewshot
        if wanted and self.content.fewshot_split is None:
            raise CoraxError(f"{self.path}: fewshot_split: missing, though num_fewshot is {wanted}")


def read_all(paths: Iterable[str | Path], num_fewshot: int | None = None) -> list[LocalTask]:
    """The task files at `paths`, in order; raises CoraxError as `read` does, and for two tasks of one name."""
    tasks: dict[str, LocalTask] = {}
    for path in map(Path, paths):
        task = read(path)
        task.check_fewshot(num_fewshot)
        other = tasks.setdefault(task.content.task, task)
        if other is not task:
            raise CoraxError(f"{path}: task: {task.content.task!r} is the name of {other.path} too")
    return list(tasks.values())


def read(path: Path) -> LocalTask:
    """The task file at `path`; raises CoraxError naming file, line or key, what was found and what is allowed."""
    try:
        values = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise CoraxError(f"{path}: {error.strerror}") from None
    except yaml.constructor.ConstructorError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise CoraxError(f"{path}{line}: {error.problem}: a task file may name no code, allowed: plain YAML") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CoraxError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise CoraxError(f"{path}: must be a mapping with the keys {', '.join(TaskFile.model_fields)}")
    try:
        return LocalTask(path, parse(TaskFile, values))
    except CoraxError as error:
        raise CoraxError(f"{path}: {error}") from None


def _inside(path: Path, split: str, name: str) -> Path:
    """The data file `name` of the task file at `path`: below the task file's folder, wherever links lead."""
    file = path.parent / name
    folder = path.parent.resolve()
    if not file.resolve().is_relative_to(folder):
        raise CoraxError(f"dataset_kwargs.data_files.{split}: {name!r} lies outside {path.parent}, allowed: beside it")
    if not file.is_file():
        raise CoraxError(f"dataset_kwargs.data_files.{split}: no file {name!r} beside it")
    return file
