"""What benchmarks/training.py trains: Llama-3-8B's shape with random weights, on packs of random tokens."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import bitsandbytes as bnb
import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from corax import hardware
from corax.settings.lora import LoraSettings
from corax.train.adapter import add_adapter
from corax.train.optimization import trained
from corax.train.packs import Batch, flatten
from corax.train.tensors import write_header


@dataclass(frozen=True)
class Shape:
    """A model's sizes and a pack's, and how many steps are timed."""

    model: dict[str, int]
    pack: int
    shrink: int
    """By which the recorded lengths of samples are divided."""
    r: int
    warmup: int = 3
    steps: int = 8

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.model["num_hidden_layers"]

    @property
    def config(self) -> LlamaConfig:
        """The model's configuration."""
        return LlamaConfig(**self.model, rope_theta=500000.0, tie_word_embeddings=False)


LLAMA = Shape(
    {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 32,
    },
    pack=8192,
    shrink=1,
    r=64,
)
TINY = Shape(
    {
        "hidden_size": 64,
        "intermediate_size": 192,
        "vocab_size": 300,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 3,
    },
    pack=256,
    shrink=16,
    r=4,
    warmup=1,
    steps=2,
)


def packs(shape: Shape, count: int) -> Iterator[Batch]:
    """Packs filled with samples of the recorded lengths; random tokens."""
    recorded = json.loads((Path(__file__).parent / "quantum_lengths.json").read_text())
    random = np.random.default_rng(0)
    pairs = [(p // shape.shrink + 1, c // shape.shrink + 1) for p, c in zip(*recorded.values(), strict=True)]
    for _ in range(count):
        left, samples = shape.pack, []
        while fitting := [pair for pair in pairs if sum(pair) <= left]:
            prompt, completion = (
                fitting[random.integers(len(fitting))] if left > shape.pack // 8 else max(fitting, key=sum)
            )
            ids = random.integers(10, shape.model["vocab_size"], prompt + completion).astype(np.uint32)
            samples.append((ids, np.arange(prompt, prompt + completion)))
            left -= prompt + completion
        yield flatten(samples)


def labels(batch: Batch) -> torch.Tensor:
    """The labels that trainers pass: -100 where there is no loss."""
    result = torch.full_like(batch.input_ids, -100)
    result[0, batch.predicts + 1] = batch.targets
    return result


def random_model(shape: Shape, device: torch.device, dropout: float = 0.0) -> Any:
    """A peft model on an NF4 base with random weights, made layer by layer on the device."""
    start = time.perf_counter()
    dtype = hardware.compute_dtype(device)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(shape.config, dtype=dtype, attn_implementation="sdpa")
    with torch.device(device):
        base.model.rotary_emb = type(base.model.rotary_emb)(shape.config)
    fill(base, device)
    base.is_loaded_in_4bit = base.is_quantized = True
    model = add_adapter(base.eval(), lora(shape, dropout), seed=0)
    print(f"model made in {time.perf_counter() - start:.1f} s", flush=True)
    return model


def lora(shape: Shape, dropout: float = 0.0) -> LoraSettings:
    """The adapter that all contenders train."""
    return LoraSettings(r=shape.r, lora_alpha=2.0 * shape.r, lora_dropout=dropout)


def fill(base: Any, device: torch.device) -> None:
    """Give every weight of `base` its random values, the same for each contender; block linears in NF4."""
    dtype = hardware.compute_dtype(device)
    for number, (name, module) in enumerate(list(base.named_modules())):
        weight = getattr(module, "weight", None)
        if weight is None or "lora" in name or "rotary" in name:
            continue
        if "norm" in name:
            module.weight = torch.nn.Parameter(torch.ones(weight.shape, dtype=dtype, device=device), False)
            continue
        torch.manual_seed(number)
        rows, columns = (
            weight.shape if isinstance(module, torch.nn.Embedding) else (module.out_features, module.in_features)
        )
        values = torch.empty(rows, columns, dtype=dtype, device=device).normal_(std=0.02)
        if ".layers." not in name:
            module.weight = torch.nn.Parameter(values, False)
            continue
        options: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
        if not isinstance(module, bnb.nn.Linear4bit):
            parent, _, child = name.rpartition(".")
            module = bnb.nn.Linear4bit(columns, rows, bias=False, compute_dtype=dtype, device="meta", **options)
            base.get_submodule(parent).add_module(child, module)
        module.weight = bnb.nn.Params4bit(values, requires_grad=False, module=module, **options).to(device)


def reset_adapter(model: Any) -> list[torch.nn.Parameter]:
    """The adapter's parameters, set back to a start that is the same for all contenders."""
    adapter = trained(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapter.items():
            parameter.zero_() if "lora_B" in name else parameter.normal_(std=0.01)
    return list(adapter.values())


def write_zeros(shape: Shape, folder: Path) -> None:
    """A 16-bit model folder whose weights are zeros that take no disk space; `fill` gives values after loading."""
    config = shape.config
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.save_pretrained(folder)
    with torch.device("meta"):
        tensors = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).state_dict()
    with (folder / "model.safetensors").open("wb") as file:
        size = write_header(file, tensors)
        file.truncate(file.tell() + size)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of a few words, which some contenders ask for and none uses."""
    words = {f"<{number}>": number for number in range(300)} | {"<s>": 300, "</s>": 301, "<pad>": 302}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))  # noqa: S106
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")  # noqa: S106
    fast.save_pretrained(folder)
