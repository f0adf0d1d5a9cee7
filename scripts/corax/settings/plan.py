"""Settings of `plan`: packs, steps, and the card they must fit."""

from typing import Literal

from pydantic import Field

from corax.settings.base import Float, Settings

TRAIN_KEYS = (
    "bits",
    "bnb_4bit_use_double_quant",
    "dequantised_base",
    "eval_steps",
    "fsdp",
    "gradient_checkpointing",
    "layers_kept",
    "llm_int8_threshold",
    "optim",
    "threads",
)
"""The keys of TrainSettings that memory, time and refusals depend on; a change of another leaves the plan as it is."""


class PlanSettings(Settings):
    """Which samples are learnt in which order, and on what."""

    max_length: int = Field(2048, ge=8, le=2**24)
    """Context: the most tokens in one pack. Longer held-out samples are passed over after the training too."""
    packing: bool = True
    """Put several samples into one pack (they never see each other); otherwise one sample a pack."""
    over_long: Literal["stop", "drop"] = "stop"
    """What to do about a sample longer than `max_length`; both name it."""
    packs_per_step: int = Field(16, ge=1)
    """Packs in one optimizer step (the global batch), whatever the number of devices."""
    num_train_epochs: Float = Field(1.0, gt=0, le=1000)
    """Passes over the training data; ignored where `max_steps` is given."""
    max_steps: int | None = Field(None, ge=1, le=10**7)
    """Optimizer steps; the data are repeated in a new order as often as needed."""
    validation_samples: int = Field(256, ge=1)
    """At most so many validation samples are used during training, the first ones."""
    seed: int = Field(0, ge=0)
    """Seed of the order of the samples."""
    device: Literal["cpu", "a100-40gb", "a100-80gb", "h100-80gb", "h200-141gb"] = "cpu"
    """What to train on: fixes memory and speed in the estimate."""
    devices: int = Field(1, ge=1)
    """Number of devices (ranks) of one node."""
    price_per_gpu_hour: Float | None = Field(None, gt=0)
    """What a GPU costs an hour, in any currency; the plan then says what the training costs."""
