"""The configuration: models, datasets and runs, checked before any job is submitted."""

import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from corax import sweep, tasks, vocabulary
from corax.errors import CoraxError
from corax.harness import task_file
from corax.settings.base import Name, Settings, one_line
from corax.settings.detokenize import DetokenizeSettings
from corax.settings.download import DataSource, LocalSource, Source, UrlSource
from corax.settings.evaluate import EvaluateSettings
from corax.settings.generate import GenerateSettings
from corax.settings.gguf import GgufSettings
from corax.settings.harness import HarnessSettings
from corax.settings.lora import LoraSettings
from corax.settings.merge import MergeSettings
from corax.settings.plan import PlanSettings
from corax.settings.pretokenize import PretokenizeSettings
from corax.settings.sample import SampleSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import BESIDE, NEW_TOKENS, TuningSettings, conflict, undividable

ROLES = {"prompt_header": "user", "completion_header": "assistant"}
"""Who says prompts and completions, other than those of the quantum task."""


def _single(value: Any) -> Any:
    """A value as it is; without this each of the kinds that it might be would say that it is none of them."""
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"a number, a text, true or false is allowed, found {value!r}")
    return value


Single = Annotated[bool | int | float | str, BeforeValidator(_single)]


class Dataset(Settings):
    """Samples: generated here or downloaded, in equal shards."""

    task: Name = "general"
    """Task whose targets and metrics belong to the data; `general` compares completions with the data's own."""
    shards: int = Field(1, ge=1, le=65_536)
    """Number of shards; each is a job of its own in every data stage."""
    generate: GenerateSettings | None = None
    """Settings of the generator; either this or `download`."""
    download: DataSource | None = None
    """Where the data files come from; either this or `generate`."""
    detokenize: DetokenizeSettings = DetokenizeSettings()
    """Files to text."""
    pretokenize: PretokenizeSettings = PretokenizeSettings()
    """Text to the model's ids."""

    @model_validator(mode="before")
    @classmethod
    def _roles(cls, values: Any) -> Any:
        given = values.get("pretokenize", {}) if isinstance(values, dict) else None
        if not isinstance(given, dict) or values.get("task") == "quantum":
            return values
        return {**values, "pretokenize": {**ROLES, **given}}

    @model_validator(mode="after")
    def _one_origin(self) -> "Dataset":
        if (self.generate is None) == (self.download is None):
            raise ValueError("exactly one of `generate` and `download` is needed")
        if self.generate and self.generate.samples < self.shards:
            raise ValueError(f"generate.samples is {self.generate.samples} for {self.shards} shards: each needs one")
        if self.download and self.download.new_tokens:
            raise ValueError("download.new_tokens: only a model has tokens, allowed: models.<name>.new_tokens")
        if isinstance(self.download, UrlSource) and len(self.download.sha256) != self.shards:
            raise ValueError(f"download.sha256 has {len(self.download.sha256)} entries for {self.shards} shards")
        if self.download and self.shards > 1 and "{shard}" not in str(self.download):
            raise ValueError(f"download must name {{shard}}: else all {self.shards} shards would be the same")
        return self


class Run(Settings):
    """One fine-tuning: a model, a dataset, and what differs from the defaults."""

    model: Name
    """Key in `models`."""
    dataset: Name
    """Key in `datasets`."""
    plan: PlanSettings = PlanSettings()
    """Packs and estimates."""
    lora: LoraSettings = LoraSettings()
    """Adapter."""
    tuning: TuningSettings = TuningSettings()
    """What is trained: a LoRA adapter, all weights, or another of peft's methods."""
    train: TrainSettings = TrainSettings()
    """Optimization."""
    merge: MergeSettings = MergeSettings()
    """Merging."""
    sample: SampleSettings = SampleSettings()
    """Sampling."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Evaluation."""
    harness: HarnessSettings = HarnessSettings()
    """Evaluation by lm-evaluation-harness, if it names task files."""
    gguf: GgufSettings = GgufSettings()
    """Export to GGUF, if it names a type."""
    sweep: dict[str, Annotated[list[Single], Field(min_length=1)]] = {}
    """A grid: values to try for `model`, `dataset` or section.key, such as lora.r. The run becomes one run for each
    combination, named after its values."""

    @model_validator(mode="after")
    def _settings_agree(self) -> "Run":
        # Whether the model has an encoder is known once it is there: `plan` asks again.
        problem = conflict(self.tuning, self.lora, self.train, self.plan.packing) or undividable(
            self.train, self.plan.devices, has_encoder=False
        )
        if problem:
            raise ValueError(problem)
        if self.gguf.outtype and self.tuning.method in BESIDE:
            raise ValueError(
                f"gguf.outtype is {self.gguf.outtype!r}, allowed: null; what tuning.method {self.tuning.method!r} "
                "trains lies beside the weights, and GGUF has no place for it"
            )
        return self


