"""Loading of models and adapters: local folders only, safetensors only, no code from the folder, no noise."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from corax.architecture import is_encoder_decoder
from corax.errors import CoraxError

# peft still asks for an attribute that transformers renamed.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
# One line for each 8-bit layer and each time it computes in another type than float16.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


ADAPTER = "adapter"
"""Folder inside a model folder with what could not be merged into the weights: prefix or adaption prompt."""


def load_plain(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The language model in `folder`, and its `ADAPTER` if it has one: all weights in `dtype`, in evaluation mode.

    Raises CoraxError if the folder is no model folder or its weights are incomplete.
    """
    model = _load(folder, dtype=dtype, device_map={"": device})
    return load_adapter(model, folder / ADAPTER) if (folder / ADAPTER).is_dir() else model


def load_quantised(
    folder: Path,
    compute_dtype: torch.dtype,
    device: torch.device,
    quant_type: str = "nf4",
    double_quant: bool = True,
) -> Any:
    """The model with the linear layers of its blocks in 4 bits and the rest in `compute_dtype`.

    The quantisation of QLoRA (arXiv 2305.14314): `quant_type` nf4 or fp4 in blocks of 64 weights, with
    `double_quant` the block constants in 8 bits too. Embedding and output head stay unquantised.
    """
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
    )
    return _load(folder, dtype=compute_dtype, device_map={"": device}, quantization_config=quantisation)


def load_base(folder: Path, method: str, train: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """The model as training by `method` starts from it; `train` has the keys of TrainSettings.

    All weights are trained in float32; of a frozen base the linear layers of the blocks are kept in `train["bits"]`,
    8 bits being those of LLM.int8 (arXiv 2208.07339), and the rest is in the compute type `dtype`.
    """
    if method == "full":
        return load_plain(folder, torch.float32, device)
    if train["bits"] == 16:
        return load_plain(folder, dtype, device)
    if train["bits"] == 8:
        eight = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=float(train["llm_int8_threshold"]))
        return _load(folder, dtype=dtype, device_map={"": device}, quantization_config=eight)
    quant_type, double_quant = str(train["bnb_4bit_quant_type"]), bool(train["bnb_4bit_use_double_quant"])
    return load_quantised(folder, dtype, device, quant_type, double_quant)


def empty_model(folder: Path) -> Any:
    """The language model that `folder` describes, in evaluation mode: float32 weights on the device `meta`.

    Raises CoraxError as `load_plain` does.
    """
    if not (folder / "config.json").is_file():
        raise CoraxError(f"{folder}: no model folder, config.json is missing")
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = model_class(folder).from_config(
            config, dtype=torch.float32, trust_remote_code=False, attn_implementation=_attention(folder)
        )
    model.tie_weights()  # accelerate made a weight of each place that shares one
    return model.eval()


def load_trained(
    model: Path, adapter: Path, method: str, train: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> Any:
    """What training by `method` made: the adapter on its base as `load_base` loads it, or the trained weights."""
    if method == "full":
        return load_plain(adapter, dtype, device)
    return load_adapter(load_base(model, method, train, dtype, device), adapter)


def load_adapter(model: Any, folder: Path) -> Any:
    """`model` with peft's adapter in `folder` put onto it, frozen."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise CoraxError(f"{folder}: no adapter folder, {name} is missing")
    return PeftModel.from_pretrained(model, str(folder))


def model_class(folder: Path) -> Any:
    """transformers' class for the model in `folder`: a causal language model, or an encoder and a decoder."""
    return AutoModelForSeq2SeqLM if is_encoder_decoder(folder) else AutoModelForCausalLM


def stored_dtype(folder: Path) -> torch.dtype:
    """The type of the weights in `folder`, by its configuration."""
    dtype: torch.dtype = AutoConfig.from_pretrained(str(folder), local_files_only=True).dtype or torch.float32
    return dtype


def _load(folder: Path, **options: Any) -> Any:
    if not (folder / "config.json").is_file():
        raise CoraxError(f"{folder}: no model folder, config.json is missing")
    try:
        model, found = model_class(folder).from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=_attention(folder),
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CoraxError(f"{folder}: transformers cannot load this model: {reason}") from None
    # transformers fills missing weights with random numbers and only warns.
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise CoraxError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}")
    return model.eval()


def _attention(folder: Path) -> str:
    """PyTorch's attention, or plain operations where scores are soft-capped, which it does not know (Gemma 2)."""
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
