"""What is trained on a base model: a LoRA adapter, all weights, or another of peft's methods; and how it is saved."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors import safe_open

from corax.errors import CoraxError
from corax.model import stored_dtype
from corax.settings.lora import LoraSettings
from corax.settings.tuning import CHANGED_BASE, TuningSettings
from corax.train import sharded


def add_adapter(
    model: Any,
    lora: LoraSettings,
    seed: int,
    tuning: TuningSettings | None = None,
    new_tokens: Sequence[int] = (),
) -> Any:
    """`model` with what `tuning` (default: LoRA) trains, in float32, and all else frozen.

    With LoRA the embeddings of the ids `new_tokens` are trained too. Raises CoraxError if a module that `lora` names
    does not exist or cannot be trained, or if peft does not know the method for this architecture.
    """
    tuning = tuning or TuningSettings()
    torch.manual_seed(seed)
    if tuning.method == "full":
        return model.requires_grad_()
    config = _lora(model, lora, new_tokens) if tuning.method == "lora" else _other(model, tuning)
    try:
        result = get_peft_model(model, config)
    except ValueError as error:
        key = "lora.target_modules" if tuning.method == "lora" else f"tuning.method {tuning.method}"
        raise CoraxError(f"{key}: {str(error).splitlines()[0]}") from None
    for parameter in result.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if tuning.method == "lora" and lora.init_lora_weights == "loftq":
        _mend_rounding(result, Path(model.config.name_or_path))
    return result


def start_on_changed_base(model: Any) -> dict[str, torch.Tensor] | None:
    """The LoRA matrices of `model` as they are, by name, if they were taken out of the base (PiSSA, OLoRA)."""
    if not isinstance(model, PeftModel) or getattr(_config(model), "init_lora_weights", True) not in CHANGED_BASE:
        return None
    return {name: value.detach().clone() for name, value in model.named_parameters() if ".lora_" in name}


def save(model: Any, folder: Path, start: Mapping[str, torch.Tensor] | None, base: Path) -> None:
    """Write what was trained into `folder`: peft's adapter files, or all weights in the type of the folder `base`.

    `start` is what `start_on_changed_base` gave before training. Of divided weights the other ranks take part.
    """
    if sharded.is_divided(model):
        sharded.save(model, folder, base)
        return
    if not isinstance(model, PeftModel):
        model.to(stored_dtype(base)).save_pretrained(str(folder))
        return
    if start:
        _onto_original_base(model, start)
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)


def _config(model: PeftModel) -> Any:
    return model.peft_config["default"]


def _task(model: Any) -> str:
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def _lora(model: Any, lora: LoraSettings, new_tokens: Sequence[int]) -> LoraConfig:
    tied = bool(model.config.tie_word_embeddings)
    embedding = _names(model, model.get_input_embeddings())
    for name in lora.modules_to_save:
        _check_trainable(model, name, tied)
    start = lora.init_lora_weights
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules="all-linear" if lora.target_modules == ["all-linear"] else lora.target_modules,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=True if start in ("default", "loftq") else start,
        modules_to_save=list(lora.modules_to_save) or None,
        trainable_token_indices=_vocabulary_rows(model, lora, new_tokens, tied),
        ensure_weight_tying=tied and not embedding.isdisjoint(lora.modules_to_save),
        task_type=_task(model),
    )


def _check_trainable(model: Any, name: str, tied: bool) -> None:
    """Raise CoraxError if no module of this name can be trained as a whole."""
    found = [module for path, module in model.named_modules() if path.split(".")[-1] == name]
    head = model.get_output_embeddings()
    if not found:
        raise CoraxError(f"lora.modules_to_save: {name!r} names no module of the model")
    if tied and head is not None and any(module is head for module in found):
        raise CoraxError(f"lora.modules_to_save: {name!r} shares its weight with the embedding: name that instead")
    if any(isinstance(weight, torch.Tensor) and not weight.is_floating_point() for weight in map(_weight, found)):
        raise CoraxError(f"lora.modules_to_save: {name!r} is quantised, so only an adapter on it can be trained")


def _weight(module: Any) -> Any:
    return getattr(module, "weight", None)


def _vocabulary_rows(
    model: Any, lora: LoraSettings, new_tokens: Sequence[int], tied: bool
) -> dict[str, list[int]] | None:
    """The rows of embedding and output head that peft trains; a tied head follows its embedding."""
    if not new_tokens:
        return None
    names = _names(model, model.get_input_embeddings()) | (
        set() if tied else _names(model, model.get_output_embeddings())
    )
    return {name: list(new_tokens) for name in sorted(names) if name not in lora.modules_to_save} or None


def _names(model: Any, wanted: Any) -> set[str]:
    """The last part of the name of the module `wanted`."""
    return {path.split(".")[-1] for path, module in model.named_modules() if module is wanted}


def _other(model: Any, tuning: TuningSettings) -> Any:
    task = _task(model)
    match tuning.method:
        case "ia3":
            return IA3Config(task_type=task)
        case "prompt_tuning":
            # From the embeddings of random tokens: numbers of unit variance would be many times too large.
            return PromptTuningConfig(
                task_type=task, num_virtual_tokens=tuning.num_virtual_tokens, prompt_tuning_init="SAMPLE_VOCAB"
            )
        case "prefix_tuning":
            return PrefixTuningConfig(task_type=task, num_virtual_tokens=tuning.num_virtual_tokens)
    layers = tuning.adapter_layers or model.config.num_hidden_layers
    return AdaptionPromptConfig(task_type=task, adapter_len=tuning.adapter_len, adapter_layers=layers)


@torch.no_grad()
def _mend_rounding(model: PeftModel, folder: Path) -> None:
    """Start each adapter at the best product of its rank for what 4 bits took away: LoftQ (arXiv 2310.08659), one step.

    W - 4 bits of W = U S Vᵀ; with the scale s: B = U √(S/s), A = √(S/s) Vᵀ. The 4-bit base stays as it is.
    """
    stored: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as content:
            stored |= dict.fromkeys(content.keys(), file)
    for name, module in model.get_base_model().named_modules():
        if "default" not in getattr(module, "lora_A", {}):
            continue
        if f"{name}.weight" not in stored:
            raise CoraxError(f"{folder}: {name}.weight is not stored as such: init_lora_weights loftq cannot serve")
        with safe_open(stored[f"{name}.weight"], framework="pt") as content:
            original = content.get_tensor(f"{name}.weight")
        weight = module.get_base_layer().weight
        rounded = dequantize_4bit(weight.data, weight.quant_state).float()
        lost = original.to(rounded.device, torch.float32) - rounded
        left, values, right = torch.linalg.svd(lost, full_matrices=False)
        rank = module.r["default"]
        root = (values[:rank] / module.scaling["default"]).sqrt()
        module.lora_B["default"].weight.copy_(left[:, :rank] * root)
        module.lora_A["default"].weight.copy_(root[:, None] * right[:rank])


@torch.no_grad()
def _onto_original_base(model: PeftModel, start: Mapping[str, torch.Tensor]) -> None:
    """Make the adapter one of the original base, by twice the rank: s (B A - B₀ A₀) = s [B | -B₀] [A; A₀].

    The conversion that peft's PiSSA and OLoRA documentation recommends for adapters that others load.
    """
    config = _config(model)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.data = torch.cat((parameter.data, start[name]))
        elif ".lora_B." in name:
            parameter.data = torch.cat((parameter.data, -start[name]), dim=1)
    config.r *= 2
    config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
    config.init_lora_weights = True