class Config(Settings):
    """The whole configuration."""

    models: dict[Name, Source] = Field(min_length=1)
    """Base models by name."""
    datasets: dict[Name, Dataset] = Field(min_length=1)
    """Datasets by name."""
    runs: dict[Name, Run] = Field(min_length=1)
    """Runs by name."""

    @model_validator(mode="after")
    def _names_exist(self) -> "Config":
        for name, run in self.runs.items():
            for key, registry in (("model", self.models), ("dataset", self.datasets)):
                value = getattr(run, key)
                if value not in registry:
                    raise ValueError(f"runs.{name}.{key} is {value!r}, allowed: {', '.join(registry)}")
            if self.models[run.model].new_tokens and run.tuning.method not in NEW_TOKENS:
                raise ValueError(
                    f"runs.{name}.tuning.method is {run.tuning.method!r}, which does not train the new tokens of "
                    f"models.{run.model}, allowed: {', '.join(NEW_TOKENS)}"
                )
        return self

    @property
    def optional_images(self) -> list[str]:
        """The images (corax.containers.names.OPTIONAL) that some run uses."""
        runs = self.runs.values()
        used = {"harness": any(run.harness.tasks for run in runs), "gguf": any(run.gguf.outtype for run in runs)}
        return [name for name, is_used in used.items() if is_used]


def check(values: Mapping[str, Any], origin: str = "config.yaml") -> Config:
    """The configuration as typed settings, its sweeps as runs.

    Raises CoraxError with one line naming `origin` (the file), the key, what was found and what is
    allowed, also for a task, vocabulary, local source or task file of the harness that does not exist.
    """
    try:
        config = Config.model_validate(values)
        if any(run.sweep for run in config.runs.values()):
            values = {**values, "runs": sweep.expand(values["runs"])}
            config = Config.model_validate(values)
    except ValidationError as error:
        raise CoraxError(f"{origin}: {one_line(error, values=values)}") from None
    except CoraxError as error:
        raise CoraxError(f"{origin}: {error}") from None
    for name, dataset in config.datasets.items():
        if dataset.task not in tasks.names():
            allowed = ", ".join(tasks.names())
            raise CoraxError(f"{origin}: datasets.{name}.task is {dataset.task!r}, allowed: {allowed}")
        try:
            vocabulary.load(dataset.detokenize.vocabulary)
        except CoraxError as error:
            raise CoraxError(f"{origin}: datasets.{name}.detokenize.vocabulary: {error}") from None
    for name, run in config.runs.items():
        try:
            task_file.read_all(run.harness.tasks, run.harness.num_fewshot)
        except CoraxError as error:
            raise CoraxError(f"{origin}: runs.{name}.harness.tasks: {error}") from None
    for name, run in config.runs.items():
        if run.sample.held_out_prompts:
            continue
        task = tasks.get(config.datasets[run.dataset].task)
        if not run.sample.targets or not task.targets():  # else found after the training
            raise CoraxError(f"{origin}: runs.{name}.sample asks for nothing, allowed: held_out_prompts of 1 and more")
    for key, source, shards in _sources(config):
        for shard in range(shards):
            path = Path(source.path.replace("{shard}", str(shard)))
            if not path.exists():
                raise CoraxError(f"{origin}: {key}.path: {path} does not exist")
    return config


def load(*paths: Path) -> Config:
    """The configuration in YAML files, of which each changes what those before say, as Snakemake merges them.

    Raises CoraxError as `read` and `check` do.
    """
    values: dict[str, Any] = reduce(_merged, map(read, paths))
    return check(values, ", ".join(map(str, paths)))


def _merged(values: Any, changes: Any) -> Any:
    """The values with the changes: mappings key by key, anything else as a whole."""
    if not isinstance(changes, Mapping):
        return changes
    before = values if isinstance(values, Mapping) else {}
    return {**before, **{key: _merged(before.get(key), change) for key, change in changes.items()}}


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises CoraxError with the line for YAML that is wrong or misleads."""
    try:
        values = yaml.load(path.read_bytes(), _Loader)  # noqa: S506 - it is a SafeLoader
    except OSError as error:
        raise CoraxError(f"{path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise CoraxError(f"{path}{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise CoraxError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise CoraxError(f"{path}: must be a mapping with models, datasets and runs")
    return values


class _Loader(yaml.SafeLoader):
    """YAML where a key given twice is an error, and so is `010` or `1:30`: 8 and 90 to YAML 1.1."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {name!r} is given twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if re.match(r"[-+]?0[0-9]|.*:", node.value):
            problem = f"{node.value} is no decimal number in YAML; write it in base 10, or quote a text"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _sources(config: Config) -> list[tuple[str, LocalSource, int]]:
    models = [(f"models.{name}", source, 1) for name, source in config.models.items()]
    data = [(f"datasets.{name}.download", each.download, each.shards) for name, each in config.datasets.items()]
    return [(key, source, count) for key, source, count in models + data if isinstance(source, LocalSource)]
