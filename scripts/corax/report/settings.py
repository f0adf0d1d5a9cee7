"""The resolved settings of a run, as its manifests record them, with their meaning."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from corax.chain import Link
from corax.settings.base import Settings
from corax.settings.detokenize import DetokenizeSettings
from corax.settings.download import SOURCES
from corax.settings.evaluate import EvaluateSettings
from corax.settings.generate import GenerateSettings
from corax.settings.harness import HarnessSettings
from corax.settings.lora import LoraSettings
from corax.settings.merge import MergeSettings
from corax.settings.plan import PlanSettings
from corax.settings.pretokenize import PretokenizeSettings
from corax.settings.sample import SampleSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings

MODELS: dict[str, type[Settings]] = {
    "generate": GenerateSettings,
    "detokenize": DetokenizeSettings,
    "pretokenize": PretokenizeSettings,
    "plan": PlanSettings,
    "lora": LoraSettings,
    "tuning": TuningSettings,
    "train": TrainSettings,
    "merge": MergeSettings,
    "sample": SampleSettings,
    "evaluate": EvaluateSettings,
    "harness": HarnessSettings,
    **SOURCES,
}
"""By section; those of `download` by their `source`."""


@dataclass(frozen=True)
class Setting:
    """One key with its value, whether that differs from the default, and what it means."""

    key: str
    value: str
    changed: bool
    meaning: str


@dataclass(frozen=True)
class Section:
    """The settings of one section, such as `train`."""

    name: str
    settings: list[Setting]


def sections(chain: Iterable[Link]) -> list[Section]:
    """The settings of all artifacts of a chain, each section once: as the last stage that has it used it."""
    found: dict[str, Section] = {}
    for link in chain:
        for section, values in (link.manifest.content["settings"] if link.manifest else {}).items():
            name = f"{section} (model)" if section == "download" and "models" in link.path.parts else section
            if isinstance(values, Mapping):
                found[name] = Section(name, _settings(section, values))
    return list(found.values())


def _settings(section: str, values: Mapping[str, Any]) -> list[Setting]:
    model = MODELS.get(values.get("source", "") if section == "download" else section, Settings)
    result = []
    for key, value in values.items():
        field = model.model_fields.get(key)
        changed = field is not None and (field.is_required() or value != field.default)
        result.append(Setting(key, _text(value), changed, (field.description or "") if field else ""))
    return result


def _text(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
