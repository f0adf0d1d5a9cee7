"""Settings of the way to fine-tune, and which settings of it go together."""

from typing import Literal

from pydantic import Field

from corax.errors import CoraxError
from corax.settings.base import Settings
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings

Method = Literal["lora", "full", "ia3", "prompt_tuning", "prefix_tuning", "adaption_prompt"]
VIRTUAL_TOKENS = ("prompt_tuning", "prefix_tuning")
"""Methods that put trained tokens before each sample."""
BESIDE = (*VIRTUAL_TOKENS, "adaption_prompt")
"""Methods whose result lies beside the base's weights, in peft's format: nothing can be merged."""
NEW_TOKENS = ("lora", "full")
"""Methods that train the embeddings of a model's new tokens."""
CHANGED_BASE = ("pissa", "olora")
"""Starts of LoRA that take the adapter's first product out of the base."""


class TuningSettings(Settings):
    """What is trained."""

    method: Method = "lora"
    """What is trained: LoRA matrices, all weights, or one of peft's smaller methods; `lora.*` is for lora alone."""
    num_virtual_tokens: int = Field(20, ge=1)
    """Trained tokens before each sample, for prompt_tuning and prefix_tuning."""
    adapter_len: int = Field(10, ge=1)
    """Trained tokens in each adapted layer, for adaption_prompt."""
    adapter_layers: int | None = Field(None, ge=1)
    """Adapted layers, counted from the output, for adaption_prompt; null: all."""


def check(
    tuning: TuningSettings, lora: LoraSettings, train: TrainSettings, packing: bool, devices: int, has_encoder: bool
) -> None:
    """Raise CoraxError for a setting that the others, or the number of devices, exclude; `packing`: of the plan."""
    problem = conflict(tuning, lora, train, packing) or undividable(train, devices, has_encoder)
    if problem:
        raise CoraxError(problem)


def conflict(tuning: TuningSettings, lora: LoraSettings, train: TrainSettings, packing: bool) -> str | None:
    """The first setting that the others exclude, as one line that says what is allowed; None if there is none."""
    method, start = tuning.method, lora.init_lora_weights
    if method == "prefix_tuning" and train.gradient_checkpointing:
        return "tuning.method is 'prefix_tuning', which recomputed layers lose: set train.gradient_checkpointing: false"
    if train.fsdp and method != "full":
        return f"train.fsdp is true, allowed with tuning.method: full; found {method!r}, which needs it not"
    if train.fsdp and train.optim != "adamw_torch":
        return f"train.fsdp is true, allowed with train.optim: adamw_torch; found {train.optim!r}"
    if method != "full" and train.bits == 8 and train.llm_int8_threshold and packing:
        return (
            f"train.llm_int8_threshold is {train.llm_int8_threshold:g}, whose columns are found over a pack's tokens, "
            "so samples would change each other: set train.llm_int8_threshold: 0 or plan.packing: false"
        )
    if method != "lora":
        return None
    if start in CHANGED_BASE and train.bits != 16:
        return (
            f"lora.init_lora_weights is {start!r}, which changes the base; once rounded to {train.bits} bits it cannot "
            "be changed back: set train.bits: 16, or take loftq, default or gaussian"
        )
    if start == "loftq" and train.bits != 4:
        return f"lora.init_lora_weights is 'loftq', which mends 4-bit rounding: train.bits is {train.bits}, allowed: 4"
    if start in CHANGED_BASE and lora.use_dora:
        return f"lora.use_dora is true, allowed with lora.init_lora_weights: default, gaussian; found {start!r}"
    return None


def undividable(train: TrainSettings, devices: int, has_encoder: bool) -> str | None:
    """Why `train.fsdp` cannot divide a model over so many devices, as one line; None if it can, or is not asked to."""
    if train.fsdp and devices == 1:
        return "train.fsdp is true, which divides a model over several devices: plan.devices is 1, allowed: 2 and more"
    if train.fsdp and has_encoder:
        return (
            "train.fsdp is true, allowed with decoder-only models: with an encoder ranks make different numbers of "
            "passes, and could not gather its layers together"
        )
    return None
