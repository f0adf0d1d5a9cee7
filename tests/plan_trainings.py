"""Trainings to plan for, from the configurations of real models."""

from pathlib import Path
from typing import Any

from corax.plan import devices, model
from corax.plan.devices import Device
from corax.plan.memory import Component, Training
from corax.plan.model import Model
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings

CONFIGS = Path(__file__).parent / "data" / "configs"
H100 = devices.GPUS["h100-80gb"]


def described(name: str) -> Model:
    """The model of a configuration in tests/data/configs."""
    return model.from_config(CONFIGS / f"{name}.json")


def training(
    config: str | Model = "llama-3-8b",
    device: Device = H100,
    tokens: int = 8192,
    targets: int | None = None,
    r: int = 64,
    dropout: float = 0.0,
    ranks: int = 1,
    longest_sample: int = 1132,
    samples: int = 1,
    packs: int = 1,
    method: str = "lora",
    lora: dict[str, Any] | None = None,
    **train: Any,
) -> Training:
    """A training that differs from QLoRA of Llama-3-8B in the given settings."""
    return Training(
        model=described(config) if isinstance(config, str) else config,
        device=device,
        ranks=ranks,
        lora=LoraSettings(**{"r": r, "lora_dropout": dropout, **(lora or {})}),
        train=TrainSettings(**train),
        tuning=TuningSettings.model_validate({"method": method}),
        tokens=tokens,
        targets=tokens if targets is None else targets,
        longest_sample=longest_sample,
        packs_per_rank=packs,
        samples=samples,
    )


def sizes(components: list[Component]) -> dict[str, int]:
    """Bytes by component."""
    return {component.component: component.bytes for component in components}
