"""Optimizer and learning rate."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from corax.errors import CoraxError
from corax.settings.train import TrainSettings


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """What is trained of `model`, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizer(named: Mapping[str, torch.nn.Parameter], train: TrainSettings) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) over the parameters `named`, of PyTorch (on a GPU in one kernel) or bitsandbytes.

    With LoRA+ (arXiv 2402.12354) the matrices B are a group of their own. Raises CoraxError if there are none.
    """
    options: dict[str, Any] = {
        "lr": train.learning_rate,
        "betas": (train.adam_beta1, train.adam_beta2),
        "eps": train.adam_epsilon,
        "weight_decay": train.weight_decay,
    }
    groups = _groups(named, train.loraplus_lr_ratio)
    if train.optim == "adamw_torch":
        return torch.optim.AdamW(groups, **options, fused=next(iter(named.values())).is_cuda)
    from bitsandbytes import optim  # a second of import that only these need

    kinds = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
        "paged_adamw_32bit": optim.PagedAdamW32bit,
    }
    optimizer: torch.optim.Optimizer = kinds[train.optim](groups, **options)
    return optimizer


def _groups(named: Mapping[str, torch.nn.Parameter], ratio: float | None) -> list[dict[str, Any]]:
    """Parameter groups; `lr_ratio` is a group's learning rate over the schedule's."""
    if ratio is None:
        return [{"params": list(named.values()), "lr_ratio": 1.0}]
    fast = {name: parameter for name, parameter in named.items() if re.search(r"\.lora_(embedding_)?B\.", name)}
    if not fast:
        raise CoraxError(f"train.loraplus_lr_ratio: {ratio} found, but nothing that is trained is a LoRA matrix B")
    slow = [parameter for name, parameter in named.items() if name not in fast]
    return [{"params": slow, "lr_ratio": 1.0}, {"params": list(fast.values()), "lr_ratio": ratio}]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Make `rate` the learning rate, times each group's own ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_ratio"]


def learning_rate(step: int, steps: int, train: TrainSettings) -> float:
    """Learning rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then the schedule to 0."""
    warmup = math.ceil(train.warmup_ratio * steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[train.lr_scheduler_type]
    return train.learning_rate * factor
