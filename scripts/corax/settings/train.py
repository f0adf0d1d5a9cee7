"""Settings of `train`; keys as in transformers' TrainingArguments."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from corax.settings.base import Float, Settings, to_number


class TrainSettings(Settings):
    """The optimization.

    One optimizer step sees `plan.packs_per_step` packs, whatever the number of devices: each of n takes every n-th
    pack of the step, one after the other. In transformers' words the global batch is per_device_train_batch_size (1)
    × n × gradient_accumulation_steps (packs_per_step / n).
    """

    optim: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = "adamw_torch"
    """AdamW: of PyTorch, or of bitsandbytes with 8-bit moments, or with moments that a full GPU moves to the host."""
    learning_rate: Float = Field(2e-4, gt=0)
    """Peak learning rate."""
    loraplus_lr_ratio: Float | None = Field(None, gt=0)
    """LoRA+ (arXiv 2402.12354): learning rate of the matrices B over that of all else; null: the same."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Schedule after the warm-up."""
    warmup_ratio: Float = Field(0.03, ge=0, lt=1)
    """Share of the steps with linearly rising learning rate."""
    weight_decay: Float = Field(0.0, ge=0)
    """AdamW weight decay."""
    adam_beta1: Float = Field(0.9, ge=0, lt=1)
    """AdamW first moment decay."""
    adam_beta2: Float = Field(0.999, ge=0, lt=1)
    """AdamW second moment decay."""
    adam_epsilon: Float = Field(1e-8, gt=0)
    """AdamW denominator term."""
    max_grad_norm: Float = Field(1.0, gt=0)
    """Gradients are scaled down to at most this L2 norm."""
    bits: Annotated[Literal[4, 8, 16], BeforeValidator(to_number)] = 4
    """Bits of the frozen base's linear layers: 4 (QLoRA), 8 (LLM.int8, arXiv 2208.07339) or 16 (the compute type)."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit data type of the frozen base."""
    bnb_4bit_use_double_quant: bool = True
    """Quantise the quantisation constants too."""
    llm_int8_threshold: Float = Field(6.0, ge=0)
    """Of 8 bits: columns with a larger activation are computed in 16 bits; 0: none are. They are found over all tokens
    of a pack, so packs of several samples want 0."""
    fsdp: bool = False
    """Divide weights, gradients and moments over the devices (PyTorch's fully_shard): with tuning.method full, for
    models too big for one device."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    layers_kept: int | None = Field(None, ge=0)
    """Layers whose activations are kept, with the fast layers on a GPU; null: as many as the plan says fit, with
    gradient_checkpointing none."""
    dequantised_base: bool | None = None
    """Keep the 16-bit values of the 4-bit base in memory, with the fast layers: 2 bytes a weight more, less time; null:
    where the plan says they fit."""
    deterministic: bool = True
    """Only algorithms that give the same bytes each time on a GPU; without it a resumed run differs in rounding."""
    eval_steps: int = Field(50, ge=1)
    """Validation every so many steps, and at the end."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """End after so many validations in a row without a new lowest loss; null: train all steps."""
    load_best_model_at_end: bool = False
    """Write the adapter of the validation with the lowest loss, not the last one."""
    save_steps: int = Field(50, ge=1)
    """A checkpoint every so many steps; does not change the result."""
    save_total_limit: int = Field(2, ge=1)
    """Checkpoints kept."""
    tensorboard: bool = False
    """Write curves for TensorBoard to logs/tensorboard/<run> while training; does not change the result."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of adapter initialisation and dropout."""
    threads: int = Field(2, ge=1, le=1024)
    """CPU threads of each rank; on a CPU the result is bitwise the same only for the same number."""
